"""Random conversations against a real door: whatever a peer sends, in whatever order, the door answers by its rules."""

import asyncio
import gc
from typing import Any

import psutil
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from wyoming.event import Event, async_read_event, async_write_event

from fishs2_daemon import configuration
from fishs2_daemon.daemon import running_service
from fishs2_daemon.sockets import listen_tcp
from fishs2_daemon.wyoming_server.connection import MAX_AHEAD
from fishs2_daemon.wyoming_server.server import WyomingServer

_ANSWER_S = 20

texts = st.sampled_from(
    [
        "",
        "Hello.",
        "One. Two, three! Four?",
        "😀",
        "Ein Satz, der nicht",
        " weitergeht.",
        "\n\n",
        "*",
        "x" * 400,
        "。你好",
    ]
)
voices = st.sampled_from([None, {}, {"name": "de"}, {"name": "default"}, {"language": "en"}])
wrong = st.sampled_from(
    [
        Event("synthesize", {"text": 5}),
        Event("synthesize", {"text": "x", "voice": []}),
        Event("synthesize", {"text": "x", "voice": {"name": "nobody"}}),
        Event("synthesize-chunk", {"text": {}}),
        Event("synthesize-start", {"voice": {"name": 7}}),
        Event("synthesize-start", {"text_format": "latex"}),
    ]
)


class _Door:
    """One daemon's worth of speech for all conversations; the loop runs only while a step runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.reports: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.reports.append(context))
        self.loop.run_until_complete(self._start())

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, _ANSWER_S))

    async def _start(self) -> None:
        self._service = running_service(configuration.load(languages="en,de"))
        self.service, supervisor = await self._service.__aenter__()
        await supervisor.ready(20)
        self.server = WyomingServer(self.service)
        sockets = listen_tcp("127.0.0.1", 0)
        await self.server.start(sockets)
        self.port = sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self.server.stop_accepting()
        await self.server.drain(0)
        await self._service.__aexit__(None, None, None)

    def close(self) -> None:
        self.loop.run_until_complete(self._stop())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class Conversation(RuleBasedStateMachine):
    """Models what one connection owes its peer: answers in order, then nothing, or one error and the end."""

    door: _Door

    @initialize()
    def begin(self) -> None:
        self.connect()

    def connect(self) -> None:
        self.reader, self.writer = self.door.run(asyncio.open_connection("127.0.0.1", self.door.port))
        self.owed: list[str] = []  # the event that ends each answer
        self.is_stream_open = False
        self.is_over = False

    @precondition(lambda self: self.is_over)
    @rule()
    def reconnect(self) -> None:
        self.writer.transport.abort()
        self.connect()

    def _send(self, event: Event) -> None:
        self.door.run(async_write_event(event, self.writer))

    def _receive(self) -> Event | None:
        return self.door.run(async_read_event(self.reader))  # type: ignore[no-any-return]

    is_talking = precondition(lambda self: not self.is_over)
    may_ask = precondition(lambda self: not self.is_over and len(self.owed) < MAX_AHEAD)

    @may_ask
    @rule(text=texts, voice=voices)
    def synthesize(self, text: str, voice: dict[str, str] | None) -> None:
        self._send(Event("synthesize", {"text": text, "voice": voice}))
        if not self.is_stream_open:
            self.owed.append("audio-stop")

    @may_ask
    @rule(voice=voices)
    def start(self, voice: dict[str, str] | None) -> None:
        self._send(Event("synthesize-start", {"voice": voice}))
        if self.is_stream_open:
            self._expect_error("protocol")
        else:
            self.is_stream_open = True
            self.owed.append("synthesize-stopped")

    @is_talking
    @rule(text=texts)
    def chunk(self, text: str) -> None:
        self._send(Event("synthesize-chunk", {"text": text}))
        if not self.is_stream_open:
            self._expect_error("protocol")

    @is_talking
    @rule()
    def stop(self) -> None:
        self._send(Event("synthesize-stop"))
        if not self.is_stream_open:
            self._expect_error("protocol")
        self.is_stream_open = False

    @is_talking
    @rule(name=st.sampled_from(["select-program", "audio-start", "transcribe", "", "\n", "synthesize-stopped"]))
    def unknown(self, name: str) -> None:
        self._send(Event(name, {"name": "x"}))

    @is_talking
    @rule(kind=st.sampled_from([("describe", "info"), ("ping", "pong")]))
    def ask(self, kind: tuple[str, str]) -> None:
        """Answered at once, also in the middle of an answer."""
        self._send(Event(kind[0]))
        self._read_until(kind[1])

    @is_talking
    @rule(event=wrong)
    def mistake(self, event: Event) -> None:
        if self.is_stream_open and event.type == "synthesize":
            return  # ignored there, whatever it holds
        self._send(event)
        self._expect_error(None)

    @is_talking
    @rule(sent=st.binary(min_size=1, max_size=30))
    def noise(self, sent: bytes) -> None:
        self.writer.write(b"\x01" + sent.replace(b"\n", b"") + b"\n")
        self._expect_error("protocol")

    @precondition(lambda self: not self.is_over and not self.is_stream_open)
    @rule()
    def listen(self) -> None:
        """All answers that are owed come, whole and in order."""
        while self.owed:
            self._read_until(self.owed[0])

    @is_talking
    @rule()
    def leave(self) -> None:
        self.writer.transport.abort()
        self.is_over = True

    @invariant()
    def nothing_was_raised(self) -> None:
        assert not self.door.reports, self.door.reports

    def _read_until(self, kind: str) -> None:
        while True:
            event = self._receive()
            assert event is not None, f"the connection ended before {kind}"
            assert event.type != "error", event.data
            if self.owed and event.type == self.owed[0]:
                self.owed.pop(0)
            if event.type == kind:
                return

    def _expect_error(self, code: str | None) -> None:
        self.is_over = True
        event: Event | None = Event("")
        try:
            while event and event.type != "error":
                event = self._receive()
            assert event, "the connection ended without an error"
            assert event.data["text"]
            assert code in (None, event.data["code"]), event.data
            assert self._receive() is None, "something came after the error"
        except asyncio.IncompleteReadError:
            pass  # an answer was broken off, as it must be

    def teardown(self) -> None:
        if hasattr(self, "writer"):
            self.writer.transport.abort()
            self.door.run(self._all_quiet())
        gc.collect()
        assert not self.door.reports, self.door.reports

    async def _all_quiet(self) -> None:
        while self.door.service.running or self.door.service.waiting or self.door.server._connections:
            await asyncio.sleep(0.002)


def test_random_conversations() -> None:
    Conversation.door = _Door()
    process = psutil.Process()
    descriptors = process.num_fds()
    try:
        run_state_machine_as_test(
            Conversation,
            settings=settings(
                max_examples=60,
                stateful_step_count=25,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert process.num_fds() <= descriptors + 2
        assert len(asyncio.all_tasks(Conversation.door.loop)) <= 8
    finally:
        Conversation.door.close()
