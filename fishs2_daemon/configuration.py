"""Reading, printing and re-reading the settings."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from dotenv import dotenv_values
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from fishs2_daemon.artifacts.artifact import locate
from fishs2_daemon.engine_choice import choose_engine
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.hardware import look
from fishs2_daemon.settings import (
    ENGINE_SETTINGS,
    ENV_PREFIX,
    RELOADABLE,
    RETIRED,
    SWITCHABLE,
    Settings,
)
from fishs2_daemon.sizing.choice import choose_quant

#: Flags of `serve` and the setting that each one sets.
FLAGS = {
    "uri": "--uri", "host": "--http-host", "port": "--http-port", "http": "--no-http", "engine": "--engine",
    "model_path": "--model", "tokenizer_path": "--tokenizer",
    "model_quant": "--model-quant", "skip_downloads": "--skip-downloads", "force_downloads": "--force-downloads",
    "accept_license": "--accept-license", "backend": "--backend", "gpu_device": "--gpu-device",
    "n_gpu_layers": "--n-gpu-layers", "skip_gpu_check": "--skip-gpu-check", "voices_dir": "--voices-dir",
    "zeroconf": "--no-zeroconf", "zeroconf_name": "--zeroconf-name", "zeroconf_interface": "--zeroconf-interface",
    "log_level": "--log-level",
}  # fmt: skip

#: FISHS2_* names that `run.py` reads.
_FOREIGN = frozenset({"ggml_wheel", "temp_dir"})

#: What the choice between the engines depends on, and so has an effect even where it is for the other one.
_CHOOSING = frozenset({"model_path", "tokenizer_path"})

_SHOWN_CHARS = 60

#: Engines whose model has one.
_OF_QUANTS = ("s2", "s2cpp")


def load(**overrides: Any) -> Settings:
    """Settings from the environment, `.env` and `overrides` (None: not given).

    `auto` as quantisation becomes the one for this machine. Raises `ConfigError` with one line that names the first
    wrong setting, what was given and what is allowed.
    """
    return _completed(_read(overrides))


def load_again(settings: Settings, **overrides: Any) -> Settings:
    """As `load`, for a daemon that runs with `settings`: what it decided by the memory that was free at its start is
    not decided again, as it has taken that memory since."""
    fresh = _read(overrides)
    if fresh.model_quant == "auto":
        if settings.quant_reason:
            fresh.decide_quant(settings.model_quant, settings.quant_reason, fits=settings.quant_fits)
        elif choose_engine(settings).name in _OF_QUANTS:
            raise ConfigError(
                f"{ENV_PREFIX}MODEL_QUANT: 'auto' is decided before a model is loaded: restart the daemon"
            )
    return _completed(fresh)


def take_over(settings: Settings, fresh: Settings) -> list[str]:
    """Change what may change at run time, in place. Returns the names that differ but need a restart."""
    stale = []
    for name in differing(settings, fresh):
        if name in RELOADABLE or name in SWITCHABLE:
            setattr(settings, name, getattr(fresh, name))
        else:
            stale.append(name)
    return stale


def differing(settings: Settings, fresh: Settings) -> list[str]:
    """Names of settings that differ."""
    return [name for name in Settings.model_fields if getattr(settings, name) != getattr(fresh, name)]


def describe(settings: Settings) -> list[str]:
    """One `FISHS2_NAME=value` line a setting; secrets are counted, not shown."""
    return [f"{ENV_PREFIX}{name.upper()}={_shown(getattr(settings, name))}" for name in Settings.model_fields]


def given_names() -> list[str]:
    """FISHS2_* names of the environment and of `.env`, whether they mean something or not."""
    names = {*os.environ, *dotenv_values(".env", encoding="utf-8-sig")}
    return sorted(name for name in names if name.upper().startswith(ENV_PREFIX))


def without_effect(settings: Settings, names: Iterable[str] = ()) -> list[str]:
    """FISHS2_* names that are known but do nothing in this version.

    These are settings that the engine which will speak does not act on, when they differ from their default, and those
    of `names` (see `given_names`) that have no meaning any more.
    """
    others = frozenset().union(*ENGINE_SETTINGS.values()) - ENGINE_SETTINGS[choose_engine(settings).name] - _CHOOSING
    idle = {
        name
        for name in settings.model_fields_set & others
        if getattr(settings, name) != Settings.model_fields[name].get_default(call_default_factory=True)
    }
    retired = {_field_name(name) for name in names} & RETIRED
    return sorted(f"{ENV_PREFIX}{name.upper()}" for name in idle | retired)


def unknown_names(names: Iterable[str]) -> list[str]:
    """Those of `names` (see `given_names`) that mean nothing here: mostly typing slips."""
    known = {*Settings.model_fields, *RETIRED, *_FOREIGN}
    return sorted(name for name in names if name.upper().startswith(ENV_PREFIX) and _field_name(name) not in known)


def _read(overrides: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env: cannot be read: {error}") from None


def _completed(settings: Settings) -> Settings:
    if settings.model_quant == "auto":
        _decide_quant(settings)
    files = locate(settings)
    settings.model_path, settings.tokenizer_path = files.model, files.tokenizer
    settings.api_keys = [*settings.api_keys, *_keys_from_files(settings)]
    return settings


def _decide_quant(settings: Settings) -> None:
    is_named = "model_path" in settings.model_fields_set and os.path.isfile(settings.model_path)
    if is_named or settings.engine not in ("auto", *_OF_QUANTS):  # it is for nobody
        settings.decide_quant(Settings.model_fields["model_quant"].default, "", fits=True)
    else:
        choice = choose_quant(settings, look(settings))
        settings.decide_quant(choice.quant, choice.reason, fits=choice.fits)


def _field_name(name: str) -> str:
    return name.lower().removeprefix(ENV_PREFIX.lower())


def _keys_from_files(settings: Settings) -> list[SecretStr]:
    files = [settings.api_keys_file] if settings.api_keys_file else []
    if directory := os.environ.get("CREDENTIALS_DIRECTORY"):
        credential = Path(directory, "api-keys")
        files += [credential] if credential.exists() else []
    keys: list[SecretStr] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{ENV_PREFIX}API_KEYS_FILE: {str(file)!r} is not allowed; allowed: a text file with one key a line"
                f" ({getattr(error, 'strerror', None) or 'not UTF-8'})"
            ) from None
        keys += [SecretStr(line.strip()) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return keys


def _shown(value: Any) -> str:
    if isinstance(value, list):
        if value and all(isinstance(item, SecretStr) for item in value):
            return f"[{len(value)} hidden]"
        text = ",".join(str(item) for item in value)
    else:
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else repr(text)


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0])
    flag = f" ({FLAGS[name]})" if name in FLAGS else ""
    given = "a value (hidden)" if name == "api_keys" else repr(first["input"])
    if len(given) > _SHOWN_CHARS:
        given = given[:_SHOWN_CHARS] + "..."
    allowed = _allowed(Settings.model_fields[name], first["msg"])
    return f"{ENV_PREFIX}{name.upper()}{flag}: {given} is not allowed; allowed: {allowed}"


def _allowed(field: FieldInfo, message: str) -> str:
    """What `field` takes, in words; pydantic's own `message` where its type says too little."""
    choices = get_args(field.annotation)
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(choices)
    if field.annotation is bool:
        return "true or false"
    if field.annotation in (int, float):
        limits = {
            key: getattr(rule, key) for rule in field.metadata for key in ("ge", "gt", "le") if hasattr(rule, key)
        }
        kind = "a whole number" if field.annotation is int else "a number"
        if "gt" in limits:
            return f"{kind} more than {limits['gt']}, at most {limits['le']}"
        return f"{kind} from {limits['ge']}" + (f" to {limits['le']}" if "le" in limits else " up")
    return message.removeprefix("Value error, ").removeprefix("Input should be ").removeprefix("String should have ")
