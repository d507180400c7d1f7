"""Cutting a text into phrases: nothing lost, nothing too long, nothing that cannot be spoken, wherever it is cut."""

import unicodedata
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.text.budget import chars_within, estimated_tokens
from fishs2_daemon.text.phrases import (
    FIRST_LONGEST_TOKENS,
    FIRST_SHORTEST_TOKENS,
    LONGEST_TOKENS,
    PhraseSplitter,
    is_speakable,
)

FIRST_SHORTEST_CHARS, FIRST_LONGEST_CHARS, LONGEST_CHARS = (
    4 * tokens for tokens in (FIRST_SHORTEST_TOKENS, FIRST_LONGEST_TOKENS, LONGEST_TOKENS)
)

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
    for longest, phrase in zip([FIRST_LONGEST_CHARS] + [LONGEST_CHARS] * len(phrases), phrases, strict=False):
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
            assert len(splitter._pending) <= LONGEST_CHARS
        phrases += splitter.finish()
        assert_nothing_lost(phrases, text)
        assert_well_formed(phrases)


@pytest.mark.parametrize("size", [1, 50])
def test_speech_lags_behind_an_endless_sentence_by_less_than_one_phrase(size: int) -> None:
    splitter, given_chars = PhraseSplitter(), 0
    text = "and so on " * 500
    for start in range(0, len(text), size):
        given_chars += sum(len(phrase) + 1 for phrase in splitter.feed(text[start : start + size]))
        assert start + size - given_chars <= LONGEST_CHARS


@given(CHUNKS, st.integers(1, 7))
@example(["Title\r", "\n", "\r\n", "text"], 1)
@example(["One\u2028", "\n", "two. ", "\n", "\n", "Three"], 2)
@example(["Am 12. ", "Mä", "rz. Und 3. ", "Ende"], 1)
def test_chunk_borders_mean_nothing(chunks: list[str], size: int) -> None:
    text = "".join(chunks)
    whole = facts_of([text])
    assert facts_of(chunks) == whole
    assert facts_of([text[at : at + size] for at in range(0, len(text), size)]) == whole


def facts_of(chunks: list[str]) -> list[tuple[str, float]]:
    splitter = PhraseSplitter(sentence_pause_s=0.2, paragraph_pause_s=0.6)
    phrases = [*(phrase for chunk in chunks for phrase in splitter.feed(chunk)), *splitter.finish()]
    return [(str(phrase), phrase.pause_s) for phrase in phrases]


# The budget


@given(st.text(ANYTHING, max_size=600), st.integers(1, 75))
def test_what_is_within_a_budget_is_the_longest_beginning_that_fits(text: str, tokens: int) -> None:
    chars = chars_within(text, tokens)
    assert estimated_tokens(text[:chars]) <= tokens
    assert chars == len(text) or estimated_tokens(text[: chars + 1]) > tokens


@pytest.mark.parametrize("text", ["one two three ", "春天来了", "123 ", "слово ", "안녕하세요", "a1字"])
def test_no_phrase_is_longer_than_the_budget_in_tokens(text: str) -> None:
    first, *others = phrases_of([text * 300])
    assert estimated_tokens(first) <= FIRST_LONGEST_TOKENS
    assert all(LONGEST_TOKENS / 2 < estimated_tokens(phrase) <= LONGEST_TOKENS for phrase in others[:-1])


def test_the_estimate_is_a_token_for_four_letters_four_thirds_ideographs_or_a_digit() -> None:
    assert estimated_tokens("abcd") == 1
    assert estimated_tokens("春天来了") == 3
    assert estimated_tokens("1234") == 4


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
    assert FIRST_SHORTEST_CHARS < len(first) <= FIRST_LONGEST_CHARS
    assert len(others) <= 1 + len(text) // (LONGEST_CHARS - 10), "cut into more pieces than the budget asks for"
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


# Sentence ends that look like something else, and the other way round

SENTENCES = [
    ["Yes.", "No.", "I do."],
    ["I am 42.", "You are 40."],
    ["It began in 1984.", "Then it ended."],
    ["It was fun.", "20 people came."],
    ["The answer is no.", "Next question."],
    ["He left.", "“Come here,” she said."],
    ["“What?” he asked.", "“Who?”", "She ran."],
    ["(Really.)", "It is."],
    ["Ich trinke z. B. Wasser.", "Das heißt d. h. Nichts."],
    ["Prof. Smith met Dr. No.", "The U.S. Army left."],
    ["Take No. 5 or Nr. 7 there.", "E.g. This one."],
    ["Ich komme am 3. Mai zu dir.", "Am 24. Dezember nicht."],
    ["Der 2. Weltkrieg endete im 20. Jahrhundert.", "Und dann?"],
    ["1. First of all.", "2. Second of all."],
    ["Am 3. 5. 2024 um 12.30 Uhr ging es los.", "Endlich."],
    ["M. Dupont et Mme. Curie parlent.", "Oui !", "Non."],
    ["El Sr. López llegó.", "¿Quién es?", "¡Nadie!"],
    ["Vidi t. d. och np. Warszawa.", "Koniec."],
    ["Живёт на ул. Ленина.", "Да."],
    ["שלום עולם.", "מה שלומך?"],
    ["یہ اردو ہے۔", "اور یہ بھی۔"],
    ["See https://example.com/a.B?c=D for it at 10.30 a.m. Tuesday.", "Fine."],
]


@pytest.mark.parametrize("by_letter", [False, True])
@pytest.mark.parametrize("sentences", SENTENCES)
def test_sentences_end_where_a_reader_ends_them(sentences: list[str], by_letter: bool) -> None:
    text = " ".join(sentences)
    assert phrases_of(text if by_letter else [text]) == sentences


def test_marks_of_other_scripts_need_no_space_behind_them() -> None:
    assert phrases_of(["你好!今天好吗?好的……然后呢？完了。End.End"]) == [
        "你好!", "今天好吗?", "好的……", "然后呢？", "完了。", "End.End"
    ]  # fmt: skip


def test_a_tag_is_not_cut() -> None:
    tag = "[softly. Slowly, and with feeling]"
    assert phrases_of([f"He said this {tag} to them. Then he left."]) == [
        f"He said this {tag} to them.", "Then he left."
    ]  # fmt: skip
    phrases = phrases_of([f"one two three four five six {tag} " * 40])
    assert "".join(phrases).count(tag) == 40
    assert any("[a " in each for each in phrases_of(["So [a bracket that nobody closes. But it is. " + "x " * 90]))


# Pauses between phrases


def test_pauses_belong_behind_sentences_lines_and_paragraphs() -> None:
    assert facts_of(["Title\n\nOne. Two.\r\n\r\nitem\u2028item\u2028\n\nA last, long enough clause, and its end."]) == [
        ("Title", 0.6), ("One.", 0.2), ("Two.", 0.6), ("item", 0.2), ("item", 0.6),
        ("A last, long enough clause, and its end.", 0.0),
    ]  # fmt: skip


def test_no_pause_belongs_behind_a_clause_or_a_cut() -> None:
    phrases = facts_of(["Once upon a time there was one, " + "and so on " * 60])
    assert len(phrases) > 2
    assert all(pause_s == 0 for _, pause_s in phrases)
    assert facts_of(["Dear and most honoured Mister Smith,\n\nI write."])[0] == (
        "Dear and most honoured Mister Smith,", 0.6
    )  # fmt: skip


def test_a_pause_of_the_writer_is_one_behind_the_sentence() -> None:
    splitter = PhraseSplitter(sentence_pause_s=0.2)
    assert list(splitter.feed("Let me see.")) == []
    (phrase,) = splitter.pause()
    assert (phrase, phrase.pause_s, phrase.speaker) == ("Let me see.", 0.2, None)


# Pauses of the writer


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


def test_stars_that_multiply_are_spoken() -> None:
    for text in ("2 * 3 is 6", "2*3 is 6"):
        assert phrases_of([text]) == [text]
