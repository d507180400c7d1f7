"""Reading written text aloud: the same however it arrives, nothing held for ever, and what a person would read."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon.text import clean
from fishs2_daemon.text.clean import LONGEST_HIDDEN, TextCleaner
from fishs2_daemon.text.links import LONGEST_URL

#: Whole marks, halves of them, and what may stand around them.
PIECES = [
    "*", "**", "_", "__", "~~", "`", "``", "```", "```\n", "~~~", "\n", "\n\n", "\r", "\r\n", "\u2028",
    "# ", "- ", "1. ", "7. ", "> ", "| ", "|", "---", "===", "[", "]", "(", ")", "](http://a.b/c)", "![",
    "[^1]", "[1]", "[x] ", "[whisper]", "<", "<b>", "</b>", "<br>", "<p>", "<td>", "<pre>", "</pre>",
    "<script>", "</script>", "<!--", "-->", "<img alt='k'>", "<|speaker:1|>", "<|x|>", "<|", "|>",
    "&amp;", "&#65;", "&", "http", "://", "https://a.b/c", "<https://q.w/e>", "www.x.y", "w", "h", ":",
    "!", ".", ",", "\\", "😀", "👨", "\u200d", "️", "⃣", "1", "#", "¹", "†", "字", "é", "\xad", "\u200b",
    "\x00", "\ud800", "a", "word", " ", "   ", "\t", '"',
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=40).map("".join)


def cleaned(chunks: Iterable[str]) -> str:
    cleaner = TextCleaner()
    return "".join([*(cleaner.feed(chunk) for chunk in chunks), cleaner.finish()])


def assert_the_same_in_any_chunks(text: str, cuts: list[int]) -> None:
    whole = cleaned([text])
    assert cleaned(text) == whole
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    assert cleaned(text[start:end] for start, end in pairwise(borders)) == whole


@given(TEXTS, st.lists(st.integers(0, 1000), max_size=5))
@example("\xad\ufe0f1\ufe0f\u20e3", [1])
@example("see (http://a.b/c_(d))", [])
@example("word_<!-- x -->word¹†", [])
@example("| a  | b |  \n|--|--|\n", [])
@example("[![a](b.c)](d.e) ![", [])
def test_chunk_borders_mean_nothing(text: str, cuts: list[int]) -> None:
    assert_the_same_in_any_chunks(text, cuts)


def test_chunk_borders_mean_nothing_where_hidden_text_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "LONGEST_HIDDEN", 40)

    @given(TEXTS, st.lists(st.integers(0, 1000), max_size=5))
    @example("<!-- " + "https://a.b/c " * 4, [])
    def check(text: str, cuts: list[int]) -> None:
        assert_the_same_in_any_chunks(text, cuts)

    check()


@given(st.lists(st.text("abcXYZäé字 .,!?", max_size=30), max_size=6))
def test_prose_is_left_as_it_is(chunks: list[str]) -> None:
    text = "".join(chunks)
    assert cleaned(chunks) == text.lstrip(" ")


@pytest.mark.parametrize("pattern", [*PIECES, "a", "[a", "<b ", "http://a", "[a](", "&a", "- a\n", "| a ", "<<b", "[["])
def test_what_is_held_back_is_bounded(pattern: str) -> None:
    cleaner = TextCleaner()
    for _ in range(40):
        cleaner.feed((pattern * 200)[:200])
        assert len(cleaner._text) <= LONGEST_URL + 1000


def test_only_what_is_unclear_is_held_back() -> None:
    cleaner = TextCleaner()
    assert cleaner.feed("Plain words at once") == "Plain words at once"
    assert cleaner.feed(", and **bold") == ", and bold"
    assert cleaner.feed("**") == ""
    assert cleaner.feed(" [whis") == " "
    assert cleaner.feed("per] is") == "[whisper] is"
    assert cleaner.feed(" 5 <") == " 5 "
    assert cleaner.feed(" 6") == "< "
    assert cleaner.finish() == "6"


def test_the_writers_pause_gives_an_exclamation_mark() -> None:
    cleaner = TextCleaner()
    assert cleaner.feed("Done!") == "Done"
    assert cleaner.pause() == "!"
    assert cleaner.feed(" [so") == " "
    assert cleaner.pause() == ""
    assert cleaner.finish() == "[so"


def test_the_next_text_is_a_new_one() -> None:
    cleaner = TextCleaner()
    assert cleaner.feed("one `two\n```") + cleaner.finish() == "one two"
    assert cleaner.feed("# three") + cleaner.finish() == "three"


def test_code_without_an_end_is_left_out_for_so_long_only() -> None:
    text = "Look:\n```python\n" + "x = 1\n" * (LONGEST_HIDDEN // 6) + "And so it ends. And so on."
    assert cleaned([text]).startswith("Look:\n\n")
    assert cleaned([text]).endswith("And so on.")
    assert "x = 1" not in cleaned([text])
    assert cleaned(["Look:\n```\nx = 1"]) == "Look:"


BLOCKS = {
    "# Title #1\ntext": "Title #1\n\ntext",
    "### Deep\n\n\ntext": "Deep\n\ntext",
    "Title\n=====\ntext": "Title\n\ntext",
    "one\ntwo": "one\ntwo",
    "one\n \n\ntwo\r\n\r\nthree": "one\n\ntwo\n\nthree",
    "one\n\n---\n\ntwo\n* * *\nthree": "one\n\ntwo\n\nthree",
    "- one\n- two\n  goes on\n* three\n+ four\n• five": "one\u2028two\ngoes on\u2028three\u2028four\u2028five",
    "To do:\n- [ ] this\n- [x] that\n\nEnd.": "To do:\u2028this\u2028that\n\nEnd.",
    "1. One\n2. Two\nEnd.": "1. One\u20282. Two\u2028End.",
    "It was in the year\n84. Then it ended.": "It was in the year\n84. Then it ended.",
    "- # Title\n-5 degrees": "Title\u2028-5 degrees",
    "> said\n> she\n>> said he": "said\nshe\nsaid he",
    "| a | b |\n|---|:-:|\n| 1 |  2 |\nafter": "a, b\u20281, 2\u2028after",
    "before\n```js\nlet x = **1**;\n```\nafter": "before\n\nafter",
    "~~~\ncode\n```\n~~~\nafter": "after",
    "```one``` word": "one word",
    "#hashtag and C#\n#1": "#hashtag and C#\n#1",
}

INLINE = {
    "**a** *b* __c__ _d_ ***e*** ~~f~~": "a b c d e f",
    "un**frigging**believable": "unfriggingbelievable",
    "**重点**内容，*这*是": "重点内容，这是",
    "2 * 3 * 4 = 24 and 2*3*4 and 2**3 and a*(b+c)": "2 * 3 * 4 = 24 and 2*3*4 and 2**3 and a(b+c)",
    "snake_case_name _private_ __init__": "snake_case_name private init",
    "5 < 6 && 7 > 3, a<b, List<String>": "5 < 6 && 7 > 3, a<b, List<String>",
    "AT&T, R&D; C#, #1, ~5, x|y, a || b": "AT&T, R&D; C#, #1, ~5, x|y, a || b",
    "`snake_case` and ``a ` *b*`` end": "snake_case and a  *b* end",
    r"\*not\* C:\path \(x\) \\": "*not* C:\\path (x) \\",
    "a [link](http://x.y/z 'title') b": "a link b",
    "[**bold** link](/path) and [](http://x.y)": "bold link and ",
    "![a cat](cat.png), [![badge](s.svg)](http://a.b)": "a cat, badge",
    "see https://www.example.com/a/b_(c)?d=e. Next": "see example.com. Next",
    "(http://user@a.org:8020/x), <https://b.org/y>! www.c.org/z": "(a.org), b.org! c.org",
    "请看https://a.com/b。谢谢": "请看a.com。谢谢",
    "the http: protocol, https, www": "the http: protocol, https, www",
    "note[^1] and more [2], [3-5]. Word¹ m² 10³ x†": "note and more , . Word m² 10³ x",
    "Hi 😀 there👍🏽! 👨‍👩‍👧 🇩🇪ok🎉ok ❤️": "Hi  there!  ok ok ",
    "1️⃣ one #️⃣": " one ",
    "so\u00adft z\u200bw \ufeffa\x00b": "soft zw a b",
    "می\u200cخواهم क्\u200dष a\u200db 😀\u200c": "می\u200cخواهم क्\u200dष a\u200db ",
}

MARKUP = {
    "<p>Hi <b>there</b> &amp; you&nbsp;all</p><p class='x'>Ok<br/>now</p>": "Hi there & you all\n\nOk\u2028now",
    "&lt;b&gt; &#65;&#x42; &shy;&#128512;&unknown; &copy;": "<b> AB &unknown; ©",
    "<script>a < b</script>x<!-- no -->y<style>z</style>": "x y",
    "<img src='a' alt='A &amp; B'/> <a href=\"x\">c</a> <input disabled>": "A & B c ",
    "<table><tr><td>a</td><td>b</td></tr></table>": "a, b",
    "<think>hm</think> <b and c>": "<think>hm</think> <b and c>",
    "[whisper] so [in a hurried tone] (softly) [laughing]": "[whisper] so [in a hurried tone] (softly) [laughing]",
    "[whisper](softly) said [pause][laughing]": "[whisper](softly) said [pause][laughing]",
    "<|speaker:0|>Hi <|speaker:12|>ho": "<|speaker:0|>Hi <|speaker:12|>ho",
    "a<|im_end|>b <|speaker:|>c<|speaker:99999|>d <|x y z|>e": "a b c d e",
    "a <| b |> c <|| d": "a  c <|| d",
}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("text", "read"), [*BLOCKS.items(), *INLINE.items(), *MARKUP.items()])
def test_written_text_is_read_as_a_person_would(text: str, read: str, size: int) -> None:
    assert cleaned(text[start : start + size] for start in range(0, len(text), size)) == read
