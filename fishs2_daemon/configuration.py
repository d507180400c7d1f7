"""Reading, printing and re-reading the settings."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr, ValidationError

from fishs2_daemon.errors import ConfigError
from fishs2_daemon.settings import ENV_PREFIX, RELOADABLE, WITHOUT_EFFECT_YET, Settings

#: Flags of `serve` and the setting that each one sets.
FLAGS = {
    "uri": "--uri", "host": "--http-host", "port": "--http-port", "http": "--no-http", "engine": "--engine",
    "model_path": "--model", "tokenizer_path": "--tokenizer", "voices_dir": "--voices-dir",
    "zeroconf": "--no-zeroconf", "zeroconf_name": "--zeroconf-name", "zeroconf_interface": "--zeroconf-interface",
    "log_level": "--log-level",
}  # fmt: skip

#: FISHS2_* names that other programs read: `run.py` and the tests' own switches.
_FOREIGN = frozenset({"hf_repo_id", "model_url", "tokenizer_url", "model_sha256", "tokenizer_sha256", "runtime_dir"})

_SHOWN_CHARS = 60


def load(**overrides: Any) -> Settings:
    """Settings from the environment, `.env` and `overrides` (None: not given).

    Raises `ConfigError` with one line that names the first wrong setting, what was given and what is allowed.
    """
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env: cannot be read: {error}") from None
    settings.api_keys = [*settings.api_keys, *_keys_from_files(settings)]
    return settings


def reload(settings: Settings, **overrides: Any) -> list[str]:
    """Take over what may change at run time, in place. Returns the names that changed but need a restart."""
    fresh = load(**overrides)
    stale = []
    for name in Settings.model_fields:
        value = getattr(fresh, name)
        if value == getattr(settings, name):
            continue
        if name in RELOADABLE:
            setattr(settings, name, value)
        else:
            stale.append(name)
    return stale


def describe(settings: Settings) -> list[str]:
    """One `FISHS2_NAME=value` line a setting; secrets are counted, not shown."""
    return [f"{ENV_PREFIX}{name.upper()}={_shown(getattr(settings, name))}" for name in Settings.model_fields]


def without_effect(settings: Settings) -> list[str]:
    """Names of settings that were given but that only the S2 engine, not part of this version, will act on."""
    return sorted(
        f"{ENV_PREFIX}{name.upper()}"
        for name in settings.model_fields_set & WITHOUT_EFFECT_YET
        if getattr(settings, name) != Settings.model_fields[name].get_default(call_default_factory=True)
    )


def unknown_names(environment: Iterable[str]) -> list[str]:
    """FISHS2_* names that mean nothing here: mostly typing slips."""
    known = {*Settings.model_fields, *_FOREIGN}
    prefixed = (name for name in environment if name.upper().startswith(ENV_PREFIX))
    return sorted(name for name in prefixed if name[len(ENV_PREFIX) :].lower() not in known)


def _keys_from_files(settings: Settings) -> list[SecretStr]:
    files = [settings.api_keys_file] if settings.api_keys_file else []
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory, "api-keys")
        files += [credential] if credential.exists() else []
    keys: list[SecretStr] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{ENV_PREFIX}API_KEYS_FILE: {file}: cannot be read ({error}); allowed: a text file with one key a line"
            ) from None
        keys += [SecretStr(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return keys


def _shown(value: Any) -> str:
    if isinstance(value, list):
        if value and all(isinstance(item, SecretStr) for item in value):
            return f"[{len(value)} hidden]"
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    field = Settings.model_fields.get(name)
    flag = f" ({FLAGS[name]})" if name in FLAGS else ""
    given = "(hidden)" if name == "api_keys" else repr(first["input"])
    if len(given) > _SHOWN_CHARS:
        given = given[:_SHOWN_CHARS] + "..."
    choices = get_args(field.annotation) if field else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        allowed = ", ".join(choices)
    else:
        allowed = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{ENV_PREFIX}{name.upper()}{flag}: {given} is not allowed; allowed: {allowed}"
