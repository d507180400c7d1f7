"""Prompts as integer matrices [K+1, T]: row 0 token ids, rows 1..K the codes of that position, 0 where it is text.

Parts are tokenised one by one and put side by side, so a conversation only ever grows at its end. What the KV cache
holds stays true from batch to batch, the frames that the model spoke included, since they were fed one by one:

    ask      [system … <|im_end|>\\n  user 0 … assistant\\n<|voice|>]
    speak                                                          f f f f
    ask                                                                   [<|im_end|>\\n  user 1 … <|voice|>]
    speak                                                                                                   f f f
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fishs2_daemon.engines.s2.tokenizer import Tokenizer
from fishs2_daemon.errors import EngineError

Columns = NDArray[np.int32]  # [K+1, T]
Codes = NDArray[np.integer]  # [K, T]

#: Two minutes at 21.5 frames a second. A voice needs ten seconds, and all of it is prefilled.
LONGEST_REFERENCE_FRAMES = 2584

#: The official grouping of a text with speaker tags.
MOST_TURNS_A_BATCH = 5

_SPEAKER_TAG = re.compile(r"<\|speaker:[0-9]+\|>")


class PromptError(EngineError):
    """Codes or a transcript that cannot be part of a prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a voice sounds like, and what it says there. The transcript may carry `<|speaker:N|>` tags of its own.

    Raises `PromptError`; whether the codes are the model's is seen when a conversation starts.
    """

    codes: Codes  # [K, T]
    transcript: str

    def __post_init__(self) -> None:
        _check_codes(self.codes)
        if not 0 < self.codes.shape[1] <= LONGEST_REFERENCE_FRAMES:
            raise PromptError(
                f"a reference of {self.codes.shape[1]} frames; from 1 to {LONGEST_REFERENCE_FRAMES} are possible"
            )
        if not _SPEAKER_TAG.sub("", self.transcript).strip():
            raise PromptError("a reference needs the transcript of what it says")


class PromptFormat:
    """The official prompt format for one model: `codebooks` is K, `codebook_size` the rows of each code embedding."""

    def __init__(self, tokenizer: Tokenizer, *, codebooks: int, codebook_size: int) -> None:
        self._tokenizer = tokenizer
        self._codebooks = codebooks
        semantic_size = tokenizer.semantic_end - tokenizer.semantic_begin + 1
        self._code_limits = np.full((codebooks, 1), codebook_size)  # [K, 1]
        self._code_limits[0] = min(semantic_size, codebook_size)
        self._start_system = self._template("<|im_start|>system\n")
        self._start_user = self._template("<|im_start|>user\n")
        self._start_voice = self._template("<|im_start|>assistant\n<|voice|>")
        self._end = self._template("<|im_end|>\n")

    def begin(self, references: Sequence[Reference] = ()) -> "Conversation":
        """The system message: everything before the first text, the same for all texts of a voice.

        Raises `PromptError` if a reference's codes are not this model's.
        """
        if not references:
            content = [self._template("convert the provided text to speech")]
        else:
            content = [
                self._template("convert the provided text to speech reference to the following:\n\nText:\n"),
                self._text("\n".join(_tagged(each.transcript, i) for i, each in enumerate(references))),
                self._template("\n\nSpeech:\n"),
                *(self._speech(each.codes) for each in references),
            ]
        return Conversation(self, _joined(self._start_system, *content, self._end))

    def user_columns(self, text: str) -> Columns:
        """A user's message, and the assistant's opened behind it."""
        return _joined(self._start_user, self._text(text), self._end, self._start_voice)

    def answer_columns(self, codes: Codes) -> Columns:
        """The rest of the assistant's message that `user_columns` opened."""
        return _joined(self._speech(codes), self._end)

    def _template(self, text: str) -> Columns:
        return self._tokens(self._tokenizer.encode_template(text))

    def _text(self, text: str) -> Columns:
        return self._tokens(self._tokenizer.encode(text))

    def _tokens(self, ids: list[int]) -> Columns:
        columns = np.zeros((self._codebooks + 1, len(ids)), np.int32)
        columns[0] = ids
        return columns

    def _speech(self, codes: Codes) -> Columns:
        _check_codes(codes)
        if codes.shape[0] != self._codebooks:
            raise PromptError(f"codes of {codes.shape[0]} codebooks, and the model has {self._codebooks}")
        wrong = (codes < 0) | (codes >= self._code_limits)
        if wrong.any():
            book, frame = np.argwhere(wrong)[0]
            limit = self._code_limits[book, 0]
            raise PromptError(f"code {codes[book, frame]} of codebook {book}, frame {frame}: not one of {limit}")
        speech = codes.astype(np.int32)
        return np.concatenate([speech[:1] + self._tokenizer.semantic_begin, speech])


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Messages that are complete. `columns` is read-only, and the beginning of every later turn's."""

    format: PromptFormat
    columns: Columns  # [K+1, T]

    def ask(self, text: str) -> "Turn":
        """Any text, control tokens in it are text."""
        return Turn(self.format, _joined(self.columns, self.format.user_columns(text)))


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """A conversation with the assistant's message open: `columns` is a whole prompt, generation starts behind it."""

    format: PromptFormat
    columns: Columns  # [K+1, T], read-only

    def unfed(self, cached: int) -> Columns:
        """What is left to feed when the KV cache holds the first `cached` columns; the last one always is.

        After a turn of T columns of which n frames were kept and fed, the next turn's `cached` is T + n; one less if
        the last frame was not fed, as when generation stopped at a limit.
        """
        if cached < 0:
            raise ValueError(f"{cached} columns in the cache")
        return self.columns[:, min(cached, self.columns.shape[1] - 1) :]

    def answered(self, codes: Codes) -> Conversation:
        """The message closed, with `codes` [K, n] as what was said; n may be 0. Raises `PromptError`."""
        return Conversation(self.format, _joined(self.columns, self.format.answer_columns(codes)))


def batches(text: str, chunk_length: int) -> list[str]:
    """The texts to ask for, one after the other, in one conversation: official grouping of speaker turns.

    A text without `<|speaker:N|>` is one batch, whatever its length. Else it is split before each tag; as many turns
    as fit go into a batch, one per line: at most `MOST_TURNS_A_BATCH`, and `chunk_length` bytes of UTF-8, which only
    a turn alone may exceed. Text before the first tag is a turn without tag; the official engine loses it. A blank
    text has no batch.
    """
    grouped: list[list[str]] = []
    room = 0
    for turn in _turns(text):
        size = len(turn.encode("utf-8", "surrogatepass"))
        if not grouped or len(grouped[-1]) == MOST_TURNS_A_BATCH or size > room:
            grouped.append([])
            room = chunk_length
        grouped[-1].append(turn)
        room -= size
    return ["\n".join(turns) for turns in grouped]


def _turns(text: str) -> Iterator[str]:
    starts = [found.start() for found in _SPEAKER_TAG.finditer(text)]
    if not starts:
        if text.strip():
            yield text
        return
    for start, end in pairwise([0, *starts, len(text)]):
        if turn := text[start:end].strip():
            yield turn


def _tagged(transcript: str, speaker: int) -> str:
    return transcript if _SPEAKER_TAG.search(transcript) else f"<|speaker:{speaker}|>{transcript}"


def _check_codes(codes: Codes) -> None:
    if codes.ndim != 2 or not np.issubdtype(codes.dtype, np.integer):
        raise PromptError(f"codes are integers [codebooks, frames], not {codes.dtype} {list(codes.shape)}")


def _joined(*parts: Columns) -> Columns:
    columns = np.concatenate(parts, axis=1)
    columns.flags.writeable = False
    return columns
