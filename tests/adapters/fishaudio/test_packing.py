"""MessagePack from strangers."""

import contextlib
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.fishaudio.packing import packed, unpacked
from adapters.openai.errors import HttpError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES)
def test_what_is_packed_is_read_back(value: Any) -> None:
    assert unpacked(packed(value)) == value


@given(data=st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(HttpError):
        unpacked(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xa5ab",
        b"\x01\x02",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 5000 + b"\xc0",
        b"\x81\xc0\xc0",
        b"\x81\x93\x01\x02\x03\xc0",
        b"\xa1\xff",
        b"\xd4\x05\x00",
        b"\xd6\xff\x00\x00\x00\x00",
        msgpack.packb(list(range(257))),
        msgpack.packb({str(number): 0 for number in range(257)}),
        msgpack.packb([[[]] * 200] * 50),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(HttpError, match="The body is no MessagePack"):
        unpacked(data)


def test_a_small_message_does_not_take_much_memory() -> None:
    bomb = b"\xdd\x00\x10\x00\x00" + b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x81\xa0\xc0" * 256) * 1000
    tracemalloc.start()
    with pytest.raises(HttpError):
        unpacked(bomb)
    with pytest.raises(HttpError):
        unpacked(b"\xdc\x01\x00" + (b"\xdc\x01\x00" + b"\x81\xa0\xc0" * 256) * 256)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
