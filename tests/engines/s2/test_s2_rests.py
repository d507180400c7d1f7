"""Texts that do not go on for a while: others get the slot, and nobody hears that it was gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fishs2_daemon.engines import rests
from fishs2_daemon.engines.base import EngineOptions, Utterance
from fishs2_daemon.engines.s2.engine import S2Engine
from fishs2_daemon.engines.s2.tiny import TINY, make_model
from fishs2_daemon.speech import Pcm, SamplingOverrides
from fishs2_daemon.text.phrase import Phrase


class Text:
    """Two phrases, the second one when `goes_on` is set."""

    def __init__(self, *phrases: str) -> None:
        self.goes_on = asyncio.Event()
        self._left = [Phrase(phrase) for phrase in phrases]
        self._is_first = True

    def __aiter__(self) -> "Text":
        return self

    async def __anext__(self) -> Phrase:
        if not self._is_first:
            await self.goes_on.wait()
        self._is_first = False
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


@pytest.fixture
async def s2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S2Engine]:
    """With one slot."""
    monkeypatch.setattr(rests, "_REST_S", 0.1)
    make_model(tmp_path / "model.gguf", replace(TINY, layers=2), seed=3)
    files = {"model_path": str(tmp_path / "model.gguf"), "tokenizer_path": str(tmp_path / "tokenizer.json")}
    s2 = S2Engine(EngineOptions(**files, backend="cpu", n_threads=1, slots=1, context=512, max_new_tokens=12))
    await s2.load(lambda what, fraction: None)
    yield s2
    await s2.close()


async def said(blocks: AsyncIterator[Pcm]) -> np.ndarray:
    return np.frombuffer(b"".join([block.samples async for block in blocks]), "<i2").astype(int)


def utterance(text: Text) -> Utterance:
    return Utterance("", text, sampling=SamplingOverrides(seed=5))


async def test_the_slot_is_another_one_s_meanwhile(s2: S2Engine) -> None:
    whole, other = Text("Hello there.", "And more.", "The end."), Text("Somebody else.")
    whole.goes_on.set()
    other.goes_on.set()
    expected, expected_other = await said(s2.speak(utterance(whole))), await said(s2.speak(utterance(other)))

    text = Text("Hello there.", "And more.", "The end.")
    async with asyncio.timeout(30), aclosing(s2.speak(utterance(text))) as blocks:
        first = np.frombuffer((await anext(blocks)).samples, "<i2").astype(int)
        speaking = asyncio.create_task(said(blocks))
        other = Text("Somebody else.")
        other.goes_on.set()
        assert np.abs(await said(s2.speak(utterance(other))) - expected_other).max() <= 1
        assert not speaking.done()
        text.goes_on.set()
        samples = np.concatenate([first, await speaking])
    # The codec begins anew, and forgets what was there before the silence.
    assert len(samples) == len(expected)
    assert np.corrcoef(samples, expected)[0, 1] > 0.9
    async with asyncio.timeout(5):
        while s2._ready.runner._scheduler.seats:
            await asyncio.sleep(0.01)


async def test_whoever_leaves_meanwhile_has_nothing_to_give_back(s2: S2Engine) -> None:
    text = Text("Hello there.", "And more.")
    blocks = s2.speak(utterance(text))
    await anext(blocks)
    speaking = asyncio.create_task(said(blocks))
    await asyncio.sleep(1)
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)
    await blocks.aclose()
    other = Text("Somebody else.")
    other.goes_on.set()
    assert len(await said(s2.speak(utterance(other))))
