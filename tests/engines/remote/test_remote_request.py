"""What a server is asked, field for field."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from fishs2_daemon.engines.remote import clips
from fishs2_daemon.engines.remote.clips import ClipUrls
from fishs2_daemon.engines.remote.request import Reference, SpeechAsked, manners_of
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Clip, SamplingOverrides
from tests.engines.remote.conftest import Remote, loaded
from tests.engines.remote.server import TONE, Exchange, SpeechServer, tone, wav_of

CONTENT = wav_of(TONE)


def clip(path: Path, content: bytes = CONTENT) -> Clip:
    path.write_bytes(content)
    return Clip(str(path), hashlib.sha256(content).hexdigest(), 'He said "well".')


def asked(owner: str, **fields: object) -> dict[str, object]:
    return dict(json.loads(SpeechAsked("Text.", **fields).body("m", manners_of(owner)[0])))  # type: ignore[arg-type]


def test_only_what_was_given_is_sent() -> None:
    assert asked("fishs2-daemon") == {
        "model": "m", "input": "Text.", "response_format": "wav", "voice": "default",
        "stream": True, "normalize": False,
    }  # fmt: skip
    sampling = SamplingOverrides(temperature=0.0, seed=7, max_new_tokens=100)
    body = asked("fishs2-daemon", voice="anna", sampling=sampling)
    assert body["voice"] == "anna"
    assert {name: body[name] for name in body if name in SamplingOverrides.__slots__} == {
        "temperature": 0.0, "seed": 7, "max_new_tokens": 100,
    }  # fmt: skip


def test_every_server_is_asked_in_its_own_way() -> None:
    reference = Reference(b"data:audio/wav;base64,AAAA", 'says "x"')
    assert asked("sglang-omni")["response_format"] == "pcm"
    assert asked("sglang-omni", references=(reference,))["references"] == [
        {"audio": "data:audio/wav;base64,AAAA", "text": 'says "x"'}
    ]
    assert "voice" not in asked("vllm")
    assert asked("vllm", references=(reference,))["references"] == [
        {"audio_path": "data:audio/wav;base64,AAAA", "text": 'says "x"'}
    ]
    assert asked("somebody")["voice"] == "alloy"


async def test_the_door_of_another_daemon_knows_every_field() -> None:
    from adapters.openai.schemas import SpeechBody

    references = (Reference(b"data:audio/wav;base64,AAAA", "x"),) * 2
    every = SamplingOverrides(1, 1.0, 1.0, 1, 1, 1)
    body = json.loads(
        SpeechAsked("Text.", references=references, sampling=every).body("m", manners_of("fishs2-daemon")[0])
    )
    assert set(body) <= set(SpeechBody.model_fields)
    parsed = SpeechBody.parse(json.dumps(body).encode())
    assert parsed.given() == dict.fromkeys(SamplingOverrides.__slots__, 1)
    assert [each.text for each in parsed.references] == ["x", "x"]


async def test_clips_are_sent_in_the_order_of_their_speakers(
    remote: Remote, server: SpeechServer, tmp_path: Path
) -> None:
    first, second = clip(tmp_path / "one.wav"), clip(tmp_path / "two", b"OggS" + bytes(50))
    assert await remote.says("Text.", voice="whoever", clips=(first, second)) == TONE
    (body,) = [request.fields for request in server.kept]
    assert body["voice"] == "default"
    assert body["references"] == [
        {"audio": "data:audio/wav;base64," + base64.b64encode(CONTENT).decode(), "text": 'He said "well".'},
        {"audio": "data:audio/ogg;base64," + base64.b64encode(b"OggS" + bytes(50)).decode(), "text": 'He said "well".'},
    ]


async def test_a_clip_is_read_once_and_what_was_meant_is_sent(
    remote: Remote, server: SpeechServer, tmp_path: Path
) -> None:
    meant = clip(tmp_path / "one.wav")
    await remote.says("Text.", clips=(meant,))
    (tmp_path / "one.wav").unlink()
    await remote.says("Text.", clips=(meant,))
    assert server.kept[0].fields["references"] == server.kept[1].fields["references"]


async def test_a_clip_that_is_not_the_one_that_was_meant_is_refused(remote: Remote, tmp_path: Path) -> None:
    meant = clip(tmp_path / "one.wav")
    (tmp_path / "one.wav").write_bytes(CONTENT + b"x")
    with pytest.raises(EngineError, match=r"^one.wav: the voice was changed in this moment"):
        await remote.says("Text.", clips=(meant,))
    with pytest.raises(EngineError, match=r"^gone.wav: cannot be read: No such file"):
        await remote.says("Text.", clips=(Clip(str(tmp_path / "gone.wav"), "0" * 64, "x"),))


async def test_clips_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "LARGEST_CLIP_BYTES", 1000)
    monkeypatch.setattr(clips, "KEPT_BYTES", 3000)
    urls = ClipUrls()
    with pytest.raises(EngineError, match="at most 1000 bytes"):
        await urls.reference(clip(tmp_path / "large", bytes(1001)))
    small = [clip(tmp_path / str(number), bytes([number]) * 1000) for number in range(4)]
    for each in small:
        await urls.reference(each)
        (tmp_path / Path(each.path).name).unlink()
    assert (await urls.reference(small[3])).audio
    with pytest.raises(EngineError, match="cannot be read"):
        await urls.reference(small[0])


async def test_a_voice_is_made_ready_without_a_word(remote: Remote, server: SpeechServer, tmp_path: Path) -> None:
    meant = clip(tmp_path / "one.wav")
    assert await remote.says(clips=(meant,)) == b""
    (tmp_path / "one.wav").unlink()
    assert await remote.says("Text.", clips=(meant,)) == TONE


async def test_a_server_that_takes_one_recording_is_not_asked_for_two(tmp_path: Path) -> None:
    meant = clip(tmp_path / "one.wav")
    async with loaded(SpeechServer(owner="vllm")) as remote:
        assert await remote.says("Text.", clips=(meant,)) == TONE
        with pytest.raises(EngineError, match="no server is known to speak like 2 recordings at a time"):
            await remote.says("Text.", clips=(meant, meant))


async def test_recordings_go_to_a_server_that_takes_as_many(tmp_path: Path) -> None:
    one, several = SpeechServer(owner="vllm"), SpeechServer()
    async with loaded(one, several) as remote:
        for _ in range(3):
            assert await remote.says("Text.", clips=(clip(tmp_path / "a.wav"), clip(tmp_path / "b.wav"))) == TONE
    assert (len(one.kept), len(several.kept)) == (0, 3)


async def test_a_server_that_nobody_knows_is_sent_no_recording(tmp_path: Path) -> None:
    """It would pass over it, and speak in a voice of its own."""
    server = SpeechServer(owner="somebody")
    async with loaded(server) as remote:
        with pytest.raises(EngineError, match="no server is known to speak like 1 recordings at a time"):
            await remote.says("Text.", clips=(clip(tmp_path / "one.wav"),))
        assert not server.kept
        assert await remote.says("Text.") == TONE


async def test_a_server_that_only_stands_in_for_a_recording_is_not_heard(tmp_path: Path) -> None:
    other_tone = tone(pitch=5)

    async def stand_in(exchange: Exchange) -> None:
        await exchange.head(x_fishs2_voice="a%20recording; stand-in=1")
        await exchange.chunk(wav_of(other_tone))
        await exchange.end()

    preview, cloning = SpeechServer(stand_in), SpeechServer()
    async with loaded(preview, cloning) as remote:
        for _ in range(3):
            assert await remote.says("Text.", clips=(clip(tmp_path / "one.wav"),)) == TONE
        assert preview.kept
        assert {await remote.says("Text.") for _ in range(2)} == {TONE, other_tone}, "it is well, and speaks the rest"
