"""What servers say of themselves, and of why they do not speak."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.engines.remote import listing
from fishs2_daemon.engines.remote.errors import message_in, reasons_in, retry_after_s
from fishs2_daemon.engines.remote.listing import owner_of, voices_of
from fishs2_daemon.speech import Voice

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["data", "voices", "id", "name", "language", "error", "detail"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "listed",
    [
        {"object": "list", "data": [{"id": "anna", "name": "anna", "language": None}, {"id": "bert"}]},
        {"voices": ["anna", "bert"], "uploaded_voices": []},
        {"voices": [{"voice_id": "anna"}, {"name": "bert"}]},
        {"data": ["anna", 7, None, {}, {"id": ""}, {"id": "\0"}, {"id": "x" * 256}, "bert", "Anna"]},
    ],
)
def test_voices_are_listed_in_several_shapes(listed: Any) -> None:
    assert [voice.id for voice in voices_of(listed)] == ["anna", "bert"]


def test_a_voice_keeps_what_is_said_of_it() -> None:
    entry = {"id": "anna", "name": "Anna\nof\x07 Ulm", "languages": ["de-AT", "de", "?", 7, "de"]}
    assert voices_of({"data": [entry]}) == (Voice("anna", "Anna of  Ulm", ("de-AT", "de")),)
    assert voices_of({"data": [{"id": "b", "language": "en"}]})[0].languages == ("en",)


def test_no_list_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MOST_VOICES", 10)
    assert len(voices_of({"voices": [str(number) for number in range(1000)]})) == 10


@given(ANY)
def test_whatever_is_listed_is_voices_or_none(listed: Any) -> None:
    for voice in voices_of(listed):
        assert voice.id.isprintable()
    assert isinstance(owner_of(listed), str)


def test_who_made_the_models() -> None:
    assert owner_of({"data": [{"id": "x", "owned_by": "vllm"}, {"owned_by": "y"}]}) == "vllm"
    assert owner_of({"data": []}) == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no such voice", "code": "x"}}', "no such voice"),
        (b'{"error": "no such voice"}', "no such voice"),
        (b'{"message": "no such voice", "type": "BadRequestError"}', "no such voice"),
        (b'{"detail": "no such voice"}', "no such voice"),
        (b'{"detail": [{"loc": ["body"], "msg": "no such voice"}]}', "no such voice"),
        (b"no such\x00\x1b[31m  voice\n", "no such [31m voice"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
        (b'{"error": "%b"}' % (b"x" * 5000), "x" * 300 + "..."),
        (b"[" * 100_000, "[" * 300 + "..."),
    ],
)
def test_the_words_of_an_error(body: bytes, message: str) -> None:
    assert message_in(body) == message


@given(ANY)
def test_any_error_has_printable_words(error: Any) -> None:
    message = message_in(json.dumps(error).encode())
    assert message.isprintable()
    assert len(message) <= 303


def test_many_reasons_are_not_all_told() -> None:
    assert reasons_in(["a", "b", "a"]) == "a; b"
    assert reasons_in(str(number) for number in range(64)) == "0; 1; 2; 3; 4; 5; 6; 7; and 56 more"


def test_when_to_come_back() -> None:
    assert retry_after_s({"retry-after": "7"}) == 7
    assert retry_after_s({"retry-after": "99999999"}) == 60
    assert retry_after_s({}) == 1
    assert retry_after_s({"retry-after": "soon"}) == 1
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after_s({"retry-after": soon}) <= 30
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 1
