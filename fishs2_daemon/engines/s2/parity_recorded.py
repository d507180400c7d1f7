"""Archives of reference vectors: what they are of is told by the names of their arrays."""

import re
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

_PROMPT_KEY = re.compile(
    r"(.+)_(?:prompt|prefill_logits_all|prefill_hidden_all|slow_logits|slow_hidden|fast_logits|frames|margins"
    r"|prefill_logits_last_bf16rope)"
)
_CONVERSATION_KEY = re.compile(r"(.+)_(?:prompt|output)_([0-9]+)")


class Recorded:
    """An archive of reference vectors; it notes what was asked for."""

    def __init__(self, name: str, arrays: dict[str, Array]) -> None:
        self.name = name
        self._arrays = arrays
        self._asked: set[str] = set()

    @property
    def keys(self) -> list[str]:
        return list(self._arrays)

    def get(self, key: str) -> Array | None:
        self._asked.add(key)
        return self._arrays.get(key)

    @property
    def unused(self) -> list[str]:
        """Keys that nobody has asked for."""
        return [key for key in self._arrays if key not in self._asked]


def prompt_names(recorded: Recorded) -> list[str]:
    """In the order in which they are recorded."""
    return list(dict.fromkeys(found[1] for key in recorded.keys if (found := _PROMPT_KEY.fullmatch(key))))


def conversations(recorded: Recorded) -> dict[str, list[int]]:
    """The numbers of each conversation's batches, in order."""
    numbers: dict[str, set[int]] = {}
    for key in recorded.keys:
        if found := _CONVERSATION_KEY.fullmatch(key):
            numbers.setdefault(found[1], set()).add(int(found[2]))
    return {name: sorted(each) for name, each in numbers.items()}


def columns_of(recorded: Recorded, key: str) -> int:
    """Of what may not be there: 0."""
    array = recorded.get(key)
    return array.shape[-1] if array is not None and array.ndim else 0
