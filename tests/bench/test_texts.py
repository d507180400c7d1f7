"""Texts that no cache knows, cut into as many phrases as they have sentences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.bench.texts import FRAME_SAMPLES, WORDS, Texts, sentence
from fishs2_daemon.engines.s2.guards import frame_budget
from fishs2_daemon.text.reader import TextReader

MOST = 16 ** len(WORDS)
NUMBERS = st.integers(0, MOST - 1)


def phrases(text: str) -> list[str]:
    reader = TextReader()
    return [*reader.feed(text), *reader.finish()]


def test_there_are_sixteen_words_for_each_place_and_all_differ() -> None:
    assert [len(set(choices)) for choices in WORDS] == [16] * 7


@given(NUMBERS, NUMBERS)
def test_two_numbers_are_two_sentences(one: int, other: int) -> None:
    assert (sentence(one) == sentence(other)) == (one == other)


def test_neighbours_begin_differently() -> None:
    """A prefix that was computed for one text is of no use to the next."""
    assert all(sentence(number).split()[1] != sentence(number + 1).split()[1] for number in range(1000))


def test_the_longest_sentence_is_one_phrase_even_as_a_text_s_first() -> None:
    longest = [max(choices, key=len) for choices in WORDS]
    who, actor, does, kind, thing, place, time = longest
    text = f"The {who} {actor} {does} the {kind} {thing} near the {place} every day in {time}."
    assert phrases(text) == [text]


@given(NUMBERS, st.floats(0.1, 60))
def test_a_text_has_a_phrase_for_each_sentence(start: int, seconds: float) -> None:
    texts = Texts(seconds, start)
    text = texts.take()
    assert len(phrases(text)) == texts.sentences
    assert texts.take() != text


@given(st.floats(0.1, 600))
def test_the_frames_of_all_sentences_are_the_seconds_and_no_budget_cuts_them(seconds: float) -> None:
    texts = Texts(seconds, 0)
    frames = texts.frames(44100)
    wanted = seconds * 44100 / FRAME_SAMPLES
    assert wanted <= frames * texts.sentences < wanted + texts.sentences + 1
    words = len(sentence(0).split())  # a word is a token, at least
    assert frame_budget(words, frames) == frames


@pytest.mark.parametrize(("seconds", "sentences"), [(0.1, 1), (5, 1), (10, 2), (60, 11)])
def test_a_text_is_about_as_long_as_asked_for(seconds: float, sentences: int) -> None:
    assert Texts(seconds, 0).sentences == sentences
