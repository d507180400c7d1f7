"""Speaker turns: the same however the text arrives, and every other tag is text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.text.turns import TurnSplitter

TEXTS = st.lists(
    st.sampled_from(["<|speaker:1|>", "<|speaker:22|>", "<|", "|>", "<|speaker:", "<", "1", "|", "a", " "]), max_size=20
).map("".join)


def turns_of(chunks: list[str]) -> list[tuple[int | None, str]]:
    """The turns, each with its whole text."""
    splitter = TurnSplitter()
    turns: list[tuple[int | None, str]] = []
    for speaker, begins, text in [*(turn for chunk in chunks for turn in splitter.feed(chunk)), *splitter.finish()]:
        if begins or not turns:
            turns.append((speaker, text))
        else:
            assert turns[-1][0] == speaker
            turns[-1] = (speaker, turns[-1][1] + text)
    return turns


@given(TEXTS, st.integers(1, 9))
def test_chunk_borders_mean_nothing_and_no_text_is_lost(text: str, size: int) -> None:
    turns = turns_of([text])
    assert turns_of([text[at : at + size] for at in range(0, len(text), size)]) == turns
    assert "".join(("" if who is None else f"<|speaker:{who}|>") + said for who, said in turns) == text


def test_the_text_before_the_first_tag_has_no_speaker_and_the_same_speaker_may_have_two_turns() -> None:
    assert turns_of(["So. <|speaker:1|>Hi! <|speaker:1|>Ho!<|speaker:0|>"]) == [
        (None, "So. "), (1, "Hi! "), (1, "Ho!"), (0, "")
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["<|speaker:|>", "<|speaker:99999|>", "<|im_end|>", "<|speaker:١|>", "<|Speaker:1|>"])
def test_what_is_no_tag_is_text(text: str) -> None:
    assert turns_of([*text]) == [(None, text)]


def test_no_more_than_the_beginning_of_a_tag_is_held_back() -> None:
    splitter = TurnSplitter()
    assert list(splitter.feed("a <|speak")) == [(None, False, "a ")]
    assert list(splitter.feed("ing")) == [(None, False, "<|speaking")]
    assert list(splitter.feed("<" * 1000)) == [(None, False, "<" * 999)]
    assert list(splitter.finish()) == [(None, False, "<")]
    assert list(splitter.finish()) == []
