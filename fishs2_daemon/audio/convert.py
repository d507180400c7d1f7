"""Sample rate and pace of a PCM stream."""

import math
from fractions import Fraction
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from av import AudioFrame

_SAMPLE_BYTES = 2

#: atempo's output depends on how its input is cut, so a paced stream is cut anew into blocks of this length.
_TEMPO_BLOCK_S = 0.01

#: Silence behind a paced stream; atempo keeps its last two windows of up to 93 ms to itself.
_TEMPO_TAIL_S = 0.2


class PcmConverter:
    """Signed 16-bit mono blocks at another rate, and `speed` times as fast at the same pitch (0.25 to 4).

    The samples that come out depend on those that went in, never on the block borders, and number
    `round(samples * target_rate / (source_rate * speed))` in all. A change of rate alone holds back less than 1 ms of
    input; a change of pace 50 to 90 ms, and 220 ms at four times the pace. Where nothing is to do, blocks pass
    untouched; else making the first converter imports PyAV, which takes 0.2 s.
    """

    def __init__(self, source_rate: int, target_rate: int, speed: float = 1.0) -> None:
        self._scale = target_rate / (source_rate * speed)
        self._graph = _Graph(source_rate, target_rate, speed) if (source_rate, speed) != (target_rate, 1.0) else None
        self._block = 0 if speed == 1.0 else _SAMPLE_BYTES * round(source_rate * _TEMPO_BLOCK_S)
        self._tail = 0 if speed == 1.0 else _SAMPLE_BYTES * round(source_rate * _TEMPO_TAIL_S)
        self._pending = bytearray()
        self._taken = 0
        self._given = 0

    def feed(self, samples: bytes) -> bytes:
        """What can be said of the stream so far; `samples` are whole samples."""
        if self._graph is None:
            return samples
        self._taken += len(samples) // _SAMPLE_BYTES
        converted = self._push(self._graph, samples)
        self._given += len(converted) // _SAMPLE_BYTES
        return converted

    def flush(self) -> bytes:
        """The rest, at the end of the stream. The converter is used up."""
        if self._graph is None:
            return b""
        missing = _SAMPLE_BYTES * max(0, round(self._taken * self._scale) - self._given)
        if not self._block:
            rest = self._graph.end()
        else:
            padding = self._tail + -(len(self._pending) + self._tail) % self._block
            rest = self._push(self._graph, bytes(padding)) + self._graph.end()
        return rest[:missing].ljust(missing, b"\0")

    def _push(self, graph: "_Graph", samples: bytes) -> bytes:
        if not self._block:
            return graph.push(samples)
        self._pending += samples
        usable = len(self._pending) - len(self._pending) % self._block
        blocks = [bytes(self._pending[start : start + self._block]) for start in range(0, usable, self._block)]
        del self._pending[:usable]
        return b"".join([graph.push(block) for block in blocks])


class _Graph:
    """PyAV's filter graph: atempo where the pace changes, aresample where the rate does."""

    def __init__(self, source_rate: int, target_rate: int, speed: float) -> None:
        import av
        from av.filter import Graph

        self._av = av
        self._rate = source_rate
        self._pts = 0
        graph = Graph()
        self._source = graph.add(
            "abuffer", f"sample_rate={source_rate}:sample_fmt=s16:channel_layout=mono:time_base=1/{source_rate}"
        )
        # One atempo loses samples below half and skips some beyond double pace: several take equal shares.
        stages = math.ceil(abs(math.log2(speed)))
        chain = [graph.add("atempo", f"tempo={speed ** (1 / stages):.9f}") for _ in range(stages)]
        if source_rate != target_rate:
            chain.append(graph.add("aresample", f"sample_rate={target_rate}"))
        chain.append(graph.add("aformat", f"sample_fmts=s16:sample_rates={target_rate}:channel_layouts=mono"))
        self._sink = graph.add("abuffersink")
        graph.link_nodes(self._source, *chain, self._sink)
        graph.configure()
        self._graph = graph

    def push(self, samples: bytes) -> bytes:
        if not samples:
            return b""
        frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(samples) // _SAMPLE_BYTES)
        frame.planes[0].update(samples)
        frame.sample_rate = self._rate
        frame.time_base = Fraction(1, self._rate)
        frame.pts = self._pts
        self._pts += frame.samples
        self._source.push(frame)
        return self._pull()

    def end(self) -> bytes:
        self._source.push(None)
        return self._pull()

    def _pull(self) -> bytes:
        blocks: list[bytes] = []
        while True:
            try:
                frame = cast("AudioFrame", self._sink.pull())
            except (self._av.BlockingIOError, self._av.EOFError):
                return b"".join(blocks)
            blocks.append(bytes(frame.planes[0])[: frame.samples * _SAMPLE_BYTES])
