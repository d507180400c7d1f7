"""Damaged model and tokenizer files, through the real worker process: an error each, no crash, no hang.

python test_s2_worker_fuzz.py FOLDER FILES [SEED]
"""

import asyncio
import json
import os
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from fishs2_daemon.engines.base import Utterance
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.tiny import TINY, Geometry, make_model
from fishs2_daemon.text.phrase import Phrase
from fishs2_daemon.worker import wire
from fishs2_daemon.worker.wire import Frame, Kind
from tests.engines.s2.gguf_fuzz import Parts, damaged, rewritten
from tests.engines.s2.test_s2_tokenizer import mutate

SMALL = replace(
    TINY, layers=1, fast_layers=1, codec_layers=1, encoder_layers=(0, 0, 0, 1), codebooks=3, decoder_width=16
)
WIDE = replace(SMALL, width=256, heads=4, head_dim=64, ffn=256, fast_width=256, fast_head_dim=64, fast_ffn=256)
MODELS: dict[str, tuple[Geometry, GgmlType]] = {
    "f16": (SMALL, GgmlType.F16),
    "f32": (replace(SMALL, tied_head=False, qk_norm=False), GgmlType.F32),
    "q8_0": (replace(SMALL, fast_width=32, fast_heads=2, fast_kv_heads=1, fast_ffn=64), GgmlType.Q8_0),
    "q4_k": (WIDE, GgmlType.Q4_K),
    "other rates": (
        replace(SMALL, encoder_rates=(3, 4), decoder_rates=(2, 6), downsample=(2, 3), encoder_layers=(0, 0)),
        GgmlType.BF16,
    ),
}

#: A file takes some milliseconds, and a word of a model that opens a tenth of a second; others use the machine, too.
ANSWER_S = 20.0

#: Engines that were replaced by the next file's go when Python collects them.
WORKER_BYTES = 1 << 30

#: What a program says of itself, and never of a file.
OF_THE_PROGRAM = re.compile(r"Traceback|internal error|\b\w+(Error|Exception)\b|<class|object at 0x")


class Worker:
    """The process, as the daemon starts it; files are loaded one after the other."""

    def __init__(self, process: asyncio.subprocess.Process, ends: tuple[asyncio.StreamReader, asyncio.StreamWriter]):
        self._process = process
        self._reader, self._writer = ends
        self._spoken = 0

    @classmethod
    @asynccontextmanager
    async def started(cls, log: Path) -> AsyncIterator["Worker"]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, log.open("wb") as output:
            command = sys.executable, "-m", "fishs2_daemon.worker.child", str(theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        worker = cls(process, await asyncio.open_connection(sock=ours))
        try:
            yield worker
        finally:
            worker._writer.close()
            try:
                await asyncio.wait_for(process.wait(), 5)
            except TimeoutError:
                process.kill()
                await process.wait()

    @property
    def n_bytes(self) -> int:
        return psutil.Process(self._process.pid).memory_info().rss

    async def load(self, model: Path, tokenizer: Path) -> str:
        """Why it is refused; empty if it is not."""
        options = {"model_path": str(model), "tokenizer_path": str(tokenizer), "backend": "cpu", "n_threads": 1}
        options["max_new_tokens"] = 2
        self._send(wire.json_frame(Kind.LOAD, engine="s2", options=options, log_level="WARNING"))
        answer = await self._answer(Kind.READY, Kind.FAILED)
        if answer.kind is Kind.READY:
            assert wire.engine_info_of(answer).name == "s2"
            return ""
        return answer.body.decode()

    async def say(self, text: str) -> str:
        """Why it was not spoken; empty if it was."""
        self._spoken += 1
        self._send(wire.start_frame(self._spoken, Utterance("s2", _no_phrases())))
        self._send(wire.phrase_frame(self._spoken, Phrase(text)))
        self._send(Frame(Kind.FINISH, self._spoken))
        return (await self._answer(Kind.END, Kind.ERROR)).body.decode()

    def _send(self, frame: Frame) -> None:
        self._writer.write(frame.encode())

    async def _answer(self, *kinds: Kind) -> Frame:
        async with asyncio.timeout(ANSWER_S):
            while (frame := await wire.read_frame(self._reader)) is not None:
                if frame.kind in kinds:
                    return frame
        raise AssertionError(f"the worker ended with status {await self._process.wait()}")


async def _no_phrases() -> AsyncIterator[Phrase]:
    """They go by frames of their own."""
    return
    yield


@dataclass
class Case:
    """A pair of files of which one is damaged."""

    name: str
    model: Path
    tokenizer: Path


class Mutants:
    def __init__(self, folder: Path, seed: int) -> None:
        self._dice = random.Random(seed)
        self._folder = folder
        self._sound: dict[str, tuple[Path, Parts, bytes]] = {}
        for name, (geometry, kind) in MODELS.items():
            (folder / name).mkdir()
            path = folder / name / "model.gguf"
            make_model(path, geometry, seed=len(name), dtype=kind)
            self._sound[name] = path, Parts.of(path), path.with_name("tokenizer.json").read_bytes()

    def next(self) -> Case:
        dice = self._dice
        name = dice.choice(list(self._sound))
        path, parts, tokenizer = self._sound[name]
        case = Case(name, self._folder / "damaged.gguf", path.with_name("tokenizer.json"))
        way = dice.random()
        if way < 0.4:
            case = Case(name, path, self._folder / "damaged.json")
            case.tokenizer.write_bytes(mutate(tokenizer, dice))
        elif way < 0.75:
            case.model.write_bytes(rewritten(parts, dice))
        else:
            raw = path.read_bytes()
            case.model.write_bytes(damaged(raw, len(raw) - len(parts.data), dice))
        return case


async def check(folder: Path, files: int, seed: int) -> Counter[str]:
    """Raises `AssertionError` at the first file that is not answered as it should be, which stays in the folder."""
    mutants, counts, log = Mutants(folder, seed), Counter[str](), folder / "log"
    while counts.total() < files:
        async with Worker.started(log) as worker:
            while counts.total() < files and worker.n_bytes < WORKER_BYTES:
                case = mutants.next()
                refusal = await worker.load(case.model, case.tokenizer)
                if not refusal:
                    refusal = await worker.say("Hi.")
                    counts["unspoken" if refusal else "spoken"] += 1
                else:
                    damaged_file = case.model if case.model.parent == folder else case.tokenizer
                    assert damaged_file.name in refusal, refusal
                    counts["model refused" if damaged_file is case.model else "tokenizer refused"] += 1
                assert "\n" not in refusal, refusal
                assert len(refusal) < 400, refusal
                assert not OF_THE_PROGRAM.search(refusal), refusal
        written = log.read_text(errors="replace")
        assert not OF_THE_PROGRAM.search(written), written[-3000:]
    return counts


@pytest.mark.parametrize("files", [80, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
async def test_every_damaged_file_is_an_error_or_does_no_harm(tmp_path: Path, files: int) -> None:
    counts = await check(tmp_path, files, seed=20261122)
    assert counts.total() == files
    for outcome in ("spoken", "model refused", "tokenizer refused"):
        assert counts[outcome] > files // 20, counts


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    started_s = time.monotonic()
    found = asyncio.run(check(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 1))
    print(json.dumps(found), f"{time.monotonic() - started_s:.0f} s")
