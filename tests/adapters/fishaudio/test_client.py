"""Fish Audio's own client, and its older one, in front of the real service."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import fish_audio_sdk
import fishaudio
import pytest
from fishaudio.types import FlushEvent, Prosody, ReferenceAudio, TTSConfig
from httpx_ws import WebSocketUpgradeError
from pydantic import SecretStr

from tests.adapters.fishaudio.harness import decoded_s
from tests.adapters.openai.harness import Running
from tests.conftest import Speech
from tests.voices.sounds import wav

TEXT = "Good morning, everybody."
WORDS = ("Good ", "morning, ", "everybody. ", "It is a fine day.")


@pytest.fixture
async def client(speaking: Running) -> AsyncIterator[fishaudio.AsyncFishAudio]:
    async with fishaudio.AsyncFishAudio(api_key="any", base_url=speaking.url) as client:
        yield client


async def arriving() -> AsyncIterator[Any]:
    for word in WORDS:
        yield word


async def heard_error(client: fishaudio.AsyncFishAudio, **options: Any) -> str:
    """The one error of a live text of which nothing was spoken."""
    try:
        async for _ in client.tts.stream_websocket(arriving(), **options):
            pytest.fail("somebody spoke")
    except (ExceptionGroup, WebSocketUpgradeError) as caught:
        error: BaseException = caught
        while isinstance(error, ExceptionGroup):  # the client's WebSocket library puts it into one
            (error,) = error.exceptions
        return str(error)
    pytest.fail("it ended well")


async def synchronously(call: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(call)


@pytest.mark.parametrize(("format_", "codec"), [("mp3", "mp3float"), ("wav", "pcm_s16le"), ("opus", "opus")])
async def test_convert(client: fishaudio.AsyncFishAudio, format_: Any, codec: str) -> None:
    name, rate, length_s = decoded_s(await client.tts.convert(text=TEXT, format=format_))
    assert (name, rate) == (codec, {"mp3": 22050, "wav": 44100, "opus": 48000}[format_])
    assert 1 < length_s < 4


async def test_config(client: fishaudio.AsyncFishAudio) -> None:
    plain = await client.tts.convert(text=TEXT, format="pcm")
    config = TTSConfig(format="pcm", sample_rate=16000, prosody=Prosody(speed=2.0, volume=-20))
    audio = await client.tts.convert(text=TEXT, config=config, model="s1")
    assert len(audio) / 16000 == pytest.approx(len(plain) / 44100 / 2, rel=0.05)
    assert max(memoryview(audio).cast("h")) < max(memoryview(plain).cast("h")) / 5


async def test_default_format(client: fishaudio.AsyncFishAudio) -> None:
    chunks = [chunk async for chunk in await client.tts.stream(text=TEXT)]
    assert decoded_s(b"".join(chunks))[0] == "mp3float"


async def test_websocket(client: fishaudio.AsyncFishAudio) -> None:
    chunks = [chunk async for chunk in client.tts.stream_websocket(arriving(), format="wav")]
    assert len(chunks) > 1
    name, rate, length_s = decoded_s(b"".join(chunks))
    assert (name, rate) == ("pcm_s16le", 44100)
    assert 2 < length_s < 6


async def test_websocket_refuses_an_unknown_voice(client: fishaudio.AsyncFishAudio) -> None:
    assert await heard_error(client, reference_id="nobody") == "WebSocket stream ended with error"


async def test_synchronous_client(speaking: Running) -> None:
    def texts() -> Iterator[Any]:
        yield from WORDS[:2]
        yield FlushEvent()
        yield from WORDS[2:]

    def use() -> tuple[bytes, bytes]:
        with fishaudio.FishAudio(api_key="any", base_url=speaking.url) as client:
            return client.tts.convert(text=TEXT), b"".join(client.tts.stream_websocket(texts(), format="opus"))

    whole, live = await synchronously(use)
    assert decoded_s(whole)[0] == "mp3float"
    assert decoded_s(live)[0] == "opus"


async def test_errors(client: fishaudio.AsyncFishAudio, speech: Speech) -> None:
    with pytest.raises(fishaudio.NotFoundError, match="there is no voice 'nobody'") as caught:
        await client.tts.convert(text=TEXT, reference_id="nobody")
    assert caught.value.status == 404
    with pytest.raises(fishaudio.APIError, match="cloning needs the words") as refused:
        await client.tts.convert(text=TEXT, references=[ReferenceAudio(audio=wav(), text="")])
    assert refused.value.status == 422
    with pytest.raises(fishaudio.ServerError, match="makes speech"):
        await client.asr.transcribe(audio=b"RIFF")
    speech.settings.api_keys = [SecretStr("secret")]
    with pytest.raises(fishaudio.AuthenticationError, match="API key"):
        await client.tts.convert(text=TEXT)
    assert "401" in await heard_error(client)


async def test_voices(client: fishaudio.AsyncFishAudio) -> None:
    made = await client.voices.create(
        title="Änna", voices=[wav(), wav(1.5)], texts=["One.", "Two."], tags=["calm", "low"], description="Test"
    )
    assert (made.id, made.title, made.state, made.visibility) == ("anna", "Änna", "trained", "private")
    assert [sample.text for sample in made.samples] == ["One.", "Two."]
    twin = await client.voices.create(title="Änna", voices=[wav(0.7)], texts=["Three."])
    assert twin.id.startswith("anna-")
    listed = await client.voices.list(title="nn", tags=["calm"])
    assert (listed.total, [voice.id for voice in listed.items]) == (1, ["anna"])
    assert (await client.voices.list(page_size=1, page_number=2)).items[0].id == twin.id
    await client.voices.update("anna", title="Anna B.", tags=["high"], visibility="public", cover_image=b"\x89PNG")
    await client.voices.update("anna", description="Changed")
    changed = await client.voices.get("anna")
    assert (changed.title, changed.tags, changed.visibility) == ("Anna B.", ["high"], "public")
    assert (changed.description, changed.created_at) == ("Changed", made.created_at)
    assert len(await client.tts.convert(text=TEXT, reference_id="anna")) > 1000
    await client.voices.delete("anna")
    for call in (client.voices.get, client.voices.delete, client.voices.update):
        with pytest.raises(fishaudio.NotFoundError):
            await call("anna")


async def test_a_voice_without_texts_is_refused(client: fishaudio.AsyncFishAudio) -> None:
    with pytest.raises(fishaudio.APIError, match="texts: what is said in each of the recordings"):
        await client.voices.create(title="Anna", voices=[wav()])
    assert (await client.voices.list()).total == 0


async def test_account(client: fishaudio.AsyncFishAudio) -> None:
    assert (await client.account.get_credits(check_free_credit=True)).credit > 0
    assert (await client.account.get_package()).balance > 0


async def test_older_client(speaking: Running) -> None:
    def use() -> None:
        request = fish_audio_sdk.TTSRequest(text=TEXT, format="wav")
        with fish_audio_sdk.Session("any", base_url=speaking.url) as session:
            with wave.open(io.BytesIO(b"".join(session.tts(request)))) as file:
                assert file.getframerate() == 44100
            made = session.create_model(title="Bob", voices=[wav()], texts=["One."])
            session.update_model(made.id, title="Robert")
            assert session.get_model(made.id).title == "Robert"
            assert session.list_models(title="rob").total == 1
            session.delete_model(made.id)
            assert session.get_api_credit().credit > 0
            assert session.get_package().finished_at
            with pytest.raises(fish_audio_sdk.HttpCodeErr, match="404 there is no stored voice"):
                session.get_model(made.id)
        with fish_audio_sdk.WebSocketSession("any", base_url=speaking.url) as live:
            audio = b"".join(live.tts(fish_audio_sdk.TTSRequest(text=""), WORDS))
            assert decoded_s(audio)[0] == "mp3float"

    await synchronously(use)
