"""The functions that libs2 calls while it speaks, from whatever thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fishs2_daemon.engines.s2cpp.samples import WavStream
from fishs2_daemon.engines.s2cpp.thread import Handover
from fishs2_daemon.errors import EngineError

_GO_ON, _STOP = 1, 0
_IS_CANCELLED, _IS_NOT_CANCELLED = 1, 0


@dataclass(slots=True)
class Answer:
    """One answer as it comes: `failure` is ours, `message` is what libs2 said went wrong."""

    sink: Handover
    wav: WavStream
    heard: bool = False
    message: str = ""
    failure: EngineError | None = None


class Callbacks:
    """One set for the life of a pipeline: a call that comes too late finds no answer, and does no harm."""

    def __init__(self, ffi: Any, sample_rate: int) -> None:
        self._ffi = ffi
        self._sample_rate = sample_rate
        self._answer: Answer | None = None
        make = ffi.callback
        self._functions = (
            make("S2StreamingWriteCallback", self._on_wav_chunk, error=_STOP, onerror=self._on_exception),
            make("S2StreamingDoneCallback", self._on_done, onerror=self._on_exception),
            make("S2StreamingErrorCallback", self._on_error, onerror=self._on_exception),
            make("S2StreamingCancelCallback", self._is_cancelled, error=_IS_CANCELLED, onerror=self._on_exception),
        )
        self.pointer = ffi.new("S2StreamingCallbacks *", (*self._functions, ffi.NULL))

    @contextmanager
    def to(self, sink: Handover) -> Iterator[Answer]:
        """What comes meanwhile goes to `sink`."""
        answer = self._answer = Answer(sink, WavStream(self._sample_rate))
        try:
            yield answer
        finally:
            self._answer = None

    def _on_wav_chunk(self, data: Any, size: int, _user_data: Any) -> int:
        answer = self._answer
        if answer is None or answer.sink.cancelled:
            return _STOP
        if data == self._ffi.NULL or size <= 0:
            return _GO_ON
        if samples := answer.wav.feed(bytes(self._ffi.buffer(data, size))):
            answer.heard = True
            return _GO_ON if answer.sink.put(samples) else _STOP
        return _GO_ON

    def _on_done(self, _user_data: Any) -> None:
        """The call's own end says the same."""

    def _on_error(self, message: Any, _user_data: Any) -> None:
        if self._answer and message != self._ffi.NULL:
            self._answer.message = bytes(self._ffi.string(message)).decode("utf-8", "replace").strip()

    def _is_cancelled(self, _user_data: Any) -> int:
        answer = self._answer
        return _IS_CANCELLED if answer is None or answer.sink.cancelled else _IS_NOT_CANCELLED

    def _on_exception(self, kind: type[BaseException], error: BaseException, _trace: object) -> None:
        """Nothing may be raised into native code: it stops, and the caller hears why."""
        if self._answer:
            ours = error if isinstance(error, EngineError) else None
            self._answer.failure = ours or EngineError(f"the engine failed: {kind.__name__}: {error}")
