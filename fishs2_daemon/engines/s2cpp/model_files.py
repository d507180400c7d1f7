"""The two files that libs2 loads."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fishs2_daemon.errors import EngineError

_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    model: Path
    tokenizer: Path

    def check(self) -> None:
        """libs2 may end the process over files that are none. Raises `EngineError`."""
        with _open(self.model, "FISHS2_MODEL_PATH") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise EngineError(f"FISHS2_MODEL_PATH={self.model}: this is no GGUF file")
        with _open(self.tokenizer, "FISHS2_TOKENIZER_PATH") as file:
            try:
                json.load(file)
            except (ValueError, RecursionError):
                raise EngineError(f"FISHS2_TOKENIZER_PATH={self.tokenizer}: this is no JSON file") from None


def _open(path: Path, setting: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise EngineError(f"{setting}={path}: cannot be read: {error.strerror}") from None
