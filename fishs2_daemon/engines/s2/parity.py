"""Compares the engine with a folder of reference vectors: `python -m fishs2_daemon.engines.s2.parity FOLDER`.

    FOLDER/tiny-f32.gguf  tiny-f16.gguf     models: the same values in both
           golden_ar.npz  golden_codec.npz  what the official classes made of them: section 11 of the specification
           tokenizer.json golden_meta.json tokenizer_golden.json

Models may be of any geometry, and there may be any number of prompts, conversations and clips: the names of the arrays
say which. A quantity is a line. Exit status 0 if all are within their tolerances, 1 if not, 2 if there is nothing to
compare.
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from fishs2_daemon.engines.s2.config import ModelConfig
from fishs2_daemon.engines.s2.ggml import Backend
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import GgufFile
from fishs2_daemon.engines.s2.model import Model
from fishs2_daemon.engines.s2.model_file import read_config
from fishs2_daemon.engines.s2.parity_codec import compare_codec
from fishs2_daemon.engines.s2.parity_recorded import Array, Recorded
from fishs2_daemon.engines.s2.parity_report import EXACT, ROUNDED, Report
from fishs2_daemon.engines.s2.parity_text import compare_prompts, compare_tokens
from fishs2_daemon.engines.s2.parity_transformers import compare_transformers
from fishs2_daemon.engines.s2.placement import converted
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.errors import EngineError

MODELS = ("tiny-f32.gguf", "tiny-f16.gguf")


class _Folder:
    """What a folder holds, read once; what is missing or damaged is said."""

    def __init__(self, report: Report, path: Path) -> None:
        self._report = report
        self._path = path
        self.ar = self._archive("golden_ar.npz")
        self.codec = self._archive("golden_codec.npz")
        meta = self._json("golden_meta.json")
        self.meta: dict[str, object] = meta if isinstance(meta, dict) else {}
        self.strings = self._json("tokenizer_golden.json")
        self.tokenizer: Tokenizer | None = None

    def open_tokenizer(self, config: ModelConfig) -> None:
        slow, path = config.slow, self._path / "tokenizer.json"
        if not path.is_file():
            self._report.of(path.name).skipped("tokens and prompts", "there is no such file")
            return
        with self._report.of(path.name).attempt("opens"):
            self.tokenizer = Tokenizer.open(
                path, vocab_size=slow.vocab, semantic_begin=slow.semantic_begin, semantic_end=slow.semantic_end
            )

    @property
    def im_end(self) -> int | None:
        """The end token, by the tokenizer or, without one, by the recording."""
        recorded = self.meta.get("im_end")
        if self.tokenizer is not None:
            return self.tokenizer.im_end
        return recorded if type(recorded) is int else None

    def _archive(self, name: str) -> Recorded:
        lines, arrays = self._report.of(name), dict[str, Array]()
        if not (self._path / name).is_file():
            lines.skipped("all of it", "there is no such file")
            return Recorded(name, arrays)
        with lines.attempt("opens"):
            if not zipfile.is_zipfile(self._path / name):
                raise ValueError("no archive of arrays")
            with np.load(self._path / name) as file:
                for key in file.files:
                    with lines.attempt(key):
                        arrays[key] = file[key]
        return Recorded(name, arrays)

    def _json(self, name: str) -> object:
        lines = self._report.of(name)
        if not (self._path / name).is_file():
            lines.skipped("all of it", "there is no such file")
            return None
        with lines.attempt("opens"):
            content: object = json.loads((self._path / name).read_text(encoding="utf-8"))
            return content
        return None


def _compare_text(report: Report, folder: _Folder, config: ModelConfig) -> None:
    if folder.tokenizer is None:
        return
    lines = report.of("tokenizer.json")
    if folder.strings is not None:
        with lines.attempt("token ids"):
            compare_tokens(lines, folder.tokenizer, folder.strings)
    compare_prompts(lines, folder.tokenizer, config.slow, folder.ar, folder.meta)


def _compare_model(report: Report, folder: _Folder, path: Path, backend: Backend) -> None:
    with GgufFile.open(path) as file:
        exact = all(info.type is GgmlType.F32 or info.type.is_integer for info in file.tensors.values())
    lines = report.of(path.name, EXACT if exact else ROUNDED)
    with Model.load(path, backend, im_end=folder.im_end, skip=converted) as model:
        if not folder.ar.keys:
            lines.skipped("transformers", f"nothing in {folder.ar.name}")
        elif folder.im_end is None:
            lines.skipped("transformers", "neither tokenizer.json nor golden_meta.json tells the end token")
        else:
            with lines.attempt("transformers"):
                compare_transformers(lines, model, folder.ar, exact=exact)
        if folder.codec.keys:
            compare_codec(lines, model, folder.codec)
        else:
            lines.skipped("codec", f"nothing in {folder.codec.name}")


def run(path: Path, models: list[Path], backend: Backend) -> Report:
    """Compare everything in a folder, on each of these models."""
    report = Report()
    folder = _Folder(report, path)
    text_done = False
    for model in models:
        with report.of(model.name).attempt("opens"):
            with GgufFile.open(model) as file:
                config = read_config(file)
            if not text_done:  # all files are the same model
                text_done = True
                folder.open_tokenizer(config)
                _compare_text(report, folder, config)
            _compare_model(report, folder, model, backend)
    if not report.failed:  # what failed may have kept others from being asked for
        for recorded in (folder.ar, folder.codec):
            report.of(recorded.name).unused(recorded)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fishs2_daemon.engines.s2.parity", description="Compare the engine with reference vectors."
    )
    parser.add_argument("folder", type=Path, help="laid out as tests/golden")
    parser.add_argument("--backend", default="cpu", help="cpu (the default), cuda, or cuda:N")
    parser.add_argument("--file", help=f"one model of the folder; otherwise {' and '.join(MODELS)}")
    given = parser.parse_args()
    folder: Path = given.folder
    names = [given.file] if given.file else [name for name in MODELS if (folder / name).is_file()]
    models = [folder / name for name in names]
    if not models or not all(model.is_file() for model in models):
        return _unusable(f"{folder}: there is no {given.file or ' or '.join(MODELS)}")
    try:
        with Backend.open(given.backend) as backend:
            report = run(folder, models, backend)
    except EngineError as error:
        return _unusable(str(error))
    if not report.compared:
        return _unusable(f"{folder}: holds nothing that could be compared")
    print(f"{report.compared} compared, {report.failed} failed")
    return 1 if report.failed else 0


def _unusable(why: str) -> int:
    print(f"parity: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
