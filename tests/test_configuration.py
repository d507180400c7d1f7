"""Reading, printing and re-reading the settings: one line for what is wrong, and no secret in any of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from fishs2_daemon import configuration
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.settings import RELOADABLE, SWITCHABLE, Settings
from fishs2_daemon.sizing.choice import Choice

SECRET = "sk-very-secret"


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name in [name for name in os.environ if name.upper().startswith("FISHS2_")]:
        monkeypatch.delenv(name)


@contextmanager
def _given(**environment: str) -> Iterator[None]:
    with mock.patch.dict(os.environ, {f"FISHS2_{name}": value for name, value in environment.items()}):
        yield


def _refusal(**environment: str) -> str:
    with _given(**environment), pytest.raises(ConfigError) as refused:
        configuration.load()
    return str(refused.value)


# Where values come from


def test_the_environment_beats_env_file_and_overrides_beat_both() -> None:
    Path(".env").write_text("FISHS2_PORT=1\nFISHS2_HOST=a\nFISHS2_LOG_LEVEL=debug\nSOMETHING_ELSE=1\n")
    with _given(PORT="2", HOST="b"):
        settings = configuration.load(port=3)
    assert (settings.port, settings.host, settings.log_level) == (3, "b", "DEBUG")


def test_an_override_of_none_was_not_given() -> None:
    with _given(PORT="2"):
        assert configuration.load(port=None, uri=None).port == 2


def test_flags_name_settings() -> None:
    assert configuration.FLAGS.keys() <= Settings.model_fields.keys()


def test_an_env_file_that_is_no_text_is_one_line() -> None:
    Path(".env").write_bytes(b"FISHS2_PORT=\xff\xfe\n")
    with pytest.raises(ConfigError, match=r"^\.env: cannot be read") as refused:
        configuration.load()
    assert len(str(refused.value).splitlines()) == 1


# Wrong values


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PORT", "70000", "FISHS2_PORT (--http-port): '70000' is not allowed; allowed: a whole number from 0 to 65535"),
        ("PORT", "", "FISHS2_PORT (--http-port): '' is not allowed; allowed: a whole number from 0 to 65535"),
        ("LOG_MAX_BYTES", "1", "FISHS2_LOG_MAX_BYTES: '1' is not allowed; allowed: a whole number from 1024 up"),
        (
            *("STALL_TIMEOUT_S", "0"),
            "FISHS2_STALL_TIMEOUT_S: '0' is not allowed; allowed: a number more than 0, at most 86400",
        ),
        ("TEMPERATURE", "nan", "FISHS2_TEMPERATURE: 'nan' is not allowed; allowed: a number from 0 to 2"),
        ("HTTP", "maybe", "FISHS2_HTTP (--no-http): 'maybe' is not allowed; allowed: true or false"),
        ("ENGINE", "s3", "FISHS2_ENGINE (--engine): 's3' is not allowed; allowed: auto, espeak, s2, s2cpp, remote"),
        ("HOST", "", "FISHS2_HOST (--http-host): '' is not allowed; allowed: at least 1 character"),
        ("REQUEST_ID_HEADER", "a b", "FISHS2_REQUEST_ID_HEADER: 'a b' is not allowed; allowed: letters, digits and -"),
        (
            *("URI", ","),
            "FISHS2_URI (--uri): ',' is not allowed; allowed: at least one of tcp://host:port, unix:///path, stdio://",
        ),
        (
            *("ALLOWED_NETWORKS", "::1,x\n"),
            "FISHS2_ALLOWED_NETWORKS: '::1,x\\n' is not allowed; "
            "allowed: networks such as 192.168.1.0/24 or fd00::/8, not 'x'",
        ),
        ("LANGUAGES", "[1", "FISHS2_LANGUAGES: '[1' is not allowed; allowed: a list is written a,b or as a JSON array"),
    ],
)
def test_a_wrong_value_names_setting_given_and_allowed(name: str, value: str, line: str) -> None:
    assert _refusal(**{name: value}) == line


def test_a_long_value_is_shortened() -> None:
    assert len(_refusal(PORT="9" * 10_000)) < 200


def test_a_wrong_value_in_the_env_file() -> None:
    Path(".env").write_text("FISHS2_PORT=x\n")
    assert _refusal().startswith("FISHS2_PORT (--http-port): 'x' is not allowed")


_text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80)
_values = st.one_of(
    _text,
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(str),
    _text.map(lambda text: f"[{text}"),
    st.lists(st.one_of(_text, st.integers(), st.none()), max_size=3).map(lambda items: str(items).replace("'", '"')),
)


@pytest.mark.parametrize("name", Settings.model_fields)
@hypothesis.settings(max_examples=30, deadline=None)
@given(value=_values)
def test_any_text_loads_or_is_refused_in_one_line(name: str, value: str) -> None:
    with _given(**{name.upper(): value}):
        try:
            settings = configuration.load()
        except ConfigError as error:
            (line,) = str(error).splitlines()
            assert line.startswith((f"FISHS2_{name.upper()}: ", f"FISHS2_{name.upper()} (--"))
            assert " is not allowed; allowed: " in line
        else:
            described = "\n".join(configuration.describe(settings)).splitlines()
            names = [line.partition("=")[0] for line in described]
            assert names == [f"FISHS2_{field.upper()}" for field in Settings.model_fields]


# Secrets


@pytest.mark.parametrize("value", [f'["{SECRET}", 5]', f'["{SECRET}"', f'[["{SECRET}"]]', f'[{{"{SECRET}": 1}}]'])
def test_a_wrong_key_list_does_not_show_its_keys(value: str) -> None:
    line = _refusal(API_KEYS=value)
    assert line.startswith("FISHS2_API_KEYS: a value (hidden) is not allowed; allowed: ")
    assert SECRET not in line


def test_describe_counts_keys_and_shows_the_rest() -> None:
    with _given(API_KEYS=f"{SECRET},other", MODEL_ALIASES="a,b"):
        settings = configuration.load()
    lines = configuration.describe(settings)
    assert "FISHS2_API_KEYS=[2 hidden]" in lines
    assert "FISHS2_MODEL_ALIASES=a,b" in lines
    assert "FISHS2_LOGS_DIR=" in lines
    assert len(lines) == len(Settings.model_fields)
    assert SECRET not in "".join(lines) + repr(settings)


def test_keys_from_a_file_and_from_systemds_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("keys").write_text("# ours\nfirst\n\n  second  \n")
    Path("api-keys").write_text("third\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", ".")
    with _given(API_KEYS="zeroth", API_KEYS_FILE="keys"):
        settings = configuration.load()
    assert settings.api_keys == [SecretStr(key) for key in ("zeroth", "first", "second", "third")]


@pytest.mark.parametrize("value", ["nowhere", ".", "binary", "two\nlines"])
def test_a_key_file_that_cannot_be_read_is_one_line(value: str) -> None:
    Path("binary").write_bytes(b"\xff\xfe")
    line = _refusal(API_KEYS_FILE=value)
    assert line.startswith(f"FISHS2_API_KEYS_FILE: {value!r} is not allowed; allowed: a text file with one key a line")
    assert len(line.splitlines()) == 1


# Reload


def _reload(settings: Settings, **overrides: object) -> list[str]:
    return configuration.take_over(settings, configuration.load_again(settings, **overrides))


def test_reload_takes_over_what_may_change_and_names_the_rest() -> None:
    settings = configuration.load()
    Path(".env").write_text("FISHS2_MAX_QUEUE=7\nFISHS2_LOG_LEVEL=error\nFISHS2_PORT=1\nFISHS2_URI=stdio://\n")
    assert sorted(_reload(settings)) == ["port", "uri"]
    assert (settings.max_queue, settings.log_level) == (7, "ERROR")
    assert (settings.port, settings.uri) == (8020, ["tcp://0.0.0.0:10200"])


def test_reload_changes_only_what_is_reloadable() -> None:
    settings = configuration.load()
    before = settings.model_copy()
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    with _given(**dict.fromkeys((name.upper() for name in numbers - {"log_max_bytes", "context"}), "1")):
        _reload(settings)
    changed = {name for name in Settings.model_fields if getattr(before, name) != getattr(settings, name)}
    assert changed
    assert changed <= RELOADABLE | SWITCHABLE


def test_reload_of_the_same_changes_nothing() -> None:
    settings = configuration.load(port=1)
    assert _reload(settings, port=1) == []


def test_reload_forgets_what_was_taken_out() -> None:
    Path(".env").write_text(f"FISHS2_API_KEYS={SECRET}\n")
    settings = configuration.load()
    Path(".env").write_text("")
    _reload(settings)
    assert settings.api_keys == []


def test_a_reload_with_a_wrong_value_changes_nothing() -> None:
    settings = configuration.load()
    before = settings.model_copy()
    Path(".env").write_text("FISHS2_MAX_QUEUE=7\nFISHS2_TEMPERATURE=hot\n")
    with pytest.raises(ConfigError, match="FISHS2_TEMPERATURE"):
        _reload(settings)
    assert settings == before


def test_a_mark_at_the_start_of_the_env_file_hides_nothing() -> None:
    Path(".env").write_text("FISHS2_MAX_QUEUE=7\n", encoding="utf-8-sig")
    assert configuration.load().max_queue == 7
    assert configuration.given_names() == ["FISHS2_MAX_QUEUE"]


def test_auto_is_decided_before_a_model_is_loaded_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [(Choice("q6_k", "q6_k: it fits", True)), Choice("q2_k", "q2_k: a daemon runs here", False)]
    monkeypatch.setattr(configuration, "choose_quant", lambda settings, hardware: free.pop(0))
    settings = configuration.load(model_quant="auto")
    assert (settings.model_quant, settings.quant_reason, settings.quant_fits) == ("q6_k", "q6_k: it fits", True)
    assert _reload(settings, model_quant="auto") == []
    assert settings.model_quant == "q6_k"
    assert configuration.load_again(settings, model_quant="auto").quant_fits


def test_auto_is_not_decided_where_no_file_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "look", lambda settings: pytest.fail("nothing is to be looked at"))
    Path("my.gguf").touch()
    for engine, path in (("espeak", None), ("remote", None), ("s2", "my.gguf")):
        assert configuration.load(model_quant="auto", engine=engine, model_path=path).model_quant == "q8_0"


def test_auto_for_a_model_that_is_loaded_needs_a_restart() -> None:
    settings = configuration.load(engine="s2")
    with pytest.raises(ConfigError, match="FISHS2_MODEL_QUANT: 'auto' is decided before a model is loaded"):
        _reload(settings, engine="s2", model_quant="auto")


# Names that do nothing


def test_names_are_gathered_from_environment_and_env_file() -> None:
    Path(".env").write_text("FISHS2_FROM_FILE=1\nOTHER=1\nFISHS2_BARE\n")
    with _given(FROM_ENVIRONMENT="1"):
        assert configuration.given_names() == ["FISHS2_BARE", "FISHS2_FROM_ENVIRONMENT", "FISHS2_FROM_FILE"]


def test_unknown_names_are_reported() -> None:
    names = ["FISHS2_PROT", "FISHS2_PORT", "fishs2_port", "FISHS2_VERBOSE", "FISHS2_TEMP_DIR", "PATH"]
    assert configuration.unknown_names(names) == ["FISHS2_PROT"]


def test_known_names_without_effect_are_reported() -> None:
    with _given(BACKEND="cuda", MODEL_QUANT="q8_0", VERBOSE="true", S2_DLL_PATH="/x", PORT="1", TEMP_DIR="/tmp"):
        names = configuration.given_names()
        settings = configuration.load()
        assert configuration.without_effect(settings) == ["FISHS2_BACKEND", "FISHS2_S2_DLL_PATH"]
        assert configuration.without_effect(settings, names) == [
            "FISHS2_BACKEND",
            "FISHS2_S2_DLL_PATH",
            "FISHS2_VERBOSE",
        ]
        assert configuration.unknown_names(names) == []
