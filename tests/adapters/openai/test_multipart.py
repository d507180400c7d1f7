from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.openai.errors import HttpError
from adapters.openai.multipart import END_OF_PART, HEAD_BYTES, MultipartParser, Part, PartEnd, boundary_of

FIELD = b'Content-Disposition: form-data; name="a"\r\n\r\n'

Parts = list[tuple[Part, bytes]]


def parsed(body: bytes, boundary: str = "B", cuts: tuple[int, ...] = ()) -> Parts:
    parser = MultipartParser(boundary)
    parts: Parts = []
    borders = [0, *sorted(cuts), len(body)]
    open_part: Part | None = None
    content = b""
    for start, end in pairwise(borders):
        for item in parser.feed(body[start:end]):
            match item:
                case Part():
                    assert open_part is None
                    open_part, content = item, b""
                case PartEnd():
                    assert item is END_OF_PART
                    assert open_part is not None
                    parts.append((open_part, content))
                    open_part = None
                case _:
                    assert open_part is not None
                    content += item
    parser.finish()
    return parts


def body_of(contents: list[bytes], boundary: bytes = b"B") -> bytes:
    parts = b"".join(b"--" + boundary + b"\r\n" + FIELD + content + b"\r\n" for content in contents)
    return parts + b"--" + boundary + b"--\r\n"


def test_fields_and_files() -> None:
    body = (
        b"\r\n--B  \t\r\n" + FIELD + b"text\r\n"
        b'--B\r\ncontent-disposition:form-data;filename="x \xc3\xbc.wav" ; name=files\r\n'
        b"Content-Type: audio/wav\r\n\r\n\x00\r\n-\r\n--\r\n--A\r\n"
        b"--B--\r\nnobody reads this --B\r\n"
    )
    assert parsed(body) == [(Part("a", None), b"text"), (Part("files", "x ü.wav"), b"\x00\r\n-\r\n--\r\n--A")]


@pytest.mark.parametrize(
    ("parameters", "filename"),
    [
        ('filename="a.wav"', "a.wav"),
        ("filename=a.wav", "a.wav"),
        ('filename=""', ""),
        ('FileName="a;b=\\"c\\".wav"', 'a;b="c".wav'),
        ('filename="a%22.wav"', 'a".wav'),
        ('filename="C:\\clips\\a.wav"', "C:\\clips\\a.wav"),
        ("filename=\"a.wav\"; filename*=UTF-8''%C3%BC.wav", "ü.wav"),
        ("filename*=latin1''%FC.wav", None),
        ('x="filename=y"', None),
    ],
)
def test_file_names(parameters: str, filename: str | None) -> None:
    head = f'Content-Disposition: form-data; name="files"; {parameters}'.encode()
    assert parsed(b"--B\r\n" + head + b"\r\n\r\n\r\n--B--") == [(Part("files", filename), b"")]


@given(
    contents=st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n--", b"\r\n--C", b"\r", b"-"])), data=st.data()
)
@settings(max_examples=150, deadline=None)
def test_however_it_is_cut(contents: list[bytes], data: st.DataObject) -> None:
    contents = [content for content in contents if b"\r\n--B" not in b"\r\n" + content]
    body = body_of(contents)
    cuts = tuple(data.draw(st.lists(st.integers(0, len(body)), max_size=12)))
    assert parsed(body, cuts=cuts) == [(Part("a", None), content) for content in contents]
    assert parsed(body, cuts=tuple(range(len(body)))) == parsed(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--B",
        b"no form at all",
        b"x" * 3000 + body_of([b"a"]),
        b"--B\r\n" + FIELD + b"never ends",
        b"--B\n" + FIELD.replace(b"\r", b"") + b"a\n--B--\n",
        b"--B\r\n" + FIELD + b"a\r\n--Bx\r\n" + FIELD + b"b\r\n--B--\r\n",
        b"--B" + b" " * 100 + b"\r\n" + FIELD + b"a\r\n--B--\r\n",
        b"--B\r\n\r\na\r\n--B--\r\n",
        b"--B\r\nno colon\r\n\r\na\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: attachment; name=a\r\n\r\na\r\n--B--\r\n",
        b"--B\r\nContent-Disposition: form-data; filename=a\r\n\r\na\r\n--B--\r\n",
        b"--B\r\nContent-Transfer-Encoding: base64\r\n" + FIELD + b"a\r\n--B--\r\n",
        b"--B\r\nX: " + b"x" * HEAD_BYTES + b"\r\n" + FIELD + b"a\r\n--B--\r\n",
    ],
)
def test_malformed(body: bytes) -> None:
    for cuts in ((), tuple(range(len(body)))):
        with pytest.raises(HttpError) as caught:
            parsed(body, cuts=cuts)
        assert (caught.value.status, caught.value.code) == (422, "invalid_multipart")


@given(body=st.binary(max_size=200) | st.binary(max_size=60).map(lambda data: body_of([b"a"])[:-20] + data))
@settings(max_examples=150, deadline=None)
def test_any_bytes(body: bytes) -> None:
    with suppress(HttpError):
        parsed(body)


def test_memory_is_bounded() -> None:
    parser = MultipartParser("B")
    assert list(parser.feed(b"--B\r\n" + FIELD)) == [Part("a", None)]
    for _ in range(50):
        assert sum(len(item) for item in parser.feed(bytes(100_000)) if isinstance(item, bytes)) >= 99_990
        assert len(parser._buffer) < 10


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", "abc"),
        ('Multipart/Form-Data;charset=utf-8; Boundary="a b"', "a b"),
        (
            "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            "----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
    ],
)
def test_boundaries(content_type: str, boundary: str) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        "", "application/json", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=a",
        "multipart/form-data; boundary=" + "a" * 300, "multipart/form-data; boundary=ü",
    ],
)  # fmt: skip
def test_no_boundary(content_type: str) -> None:
    with pytest.raises(HttpError):
        boundary_of(content_type)
