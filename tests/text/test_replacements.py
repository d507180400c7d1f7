"""The user's own readings: whole words, across chunk borders, and errors that name the line."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.errors import ConfigError
from fishs2_daemon.text.replacements import (
    MAX_ENTRIES,
    MAX_FILE_BYTES,
    MAX_SPOKEN_CHARS,
    MAX_WRITTEN_CHARS,
    Replacements,
    Replacer,
)

TABLE = Replacements(
    {
        "api": "A P I", "IT": "I.T.", "new": "nu", "New York City": "the big apple", "new york": "NYC",
        "C++": "C plus plus",
        "°C": "degrees", "重庆": "chóng qìng", "résumé": "CV", "it's": "it is", "silent": "",
    }
)  # fmt: skip
PIECES = [
    "api", "API", "IT", "it", "new", "New", "york", "York", "City", " ", "\n", " " * 9, "C", "+", "++", "°", "C++",
    "重", "庆",    "é", "e\u0301", "r", "sum", "'s", "a", "x" * 150, ".", "silent", "\u0301", "1",
]  # fmt: skip


def replaced(chunks: Iterable[str], table: Replacements = TABLE) -> str:
    replacer = Replacer(table)
    return "".join([*(replacer.feed(chunk) for chunk in chunks), replacer.finish()])


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.integers(1, 9))
def test_chunk_borders_mean_nothing(text: str, size: int) -> None:
    whole = replaced([text])
    assert replaced(text[at : at + size] for at in range(0, len(text), size)) == whole
    assert replaced(["", text, "", ""]) == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("An API, an api and apis.", "An A P I, an A P I and apis."),
        ("it is IT", "it is I.T."),
        ("New York, new\n  york city, NEW!", "NYC, NYC city, nu!"),
        ("New York City", "the big apple"),
        ("new yorker", "nu yorker"),
        ("C++ C+ c++, 5°C", "C plus plus C+ c++, 5degrees"),
        ("我在重庆。", "我在chóng qìng。"),
        ("résumé résumés", "CV résumés"),
        ("api\u0301 x_api", "api\u0301 x_api"),
        ("it's its", "it is its"),
        ("so silent night", "so  night"),
    ],
)
def test_the_longest_entry_that_fits_whole_words_is_said(text: str, said: str) -> None:
    assert replaced([text]) == said
    assert replaced(text) == said


def test_what_is_said_is_not_looked_up_again() -> None:
    assert replaced(["a b"], Replacements({"a": "b", "b": "a"})) == "b a"


def test_only_what_may_become_an_entry_is_held_back() -> None:
    replacer = Replacer(TABLE)
    assert replacer.feed("some words and") == "some words and"
    assert replacer.feed(" n") == " "
    assert replacer.held == "n"
    assert replacer.feed("ow the Ne") == "now the "
    assert replacer.feed("w Yor") == ""
    assert replacer.feed("k ") == ""
    assert replacer.feed("is") == "NYC is"
    assert len(Replacer(TABLE).feed("new" + " " * 10_000)) == 10_000 + 2


def test_no_entry_changes_nothing() -> None:
    assert not Replacements()
    assert Replacer(Replacements()).feed("as it is") == "as it is"


# The file


def load(text: str | bytes) -> Replacements:
    path = Path("words.txt")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Replacements.load(path)


def test_a_file_has_an_entry_a_line() -> None:
    table = load("\ufeff# names\n\nAPI = A P I\r\n  new   york=NYC  \nx =\n1+1 = a = b\n")
    assert replaced(["API new york x 1+1"], table) == "A P I NYC  a = b"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a = b\nnonsense\n", "words.txt, line 2: an entry is `written = spoken`"),
        (" = b\n", "words.txt, line 1: nothing is written before the ="),
        ("a = b\n#\na = c\n", "words.txt, line 3: 'a' is there twice"),
        ("x" * (MAX_WRITTEN_CHARS + 1) + " = b\n", "words.txt, line 1: 'xxx"),
        ("x = " + "b" * (MAX_SPOKEN_CHARS + 1), f"line 1: 'x': at most {MAX_WRITTEN_CHARS} characters"),
        (b"a = b\nc = \xff\n", "words.txt, line 2: not UTF-8"),
        ("#" * (MAX_FILE_BYTES + 1), f"words.txt: longer than {MAX_FILE_BYTES} bytes"),
        ("\n".join(f"w{n} = b" for n in range(MAX_ENTRIES + 1)), f"line {MAX_ENTRIES + 1}: more than {MAX_ENTRIES}"),
    ],
)
def test_an_error_names_the_file_and_the_line(text: str | bytes, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert error in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"missing\.txt: No such file"):
        Replacements.load(Path("missing.txt"))
