"""The thread that turns codes into sound, beside the one that makes them: no frame waits for a block."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.answer import Answer
from fishs2_daemon.engines.s2.blocks import SIZES, first_block, next_block, unheard_when_due
from fishs2_daemon.engines.s2.codec import Decoder, DecoderStream
from fishs2_daemon.engines.s2.commands import Commands
from fishs2_daemon.engines.s2.guards import Guard
from fishs2_daemon.engines.s2.pulse import Pulse
from fishs2_daemon.engines.s2.scheduler import Seat
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Pcm

_log = logging.getLogger(__name__)

_LOUDEST = 32767

#: Weight of the newest frame in a stream's measured speed.
_NEWEST = 0.2

#: A frame that took longer says nothing of the speed: its listener did not read, or a prompt was read.
_SLOWEST_RTF = 2.0

#: What a thread may take to end; a native call cannot be interrupted.
_ENDING_S = 10.0


@dataclass(eq=False, slots=True)
class _Track:
    """One seat's stream. It goes on through all its answers, so nothing breaks between them."""

    answer: Answer
    guard: Guard
    #: None until it is needed, and after a failure.
    stream: DecoderStream | None = None
    codes: list[npt.NDArray[np.int32]] = field(default_factory=list)  # waiting, [K] each
    is_over: bool = False
    has_ended: bool = False
    error: EngineError | None = None
    #: Frames of this answer that are sound by now, and when the first of them was.
    sent: int = 0
    sent_since: float = 0.0
    last_frame_at: float | None = None


class Vocoder:
    """Owns the decoder."""

    def __init__(self, decoder: Decoder, sample_rate: int, frame_samples: int) -> None:
        self.pulse = Pulse()
        self._decoder = decoder
        self._sample_rate = sample_rate
        self._frame_s = frame_samples / sample_rate
        self._frame_samples = frame_samples
        self._tracks: dict[Seat, _Track] = {}
        #: Time that a stream's frame takes over the time that it sounds, of late.
        self._rtf: float | None = None
        self._commands = Commands()
        self._thread = threading.Thread(target=self._work, name="s2-codec", daemon=True)
        self._thread.start()

    def put(self, seat: Seat, answer: Answer, codes: npt.NDArray[np.int32]) -> None:
        """The answer's next frame, `[K]`."""
        # Not when the other thread gets to it: it takes several at once behind a long block.
        made_at = time.perf_counter()
        self._commands.put(lambda: self._add(seat, answer, codes, made_at))

    def end(self, seat: Seat, answer: Answer, error: EngineError | None) -> None:
        """No more frames: the end is posted behind the last block."""
        self._commands.put(lambda: self._finish(seat, answer, error))

    def leave(self, seat: Seat) -> None:
        """The seat's stream is over."""
        self._commands.put(lambda: self._close(seat))

    def close(self) -> None:
        """End all answers, and wait for the thread's end; the decoder may be closed then. Raises `EngineError` where
        the thread goes on computing. May be called twice."""
        self._commands.end()
        self._thread.join(_ENDING_S)
        if self._thread.is_alive():
            raise EngineError(f"the thread that decodes did not end within {_ENDING_S:.0f} s")

    def _work(self) -> None:
        ready: list[_Track] = []
        # Frames may fail to come, while a prompt is read: what waits for more of them must not come too late.
        while self._commands.carry_out(wait=not ready, timeout_s=None if ready else self._due_in_s()):
            try:
                ready = [track for track in self._tracks.values() if self._is_ready(track)]
                if ready:
                    with self.pulse:
                        self._decode(ready)
            except Exception as error:  # noqa: BLE001 - an edge: those who were heard learn of it, others go on
                _log.exception("decoding failed")
                reason = str(error) if isinstance(error, EngineError) else type(error).__name__
                for track in ready:
                    self._fail(track, EngineError(f"decoding failed: {reason}"))
            for track in self._tracks.values():
                if track.is_over and not track.codes:
                    track.is_over, track.has_ended = False, True
                    track.answer.post_end(track.error)
        for track in self._tracks.values():
            if not track.has_ended:
                track.answer.post_end(track.error or EngineError("the engine was closed"))

    def _track(self, seat: Seat, answer: Answer) -> _Track:
        track = self._tracks.get(seat)
        if track is None:
            track = self._tracks[seat] = _Track(answer, Guard(self._sample_rate))
        elif track.answer is not answer:
            track.answer, track.guard, track.error = answer, Guard(self._sample_rate), None
            track.sent, track.last_frame_at, track.has_ended = 0, None, False
        return track

    def _add(self, seat: Seat, answer: Answer, codes: npt.NDArray[np.int32], made_at: float) -> None:
        if answer.kept is not None:
            return
        track = self._track(seat, answer)
        track.codes.append(codes)
        if track.last_frame_at is not None:
            rtf = min(_SLOWEST_RTF, (made_at - track.last_frame_at) / self._frame_s)
            self._rtf = rtf if self._rtf is None else _NEWEST * rtf + (1 - _NEWEST) * self._rtf
        track.last_frame_at = made_at

    def _finish(self, seat: Seat, answer: Answer, error: EngineError | None) -> None:
        track = self._track(seat, answer)
        track.is_over, track.error = True, track.error or error

    def _close(self, seat: Seat) -> None:
        track = self._tracks.pop(seat, None)
        if track and track.stream:
            track.stream.close()

    def _fail(self, track: _Track, error: EngineError) -> None:
        """What it has said so far counts. A stream that broke off is of no more use."""
        track.answer.keep(track.sent)
        track.codes.clear()
        track.error = error
        if track.stream:
            track.stream.close()
            track.stream = None

    def _is_ready(self, track: _Track) -> bool:
        waiting = len(track.codes)
        if not waiting or track.is_over:
            return bool(waiting)
        if not track.sent:
            return waiting >= first_block(self._rtf)
        return waiting >= next_block(self._rtf, self._unheard(track))

    def _due_in_s(self) -> float | None:
        """Until some of the frames that wait are to be decoded, even if no others come; None where there are none."""
        rtf = self._rtf
        if rtf is None:
            return None
        due = [
            self._unheard(track) - unheard_when_due(rtf, len(track.codes))
            for track in self._tracks.values()
            if track.codes and track.sent
        ]
        return max(0.0, min(due) * self._frame_s) if due else None

    def _unheard(self, track: _Track) -> float:
        """Frames that are still to be heard, by a listener who hears without a break; none are fewer than those of
        one who has not heard anything yet."""
        return track.sent - (time.perf_counter() - track.sent_since) / self._frame_s if track.sent else -inf

    def _decode(self, ready: Sequence[_Track]) -> None:
        """A block of the one whose listener runs dry first, and of those who have as many frames."""
        first, *others = sorted(ready, key=self._unheard)
        size = _size(first)
        group = [first, *(track for track in others if len(track.codes) >= size)]
        # Graphs are there for one, two, four, ... streams.
        group = group[: 1 << len(group).bit_length() - 1]
        streams = [self._stream(track) for track in group]
        codes = [np.stack(track.codes[:size], axis=1) for track in group]  # [K, size] each
        for track in group:
            del track.codes[:size]
        blocks = self._decoder.decode(streams, codes)
        for track, frames, samples in zip(group, codes, blocks, strict=True):
            self._send(track, frames, samples)

    def _stream(self, track: _Track) -> DecoderStream:
        if track.stream is None:
            track.stream = self._decoder.open_stream()
        return track.stream

    def _send(self, track: _Track, codes: npt.NDArray[np.int32], samples: npt.NDArray[np.float32]) -> None:
        answer, n = track.answer, codes.shape[1]
        if answer.kept is not None:
            return
        for index, frame in enumerate(samples.reshape(n, self._frame_samples)):
            track.guard.see(codes[:, index], frame)
            if track.guard.is_stuck:
                n = index + 1
                answer.keep(track.sent + n)
                track.codes.clear()
                break
        if not track.sent:
            track.sent_since = time.perf_counter()
        track.sent += n
        answer.post(Pcm(_pcm16(samples[: n * self._frame_samples]), self._sample_rate), n)


def _size(track: _Track) -> int:
    return max(size for size in SIZES if size <= len(track.codes))


def _pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    return np.rint(np.nan_to_num(np.clip(samples, -1.0, 1.0)) * _LOUDEST).astype("<i2").tobytes()
