"""Getting to know the servers."""

import asyncio
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fishs2_daemon import configuration
from fishs2_daemon.engines.base import EngineOptions
from fishs2_daemon.engines.remote.engine import RemoteEngine
from fishs2_daemon.errors import ConfigError, EngineError
from fishs2_daemon.speech import EngineInfo
from tests.engines.remote.conftest import QUICK, loaded
from tests.engines.remote.server import GREETING, RATE, TONE, Exchange, SpeechServer, closed_port, serving


def engine(*urls: str, key: Path | None = None) -> RemoteEngine:
    options = EngineOptions(remote_urls=urls, remote_model="m", remote_api_key_file=str(key) if key else None)
    return RemoteEngine(options, QUICK)


async def load(engine: RemoteEngine) -> EngineInfo:
    return await engine.load(lambda what, fraction: None)


async def test_what_it_says_of_itself() -> None:
    told: list[float] = []
    async with serving(one := SpeechServer(), other := SpeechServer()):
        remote = engine(one.url, other.url, one.url + "/")
        info = await remote.load(lambda what, fraction: told.append(fraction))
        assert info == remote.info()
        await remote.close()
    assert (info.name, info.sample_rate, info.slots, info.default_voice) == ("remote", RATE, 16, "default")
    assert info.clones
    assert info.device == f"{one.url}, {other.url}"
    assert [(voice.id, voice.languages) for voice in info.voices] == [("default", ("en",))]
    assert told == sorted(told)
    assert told[-1] == 1
    assert [request.fields["input"] for request in one.greetings] == [GREETING]


async def test_no_server_is_set() -> None:
    with pytest.raises(EngineError, match="FISHS2_REMOTE_URLS names no server"):
        await load(engine())


@pytest.mark.parametrize("url", ["http://[::1/v1", "http://host:port/v1", "http://127.0.0.1:99999/v1"])
def test_an_address_that_is_none_is_refused_where_it_is_set(url: str) -> None:
    with pytest.raises(ConfigError, match=r"FISHS2_REMOTE_URLS.*http:// or https:// addresses \("):
        configuration.load(engine="remote", remote_urls=["http://127.0.0.1:8020/v1", url])


async def test_every_server_that_cannot_be_used_is_named_with_the_reason() -> None:
    port = closed_port()

    async def no_model(exchange: Exchange) -> None:
        await exchange.error(404, "there is no model 'm'")

    servers = SpeechServer(health=503), SpeechServer(greeting=no_model), SpeechServer()
    async with serving(*servers):
        broken, wrong, well = servers
        with pytest.raises(EngineError, match=r"^FISHS2_REMOTE_URLS: no server can be used: ") as raised:
            await load(engine(broken.url, wrong.url, f"http://127.0.0.1:{port}", "http://no.such.host.invalid/v1"))
        for words in (
            f"{broken.url}: it is not well (503)", f"http://127.0.0.1:{wrong.port}: there is no model 'm' (404)",
            f"http://127.0.0.1:{port}: nobody answers there", "http://no.such.host.invalid: nobody answers there",
        ):  # fmt: skip
            assert words in str(raised.value)
        remote = engine(broken.url, wrong.url, well.url)
        assert (await load(remote)).slots == 24
        await remote.close()


async def test_a_silent_server_holds_nobody_up() -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.left()

    slow, well = SpeechServer(greeting=silent), SpeechServer()
    began = time.monotonic()
    async with loaded(slow, well, deadlines=replace(QUICK, meeting_s=0.8)) as remote:
        assert time.monotonic() - began < 0.7
        assert await remote.says("Text.") == TONE
        slow.greeting = SpeechServer.greeting
        async with asyncio.timeout(4):
            while len(slow.greetings) < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert await remote.says("Text.") == TONE
        assert slow.kept


async def test_a_server_that_comes_later_takes_part() -> None:
    late, well = SpeechServer(), SpeechServer()
    async with serving(late):
        await late.stop()
        async with loaded(well, extra_urls=(late.url,)) as remote:
            assert await remote.says("Text.") == TONE
            await late.start()
            async with asyncio.timeout(4):
                while not late.greetings:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await remote.says("Text.")
            assert late.kept


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_base_is_tried_with_v1(server: SpeechServer, suffix: str) -> None:
    async with serving(server):
        remote = engine(f"http://127.0.0.1:{server.port}{suffix}")
        await load(remote)
        await remote.close()
    assert server.greetings[0].path == "/v1/audio/speech"


async def test_an_unknown_server_shows_how_it_wants_to_be_asked() -> None:
    async def pcm_alone(exchange: Exchange) -> None:
        if exchange.request.fields["response_format"] != "pcm":
            await exchange.error(400, "stream=true requires response_format='pcm'")
        else:
            await exchange.head(kind="audio/pcm", x_sample_rate="44100")
            await exchange.chunk(TONE)
            await exchange.end()

    async def plain_alone(exchange: Exchange) -> None:
        if "stream" in exchange.request.fields:
            await exchange.error(422, "unknown field: stream")
        else:
            await exchange.speech()

    for answer, rate, refused in ((pcm_alone, 44100, 1), (plain_alone, RATE, 2)):
        server = SpeechServer(answer, answer, owner="somebody")
        async with loaded(server) as remote:
            assert len(server.greetings) == refused + 1
            (block,) = await remote.blocks("Text.")
            assert (block.samples, block.sample_rate) == (TONE, rate)
            assert len(server.kept) == 1


async def test_the_key_is_read_from_its_file_and_read_again_when_it_is_refused(
    server: SpeechServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, wanted = tmp_path / "key", "first-secret"

    async def guarded(exchange: Exchange) -> None:
        told = exchange.request.headers.get("authorization", "")
        if told != f"Bearer {wanted}":
            await exchange.error(401, f"Incorrect API key: {told}")
        else:
            await exchange.speech()

    server.answer = server.greeting = guarded
    key.write_text("# of the GPU box\n\nfirst-secret\n")
    async with serving(server):
        remote = engine(server.url, key=key)
        await load(remote)
        wanted = "second-secret"
        key.write_text("second-secret")
        await _says(remote)
        assert [request.headers["authorization"] for request in server.kept] == [
            "Bearer first-secret", "Bearer second-secret",
        ]  # fmt: skip
        wanted = "third-secret"
        with pytest.raises(EngineError, match=r"Incorrect API key: Bearer \[key\] \(401\)") as raised:
            await _says(remote)
        key.write_text("third-secret")
        remote.info()
        await asyncio.sleep(0.1)
        server.kept.clear()
        await _says(remote)
        assert len(server.kept) == 1
        key.unlink()
        remote.info()
        await asyncio.sleep(0.1)
        await _says(remote)
        await remote.close()
    assert "secret" not in caplog.text + str(raised.value)


async def _says(remote: RemoteEngine) -> None:
    from tests.engines.remote.conftest import Remote

    assert await Remote(remote, ()).says("Text.") == TONE


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "no key"), (b"# x\n", "no key"), (b"a b\n", "no key"), (b"\xff\n", "ASCII")],
)
async def test_a_key_file_that_is_wrong_is_named(
    server: SpeechServer, tmp_path: Path, content: bytes | None, reason: str
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    with pytest.raises(EngineError, match=f"FISHS2_REMOTE_API_KEY_FILE: .*{reason}"):
        await load(engine("http://127.0.0.1:1", key=key))


async def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("choice", "client", "upstream"):
        monkeypatch.delitem(sys.modules, f"fishs2_daemon.engines.remote.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(EngineError, match=r"httpx2 is missing: pip install 'fishs2-daemon\[remote\]'"):
        await load(engine("http://127.0.0.1:1"))
