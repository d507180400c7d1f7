"""SSML: what of it is spoken, and one clear error for what is no SSML."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.text.ssml import MAX_BREAK_S, MAX_DEPTH, MAX_ELEMENTS, Break, parse


def said(text: str) -> list[str | Break]:
    """The parts, with texts that follow each other joined."""
    parts: list[str | Break] = []
    for part in parse(text):
        if parts and isinstance(part, str) and isinstance(before := parts[-1], str):
            parts[-1] = before + part
        else:
            parts.append(part)
    return parts


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Just text &amp; more.", ["Just text & more."]),
        ("<speak>a\n   b</speak>", ["a b"]),
        ('<?xml version="1.0"?><speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis">a</speak>', ["a"]),
        ("<p><s>One.</s> <s>Two.</s></p>Three", ["\n\n\u2028One.\u2028 Two.\u2028\n\nThree"]),
        ("<emphasis>a</emphasis> <emphasis level='reduced'>b</emphasis>", ["[emphasis] a b"]),
        ("<sub alias='World Wide Web'>WWW</sub> <say-as interpret-as='date'>2020</say-as>", ["World Wide Web 2020"]),
        ("<phoneme ph='x'>tomato</phoneme> <prosody rate='slow'>a</prosody> <voice name='x'>b</voice>", ["tomato a b"]),
        ("a<audio src='x'>no<desc>no</desc></audio>b<mstts:silence/><w>c</w>", ["abc"]),
        ("a <break time='500ms'/> b<break time='1.5s'/>", ["a ", Break(0.5), " b", Break(1.5)]),
        ("<break/>a<break strength='none'/>b<break strength='strong'/>c",
         [Break(0.5), "a", Break(0), "b", Break(1), "c"]),
        ("a<break time='1s'/> <break time='99s'/>b", ["a", Break(MAX_BREAK_S), "b"]),
        ("<![CDATA[<b>]]>", ["<b>"]),
    ],
)  # fmt: skip
def test_a_document_is_reduced_to_texts_and_breaks(text: str, parts: list[str | Break]) -> None:
    assert said(text) == parts


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<speak>\n <p>x</speak>", "line 2, column 8: mismatched tag"),
        ("<speak>a</speak>b", "line 1, column 17: junk"),
        ("a <b", "line 1, column 5: "),
        ("a &nbsp; b", "line 1, column 3: undefined entity"),
        ("<speak>", "line 1, column 8: no element found"),
        ("a <break time='5'/>", "line 1, column 3: a break's time is written 500ms or 1.5s, not '5'"),
        ("a <break strength='loud'/>", "column 3: a break's strength is one of none, x-weak"),
        ("<!DOCTYPE a><speak>a</speak>", "line 1, column "),
        ("<!DOCTYPE a [<!ENTITY b 'bb'>]><speak>&b;</speak>", "a document type declaration is not allowed"),
        ("<!DOCTYPE a SYSTEM 'file:///etc/passwd'><speak>a</speak>", "a document type declaration is not allowed"),
        ("<a>" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} elements within each other"),
        ("<a/>" * (MAX_ELEMENTS + 1), f"more than {MAX_ELEMENTS} elements"),
        ("\ud800", "surrogate"),
        ("\x00", "line 1, column 1: "),
    ],
)
def test_what_is_no_ssml_is_refused_with_its_place(text: str, error: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert error in str(caught.value)
    assert caught.value.param == "input"


@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<break time='1s'/>", "<sub alias='x'>", "</sub>", "a", "&", "<", "\n"]))
)
def test_any_text_is_read_or_refused(pieces: list[str]) -> None:
    try:
        parts = parse("".join(pieces))
    except InvalidRequest:
        return
    assert not any(isinstance(a, Break) and isinstance(b, Break) for a, b in pairwise(parts))
