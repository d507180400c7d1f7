"""Cutting a text into phrases: nothing lost, nothing too long, nothing that cannot be spoken, wherever it is cut."""

import unicodedata
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.text.phrases import FIRST_LONGEST, FIRST_SHORTEST, LONGEST, PhraseSplitter, is_speakable

#: What the splitter and the sentence detector look at, and what they must survive.
MARKS = ".!?…,;:–—。！？、，؟،؛।॥*\"'()’”»」\n\r\t \u2028\u3000\u200d\0\x1c\x85\ufeff\uffff\ud83d\ude00"
ANYTHING = st.one_of(
    st.characters(),
    st.characters(categories=("Cc", "Cf", "Cs", "Z")),  # surrogates too, which the other strategy leaves out
    st.sampled_from(MARKS),
    st.sampled_from("aZéß9٣字あक้ि😀€%&"),
)
CHUNKS = st.lists(st.text(ANYTHING, max_size=400), max_size=8)
#: Words of one to twelve letters, some with a mark behind them.
WORDS = st.builds(str.__add__, st.text("abcXYZéд", min_size=1, max_size=12), st.sampled_from(["", "", ",", ".", "!"]))

HOSTILE = [
    "a", ".", "!", "…", " ", "\n", "*", ",", "。", "”", "\0", "\u0301", "😀", "A.", "a,", ". ", "1) ", "**a", "\n\n",
    "Mr. ", "。”", "'\"", ".\n", "Ab. ", "! A",
]  # fmt: skip


def phrases_of(chunks: Iterable[str | None]) -> list[str]:
    """The phrases of a text that arrives in `chunks`; None is a pause."""
    splitter = PhraseSplitter()
    phrases: list[str] = []
    for chunk in chunks:
        phrases += splitter.pause() if chunk is None else splitter.feed(chunk)
    return [*phrases, *splitter.finish()]


def essence(text: str) -> str:
    """All that speech could depend on: no white space, no asterisks, no control characters, no lone surrogates."""
    return "".join(
        char
        for char in text
        if not char.isspace() and char not in "*\ufeff\ufffe\uffff" and unicodedata.category(char) not in ("Cc", "Cs")
    )


def assert_nothing_lost(phrases: list[str], text: str) -> None:
    """The phrases follow each other in `text`, and what lies between them says nothing."""
    rest = essence(text)
    for phrase in phrases:
        skipped, found, rest = rest.partition(essence(phrase))
        assert found, f"{phrase!r} is not in the text, or not at its place"
        assert not is_speakable(skipped), f"{skipped!r} was lost"
    assert not is_speakable(rest), f"{rest!r} was lost"


def assert_well_formed(phrases: list[str]) -> None:
    for longest, phrase in zip([FIRST_LONGEST] + [LONGEST] * len(phrases), phrases, strict=False):
        assert 0 < len(phrase) <= longest
        assert is_speakable(phrase)
        assert phrase == " ".join(phrase.split()), "line breaks, double spaces or space at an end"
        phrase.encode()  # no half of a surrogate pair
        assert not any(unicodedata.category(char) == "Cc" for char in phrase)


# For every text


@given(CHUNKS)
@example(["x" * 99 + "\ud83d", "\ude00 y"])
@example(["e\u0301" * 400])
@example(["\u0301" * 1000])
@example(["A" * 3 + "." + " " * 600, "b"])
@example(["Dr", ".", " ", "No. "])
def test_nothing_is_lost_and_every_phrase_is_well_formed_however_the_text_arrives(chunks: list[str]) -> None:
    phrases = phrases_of(chunks)
    assert_nothing_lost(phrases, "".join(chunks))
    assert_well_formed(phrases)


@given(st.lists(st.one_of(st.none(), st.text(ANYTHING, max_size=60)), max_size=20))
def test_pauses_lose_nothing(chunks: list[str | None]) -> None:
    phrases = phrases_of(chunks)
    assert_nothing_lost(phrases, "".join(chunk for chunk in chunks if chunk))
    assert_well_formed(phrases)


@given(st.lists(WORDS, max_size=120), st.integers(1, 80))
def test_words_stay_whole_and_in_order(words: list[str], size: int) -> None:
    text = " ".join(words)
    phrases = phrases_of(text[start : start + size] for start in range(0, len(text), size))
    assert " ".join(phrases).split() == words


@given(st.text(ANYTHING, max_size=300))
def test_a_text_that_says_nothing_has_no_phrases_and_any_other_has_some(text: str) -> None:
    assert bool(phrases_of([text])) == is_speakable(essence(text))


@pytest.mark.parametrize("pattern", HOSTILE)
def test_what_waits_is_bounded_for_hostile_texts(pattern: str) -> None:
    """Each step looks at what waits, so a bound on it makes the whole linear."""
    for length, size in ((2_000, 1), (10_000, 7), (100_000, 4096), (100_000, 100_000)):
        text = (pattern * length)[:length]
        splitter = PhraseSplitter()
        phrases: list[str] = []
        for start in range(0, length, size):
            phrases += splitter.feed(text[start : start + size])
            assert len(splitter._pending) <= LONGEST
        phrases += splitter.finish()
        assert_nothing_lost(phrases, text)
        assert_well_formed(phrases)


@pytest.mark.parametrize("size", [1, 50])
def test_speech_lags_behind_an_endless_sentence_by_less_than_one_phrase(size: int) -> None:
    splitter, given_chars = PhraseSplitter(), 0
    text = "and so on " * 500
    for start in range(0, len(text), size):
        given_chars += sum(len(phrase) + 1 for phrase in splitter.feed(text[start : start + size]))
        assert start + size - given_chars <= LONGEST


# The first phrase


def test_the_first_phrase_ends_at_its_first_clause_without_waiting_for_the_sentence() -> None:
    splitter = PhraseSplitter()
    assert list(splitter.feed("Well, once upon a time there was a daemon, which")) == [
        "Well, once upon a time there was a daemon,"
    ]
    assert list(splitter.feed(" spoke, and spoke, and spoke")) == []
    assert list(splitter.finish()) == ["which spoke, and spoke, and spoke"]


def test_a_first_clause_that_is_very_short_is_not_a_phrase() -> None:
    assert phrases_of(["Well, yes."]) == ["Well, yes."]


def test_a_first_sentence_that_is_complete_is_a_phrase_however_short() -> None:
    splitter = PhraseSplitter()
    assert list(splitter.feed("Hello there! ")) == []
    assert list(splitter.feed("H")) == ["Hello there!"]


@pytest.mark.parametrize("size", [1, 1000])
def test_without_any_punctuation_the_first_phrase_is_cut_at_a_space(size: int) -> None:
    text = "word " * 200
    first, *others = phrases_of(text[start : start + size] for start in range(0, len(text), size))
    assert FIRST_SHORTEST < len(first) <= FIRST_LONGEST
    assert len(others) <= 1 + len(text) // (LONGEST - 10), "cut into more pieces than the budget asks for"
    assert {word for phrase in (first, *others) for word in phrase.split()} == {"word"}


def test_a_long_word_is_cut_between_letters_that_keep_their_accents() -> None:
    letter = "e\u0301\u0323"
    phrases = phrases_of([letter * 300])
    assert len(phrases) > 1
    assert all(phrase.startswith("e") and phrase.endswith(letter) for phrase in phrases)


def test_a_long_sentence_is_cut_after_a_clause_rather_than_at_a_space() -> None:
    text = "Yes! " + "one two three four five six seven eight nine ten, " * 10
    first, *others = phrases_of([text])
    assert first == "Yes! one two three four five six seven eight nine ten,"
    assert len(others) == 2
    assert all(phrase.endswith("ten,") for phrase in others)


# What is not a border

WHOLE = [
    "Pi is 3.14 and e is 2.718.",
    "I paid 1,000,000 for it.",
    "Version 1.2.3 is out.",
    "We meet at 10:30 sharp.",
    "He met Mr. Smith in St. Ives.",
    "J. R. R. Tolkien wrote it.",
    "It is e.g. a dog.",
    "See example.com for it.",
    "Wait... what is it?",
    "Well-known, yes.",
]


@pytest.mark.parametrize("by_letter", [False, True])
@pytest.mark.parametrize("sentence", WHOLE)
def test_numbers_abbreviations_and_names_are_not_cut(sentence: str, by_letter: bool) -> None:
    text = f"{sentence} Then nothing."
    assert phrases_of(text if by_letter else [text]) == [sentence, "Then nothing."]


@pytest.mark.parametrize("by_letter", [False, True])
@pytest.mark.parametrize("sentence", WHOLE)
def test_they_are_not_cut_in_a_later_sentence_either(sentence: str, by_letter: bool) -> None:
    text = f"This is the beginning, and a long one! {sentence} Then nothing."
    assert phrases_of(text if by_letter else [text])[-2:] == [sentence, "Then nothing."]


UNBREAKABLE = [
    "3.14159", "1,000,000", "1.2.3", "10:30", "Dr. Smith", "St. Ives", "J. R. R. Tolkien", "e.g. a", "No. 5",
    "U.S. Army", "example.com",
]  # fmt: skip


@pytest.mark.parametrize("by_letter", [False, True])
@pytest.mark.parametrize("lead", ["It is told by those who were there that", "one two three four five six " * 11])
@pytest.mark.parametrize("unbreakable", UNBREAKABLE)
def test_they_are_not_cut_where_a_phrase_may_end_either(unbreakable: str, lead: str, by_letter: bool) -> None:
    text = f"{lead} {unbreakable} was all that the others had to say about it and went on"
    assert any(unbreakable in phrase for phrase in phrases_of(text if by_letter else [text]))


# Other scripts

SCRIPTS = {
    "Chinese": ["你好，世界。", "今天天气很好！", "“我们去公园吧？”", "他说。"],
    "Japanese": ["こんにちは。", "「元気ですか？」", "はい。"],
    "Arabic": ["مرحبا بالعالم، كيف حالك اليوم؟", "أنا بخير."],
    "Devanagari": ["नमस्ते दुनिया।", "आज मौसम अच्छा है॥", "चलो चलते हैं।"],
    "Russian": ["Привет, мир.", "Как дела?", "Хорошо!"],
}


@pytest.mark.parametrize("by_letter", [False, True])
@pytest.mark.parametrize("script", SCRIPTS)
def test_sentences_of_other_scripts_are_found(script: str, by_letter: bool) -> None:
    sentences = SCRIPTS[script]
    text = ("" if script in ("Chinese", "Japanese") else " ").join(sentences)
    assert phrases_of(text if by_letter else [text]) == sentences


def test_an_arabic_comma_ends_the_first_clause() -> None:
    clauses = ["هذا نص طويل جدا يستمر ويستمر،", "ثم يأتي نص آخر"]
    assert phrases_of([" ".join(clauses)]) == clauses


def test_a_long_chinese_text_without_a_full_stop_is_cut_at_its_commas() -> None:
    phrases = phrases_of(["春天来了，" * 200])
    assert len(phrases) > 3
    assert all(phrase.endswith("，") for phrase in phrases)


# Pauses


def test_a_finished_sentence_is_spoken_when_the_writer_pauses() -> None:
    splitter = PhraseSplitter()
    assert list(splitter.feed("I will look that up.")) == []
    assert list(splitter.pause()) == ["I will look that up."]
    assert list(splitter.pause()) == []
    assert list(splitter.feed(" Here it is")) == []
    assert list(splitter.finish()) == ["Here it is"]


@pytest.mark.parametrize("end", [".", "!", "?", "…", "。", "！", "؟", "।", '."', ".» ", "？」", ".\n"])
def test_a_pause_knows_the_ends_of_sentences(end: str) -> None:
    splitter = PhraseSplitter()
    early = list(splitter.feed(f"Done{end}"))
    assert early + list(splitter.pause()) == [f"Done{end.strip()}"]


@pytest.mark.parametrize("text", ["I will look", "Well,", "It costs 3", "(That is"])
def test_an_unfinished_sentence_waits_through_a_pause(text: str) -> None:
    splitter = PhraseSplitter()
    assert list(splitter.feed(text)) == []
    assert list(splitter.pause()) == []
    assert list(splitter.finish()) == [text]


# What is said


def test_nothing_of_a_splitter_that_got_nothing() -> None:
    splitter = PhraseSplitter()
    assert [*splitter.feed(""), *splitter.pause(), *splitter.finish(), *splitter.finish()] == []


@pytest.mark.parametrize("text", ["", " \n", "...", "—", "👋🏽", "***", "\0", "\ufeff", "()"])
def test_what_cannot_be_spoken_is_no_phrase(text: str) -> None:
    assert not is_speakable(text)
    assert phrases_of([text]) == []


@pytest.mark.parametrize("text", ["a", "7", "٣", "字", "Ⅳ", "½", "€", "%", "&", "+", "°", "-1-"])
def test_letters_numbers_currencies_and_some_signs_are_spoken(text: str) -> None:
    assert is_speakable(text)
    assert phrases_of([text]) == [text]


def test_control_characters_part_words_as_spaces_do() -> None:
    assert phrases_of(["one\0two\x1b[31m\x85three\ufefffour"]) == ["one two [31m three four"]


def test_markdown_stars_around_words_are_not_spoken() -> None:
    assert phrases_of(["It *is* **so**. Then:\n* this\n* that"]) == ["It is so.", "Then: this that"]
    assert phrases_of(["This is **very important**, he said to the *whole* crowd"]) == [
        "This is very important,",
        "he said to the whole crowd",
    ]
    assert phrases_of(["And these are the things you need:\n* milk\n* (**good**) bread"]) == [
        "And these are the things you need:",
        "milk (good) bread",
    ]


def test_stars_that_multiply_are_spoken() -> None:
    for text in ("2 * 3 is 6", "2*3 is 6"):
        assert phrases_of([text]) == [text]
