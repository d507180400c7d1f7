"""Raw bytes that no client should send: each gets one `error` and a closed connection, and harms nobody else."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wyoming.event import Event

from fishs2_daemon.errors import DeadlineExceeded, ProtocolError
from fishs2_daemon.wyoming_server import framing
from tests.wyoming_server.conftest import Door

MALFORMED = {
    "empty line": b"\n",
    "no JSON": b"hello\n",
    "half JSON": b'{"type":\n',
    "wrong UTF-8": b'{"type":"d\xff\xfe"}\n',
    "an array": b"[]\n",
    "a string": b'"describe"\n',
    "a number": b"5\n",
    "null": b"null\n",
    "no type": b'{"data":{}}\n',
    "type is null": b'{"type":null}\n',
    "type is a number": b'{"type":5}\n',
    "type is an object": b'{"type":{}}\n',
    "data is a string": b'{"type":"describe","data":"x"}\n',
    "data is an array": b'{"type":"describe","data":[]}\n',
    "data is false": b'{"type":"describe","data":false}\n',
    "data_length is a string": b'{"type":"describe","data_length":"abc"}\n',
    "data_length is a float": b'{"type":"describe","data_length":1.5}\n',
    "data_length is true": b'{"type":"describe","data_length":true}\n',
    "data_length is an array": b'{"type":"describe","data_length":[1]}\n',
    "data_length is negative": b'{"type":"describe","data_length":-1}\n',
    "data_length is infinite": b'{"type":"describe","data_length":1e999}\n',
    "data_length is a tebibyte": b'{"type":"describe","data_length":1099511627776}\n',
    "data_length is just too large": b'{"type":"describe","data_length":4194305}\n',
    "data_length has 5000 digits": b'{"type":"describe","data_length":' + b"9" * 5000 + b"}\n",
    "payload_length is a string": b'{"type":"describe","payload_length":"1"}\n',
    "payload_length is negative": b'{"type":"describe","payload_length":-5}\n',
    "payload_length is 10^12": b'{"type":"describe","payload_length":1000000000000}\n',
    "payload_length is just too large": b'{"type":"describe","payload_length":1048577}\n',
    "the data section is no JSON": b'{"type":"describe","data_length":3}\nabc',
    "the data section is an array": b'{"type":"describe","data_length":2}\n[]',
    "the data section is wrong UTF-8": b'{"type":"describe","data_length":4}\n"\xff\xfe"',
    "deep JSON in the header": b'{"type":"x","data":' + b"[" * 30_000 + b"]" * 30_000 + b"}\n",
    "deep JSON in the data section": b'{"type":"x","data_length":200000}\n' + b"[" * 100_000 + b"]" * 100_000,
    "a header without end": b'{"type":"' + b"x" * 200_000,
    "a header that is too long": b'{"type":"' + b"x" * 70_000 + b'"}\n',
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a TLS handshake": bytes.fromhex("16030100f8010000f40303") + bytes(100) + b"\n",
    "NULs": bytes(1000) + b"\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bytes_get_an_error_and_the_door_stays_open(door: Door, sent: bytes) -> None:
    client = await door.connect()
    client.writer.write(sent)
    answer = await client.answer()
    assert answer.kinds == ["error"]
    assert answer.error is not None
    assert answer.error["code"] == "protocol"
    assert answer.error["text"]
    assert answer.is_closed
    other = await door.connect()
    await other.send("ping")
    event = await other.receive()
    assert event
    assert event.type == "pong"


@pytest.mark.parametrize("sent", [b"{", b'{"type":"describe"', b'{"type":"x","data_length":5}\nab', b"\xff"])
async def test_a_started_event_must_be_finished_in_time(door: Door, sent: bytes) -> None:
    door.speech.settings.event_timeout_s = 0.2
    client = await door.connect()
    client.writer.write(sent)
    answer = await client.answer()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"
    assert answer.is_closed


async def test_dripped_bytes_do_not_extend_the_time(door: Door) -> None:
    door.speech.settings.event_timeout_s = 0.4
    client = await door.connect()

    async def drip() -> None:
        while not client.writer.is_closing():
            client.writer.write(b" ")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    answer = await client.answer()
    dripping.cancel()
    assert answer.error is not None
    assert answer.error["code"] == "timeout"


@pytest.mark.parametrize("sent", [b"", b"{", b'{"type":"x"', b'{"type":"x","data_length":5}\nab'])
async def test_a_peer_that_leaves_in_the_middle_of_an_event_leaves_nothing(door: Door, sent: bytes) -> None:
    client = await door.connect()
    client.writer.write(sent)
    client.writer.write_eof()
    answer = await client.answer()
    assert answer.kinds == []
    assert answer.is_closed


async def test_describe_is_answered_for_a_peer_that_closes_its_half(door: Door) -> None:
    client = await door.connect()
    await client.send("describe")
    client.writer.write_eof()
    event = await client.receive()
    assert event
    assert event.type == "info"


async def test_a_flood_after_an_error_does_not_cost_the_error(door: Door) -> None:
    client = await door.connect()
    client.writer.write(b"garbage\n" + b"x" * 3_000_000)
    answer = await client.answer()
    assert answer.kinds == ["error"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
headers = st.dictionaries(st.sampled_from(["type", "data", "data_length", "payload_length", "x"]), json_values)
garbage = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda header, rest: json.dumps(header).encode() + b"\n" + rest, headers, st.binary(max_size=50)),
)


@given(sent=garbage)
async def test_any_bytes_give_events_an_end_or_an_error_of_ours(sent: bytes) -> None:
    reader = asyncio.StreamReader(limit=framing.MAX_HEADER_BYTES)
    reader.feed_data(sent)
    reader.feed_eof()
    while first := await reader.read(1):
        try:
            event = await framing.read_event(reader, first, 5)
        except (ProtocolError, DeadlineExceeded):
            break
        if event is None:
            break
        assert isinstance(event.type, str)
        assert isinstance(event.data, dict)


@given(
    kind=st.text(),
    data=st.dictionaries(st.text(), st.text() | st.integers() | st.none()),
    payload=st.none() | st.binary(min_size=1),
)
async def test_what_is_encoded_is_read_back(kind: str, data: dict[str, object], payload: bytes | None) -> None:
    reader = asyncio.StreamReader(limit=framing.MAX_HEADER_BYTES)
    reader.feed_data(framing.encode(Event(kind, data, payload)))
    assert await framing.read_event(reader, await reader.read(1), 5) == Event(kind, data, payload)
    assert reader._buffer == b""  # type: ignore[attr-defined]
