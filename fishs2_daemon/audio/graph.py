"""FFmpeg's audio filters over a stream of PCM, through PyAV."""

from collections.abc import Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from av import AudioFrame

_SAMPLE_BYTES = 2
_FORMAT_BYTES = {"s16": 2, "flt": 4}


class FilterGraph:
    """Signed 16-bit mono blocks through `filters`, (name, arguments) in FFmpeg's notation; out come mono samples of
    `target_format`, "s16" or "flt", at `target_rate`.

    The first graph imports PyAV, which takes 0.2 s.
    """

    def __init__(
        self, source_rate: int, target_rate: int, filters: Iterable[tuple[str, str]], target_format: str = "s16"
    ) -> None:
        import av
        from av.filter import Graph

        self._av = av
        self._rate = source_rate
        self._time_base = Fraction(1, source_rate)
        self._target_bytes = _FORMAT_BYTES[target_format]
        self._pts = 0
        graph = Graph()
        self._source = graph.add(
            "abuffer", f"sample_rate={source_rate}:sample_fmt=s16:channel_layout=mono:time_base=1/{source_rate}"
        )
        chain = [graph.add(name, arguments) for name, arguments in filters]
        chain.append(
            graph.add("aformat", f"sample_fmts={target_format}:sample_rates={target_rate}:channel_layouts=mono")
        )
        self._sink = graph.add("abuffersink")
        graph.link_nodes(self._source, *chain, self._sink)
        graph.configure()
        self._graph = graph

    def push(self, samples: bytes) -> bytes:
        """What the filters let out after these whole samples."""
        if not samples:
            return b""
        frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(samples) // _SAMPLE_BYTES)
        frame.planes[0].update(samples)
        frame.sample_rate = self._rate
        frame.time_base = self._time_base
        frame.pts = self._pts
        self._pts += frame.samples
        self._source.push(frame)
        return self._pull()

    def end(self) -> bytes:
        """What the filters kept to themselves. The graph is used up."""
        self._source.push(None)
        return self._pull()

    def _pull(self) -> bytes:
        blocks: list[bytes] = []
        while True:
            try:
                frame = cast("AudioFrame", self._sink.pull())
            except (self._av.BlockingIOError, self._av.EOFError):
                return b"".join(blocks)
            blocks.append(bytes(frame.planes[0])[: frame.samples * self._target_bytes])
