"""Every setting of the daemon: FISHS2_* in the environment or `.env`, flags on top.

A list is written `a,b` or as a JSON array. Field names carry their unit; every queue, body, text and wait is bounded
by one of them.
"""

import json
import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "FISHS2_"

#: Peers of loopback, link-local and private networks (RFC 1122, 1918, 3927, 4193, 4291).
PRIVATE_NETWORKS = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,fe80::/10,fc00::/7"


def _split(value: Any) -> Any:
    return _split_at(",", value)


def _split_at(separators: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("a list is written a,b or as a JSON array") from None
    return [item.strip() for item in re.split(f"[{separators}]", value) if item.strip()]


def _paths(value: Any) -> Any:
    return _split_at(",;", value)


def _networks(value: Any) -> Any:
    items = _split(value)
    if not isinstance(items, list | tuple):
        return items
    networks = []
    for item in items:
        try:
            networks.append(ip_network(str(item)))
        except ValueError:
            raise ValueError(f"networks such as 192.168.1.0/24 or fd00::/8, not {item!r}") from None
    return networks


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _blank_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


def _matching(pattern: str, allowed: str) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if value is not None and re.fullmatch(pattern, value) is None:
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _has_port(value: str) -> str:
    """None, or one that there is; and brackets only around an IPv6 address."""
    try:
        urlsplit(value).port  # noqa: B018 - it is parsed where it is read
    except ValueError as error:
        raise ValueError(f"http:// or https:// addresses ({error})") from None
    return value


StrList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
SecretList = Annotated[list[SecretStr], NoDecode, BeforeValidator(_split)]
IntList = Annotated[
    list[Annotated[int, Field(ge=0, le=64)]], NoDecode, BeforeValidator(_split), Field(min_length=1, max_length=64)
]
PathList = Annotated[list[Path], NoDecode, BeforeValidator(_paths)]
Networks = Annotated[list[IPv4Network | IPv6Network], NoDecode, BeforeValidator(_networks)]
Name = Annotated[str, Field(min_length=1)]
OptionalName = Annotated[str | None, BeforeValidator(_blank_is_none)]
OptionalPath = Annotated[Path | None, BeforeValidator(_blank_is_none)]
OptionalUrl = Annotated[
    str | None, _matching(r"https?://[^\s/@]+/\S*", "an http:// or https:// address"), BeforeValidator(_blank_is_none)
]
UrlList = Annotated[
    list[
        Annotated[
            str,
            _matching(r"https?://[^\s/@?#]+(/[^\s?#]*)?", "http:// or https:// addresses"),
            AfterValidator(_has_port),
        ]
    ],
    NoDecode,
    BeforeValidator(_split),
    Field(max_length=64),
]
OptionalSha256 = Annotated[
    str | None,
    _matching(r"[0-9a-f]{64}", "64 hexadecimal digits"),
    BeforeValidator(_lower),
    BeforeValidator(_blank_is_none),
]
HeaderName = Annotated[str, _matching(r"[A-Za-z0-9-]+", "letters, digits and -")]
FileName = Annotated[str, _matching(r"\w[\w.-]*", "a file name of letters, digits, _, - and .")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Settings(BaseSettings):
    """Read with `fishs2_daemon.configuration.load`, which turns a wrong value into one line."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=".env", env_file_encoding="utf-8-sig", extra="ignore", protected_namespaces=()
    )

    # Doors
    uri: StrList = Field(
        ["tcp://0.0.0.0:10200"], description="Wyoming addresses: tcp://host:port, unix:///path, stdio://"
    )
    http: bool = Field(True, description="serve HTTP")
    host: Name = Field("0.0.0.0", description="HTTP address to listen on")
    port: Port = Field(8020, description="HTTP port; 0 takes a free one")
    request_id_header: HeaderName = Field("X-Request-ID", description="header of the request's id")

    # Who may talk to it
    allowed_networks: Networks = Field(
        default_factory=lambda: _networks(PRIVATE_NETWORKS), description="peers that are answered"
    )
    allowed_hosts: StrList = Field([], description="more names that HTTP requests may carry as Host")
    cors_origins: StrList = Field([], description="web origins that may read answers, such as http://ui.local:3000")
    api_keys: SecretList = Field([], description="HTTP needs one of these as bearer token; none: open")
    api_keys_file: OptionalPath = Field(None, description="more API keys, one a line")

    # Discovery
    zeroconf: bool = Field(True, description="announce the Wyoming port on the network")
    zeroconf_name: OptionalName = Field(None, max_length=63, description="instance name, kept for ever")
    zeroconf_interface: StrList = Field(
        [], description="interfaces to announce on, by name or address; none: all that others can reach"
    )

    # Engine and voices
    engine: Annotated[Literal["auto", "espeak", "s2", "s2cpp", "remote"], BeforeValidator(_lower)] = Field(
        "auto", description="who speaks"
    )
    default_voice: OptionalName = Field(
        None, description="voice of requests that name none; unset: of the first language set, else the engine's"
    )
    unknown_voice: Annotated[Literal["error", "default"], BeforeValidator(_lower)] = Field(
        "error", description="a voice that does not exist: refuse, or speak with the default"
    )
    languages: StrList = Field(
        [], description="languages offered to Home Assistant, or all; none: English and the machine's own"
    )
    voices_dir: Path = Field(Path("voices"), description="folder of stored voices")
    models_dir: Path = Field(Path("models"), description="folder of model files")
    model_path: Path = Field(Path("models/s2-pro-q8_0.gguf"), description="S2 Pro model file")
    tokenizer_path: Path = Field(Path("models/tokenizer.json"), description="S2 Pro tokenizer")
    reference_dirs: PathList = Field([], description="more folders whose files requests may name as recordings")
    default_model: Name = Field("fishaudio/s2-pro", description="model id that clients see first")
    model_aliases: StrList = Field(["fishs2", "fish-s2", "s2-pro"], description="more names for it")

    # Text
    clean_text: bool = Field(True, description="read Markdown, HTML, emoji and the like as a person would")
    replacements_file: OptionalPath = Field(None, description="words and how they are spoken, `word = spoken` a line")
    sentence_pause_s: float = Field(0.0, ge=0, le=10, description="silence behind a sentence")
    paragraph_pause_s: float = Field(0.0, ge=0, le=10, description="silence behind a paragraph")

    # Logs
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="least severe records to log"
    )
    logs_dir: OptionalPath = Field(None, description="also log to a rotating file in this folder")
    app_log_file: FileName = Field("app.log", description="name of that file")
    log_max_bytes: int = Field(10_485_760, ge=1024, description="size at which it rotates")
    log_backup_count: int = Field(5, ge=0, le=1000, description="rotated files kept")

    # Bounds of requests
    max_text_chars: Count = Field(100_000, description="longest text of one request, characters")
    max_queue: int = Field(32, ge=0, le=100_000, description="requests that may wait for a free slot")
    queue_timeout_s: Seconds = Field(20.0, description="longest wait for a free slot, or for a loading engine")
    first_audio_timeout_s: Seconds = Field(30.0, description="longest wait for the first audio once a slot is free")
    stall_timeout_s: Seconds = Field(20.0, description="longest gap between audio blocks while text is at hand")
    text_timeout_s: Seconds = Field(60.0, description="longest gap between text chunks of a stream")
    total_timeout_s: Seconds = Field(3600.0, description="longest answer, wall time")

    # Bounds of connections
    max_connections: Count = Field(256, description="Wyoming connections at once")
    http_max_connections: Count = Field(256, description="HTTP connections at once")
    idle_timeout_s: Seconds = Field(600.0, description="a silent Wyoming connection is closed after this")
    event_timeout_s: Seconds = Field(10.0, description="time to finish a started Wyoming event")
    header_timeout_s: Seconds = Field(10.0, description="time to finish a started HTTP header")
    body_timeout_s: Seconds = Field(30.0, description="time to finish a started HTTP request, body included")
    write_timeout_s: Seconds = Field(60.0, description="a peer that takes no audio for this long is dropped")

    # Bounds of the worker and of the end
    worker_start_timeout_s: Seconds = Field(300.0, description="time for the worker to load its engine")
    worker_hang_timeout_s: Seconds = Field(10.0, description="a worker silent for this long is killed")
    cancel_timeout_s: Seconds = Field(5.0, description="a worker that does not stop an answer in this time is killed")
    drain_timeout_s: Seconds = Field(20.0, description="time for running answers to finish after SIGTERM")

    idle_unload: float = Field(
        0.0, ge=0, le=604_800, description="seconds of silence after which the engine's memory is given back; 0: never"
    )

    # The S2 engine
    backend: Annotated[Literal["auto", "cuda", "vulkan", "metal", "cpu"], BeforeValidator(_lower)] = Field(
        "auto", description="what the model runs on"
    )
    gpu_device: IntList = Field([0], description="numbers of the GPUs; each one gets a worker")
    n_gpu_layers: int = Field(-1, ge=-1, le=1000, description="layers on the GPU, the others on the CPU; -1: all")
    n_threads: int = Field(0, ge=0, le=512, description="CPU threads; 0: as many as there are cores")
    model_quant: Annotated[
        Literal["auto", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k", "q2_k"], BeforeValidator(_lower)
    ] = Field("q8_0", description="quantisation of the model file; auto: the best that fits")
    hf_repo_id: Annotated[str, _matching(r"[\w.-]+/[\w.-]+", "owner/name of a repository of the hub")] = Field(
        "rodrigomt/s2-pro-gguf", description="hub repository of the model files"
    )
    model_url: OptionalUrl = Field(None, description="fetch the model file from there instead")
    model_sha256: OptionalSha256 = Field(None, description="SHA-256 that the model file must have")
    tokenizer_url: OptionalUrl = Field(None, description="fetch the tokenizer from there instead")
    tokenizer_sha256: OptionalSha256 = Field(None, description="SHA-256 that the tokenizer must have")
    accept_license: bool = Field(False, description="accept the model's licence: non-commercial use only")
    skip_gpu_check: bool = Field(False, description="start without looking for a GPU")
    skip_downloads: bool = Field(False, description="use the model files that are there")
    force_downloads: bool = Field(False, description="fetch the model files again")
    max_new_tokens: int = Field(1024, ge=1, le=8192, description="longest answer of the model, frames")
    temperature: float = Field(0.8, ge=0, le=2, description="sampling temperature")
    top_p: float = Field(0.8, ge=0, le=1, description="nucleus sampling")
    top_k: int = Field(30, ge=0, le=500, description="sampling among the best k; 0: among all")
    min_tokens_before_end: int = Field(0, ge=0, le=8192, description="frames before the model may end")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="seed of requests that name none")
    slots: int = Field(0, ge=0, le=64, description="texts spoken at a time; 0: as memory allows")
    context: int = Field(4096, ge=256, le=32768, description="positions that a text and its voice may take")
    voice_cache_mb: int = Field(512, ge=0, le=1_000_000, description="memory for voices that were heard before, MB")
    warm_voices: StrList = Field([], description="stored voices that are made ready at the start")
    rope: Annotated[Literal["bf16", "f32"], BeforeValidator(_lower)] = Field(
        "bf16", description="rotations rounded as the official engines do, or exact"
    )

    # The s2.cpp engine
    runtime_dir: Path = Field(Path("runtime/fishs2sharp"), description="folder of libs2 and the libraries it needs")
    s2_dll_path: OptionalPath = Field(None, description="libs2 itself, where it is not in that folder")
    runtime_extra_dll_dirs: PathList = Field([], description="more folders of libraries that libs2 needs")
    runtime_zip_url: OptionalUrl = Field(None, description="fetch the folder's content from this zip file")
    runtime_zip_sha256: OptionalSha256 = Field(None, description="SHA-256 that the zip file must have")

    # The remote engine
    remote_urls: UrlList = Field(
        [], description="OpenAI-style speech servers that speak, such as http://gpu.local:8020/v1"
    )
    remote_model: Name = Field("fishaudio/s2-pro", description="model id to ask them for")
    remote_api_key_file: OptionalPath = Field(None, description="file with their API key")
    remote_slots: int = Field(8, ge=1, le=1024, description="texts that each of them speaks at a time")

    _quant_reason: str = PrivateAttr("")
    _quant_fits: bool = PrivateAttr(True)

    @property
    def quant_reason(self) -> str:
        """Why it is that quantisation, in a line; empty where it was set."""
        return self._quant_reason

    @property
    def quant_fits(self) -> bool:
        """False where it was chosen for being the smallest, and does not fit either."""
        return self._quant_fits

    def decide_quant(self, quant: str, reason: str, *, fits: bool) -> None:
        """In place of `auto`."""
        self.model_quant = quant  # type: ignore[assignment]  # one of those that are published
        self._quant_reason, self._quant_fits = reason, fits

    @field_validator("uri")
    @classmethod
    def _some_uri(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("at least one of tcp://host:port, unix:///path, stdio://")
        return value


_MODEL_SETTINGS = frozenset(
    {"model_path", "tokenizer_path", "backend", "gpu_device", "n_gpu_layers", "n_threads", "max_new_tokens"}
    | {"temperature", "top_p", "top_k", "min_tokens_before_end", "skip_gpu_check"}
)

#: Settings that only some engines act on.
ENGINE_SETTINGS = {
    "espeak": frozenset[str](),
    "s2": _MODEL_SETTINGS | {"seed", "slots", "context", "voice_cache_mb", "warm_voices", "rope"},
    "s2cpp": _MODEL_SETTINGS
    | {"warm_voices", "runtime_dir", "s2_dll_path", "runtime_extra_dll_dirs", "runtime_zip_url", "runtime_zip_sha256"},
    "remote": frozenset({"remote_urls", "remote_model", "remote_api_key_file", "remote_slots"}),
}

#: Names that the replaced wrapper reads and that nothing here needs: its checks, its downloads, its extra logs.
RETIRED = frozenset(
    {"runtime_zip_path", "require_nvidia_gpu", "min_reference_audio_seconds", "verbose"}
    | {"access_log_file", "error_log_file"}
)

#: Settings that a reload takes over at once; those of `SWITCHABLE` with new workers; the others need a restart.
RELOADABLE = frozenset(
    {"allowed_networks", "allowed_hosts", "cors_origins", "api_keys", "api_keys_file", "default_voice", "unknown_voice"}
    | {"languages", "log_level", "max_text_chars", "max_queue", "queue_timeout_s", "first_audio_timeout_s"}
    | {"stall_timeout_s", "text_timeout_s", "total_timeout_s", "max_connections", "http_max_connections"}
    | {"idle_timeout_s", "event_timeout_s", "header_timeout_s", "body_timeout_s", "write_timeout_s", "drain_timeout_s"}
    | {"clean_text", "replacements_file", "sentence_pause_s", "paragraph_pause_s", "reference_dirs", "warm_voices"}
    | {"idle_unload", "models_dir", "hf_repo_id", "model_url", "model_sha256", "tokenizer_url", "tokenizer_sha256"}
    | {"accept_license", "skip_downloads", "force_downloads", "skip_gpu_check"}
)

#: Settings that are a worker's own for as long as it lives: a reload starts new ones and lets the old ones finish.
SWITCHABLE = frozenset({"engine", "model_quant"}).union(*ENGINE_SETTINGS.values()) - RELOADABLE
