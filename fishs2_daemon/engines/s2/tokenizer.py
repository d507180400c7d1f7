"""Text to token ids, and why no text can become a control token.

    our own template   "<|im_start|>user\\n"   added tokens are cut out first      [151644, 872, 198]
    a user's text      "<|im_end|>"            BPE that has never heard of them    [27, 91, 318, 6213, 91, 29]

The usual tokenizer matches added tokens in everything it is given, so a text could close its own message and write
the next one. Here the BPE is built without them: without the list, without vocabulary entries of their name, without
the merges that lead there. What it cannot produce needs no filter.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import tokenizers

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.split_expression import problem_of
from fishs2_daemon.errors import EngineError

#: The public file has 12 MB; parsed, JSON takes about ten times its size.
MAX_FILE_BYTES = 32 << 20

#: The parts that a byte-level BPE needs. Others can drop or blow up text (Replace, Strip, ...).
_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
_PRE_TOKENIZERS = frozenset({"Split", "ByteLevel", "Digits"})

#: The public file has two pre-tokenizers and one normalizer.
_MAX_PARTS = 8

#: Commas and opening brackets in the file: the public one has some 650,000. Parsed, each may take a hundred bytes.
_MAX_VALUES = 1 << 21

#: Entries of the vocabulary, merges, added tokens: the public file has 151,643, 151,387 and 4,130. The library takes
#: most of a kilobyte for a merge.
_MAX_PIECES = 1 << 19

#: Long runs of each kind of character, some ending otherwise: an expression that explodes does so here, when it is
#: loaded, and one that loses characters loses some of these. One by one, as time may grow with a text's length cubed.
_PROBES = [run * 256 + "aZ! 0\n" for run in ("a", "Z", "0", " ", "!", "\n", "\t", " a", " \n", "'s")]

_CONTROL_TOKEN = re.compile(r"<\|[^|]+\|>")


class Tokenizer:
    """Safe to use from several threads.

    `semantic_begin` is the id of code 0, `semantic_end` that of the last code; the ids between are contiguous.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, control: Mapping[str, int], semantic: range) -> None:
        """`bpe` knows no token of `control`; `control` has the names that the prompts are made of."""
        self._bpe = bpe
        self._control = control
        self.im_start = control["<|im_start|>"]
        self.im_end = control["<|im_end|>"]
        self.voice = control["<|voice|>"]
        self.semantic_begin = semantic[0]
        self.semantic_end = semantic[-1]

    @classmethod
    def open(cls, path: Path, *, vocab_size: int, semantic_begin: int, semantic_end: int) -> "Tokenizer":
        """Read a `tokenizer.json` that belongs to a model with this metadata; `semantic_end` is inclusive.

        Every id that comes out of it is a row of the model's embedding. Raises `ModelFileError`.
        """
        file = _File(path, vocab_size)
        semantic = range(semantic_begin, semantic_end + 1)
        file.check_names(semantic)
        plain = file.plain_bpe()
        with _failing_as(ModelFileError, f"{path}: not a tokenizer"):
            bpe = tokenizers.Tokenizer.from_str(json.dumps(plain))
        tokenizer = cls(bpe, file.control, semantic)
        file.check_probe(tokenizer)
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """A user's text; its ids are never those of control tokens. Halves of surrogate pairs become U+FFFD."""
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        with _failing_as(EngineError, "the tokenizer failed on this text"):
            return self._bpe.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """A part of our own: control tokens written `<|name|>` are recognised."""
        ids: list[int] = []
        done = 0
        for found in _CONTROL_TOKEN.finditer(text):
            control = self._control.get(found[0])
            if control is not None:
                ids += [*self.encode(text[done : found.start()]), control]
                done = found.end()
        return ids + self.encode(text[done:])

    def id_of(self, token: str) -> int | None:
        """The id of a control token such as `<|pad|>`, where the file has it."""
        return self._control.get(token)


class _File:
    """A tokenizer.json whose vocabulary, merges and added tokens have the right types, and ids within the model."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self._path = path
        self._content = _read(path)
        model = self._content.get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise self._wrong("its model is not a BPE")
        for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(option):
                raise self._wrong(f"its BPE has {option}, which a byte-level one has not")
        self.control = self._control_tokens(vocab_size)
        self._vocab = self._plain_vocabulary(model.get("vocab"), vocab_size)
        self._merges = self._plain_merges(model.get("merges"))
        self._whole_words = model.get("ignore_merges") is True

    def check_names(self, semantic: range) -> None:
        """All control tokens that prompts are made of, where the model has them."""
        for name in ("<|im_start|>", "<|im_end|>", "<|voice|>"):
            if name not in self.control:
                raise self._wrong(f"{name} is not among its added tokens")
        if not semantic:
            raise self._wrong("the model says that it has no semantic ids")
        for code, wanted in enumerate(semantic):
            found = self.control.get(f"<|semantic:{code}|>")
            if found != wanted:
                has = "missing" if found is None else f"number {found}"
                raise self._wrong(f"<|semantic:{code}|> is {has}, and the model expects number {wanted}")
        if f"<|semantic:{len(semantic)}|>" in self.control:
            raise self._wrong(f"it has more semantic tokens than the model's {len(semantic)}")

    def check_probe(self, tokenizer: Tokenizer) -> None:
        """The pieces of a text, put together, are the text again: nothing is lost, replaced or added on the way."""
        symbols = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
        piece_of = {number: piece for piece, number in self._vocab.items()}
        for probe in _PROBES:
            try:
                spelled = bytes(symbols[char] for number in tokenizer.encode(probe) for char in piece_of[number])
            except KeyError:
                spelled = b""
            except EngineError as error:
                raise self._wrong(str(error)) from error
            if spelled != probe.encode():
                raise self._wrong("its pieces do not spell the text they were made from")

    def plain_bpe(self) -> dict[str, object]:
        """The same tokenizer without control tokens, as JSON for the library."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": self._part("normalizer", "normalizers", _NORMALIZERS),
            "pre_tokenizer": self._part("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
            "post_processor": None,
            "decoder": None,
            "model": {"type": "BPE", "vocab": self._vocab, "merges": self._merges, "ignore_merges": self._whole_words},
        }

    def _control_tokens(self, vocab_size: int) -> dict[str, int]:
        added = self._content.get("added_tokens")
        if not isinstance(added, list):
            raise self._wrong("it has no added tokens")
        self._check_count("added tokens", len(added))
        control: dict[str, int] = {}
        for token in added:
            content, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
            if not isinstance(content, str) or not content or not _is_id(number, vocab_size):
                raise self._wrong(f"added token {_shown(content)} has id {_shown(number)}, not one of {vocab_size}")
            if control.setdefault(content, number) != number:
                raise self._wrong(f"added token {_shown(content)} has two ids")
        return control

    def _plain_vocabulary(self, vocab: object, vocab_size: int) -> dict[str, int]:
        if not isinstance(vocab, dict):
            raise self._wrong("it has no vocabulary")
        self._check_count("tokens", len(vocab))
        plain = {piece: number for piece, number in vocab.items() if piece not in self.control}
        for piece, number in plain.items():
            if not _is_id(number, vocab_size):
                raise self._wrong(f"token {_shown(piece)} has id {_shown(number)}, not one of {vocab_size}")
        for byte, symbol in enumerate(_byte_symbols()):
            if symbol not in plain:
                raise self._wrong(f"byte {byte} ({symbol!a}) is not in its vocabulary")
        if len({*plain.values(), *self.control.values()}) != len(plain) + len(self.control):
            raise self._wrong("two of its tokens share an id")
        return plain

    def _plain_merges(self, merges: object) -> list[list[str]]:
        """Both forms are in use: "a b", and ["a", "b"]."""
        if not isinstance(merges, list):
            raise self._wrong("it has no merges")
        self._check_count("merges", len(merges))
        pairs: list[list[str]] = []
        for merge in merges:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
                raise self._wrong(f"merge {_shown(merge)} is not a pair")
            if self.control.keys().isdisjoint((*pair, "".join(pair))):
                pairs.append(pair)
        return pairs

    def _check_count(self, what: str, count: int) -> None:
        if count > _MAX_PIECES:
            raise self._wrong(f"it has {count} {what}; {_MAX_PIECES} are possible")

    def _part(self, key: str, list_key: str, known: frozenset[str]) -> object:
        """A normalizer or pre-tokenizer as the file has it, alone or in one sequence."""
        part = self._content.get(key)
        if part is None:
            return None
        parts = part.get(list_key) if isinstance(part, dict) and part.get("type") == "Sequence" else [part]
        parts = parts if isinstance(parts, list) else [parts]
        if len(parts) > _MAX_PARTS:
            raise self._wrong(f"its {key} has {len(parts)} parts; {_MAX_PARTS} are possible")
        for each in parts:
            kind = each.get("type") if isinstance(each, dict) else None
            if not isinstance(kind, str) or kind not in known:
                raise self._wrong(f"its {key} is {_shown(kind)}, not one of {', '.join(sorted(known))}")
            pattern = each.get("pattern") if kind == "Split" else None
            if isinstance(pattern, dict) and isinstance(expression := pattern.get("Regex"), str):
                self._check_expression(expression)
        return part

    def _check_expression(self, expression: str) -> None:
        if problem := problem_of(expression):
            raise self._wrong(f"it splits by {_shown(expression)}, {problem}")

    def _wrong(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path}: {what}")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(f"{path}: there is no such file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ModelFileError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, not a tokenizer")
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > _MAX_VALUES:
        raise ModelFileError(f"{path}: not a tokenizer: more than {_MAX_VALUES} values")
    try:
        content = json.loads(data)
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path}: not JSON: byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: not a tokenizer: no JSON object")
    return content


@contextmanager
def _failing_as(kind: type[EngineError], what: str) -> Iterator[None]:
    """The library's errors, and its panics: those are no `Exception` and would pass every handler above."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        detail = " ".join(str(error).split())
        raise kind(f"{what}: {detail:.200}") from error


def _is_id(number: object, vocab_size: int) -> TypeGuard[int]:
    return type(number) is int and 0 <= number < vocab_size


def _byte_symbols() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary: itself if printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


def _shown(value: object) -> str:
    names = {type(None): "missing", list: "a list", dict: "an object"}
    return names.get(type(value)) or f"{value!a:.60}"
