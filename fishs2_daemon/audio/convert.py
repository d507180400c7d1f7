"""Sample rate and pace of a PCM stream."""

import math

from fishs2_daemon.audio.graph import FilterGraph

_SAMPLE_BYTES = 2

#: atempo's output depends on how its input is cut, so a paced stream is cut anew into blocks of this length.
_TEMPO_BLOCK_S = 0.01

#: Silence behind a paced stream; atempo keeps its last two windows of up to 93 ms to itself.
_TEMPO_TAIL_S = 0.2


class PcmConverter:
    """Signed 16-bit mono blocks at another rate, and `speed` times as fast at the same pitch (0.25 to 4).

    The samples that come out depend on those that went in, never on the block borders, and number
    `round(samples * target_rate / (source_rate * speed))` in all. A change of rate alone holds back less than 1 ms of
    input; a change of pace 55 to 90 ms up to double pace, and 190 to 230 ms beyond. Where nothing is to do, blocks
    pass untouched; else making the first converter imports PyAV, which takes 0.2 s.
    """

    def __init__(self, source_rate: int, target_rate: int, speed: float = 1.0) -> None:
        self._scale = target_rate / (source_rate * speed)
        self._graph = _graph(source_rate, target_rate, speed) if (source_rate, speed) != (target_rate, 1.0) else None
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

    def _push(self, graph: FilterGraph, samples: bytes) -> bytes:
        if not self._block:
            return graph.push(samples)
        self._pending += samples
        usable = len(self._pending) - len(self._pending) % self._block
        blocks = [bytes(self._pending[start : start + self._block]) for start in range(0, usable, self._block)]
        del self._pending[:usable]
        return b"".join([graph.push(block) for block in blocks])


def _graph(source_rate: int, target_rate: int, speed: float) -> FilterGraph:
    # One atempo loses samples below half and skips some beyond double pace: several take equal shares.
    stages = math.ceil(abs(math.log2(speed)))
    filters = [("atempo", f"tempo={speed ** (1 / stages):.9f}") for _ in range(stages)]
    if source_rate != target_rate:
        filters.append(("aresample", f"sample_rate={target_rate}"))
    return FilterGraph(source_rate, target_rate, filters)
