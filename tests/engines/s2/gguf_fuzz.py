"""Damaged model files, at any byte and by their parts. As a script it opens thousands of them: each opens, or raises
`ModelFileError`, with little time and memory.

python gguf_fuzz.py MODEL.gguf FOLDER [SEED]
"""

import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import DEFAULT_ALIGNMENT, GgufFile, MetadataValue
from fishs2_daemon.engines.s2.gguf_writer import header, lay_out
from fishs2_daemon.engines.s2.model_file import read_config

SMALL_FILES, MODEL_FILES = 2600, 400

#: What the process may take beyond what it has after its imports.
MEMORY = 64 << 20

NUMBERS = [0, 1, 2, 3, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**61, 2**63, 2**64 - 32, 2**64 - 1]

#: The format's value types by number, as struct has them.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

REALS = [0.0, -1.0, 1e-45, 1e30, float("inf"), float("-inf"), float("nan")]


def damaged(raw: bytes, head: int, chance: random.Random) -> bytes:
    """One to three wounds, all in the first `head` bytes, or the file's end cut off."""
    body = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(min(head, len(body)) or 1)
        match chance.randrange(6):
            case 0:
                del body[chance.choice([at, chance.randrange(len(body) + 1)]) :]
            case 1:
                body[at : at + 1] = bytes([(body[at] if body else 0) ^ 1 << chance.randrange(8)])
            case 2:
                body[at : at + 8] = struct.pack("<Q", chance.choice(NUMBERS))
            case 3:
                body[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) & 0xFFFFFFFF)
            case 4:
                del body[at : at + chance.randint(1, 16)]
            case 5:
                other = chance.randrange(head)
                body[at:at] = raw[other : other + chance.randint(1, 64)]
        if not body:
            break
    return bytes(body)


@dataclass
class Key:
    name: str
    kind: int
    payload: bytes

    def packed(self) -> bytes:
        return _string(self.name) + struct.pack("<I", self.kind) + self.payload


@dataclass(frozen=True)
class Entry:
    """A tensor of the table; `offset` counts from the start of the data, and all of it may be a lie."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def packed(self) -> bytes:
        dims = len(self.shape)
        return _string(self.name) + struct.pack(f"<I{dims}QIQ", dims, *self.shape, self.kind, self.offset)


@dataclass
class Parts:
    """A model file that can be put together wrongly."""

    keys: list[Key]
    tensors: list[Entry]
    data: bytearray

    @classmethod
    def of(cls, path: Path) -> "Parts":
        with GgufFile.open(path) as file:
            start = min(info.offset for info in file.tensors.values())
            keys = [_key(name, value) for name, value in file.metadata.items()]
            infos = file.tensors.values()
            tensors = [Entry(info.name, info.shape, info.type, info.offset - start) for info in infos]
        return cls(keys, tensors, bytearray(path.read_bytes()[start:]))

    def copy(self) -> "Parts":
        return Parts([replace(key) for key in self.keys], list(self.tensors), bytearray(self.data))

    def packed(self) -> bytes:
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        head += b"".join(key.packed() for key in self.keys) + b"".join(entry.packed() for entry in self.tensors)
        return head + bytes(-len(head) % DEFAULT_ALIGNMENT) + self.data


def rewritten(parts: Parts, chance: random.Random) -> bytes:
    """A file whose framing is whole, and which says something else in one to three places."""
    changed = parts.copy()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        chance.choices([_wrong_key, _wrong_tensor, _wrong_weights], [5, 4, 2])[0](changed, chance)
    return changed.packed()


def _wrong_key(parts: Parts, chance: random.Random) -> None:
    if not parts.keys:
        return
    key = chance.choice(parts.keys)
    match chance.randrange(8):
        case 0:
            parts.keys.remove(key)
        case 1:
            parts.keys.append(replace(key))
        case 2:
            other = chance.choice(parts.keys)
            key.kind, key.payload, other.kind, other.payload = other.kind, other.payload, key.kind, key.payload
        case 3:
            key.name = chance.choice(["", key.name.upper(), "general.alignment", "\0", key.name * 40])
        case 4 | 5 if key.kind in (U32, I32):
            value = struct.unpack("<i", key.payload)[0]
            near = [value + 1, value - 1, 2 * value, value // 2, -value, value + (1 << 16), value << 10, 2**31 - 1]
            key.payload = struct.pack("<I", chance.choice(near) & 0xFFFFFFFF)
        case 6 if key.kind == ARRAY:
            numbers = [chance.choice([0, 1, 2, 3, 7, 64, -1, 2**31 - 1]) for _ in range(chance.choice([0, 1, 2, 4, 9]))]
            key.payload = struct.pack(f"<IQ{len(numbers)}i", I32, len(numbers), *numbers)
        case _:
            key.kind, key.payload = _any_value(chance)


def _any_value(chance: random.Random) -> tuple[int, bytes]:
    kind = chance.choice([*SCALARS, STRING, ARRAY, 13, 2**32 - 1])
    if kind in SCALARS:
        return kind, _scalar(kind, chance)
    if kind == STRING:
        text = chance.choice([b"", b"fish-speech", b"\xff\xfe", b"a\nb", "ß".encode() * 3000])
        return kind, struct.pack("<Q", len(text)) + text
    item = chance.choice([*SCALARS, STRING, ARRAY])
    count = chance.choice([0, 1, 4, 5, 2**16])
    items = b"".join(_scalar(item, chance) for _ in range(count)) if item in SCALARS else bytes(8 * count)
    return kind, struct.pack("<IQ", item, chance.choice([count, count, count, *NUMBERS])) + items


def _scalar(kind: int, chance: random.Random) -> bytes:
    code = SCALARS[kind]
    if code in "fd":
        return struct.pack(f"<{code}", chance.choice(REALS))
    size = struct.calcsize(f"<{code}")
    return (chance.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def _wrong_tensor(parts: Parts, chance: random.Random) -> None:
    if not parts.tensors:
        return
    index = chance.randrange(len(parts.tensors))
    entry, other = parts.tensors[index], chance.choice(parts.tensors)
    shape = list(entry.shape)
    dim = chance.randrange(len(shape))
    match chance.randrange(9):
        case 0:
            del parts.tensors[index]
            return
        case 1:
            entry = replace(entry, name=chance.choice([other.name, "", entry.name[:-1], entry.name + "\n", "x" * 64]))
        case 2:
            parts.tensors.append(replace(entry, name=chance.choice([entry.name, "stray"])))
            return
        case 3 | 4:
            shape[dim] = chance.choice([0, 1, shape[dim] + 1, shape[dim] - 1, 2 * shape[dim], *NUMBERS])
            entry = replace(entry, shape=tuple(shape))
        case 5:
            more = chance.choice([shape[::-1], [*shape, 1], [1, *shape], shape[:-1], [*shape, 2], [1] * 5])
            entry = replace(entry, shape=tuple(more))
        case 6:
            entry = replace(entry, kind=chance.choice([*GgmlType, 4, 5, 9, 15, 16, 31, 39, 2**31, 2**32 - 1]))
        case 7:
            entry = replace(entry, offset=chance.choice([other.offset, entry.offset + 1, 32, *NUMBERS]))
        case 8:
            parts.tensors[parts.tensors.index(other)] = replace(other, offset=entry.offset)
            entry = replace(entry, offset=other.offset)
    parts.tensors[index] = entry


def _wrong_weights(parts: Parts, chance: random.Random) -> None:
    """No numbers, endless ones, and ones at random: in the whole of a tensor, in a few bytes, or the end is missing."""
    start = chance.choice(parts.tensors).offset if parts.tensors else 0
    start = min(start, len(parts.data))
    length = min(chance.choice([2, 4, 64, 1 << 12, 1 << 20]), len(parts.data) - start)
    patterns: list[Callable[[], bytes]] = [
        lambda: b"\xff" * length,
        lambda: b"\x00\x7c" * (length // 2),
        lambda: b"\x00\x00\x80\x7f" * (length // 4),
        lambda: chance.randbytes(length),
        lambda: bytes(length),
    ]
    if chance.random() < 0.1:
        del parts.data[start:]
    else:
        body = chance.choice(patterns)()
        parts.data[start : start + len(body)] = body


def _key(name: str, value: Any) -> Key:
    if isinstance(value, tuple):
        return Key(name, ARRAY, struct.pack(f"<IQ{len(value)}i", I32, len(value), *value))
    if isinstance(value, str):
        return Key(name, STRING, _string(value))
    if isinstance(value, bool):
        return Key(name, BOOL, bytes([value]))
    if isinstance(value, float):
        return Key(name, F32, struct.pack("<f", value))
    return Key(name, I32 if value < 0 else U32, struct.pack("<i" if value < 0 else "<I", value))


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def small_file() -> bytes:
    """Every kind of value and of tensor, in less than 1 KiB of header."""
    kinds = (GgmlType.F32, GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_K, GgmlType.I32)
    tensors = lay_out((kind.name, (256, 1, 2), kind) for kind in kinds)
    values: dict[str, MetadataValue] = {
        "general.alignment": 32,
        "text": "fish",
        "flag": True,
        "real": 0.5,
        "less": -1,
        "list": (1, 2, 3),
    }
    return header(values, tensors) + bytes(sum(info.nbytes for info in tensors))


def main() -> None:
    model, folder = Path(sys.argv[1]), Path(sys.argv[2])
    chance = random.Random(int(sys.argv[3]) if sys.argv[3:] else 20261121)
    raw_model, parts = model.read_bytes(), Parts.of(model)
    model_head = len(raw_model) - len(parts.data)
    small = small_file()
    path = folder / "damaged.gguf"
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    opened, slowest_s = 0, 0.0
    for index in range(SMALL_FILES + MODEL_FILES):
        if index < SMALL_FILES:
            path.write_bytes(damaged(small, 700, chance))
        elif index % 2:
            path.write_bytes(damaged(raw_model, model_head, chance))
        else:
            path.write_bytes(rewritten(parts, chance))
        start = time.process_time()
        try:
            with GgufFile.open(path) as file:
                for name in file.tensors:
                    file.data(name).max()
                if index >= SMALL_FILES:
                    read_config(file)
                opened += 1
        except ModelFileError as error:
            if "\n" in str(error) or not str(error).startswith("damaged.gguf: "):
                raise SystemExit(f"not a clear error: {error}") from error
        slowest_s = max(slowest_s, time.process_time() - start)
    if slowest_s > 2:
        raise SystemExit(f"a file took {slowest_s:.1f} s")
    print(
        f"{SMALL_FILES + MODEL_FILES} damaged files, {opened} of them open; the slowest took {slowest_s * 1000:.0f} ms"
    )


if __name__ == "__main__":
    main()
