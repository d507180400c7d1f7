"""A tokenizer.json for made-up models: byte-level BPE as in S2 Pro's, with few merges."""

import json
from dataclasses import dataclass
from pathlib import Path

#: Qwen2's, S2 Pro's.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MODALITIES = (
    "<|pad|>",
    "<|phoneme_start|>",
    "<|phoneme_end|>",
    "<|text|>",
    "<|voice|>",
    "<|interleave|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|audio_pad|>",
)

#: Enough for pieces that join letters, spaces, punctuation and line breaks, in the prompt's own words among others.
_MERGES = (
    *(("t", "h"), ("th", "e"), ("i", "n"), ("e", "r"), ("o", "r"), ("a", "n"), ("o", "n"), ("l", "l"), ("H", "e")),
    *(("Ġ", "t"), ("Ġ", "th"), ("Ġ", "the"), ("Ġ", "w"), ("Ġ", "a"), ("Ġ", "Ġ"), ("Ġ", "ĠĠ"), ("'", "s")),
    *(("Ċ", "Ċ"), (":", "Ċ"), (":", "ĊĊ"), (".", "Ċ"), ("s", "p"), ("S", "p"), ("e", "c"), ("sp", "e"), ("Sp", "e")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Ids as in S2 Pro: `base` pieces of text, three tokens for turns, `reserved` ones, nine for modalities, then the
    `codes` semantic tokens."""

    codes: int
    base: int = 256 + len(_MERGES)
    reserved: int = 0

    @property
    def im_end(self) -> int:
        return self.base + _TURNS.index("<|im_end|>")

    @property
    def semantic_begin(self) -> int:
        return self.base + len(_TURNS) + self.reserved + len(_MODALITIES)

    @property
    def audio_pad(self) -> int:
        return self.semantic_begin - 1

    @property
    def size(self) -> int:
        return self.semantic_begin + self.codes

    def write(self, path: Path) -> None:
        """As tokenizer.json; pieces beyond bytes and merges are filled up with ones that no text is made of."""
        pieces = [*_byte_symbols(), *("".join(pair) for pair in _MERGES)]
        if self.base < len(pieces):
            raise ValueError(f"a vocabulary has at least {len(pieces)} pieces of text, not {self.base}")
        pieces += [f"~unused~{index}" for index in range(len(pieces), self.base)]
        special = [*_TURNS, *(f"<|reserved:{index}|>" for index in range(self.reserved)), *_MODALITIES]
        special += [f"<|semantic:{code}|>" for code in range(self.codes)]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(self.base + index, token) for index, token in enumerate(special)],
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {piece: index for index, piece in enumerate(pieces)},
                "merges": [list(pair) for pair in _MERGES],
            },
        }
        path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def _added(number: int, content: str) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def _byte_symbols() -> list[str]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(0x100 + index) for index in range(256 - len(printable)))]
