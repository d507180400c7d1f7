"""A server that does not take a request: whether another one is asked, and whether it is asked again."""

import asyncio

import pytest

from fishs2_daemon.errors import EngineError
from tests.engines.remote.conftest import loaded
from tests.engines.remote.server import TONE, Exchange, SpeechServer


@pytest.mark.parametrize("status", [400, 409, 413, 422])
async def test_a_request_that_is_refused_is_refused_by_all(status: int) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.error(status, "there is no voice 'bob'")

    servers = SpeechServer(refuse), SpeechServer(refuse)
    async with loaded(*servers) as remote:
        with pytest.raises(EngineError, match=rf"^http://127.*: there is no voice 'bob' \({status}\)$"):
            await remote.says("Text.")
        assert len(servers[0].kept + servers[1].kept) == 1
        for server in servers:
            server.answer = SpeechServer.answer
        assert await remote.says("Text.") == TONE


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_what_one_server_lacks_another_one_may_have(status: int) -> None:
    async def lack(exchange: Exchange) -> None:
        await exchange.error(status, "there is no model 'm'")

    one, other = SpeechServer(lack), SpeechServer()
    async with loaded(one, other) as remote:
        one.greeting = lack
        for _ in range(3):
            assert await remote.says("Text.") == TONE
            await asyncio.sleep(0.1)
        assert len(one.kept) == 1
        assert len(one.greetings) > 1
        other.answer = lack
        with pytest.raises(EngineError, match=rf"^no server speaks: .*there is no model 'm' \({status}\)"):
            await remote.says("Text.")


async def test_what_a_server_lacked_may_come_to_it() -> None:
    async def lack(exchange: Exchange) -> None:
        await exchange.error(404, "there is no model 'm'")

    one, other = SpeechServer(lack), SpeechServer()
    async with loaded(one, other) as remote:
        one.greeting = lack
        assert await remote.says("Text.") == TONE
        async with asyncio.timeout(5):
            while len(one.greetings) < 2:
                await asyncio.sleep(0.01)
            one.greeting = one.answer = SpeechServer.answer
            while len(one.kept) < 2:
                assert await remote.says("Text.") == TONE
                await asyncio.sleep(0.05)
