"""What is between libs2's callbacks and the event loop."""

import asyncio
import struct
import threading
import time
from itertools import pairwise

import cffi
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.audio import wav
from fishs2_daemon.engines.s2cpp.callbacks import Callbacks
from fishs2_daemon.engines.s2cpp.cdef import DECLARATIONS
from fishs2_daemon.engines.s2cpp.samples import WavStream, pcm16
from fishs2_daemon.engines.s2cpp.thread import Handover, NativeThread
from fishs2_daemon.errors import EngineError


@given(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=12))
def test_a_stream_is_the_same_samples_however_it_is_cut(pcm: bytes, cuts: list[int]) -> None:
    stream = wav.header(44100, None) + pcm
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    taken = WavStream(44100)
    blocks = [taken.feed(stream[a:b]) for a, b in pairwise(borders)]
    assert all(len(block) % 2 == 0 for block in blocks)
    assert b"".join(blocks) == pcm[: len(pcm) - len(pcm) % 2]


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (b"OggS" + wav.header(44100, None)[4:], "does not begin as a WAV file"),
        (wav.header(24000, None), "24000 Hz, 1 channels, 16 bit; this engine takes 44100 Hz"),
        (wav.header(44100, None)[:20] + struct.pack("<H", 3) + wav.header(44100, None)[22:], "WAV file of PCM"),
        (wav.header(44100, None)[:22] + struct.pack("<H", 2) + wav.header(44100, None)[24:], "2 channels"),
    ],
)
def test_another_header_is_refused(header: bytes, text: str) -> None:
    with pytest.raises(EngineError, match=text):
        WavStream(44100).feed(header)


def test_samples_are_cut_towards_zero_and_clamped() -> None:
    wave = np.array([0.0, 1.9, -1.9, 32766.9, -32767.9, 32768, -32768, 40000, -40000], np.float32) / 32768
    wild = np.array([np.nan, np.inf, -np.inf], np.float32)
    samples = memoryview(pcm16(np.concatenate([wave, wild]))).cast("h")
    assert list(samples) == [0, 1, -1, 32766, -32767, 32767, -32768, 32767, -32768, 0, 32767, -32768]


async def taken(handover: Handover) -> list[bytes]:
    blocks = []
    while block := await handover.take():
        blocks.append(block)
    return blocks


async def test_what_is_put_is_taken_in_its_order_and_the_end_stays() -> None:
    handover = Handover()

    def put() -> None:
        for number in range(200):
            assert handover.put(bytes([number]) * 100)
            time.sleep(0.0002 * (number % 3))
        handover.end()

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    assert b"".join(await taken(handover)) == b"".join(bytes([number]) * 100 for number in range(200))
    assert await handover.take() == b""
    await asyncio.to_thread(thread.join)


async def test_a_thread_waits_for_its_listener_and_the_loop_does_not() -> None:
    handover = Handover(ahead_bytes=1000)
    put: list[int] = []

    def fill() -> None:
        for number in range(10):
            handover.put(bytes(400))
            put.append(number)
        handover.end()

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    await asyncio.sleep(0.1)
    assert len(put) == 3, "the third block reaches beyond the bound, and the fourth waits"
    assert len(await handover.take()) == 1200
    await asyncio.sleep(0.05)
    assert len(put) == 6
    assert sum(map(len, await taken(handover))) == 2800
    await asyncio.to_thread(thread.join)


async def test_a_cancel_ends_the_wait() -> None:
    handover = Handover(ahead_bytes=10)
    answers: list[bool] = []

    def fill() -> None:
        for _ in range(3):
            answers.append(handover.put(bytes(10)))  # noqa: PERF401 - it is read while it grows

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    await asyncio.sleep(0.05)
    assert answers == [True]
    handover.cancel()
    await asyncio.to_thread(thread.join)
    assert answers == [True, False, False]


async def test_the_library_is_told_of_a_cancel_at_the_header_and_whenever_it_asks() -> None:
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    callbacks = Callbacks(ffi, 44100)
    call, null, head = callbacks.pointer, ffi.NULL, wav.header(44100, None)
    sink = Handover()
    with callbacks.to(sink) as answer:
        assert call.is_cancelled(null) == 0
        assert call.on_wav_chunk(head, len(head), null) == 1
        assert call.on_wav_chunk(b"ab", 2, null) == 1
        call.on_error("über".encode(), null)
        call.on_done(null)
        assert (answer.heard, answer.message, answer.failure) == (True, "über", None)
    assert call.is_cancelled(null) == 1, "nobody is there"
    assert call.on_wav_chunk(b"ab", 2, null) == 0
    assert await sink.take() == b"ab"
    sink = Handover()
    sink.cancel()
    with callbacks.to(sink) as answer:
        assert call.is_cancelled(null) == 1
        assert call.on_wav_chunk(head, len(head), null) == 0, "before a long prompt is computed"
        assert not answer.heard


async def test_a_cancel_while_a_block_waits_for_its_listener_stops_the_library() -> None:
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    callbacks = Callbacks(ffi, 44100)
    sink = Handover(ahead_bytes=10)
    stream = wav.header(44100, None) + bytes(10)
    with callbacks.to(sink):
        assert callbacks.pointer.on_wav_chunk(stream, len(stream), ffi.NULL) == 1
        waiting = asyncio.create_task(asyncio.to_thread(callbacks.pointer.on_wav_chunk, bytes(10), 10, ffi.NULL))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        sink.cancel()
        assert await waiting == 0


async def test_an_error_of_ours_is_no_exception_in_native_code(monkeypatch: pytest.MonkeyPatch) -> None:
    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    callbacks = Callbacks(ffi, 44100)
    sink = Handover()
    monkeypatch.setattr(sink, "put", lambda samples: 1 / 0)
    stream = wav.header(44100, None) + b"ab"
    with callbacks.to(sink) as answer:
        assert callbacks.pointer.on_wav_chunk(stream, len(stream), ffi.NULL) == 0
        assert str(answer.failure) == "the engine failed: ZeroDivisionError: division by zero"


async def test_who_is_cancelled_leaves_when_the_call_has_returned() -> None:
    thread = NativeThread()
    running, go = threading.Event(), threading.Event()

    def call() -> None:
        running.set()
        go.wait(5)

    waiting = asyncio.create_task(thread.run(call))
    behind = asyncio.create_task(thread.run(lambda: None))
    await asyncio.to_thread(running.wait)
    waiting.cancel()
    behind.cancel()
    await asyncio.sleep(0.05)
    assert not waiting.done()
    assert behind.cancelled(), "what has not begun never does"
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await thread.run(lambda: 7) == 7
    thread.end()
    with pytest.raises(EngineError, match="libs2 is not loaded"):
        await thread.run(lambda: 7)
