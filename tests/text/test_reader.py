"""The whole road: chunk borders mean nothing, no letter is lost, no phrase has two speakers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.text.phrases import LONGEST_TOKENS
from fishs2_daemon.text.plan import TextFormat, TextPlan
from fishs2_daemon.text.reader import TextReader
from fishs2_daemon.text.replacements import Replacements

Facts = list[tuple[str, float, int | None]]

PIECES = [
    "New", "new", " ", " york", "York", "\n", "\n\n", "\r", "\r\n", "api", "API", "word", "é", "\u0301", "字",
    "Dr. ", "No", ". ", "! ", "? ", "…", "。", "，", ", ", "<|speaker:1|>", "<|speaker:22|>", "<|spea", "|>", "[tag]",
    "[", "]", "3. ", "am 12. ", "Mai", "März ", "z. B. ", "U.S. ", "\u2028", "longer words here ", "\u00ad", "x" * 30,
    "字" * 20, "1" * 10, "(", ")", '"', "”", "“", "- ", "# ", "*", "**", "`", "😀",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=50).map("".join)
TABLE = Replacements({"new york": "NYC", "new": "nu", "API": "A P I", "dr. no": "doctor no", "é": "eh", "字": "zì"})


def facts_of(chunks: list[str], plan: TextPlan) -> Facts:
    reader = TextReader(plan)
    phrases = [*(phrase for chunk in chunks for phrase in reader.feed(chunk)), *reader.finish()]
    return [(str(phrase), phrase.pause_s, phrase.speaker) for phrase in phrases]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("table", [Replacements(), TABLE], ids=["as written", "with a table"])
def test_chunk_borders_mean_nothing(clean: bool, table: Replacements) -> None:
    plan = TextPlan(clean=clean, replacements=table, sentence_pause_s=0.2, paragraph_pause_s=0.6)

    @given(TEXTS, st.integers(1, 30))
    def check(text: str, size: int) -> None:
        whole = facts_of([text], plan)
        assert facts_of([text[at : at + size] for at in range(0, len(text), size)], plan) == whole

    check()


@given(st.lists(st.text("abc字é9 .,!?:()[]*_`#\n-|", max_size=80), max_size=5))
def test_no_letter_or_digit_is_lost_or_said_twice(chunks: list[str]) -> None:
    text = "".join(chunks).replace("[9", "9").replace("```", "")  # footnote marks and code blocks are left out
    said = "".join(phrase for phrase, _, _ in facts_of([text], TextPlan()))
    assert [char for char in said if char.isalnum()] == [char for char in text if char.isalnum()]


def test_turns_are_parted_and_known() -> None:
    plan = TextPlan(sentence_pause_s=0.2)
    text = "So. <|speaker:0|>Hi there <|speaker:1|>Ho. And on [whisper] <|im_end|>it goes<|speaker:1|>"
    expected = [
        ("So.", 0.2, None), ("Hi there", 0.2, 0), ("Ho.", 0.2, 1), ("And on [whisper] it goes", 0.2, 1)
    ]  # fmt: skip
    assert facts_of([text], plan) == expected
    assert facts_of(list(text), plan) == expected


def test_a_style_stands_before_every_phrase() -> None:
    assert facts_of(["One. Two."], TextPlan(style="(softly)")) == [("(softly)One.", 0, None), ("(softly)Two.", 0, None)]
    assert facts_of(["😀"], TextPlan(style="(softly)")) == []


def test_a_pause_gives_what_is_complete_and_held_back_by_the_marks_that_could_follow() -> None:
    reader = TextReader(TextPlan(replacements=Replacements({"done. now": "now"}), sentence_pause_s=0.2))
    assert list(reader.feed("We are done.")) == []
    (phrase,) = reader.pause()
    assert (phrase, phrase.pause_s) == ("We are done.", 0.2)
    assert [*reader.feed(" Great!"), *reader.pause()] == ["Great!"]
    assert [*reader.feed(" And"), *reader.pause()] == []
    assert list(reader.finish()) == ["And"]


def test_ssml_goes_the_same_road() -> None:
    plan = TextPlan(
        text_format=TextFormat.SSML, replacements=TABLE, sentence_pause_s=0.2, paragraph_pause_s=0.6, style="(so)"
    )
    text = (
        "<speak><break/>Hello <break time='500ms'/> API.<p>One. Two <b>three</b>.</p><p><s>Four</s><s>five</s></p>"
        "6 &lt; 7<break strength='none'/><audio/>&lt;|speaker:2|&gt;End https://example.com/x</speak>"
    )
    assert facts_of(list(text), plan) == [
        ("(so)Hello", 0.5, None), ("(so)A P I.", 0.6, None), ("(so)One.", 0.2, None), ("(so)Two three.", 0.6, None),
        ("(so)Four", 0.2, None), ("(so)five", 0.6, None), ("(so)6 < 7", 0.0, None), ("(so)End example.com", 0.0, 2),
    ]  # fmt: skip


HOSTILE = ["*", "[", "<", "a", " ", "😀", "a. ", "[(", "<b>", "<b ", "- a\n", "|\n", "http://", "w ", "&a", "ab" * 2000]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_what_waits_is_bounded_for_hostile_texts(pattern: str) -> None:
    """Each step looks at what waits, so a bound on it makes the whole linear."""
    reader = TextReader(TextPlan(replacements=TABLE))
    text = (pattern * 20_000)[:20_000]
    for start in range(0, len(text), 4096):
        for _ in reader.feed(text[start : start + 4096]):
            pass
        assert reader._cleaner is not None
        waits = len(reader._cleaner._text) + len(reader._replacer.held) + len(reader._splitter._pending)
        assert waits <= 4096 + 4 * LONGEST_TOKENS


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("text", ["Hello there, you", "Hel", "It is 5", "Good morning."])
def test_what_is_flushed_is_spoken_and_does_not_go_on(text: str, clean: bool) -> None:
    reader = TextReader(TextPlan(clean=clean))
    assert [*reader.feed(text), *reader.flush()] == [text]
    assert list(reader.flush()) == []
    assert [*reader.feed("more"), *reader.finish()] == ["more"]


def test_a_flush_does_not_end_a_turn() -> None:
    reader = TextReader()
    chunks = ("<|speaker:1|>Hello", "you. <|speaker:2|>And", "me")
    phrases = [phrase for chunk in chunks for phrase in [*reader.feed(chunk), *reader.flush()]]
    assert [(str(phrase), phrase.speaker) for phrase in phrases] == [("Hello", 1), ("you.", 1), ("And", 2), ("me", 2)]
