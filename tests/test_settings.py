"""The settings: their names, how lists are written, and what the replaced wrapper's users pass."""

import os
import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from fishs2_daemon import configuration
from fishs2_daemon.settings import RELOADABLE, RETIRED, SWITCHABLE, Settings

#: Every FISHS2_* name of the wrapper that this daemon replaces.
# fmt: off
WRAPPER_NAMES = [
    "HOST", "PORT", "MODELS_DIR", "VOICES_DIR", "LOGS_DIR", "TEMP_DIR", "RUNTIME_DIR", "S2_DLL_PATH",
    "RUNTIME_EXTRA_DLL_DIRS", "APP_LOG_FILE", "ACCESS_LOG_FILE", "ERROR_LOG_FILE", "LOG_LEVEL", "LOG_MAX_BYTES",
    "LOG_BACKUP_COUNT", "REQUEST_ID_HEADER", "BACKEND", "GPU_DEVICE", "N_GPU_LAYERS", "REQUIRE_NVIDIA_GPU",
    "SKIP_GPU_CHECK", "DEFAULT_MODEL", "MODEL_ALIASES", "MODEL_PATH", "TOKENIZER_PATH", "MAX_NEW_TOKENS",
    "TEMPERATURE", "TOP_P", "TOP_K", "MIN_TOKENS_BEFORE_END", "N_THREADS", "VERBOSE", "MIN_REFERENCE_AUDIO_SECONDS",
    "RUNTIME_ZIP_PATH", "RUNTIME_ZIP_URL", "RUNTIME_ZIP_SHA256", "MODEL_URL", "TOKENIZER_URL", "MODEL_SHA256",
    "TOKENIZER_SHA256", "HF_REPO_ID", "MODEL_QUANT", "SKIP_DOWNLOADS", "FORCE_DOWNLOADS",
]
# fmt: on

#: The defaults of that wrapper that still hold, as an `.env` would say them.
WRAPPER_DEFAULTS = {
    "HOST": "0.0.0.0",
    "PORT": "8020",
    "MODELS_DIR": "models",
    "VOICES_DIR": "voices",
    "APP_LOG_FILE": "app.log",
    "LOG_LEVEL": "INFO",
    "LOG_MAX_BYTES": "10485760",
    "LOG_BACKUP_COUNT": "5",
    "REQUEST_ID_HEADER": "X-Request-ID",
    "GPU_DEVICE": "0",
    "N_GPU_LAYERS": "-1",
    "SKIP_GPU_CHECK": "false",
    "DEFAULT_MODEL": "fishaudio/s2-pro",
    "MODEL_ALIASES": "fishs2,fish-s2,s2-pro",
    "MODEL_PATH": "models/s2-pro-q8_0.gguf",
    "TOKENIZER_PATH": "models/tokenizer.json",
    "MODEL_QUANT": "q8_0",
    "MAX_NEW_TOKENS": "1024",
    "TEMPERATURE": "0.8",
    "TOP_P": "0.8",
    "TOP_K": "30",
    "MIN_TOKENS_BEFORE_END": "0",
    "N_THREADS": "0",
}


@pytest.fixture(autouse=True)
def _nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("FISHS2_")]:
        monkeypatch.delenv(name)


def _with(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(f"FISHS2_{name}", value)
    return Settings()


@pytest.mark.parametrize("name", WRAPPER_NAMES)
def test_every_name_of_the_wrapper_is_known(name: str) -> None:
    assert configuration.unknown_names([f"FISHS2_{name}"]) == []


def test_defaults_are_those_of_the_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings()
    assert _with(monkeypatch, **WRAPPER_DEFAULTS).model_dump() == default.model_dump()


def test_the_sets_of_names_are_consistent() -> None:
    fields = set(Settings.model_fields)
    assert fields >= SWITCHABLE
    assert not RELOADABLE & SWITCHABLE
    assert fields >= RELOADABLE
    assert not fields & RETIRED


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_manager_that_starts_the_wrapper_starts_this(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _with(
        monkeypatch,
        BACKEND="metal",
        MODEL_QUANT="q6_k",
        PORT="8022",
        MODEL_PATH="/data/models/s2-pro-q6_k.gguf",
        TOKENIZER_PATH="/data/models/tokenizer.json",
        RUNTIME_DIR="/data/runtime",
        VOICES_DIR="/data/voices",
        LOGS_DIR="/data/logs",
        TEMP_DIR="/data/tmp",
    )
    assert settings.port == 8022
    assert settings.backend == "metal"
    assert settings.logs_dir == Path("/data/logs")
    assert configuration.unknown_names(configuration.given_names()) == []


@pytest.mark.parametrize("value", ["a,b", " a , b ,", '["a","b"]', ' [ "a", "b" ] '])
def test_a_list_is_written_with_commas_or_as_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    settings = _with(monkeypatch, MODEL_ALIASES=value, API_KEYS=value, CORS_ORIGINS=value)
    assert settings.model_aliases == ["a", "b"]
    assert settings.cors_origins == ["a", "b"]
    assert [key.get_secret_value() for key in settings.api_keys] == ["a", "b"]


@pytest.mark.parametrize("value", ["", " ", ",", "[]"])
def test_a_list_may_be_empty(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert _with(monkeypatch, MODEL_ALIASES=value).model_aliases == []


def test_wyoming_needs_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="tcp://host:port"):
        _with(monkeypatch, URI="")


@pytest.mark.parametrize("value", ["10.0.0.0/8,fd00::/8", '["10.0.0.0/8", "fd00::/8"]'])
def test_networks(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    networks = _with(monkeypatch, ALLOWED_NETWORKS=value).allowed_networks
    assert networks == [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize("value", ["10.0.0.1/8", "home", "[167772160]", "10.0.0.0/8,x"])
def test_what_is_no_network_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(ValidationError, match=re.escape("networks such as 192.168.1.0/24 or fd00::/8")):
        _with(monkeypatch, ALLOWED_NETWORKS=value)


@pytest.mark.parametrize(
    ("address", "answered"),
    [
        *((address, True) for address in ("127.0.0.1", "192.168.7.9", "172.31.0.1", "169.254.1.1")),
        *((address, True) for address in ("::1", "fe80::1", "fd12::1")),
        *((address, False) for address in ("8.8.8.8", "172.32.0.1", "100.64.0.1", "2001:db8::1")),
    ],
)
def test_private_networks_are_answered_by_default(address: str, answered: bool) -> None:
    assert any(ip_address(address) in network for network in Settings().allowed_networks) is answered


@pytest.mark.parametrize("name", ["API_KEYS_FILE", "LOGS_DIR", "ZEROCONF_NAME", "DEFAULT_VOICE"])
def test_blank_means_not_set(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert getattr(_with(monkeypatch, **{name: " "}), name.lower()) is None


@pytest.mark.parametrize("value", ["app.log", "fish_2-s.log", "ä.log"])
def test_log_file_names(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert _with(monkeypatch, APP_LOG_FILE=value).app_log_file == value


@pytest.mark.parametrize("value", ["", "..", "a/b.log", "a\n", "/etc/passwd"])
def test_a_log_file_stays_in_its_folder(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with pytest.raises(ValidationError):
        _with(monkeypatch, APP_LOG_FILE=value)


def test_words_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _with(monkeypatch, LOG_LEVEL="debug", BACKEND="CUDA", MODEL_QUANT="Q4_K_M", UNKNOWN_VOICE="Default")
    assert settings.log_level == "DEBUG"
    assert (settings.backend, settings.model_quant, settings.unknown_voice) == ("cuda", "q4_k_m", "default")
