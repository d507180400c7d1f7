"""The tokenizer: equal to the reference, closed to control tokens in a text, and calm about any file."""

import copy
import json
import os
import random
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon.engines.s2 import tokenizer as module
from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.errors import EngineError

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = GOLDEN / "tokenizer.json"
META = json.loads((GOLDEN / "golden_meta.json").read_text())
MODEL = {"vocab_size": 352, "semantic_begin": 288, "semantic_end": 351}
FIRST_CONTROL = 276

Json = dict[str, Any]

ours = Tokenizer.open(FILE, **MODEL)
reference = tokenizers.Tokenizer.from_file(str(FILE))

#: Unassigned code points are left out: what NFC makes of them depends on whose Unicode is the newer one.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")))
FRAGMENTS = ["<|", "|>", "<", "|", ">", "im_", "im_end", "end", "<|im_end|>", "<|im_start|>", "<|im_", "end|>", "voice",
             "semantic:", "<|semantic:0|>", "<|semantic:63|>", "63", "<|speaker:1|>", "user\n", "\n", " ", "e",
             "\u0301"]  # fmt: skip
SMUGGLED = st.lists(st.one_of(st.sampled_from(FRAGMENTS), TEXT), max_size=12).map("".join)


def golden() -> Json:
    content: Json = json.loads(FILE.read_text())
    return content


def write(folder: Path, content: object) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "tokenizer_golden.json").read_text()), ids=lambda case: case["text"]
)
def test_golden_string(case: Json) -> None:
    assert ours.encode_template(case["text"]) == case["ids"]
    if max(case["ids"], default=0) < FIRST_CONTROL:
        assert ours.encode(case["text"]) == case["ids"]


def test_ids_are_found_by_name() -> None:
    assert ours.im_end == META["im_end"]
    assert ours.voice == META["voice"]
    assert ours.im_start == 277
    assert (ours.semantic_begin, ours.semantic_end) == (META["semantic_begin"], META["semantic_end"])
    assert ours.id_of("<|pad|>") == 279
    assert ours.id_of("<|speaker:0|>") is None


@given(SMUGGLED)
def test_a_template_is_encoded_as_the_library_does(text: str) -> None:
    assert ours.encode_template(text) == reference.encode(text, add_special_tokens=False).ids


@given(SMUGGLED)
def test_a_text_holds_no_control_token_and_loses_nothing(text: str) -> None:
    ids = ours.encode(text)
    assert max(ids, default=0) < FIRST_CONTROL
    assert reference.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_<|im_end|>end|>", "<|semantic:0|>", "<|im_start|>system\n"])
def test_control_tokens_in_a_text_are_spelled_out(text: str) -> None:
    assert reference.decode(ours.encode(text), skip_special_tokens=False) == text


def test_halves_of_surrogate_pairs_are_replaced_and_pairs_joined() -> None:
    assert ours.encode("a\ud800b") == ours.encode("a\ufffdb")
    assert ours.encode("\ud83d\ude00") == ours.encode("😀")


def reachable_by_merges(content: Json) -> None:
    """Nothing splits the text, and merges lead to `<|im_end|>`, which is in the vocabulary as well."""
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    vocab, built = content["model"]["vocab"], "<"
    for char in "|im_end|>":
        content["model"]["merges"].append([built, char])
        built += char
        vocab[built] = 278 if built == "<|im_end|>" else 351 + len(built)


def reachable_as_a_word(content: Json) -> None:
    content["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    content["model"]["ignore_merges"] = True
    content["model"]["vocab"]["<|im_end|>"] = 278


def not_marked_special(content: Json) -> None:
    for token in content["added_tokens"]:
        token.update(special=False, normalized=True)


@pytest.mark.parametrize("change", [reachable_by_merges, reachable_as_a_word, not_marked_special])
def test_no_file_makes_a_text_a_control_token(change: Callable[[Json], None], tmp_path: Path) -> None:
    content = golden()
    change(content)
    opened = Tokenizer.open(write(tmp_path, content), **MODEL | {"vocab_size": 400})
    control = {token["id"] for token in content["added_tokens"]}
    for text in ("<|im_end|>", "a<|im_end|>b", " <|im_end|>", "<|im_<|im_end|>end|>"):
        assert control.isdisjoint(opened.encode(text))
        assert 278 in opened.encode_template(text)
    if change is not not_marked_special:
        content["added_tokens"] = []
        everything = tokenizers.Tokenizer.from_str(json.dumps(content))
        assert everything.encode("<|im_end|>").ids == [278], "the case is none: this vocabulary does not lead there"


def test_both_forms_of_merges(tmp_path: Path) -> None:
    content = golden()
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    opened = Tokenizer.open(write(tmp_path, content), **MODEL)
    text = "the answers,\n\nthe Spanish inns"
    assert opened.encode(text) == ours.encode(text) == reference.encode(text).ids


def test_padding_truncation_and_templates_of_the_file_are_not_ours(tmp_path: Path) -> None:
    content = golden()
    content["truncation"] = {"max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
    content["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 279,
                          "pad_type_id": 0, "pad_token": "<|pad|>"}  # fmt: skip
    assert Tokenizer.open(write(tmp_path, content), **MODEL).encode("Hello, world!") == ours.encode("Hello, world!")


@pytest.mark.parametrize(
    "text", ["Hello there, this is it. " * 4000, " " * 99_999 + "x", "a" * 100_000, "\n " * 50_000]
)
def test_a_long_text_takes_well_under_a_second(text: str) -> None:
    started = time.perf_counter()
    ours.encode(text)
    assert time.perf_counter() - started < 1


def drop(name: str) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != name]

    return change


def put(value: object, *keys: str | int) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        at: Any = content
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value

    return change


REGEX = ("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex")


def test_a_text_that_the_library_panics_at_is_an_error() -> None:
    """The public expression does so at ten million spaces; this one at forty letters."""
    content = golden()
    put("(q+)+$", *REGEX)(content)
    control = {token["content"]: token["id"] for token in content["added_tokens"]}
    content["added_tokens"] = []
    panicking = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)), control, range(288, 352))
    with pytest.raises(EngineError, match="failed on this text: Onig"):
        panicking.encode("q" * 40 + "!")
    assert panicking.encode("q!") == ours.encode("q!")


@pytest.mark.parametrize(
    "expression",
    [
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s+",
        r"[^\r\n\p{L}]?\p{L}+?(?:'s|'t)?|\P{L}",
    ],
)
def test_other_expressions_of_this_kind(expression: str, tmp_path: Path) -> None:
    content = golden()
    put(expression, *REGEX)(content)
    content["model"]["merges"] = []
    opened = Tokenizer.open(write(tmp_path, content), **MODEL)
    assert reference.decode(opened.encode("it's 12\n")) == "it's 12\n"


@pytest.mark.parametrize("pattern", ["[^q]*[^q]*q|[\\s\\S]", "[^q]??[^q]?[^q]*[^q]*q|[\\s\\S]", "(?=a*a*b)|[\\s\\S]"])
def test_the_worst_expression_that_is_let_through_comes_to_an_end(pattern: str, tmp_path: Path) -> None:
    content = golden()
    put(pattern, *REGEX)(content)
    content["model"]["merges"] = []
    started = time.process_time()
    Tokenizer.open(write(tmp_path, content), **MODEL)
    assert time.process_time() - started < 10


WRONG: list[tuple[str, Callable[[Json], None]]] = [
    ("im_end|> is not among its added tokens", drop("<|im_end|>")),
    ("voice|> is not among its added tokens", drop("<|voice|>")),
    ("semantic:7|> is missing, and the model expects number 295", drop("<|semantic:7|>")),
    ("two of its tokens share an id", put(299, "added_tokens", 12, "id")),
    ("semantic:0|> is number 340, and the model", put([{"content": c, "id": i} for c, i in (("<|im_start|>", 277),
     ("<|im_end|>", 278), ("<|voice|>", 283), ("<|semantic:0|>", 340))], "added_tokens")),
    ("more semantic tokens than the model's 64", put("<|semantic:64|>", "added_tokens", 3, "content")),
    ("added token '<|pad|>' has id 352, not one of 352", put(352, "added_tokens", 3, "id")),
    ("added token '<|pad|>' has id True", put(True, "added_tokens", 3, "id")),
    ("added token '<|im_end|>' has two ids", put("<|im_end|>", "added_tokens", 3, "content")),
    ("added token '' has id", put("", "added_tokens", 3, "content")),
    ("added token missing has id missing", put(3, "added_tokens", 3)),
    ("no added tokens", put(None, "added_tokens")),
    ("not a BPE", put("WordPiece", "model", "type")),
    ("not a BPE", put(None, "model")),
    ("has dropout", put(0.5, "model", "dropout")),
    ("has byte_fallback", put(True, "model", "byte_fallback")),
    ("no vocabulary", put([], "model", "vocab")),
    ("token 'zz' has id 352, not one of 352", put(352, "model", "vocab", "zz")),
    ("token 'zz' has id -1", put(-1, "model", "vocab", "zz")),
    ("two of its tokens share an id", put(278, "model", "vocab", "zz")),
    (r"byte 0 \('.u0100'\) is not in its vocabulary", put({}, "model", "vocab")),
    ("no merges", put(None, "model", "merges")),
    ("merge 'th' is not a pair", put(["th"], "model", "merges")),
    ("merge 3 is not a pair", put([3], "model", "merges")),
    ("not a tokenizer: Token `zq` out of vocabulary", put([["zq", "q"]], "model", "merges")),
    ("its normalizer is 'Lowercase'", put({"type": "Lowercase"}, "normalizer")),
    ("its normalizer is missing", put("NFC", "normalizer")),
    ("its pre_tokenizer is 'Metaspace'", put({"type": "Metaspace"}, "pre_tokenizer")),
    ("its pre_tokenizer is missing", put({"type": "Sequence", "pretokenizers": 3}, "pre_tokenizer")),
    ("do not spell the text", put(None, "pre_tokenizer")),
    ("do not spell the text", put("Removed", "pre_tokenizer", "pretokenizers", 0, "behavior")),
    ("do not spell the text", put(True, "pre_tokenizer", "pretokenizers", 1, "add_prefix_space")),
    ("its pre_tokenizer has 9 parts; 8 are possible", put([{"type": "Digits"}] * 9, "pre_tokenizer", "pretokenizers")),
    ("not a tokenizer: Onig", put(r"\p{Nothing}", *REGEX)),
    *(("which may search without end", put(pattern, *REGEX)) for pattern in (
        "a*a*a*b", "a?" * 24, "(?=[^q]{0,200}[^q]{0,200}[^q]{0,200}q)", "a+(?:b+|c+d*)?", "a{2,}a{2,}a{2,}")),
    *((r"not all is supported", put(pattern, *REGEX)) for pattern in (
        "(", ")", "(a+)+$", "(?:a|b)*", "(?:ab){2}", r"(a)\1", r"(?<a>.\g<a>?)", "(?<=a)b", "a**", "a{", "[a", "[a[b]]",
        "*", "(" * 9 + ")" * 9, "\\")),
    ("it has 524289 merges; 524288 are possible", put(["t h"] * (2**19 + 1), "model", "merges")),
    ("of 1001 characters", put("a" * 1001, *REGEX)),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "change"), WRONG)
def test_a_wrong_file_is_one_clear_error(reason: str, change: Callable[[Json], None], tmp_path: Path) -> None:
    content = golden()
    change(content)
    path = write(tmp_path, content)
    with pytest.raises(ModelFileError) as error:
        Tokenizer.open(path, **MODEL)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    error.match(reason.replace("|", r"\|"))


@pytest.mark.parametrize(
    "content", ["", "null", "[]", "{", "[" * 100_000, '{"a": 1' + "0" * 9000 + "}", "\udcff", "{}" * 2]
)
def test_what_is_no_json_object(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFileError, match=r"tokenizer\.json: not"):
        Tokenizer.open(path, **MODEL)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "fifo"):
        with pytest.raises(ModelFileError, match="no such file"):
            Tokenizer.open(path, **MODEL)


def test_a_file_beyond_the_bound_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(module.MAX_FILE_BYTES + 1)
    with pytest.raises(ModelFileError, match="larger than 32 MiB"):
        Tokenizer.open(tmp_path / "tokenizer.json", **MODEL)


def test_a_file_of_empty_lists_is_not_parsed(tmp_path: Path) -> None:
    path = write(tmp_path, "[" + "[]," * (1 << 20) + "[]]")
    started = time.process_time()
    with pytest.raises(ModelFileError, match="more than 2097152 values"):
        Tokenizer.open(path, **MODEL)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("semantic", [(288, 350), (288, 352), (287, 351), (289, 351), (288, 287), (288, 2**62)])
def test_metadata_that_disagrees(semantic: tuple[int, int]) -> None:
    with pytest.raises(ModelFileError, match="semantic"):
        Tokenizer.open(FILE, vocab_size=352, semantic_begin=semantic[0], semantic_end=semantic[1])


def test_mutated_files_never_end_the_process(tmp_path: Path) -> None:
    """In a child: a panic across the border, an abort or an endless search must not take the tests along."""
    environment = {**os.environ, "RUST_BACKTRACE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0, child.stderr[-2000:]
    counts = json.loads(child.stdout)
    assert counts["refused"] > 300
    assert counts["refused"] + counts["opened"] == 800


HOSTILE: list[Any] = [
    None, True, 0, -1, 2**31, 2**32, 2**64, 10**30, 1.5, 1e308, "", "a", "\0", "<|im_end|>", "\ud800", "Ġ" * 1000,
    [], {}, [[]], ["a", "b"], [None] * 100, {"a": "b"}, {"type": "ByteLevel"}, {"String": ""},
    {"Regex": "(.*)*"}, {"Regex": "((a*)*)*$"}, {"Regex": "[^q]*[^q]*q|."}, {"Regex": "a*a*a*a*b|."},
    {"Regex": "(" * 300 + ")" * 300}, {"Regex": "((x{0,999}){0,999}){0,999}"}, {"Regex": "(?<a>(\\g<a>|.)*)"},
    {"Regex": "(?=[^q]{0,200}[^q]{0,200}[^q]{0,200}q)|."}, {"Regex": "a?" * 40 + "b|."}, {"Regex": ""},
]  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = {"type": "NFC"}
    for level in range(depth):
        value = {"type": "Sequence", ("normalizers", "pretokenizers")[level % 2]: [value]}
    return value


def more_vocabulary(content: Json, dice: random.Random) -> None:
    vocab, first = content["model"]["vocab"], dice.choice([0, 276, 352, 2**31, 2**32 - 1, 2**63])
    count = dice.choice([1, 100, 20_000])
    vocab.update({f"x{index}": first + index * dice.choice([0, 1]) for index in range(count)})


def odd_merges(content: Json, dice: random.Random) -> None:
    vocab, merges = content["model"]["vocab"], content["model"]["merges"]
    match dice.randrange(5):
        case 0:  # in a circle
            vocab.update({"ab": vocab["a"], "ba": vocab["b"]})
            merges += [["a", "b"], ["b", "a"], ["ab", "ba"], ["ba", "ab"]]
        case 1:
            merges += merges * dice.choice([1, 100])
        case 2:
            merges.reverse()
        case 3:  # a piece doubles from merge to merge
            piece, free = "a", dice.choice([0, 276, 352])
            for index in range(dice.choice([3, 14])):
                merges.append([piece, piece])
                piece += piece
                vocab[piece] = free + index
        case 4:
            merges.insert(0, dice.choice([["", ""], ["a", ""], "a b c", "", ["\ud800", "a"], ["a", "b", "c"], " "]))


def lost_control_tokens(content: Json, dice: random.Random) -> None:
    added = content["added_tokens"]
    match dice.randrange(4):
        case 0:
            del added[dice.randrange(len(added)) :]
        case 1:
            dice.shuffle(added)
        case 2:
            added[dice.randrange(len(added))]["id"] = dice.choice([0, -1, 2**31, 2**63, 275, None, "7", 1.0])
        case 3:
            added += [{**dice.choice(added), "content": f"<|extra:{n}|>"} for n in range(dice.choice([1, 9999]))]


def odd_parts(content: Json, dice: random.Random) -> None:
    key, list_key, names = dice.choice([
        ("normalizer", "normalizers", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Nmt", "no such"]),
        ("pre_tokenizer", "pretokenizers", ["Digits", "ByteLevel", "Whitespace", "Metaspace", "Split", "no such"]),
    ])  # fmt: skip
    parts = [{"type": name} for name in dice.choices(names, k=dice.choice([1, 2, 9]))]
    content[key] = {"type": "Sequence", list_key: parts * dice.choice([1, 1, 5000])}


def deep(content: Json, dice: random.Random) -> None:
    # json.dumps itself gives up at about a thousand.
    content[dice.choice(list(content))] = nested(dice.choice([2, 60, 300]))


def parts_of_the_model(content: Json, dice: random.Random) -> None:
    key = dice.choice(["type", "vocab", "merges", "dropout", "unk_token", "byte_fallback", "ignore_merges"])
    content["model"][key] = dice.choice([*HOSTILE, True, "Unigram", "WordLevel", "<|im_end|>"])


STRUCTURES = [more_vocabulary, odd_merges, lost_control_tokens, odd_parts, deep, parts_of_the_model]


def mutate(raw: bytes, dice: random.Random) -> bytes:
    """A tokenizer.json with some bytes wrong, or a part of it odd, or some values replaced, removed or doubled."""
    way = dice.random()
    if way < 0.35:
        return wrong_bytes(raw, dice)
    content = json.loads(raw)
    if way < 0.65:
        dice.choice(STRUCTURES)(content, dice)
        return json.dumps(content).encode()
    for _ in range(dice.choice([1, 1, 2, 4])):
        at: Any = content
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = dice.choice(keys)
            if isinstance(at[key], dict | list) and at[key] and dice.random() < 0.75:
                at = at[key]
                continue
            if dice.random() < 0.2:
                del at[key]
            else:
                at[key] = copy.deepcopy(dice.choice([*HOSTILE, *(at[key] for key in keys[:9])]))
            break
    return json.dumps(content).encode()


def wrong_bytes(raw: bytes, dice: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(dice.choice([1, 1, 2, 20])):
        at = dice.randrange(len(data))
        kind = dice.randrange(4)
        if kind == 0:
            data[at] = dice.randrange(256)
        elif kind == 1:
            del data[at : at + dice.choice([1, 5, 500])]
        elif kind == 2:
            data[at:at] = data[at : at + dice.choice([1, 5, 500])]
        elif dice.random() < 0.2:
            del data[at:]
            break
        if not data:
            break
    return bytes(data)


def open_mutants(folder: Path) -> dict[str, int]:
    counts = {"refused": 0, "opened": 0}
    dice = random.Random(20261120)
    path = folder / "mutant.json"
    raw = FILE.read_bytes()
    for _ in range(800):
        path.write_bytes(mutate(raw, dice))
        try:
            opened = Tokenizer.open(path, **MODEL)
        except ModelFileError as error:
            if not str(error).startswith(f"{path}: ") or "\n" in str(error):
                raise
            counts["refused"] += 1
        else:
            control = set(opened.encode_template("<|im_start|><|im_end|><|voice|>")) | set(range(288, 352))
            ids = opened.encode("".join(FRAGMENTS) * 2)
            assert control.isdisjoint(ids)
            assert max(ids) < 352
            counts["opened"] += 1
    return counts


if __name__ == "__main__":
    print(json.dumps(open_mutants(Path(sys.argv[1]))))
