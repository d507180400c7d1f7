"""Whatever servers answer, what is written is a beginning of the file."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.artifacts.ranges import BadRange, Body, place, validator

DATA = bytes(range(256)) * 4

#: An answer: (the server honours the range, how far its Content-Range is off, how many bytes come before the cut).
ANSWERS = st.lists(st.tuples(st.booleans(), st.sampled_from([0, 0, 0, -1, 1, 100]), st.integers(0, 1024)), max_size=20)


def answer(data: bytes, offset: int, honours: bool, off: int) -> tuple[int, dict[str, str], bytes]:
    if not honours or not offset:
        return 200, {"content-length": str(len(data))}, data
    body = data[offset:]
    first = max(offset + off, 0)
    place_of = f"bytes {first}-{first + len(body) - 1}/{len(data)}"
    return 206, {"content-length": str(len(body)), "content-range": place_of}, body


@given(ANSWERS)
def test_a_chain_of_cut_and_wrong_answers_never_writes_a_wrong_byte(answers: list[tuple[bool, int, int]]) -> None:
    written = b""
    for honours, off, count in [*answers, (True, 0, len(DATA))]:
        if len(written) == len(DATA):
            break
        status, headers, body = answer(DATA, len(written), honours, off)
        try:
            where = place(status, headers, len(written))
        except BadRange:
            assert off
            written = b""
            continue
        assert where.total == len(DATA)
        assert where.begin in (0, len(written))
        written = written[: where.begin] + body[:count]
        assert DATA.startswith(written)
    assert DATA.startswith(written)


@given(
    st.sampled_from([200, 204, 206, 304, 416]),
    st.dictionaries(
        st.sampled_from(["content-range", "content-length", "content-encoding"]),
        st.one_of(st.text(max_size=12), st.from_regex(r"bytes \d{1,3}-\d{1,3}/(\d{1,3}|\*)", fullmatch=True)),
    ),
    st.integers(0, 999),
)
@example(206, {"content-range": "bytes 5-9/10", "content-length": "5"}, 5)
@example(206, {"content-range": f"bytes 5-9/{'9' * 5000}"}, 5)
def test_an_answer_has_a_place_that_fits_or_is_refused(status: int, headers: dict[str, str], offset: int) -> None:
    try:
        body = place(status, headers, offset)
    except BadRange:
        return
    assert body.begin == (offset if status == 206 else 0)
    assert body.total is None or body.total >= 0
    if status == 206 and body.total is not None:
        assert body.total > offset


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {"content-length": "10"}, Body(0, 10)),
        (200, {}, Body(0, None)),
        (200, {"content-length": "10", "content-encoding": "gzip"}, Body(0, None)),
        (206, {"content-range": "bytes 4-9/10", "content-length": "6"}, Body(4, 10)),
        (206, {"content-range": "bytes 4-9/*"}, Body(4, None)),
    ],
)
def test_the_place_of_a_body(status: int, headers: dict[str, str], body: Body) -> None:
    assert place(status, headers, 4) == body


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-range": "bytes 3-9/10"},
        {"content-range": "bytes 4-3/10"},
        {"content-range": "bytes 4-10/10"},
        {"content-range": "bytes 4-9/10", "content-length": "7"},
        {"content-range": "items 4-9/10"},
        {"content-range": "bytes */10"},
    ],
)
def test_a_part_that_was_not_asked_for_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadRange):
        place(206, headers, 4)


@pytest.mark.parametrize(("headers", "text"), [({"etag": '"a"'}, '"a"'), ({"etag": 'W/"a"'}, ""), ({}, "")])
def test_only_a_strong_etag_tells_that_bytes_are_the_same(headers: dict[str, str], text: str) -> None:
    assert validator(headers) == text
