"""The files of S2 Pro: their names, sizes, places and sources."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fishs2_daemon.settings import Settings

#: Sizes of the files of rodrigomt/s2-pro-gguf: exact for q8_0 and q4_k_m, else rounded as published.
PUBLISHED_BYTES = {
    "f16": 9_900_000_000,
    "q8_0": 5_630_037_088,
    "q6_k": 4_500_000_000,
    "q5_k_m": 4_000_000_000,
    "q4_k_m": 3_566_165_088,
    "q3_k": 3_000_000_000,
    "q2_k": 2_600_000_000,
}
TOKENIZER_BYTES = 12_000_000

TOKENIZER = "tokenizer.json"

#: The setting that moves the model's files.
MODELS_DIR = "FISHS2_MODELS_DIR"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file. It comes from `url` where that is set, else from the hub's `repository` under the name `file`.

    `sha256` is what the user says it must be, empty where the source's word is taken. `folder_setting` is the name of
    the setting that moves it.
    """

    path: Path
    file: str
    repository: str
    url: str = ""
    sha256: str = ""
    published_bytes: int = 0
    folder_setting: str = MODELS_DIR

    def to_json(self) -> dict[str, Any]:
        return {name: str(value) if name == "path" else value for name, value in self._items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "path": Path(values["path"])})

    def _items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__slots__]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The two files that the S2 engine loads."""

    model: Path
    tokenizer: Path


def model(settings: Settings, quant: str | None = None) -> Artifact:
    """The model file of `quant`, or of the one that is set."""
    quant = quant or settings.model_quant
    file = f"s2-pro-{quant}.gguf"
    is_set = quant == settings.model_quant
    return Artifact(
        path=locate(settings).model if is_set else folder(settings, file) / file,
        file=file,
        repository=settings.hf_repo_id,
        url=(settings.model_url or "") if is_set else "",
        sha256=(settings.model_sha256 or "") if is_set else "",
        published_bytes=PUBLISHED_BYTES[quant],
    )


def tokenizer(settings: Settings) -> Artifact:
    return Artifact(
        path=locate(settings).tokenizer,
        file=TOKENIZER,
        repository=settings.hf_repo_id,
        url=settings.tokenizer_url or "",
        sha256=settings.tokenizer_sha256 or "",
        published_bytes=TOKENIZER_BYTES,
    )


def locate(settings: Settings) -> ModelFiles:
    """Where the files lie or are to lie: the paths that are set, else the published names in `folder`; a tokenizer that
    nobody named may also lie beside a model that was."""
    name = f"s2-pro-{settings.model_quant}.gguf"
    given = settings.model_fields_set
    model_path = settings.model_path if "model_path" in given else folder(settings, name) / name
    if "tokenizer_path" in given:
        return ModelFiles(model_path, settings.tokenizer_path)
    beside = model_path.parent / TOKENIZER
    is_beside = "model_path" in given and os.path.isfile(beside)
    return ModelFiles(model_path, beside if is_beside else folder(settings, TOKENIZER) / TOKENIZER)


def folder(settings: Settings, file: str) -> Path:
    """`models_dir`; where nobody set it, a service keeps what it can fetch again in systemd's cache folder.

    A `file` that is in the default folder already is used there.
    """
    cache = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if not cache or "models_dir" in settings.model_fields_set or os.path.exists(settings.models_dir / file):
        return settings.models_dir
    return Path(cache, "models")
