"""Reads the metadata and the tensor table of a GGUF file, version 2 or 3, little endian.

    magic "GGUF" | u32 version | u64 tensors | u64 keys
    keys:    string key, u32 type, value              strings: u64 length, UTF-8
    tensors: string name, u32 dims, u64 ne[dims], u32 ggml type, u64 offset
    padding to the alignment | data, every tensor at a multiple of the alignment

The file may be anybody's, and native code trusts what it is told: each count, length, offset and type is checked here
against the file's size before anything is allocated for it. Whatever is wrong raises `ModelFileError`.
"""

import mmap
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt

from fishs2_daemon.engines.s2.errors import ModelFileError
from fishs2_daemon.engines.s2.ggml_type import GgmlType

Scalar = bool | int | float | str
MetadataValue = Scalar | tuple[Scalar, ...]

#: Keys and tensor table together. A vocabulary with its merges takes 7 MiB; far beyond that it is no model's header.
MAX_HEADER_NBYTES = 16 << 20

#: S2 Pro has 70 keys and 813 tensors. With the header's size this bounds the time that a hostile file takes.
MAX_COUNT = 1 << 16

#: ggml keeps a name in 64 bytes; the format allows keys of 65535.
MAX_NAME_NBYTES = 64
MAX_KEY_NBYTES = 65535

MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

_VERSIONS = (2, 3)

# The least that a key (empty, one byte of value), a string and a tensor (no name, one dimension) take in the file.
_LEAST_KEY, _LEAST_STRING, _LEAST_TENSOR = 8 + 4 + 1, 8, 8 + 4 + 8 + 4 + 8

# The format's value types; the numbers' struct formats. A bool is a byte of 0 or 1.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` is in ggml's order, the contiguous dimension first; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: GgmlType
    offset: int
    nbytes: int


class GgufFile:
    """An open file. Integers of any width are `int`, floats `float`, arrays tuples; tensors stay in the file."""

    def __init__(
        self, path: Path, data: mmap.mmap, metadata: dict[str, MetadataValue], tensors: dict[str, TensorInfo]
    ) -> None:
        self.path = path
        self.metadata: Mapping[str, MetadataValue] = MappingProxyType(metadata)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._map: mmap.mmap | None = data

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Maps the file and checks all of its header; raises `ModelFileError`."""
        where = Path(path)
        data = _mapped(where)
        try:
            return cls(where, data, *_Header(where.name, data).read())
        except BaseException:
            data.close()
            raise

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, read-only and not copied: pages are read as they are touched. `[nbytes]`"""
        if self._map is None:
            raise ValueError(f"{self.path.name} is closed")
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileError(f"{self.path.name}: tensor {name!r} is missing")
        return np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)

    def close(self) -> None:
        """Views that are still held stay valid: the map goes with the last of them."""
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mapped(path: Path) -> mmap.mmap:
    try:
        # A pipe that nobody writes to would hold a plain open forever.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ModelFileError(f"{path.name}: not a file")
            if status.st_size == 0:
                raise ModelFileError(f"{path.name}: the file is empty")
            return mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise ModelFileError(f"{path.name}: {reason}") from error


class _Header:
    """One pass over the header. `_at` is where it reads, `_what` what it reads, for the error's text."""

    def __init__(self, filename: str, data: mmap.mmap) -> None:
        self._filename = filename
        self._data = data
        self._end = min(len(data), MAX_HEADER_NBYTES)
        self._at = 0
        self._what = "the header"

    def read(self) -> tuple[dict[str, MetadataValue], dict[str, TensorInfo]]:
        if self._bytes(4) != b"GGUF":
            self._fail("this is not a GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            self._fail(f"GGUF version {version}; supported are 2 and 3, little endian")
        tensor_count = self._count("tensors", _LEAST_TENSOR)
        key_count = self._count("keys", _LEAST_KEY)
        metadata = self._metadata(key_count)
        return metadata, self._tensors(tensor_count, self._alignment(metadata))

    def _metadata(self, count: int) -> dict[str, MetadataValue]:
        metadata: dict[str, MetadataValue] = {}
        for index in range(count):
            self._what = f"key {index + 1} of {count}"
            key = self._string(MAX_KEY_NBYTES)
            self._what = f"key {_shown(key)}"
            if key in metadata:
                self._fail("is there twice")
            metadata[key] = self._value(self._number("I"))
        return metadata

    def _alignment(self, metadata: Mapping[str, MetadataValue]) -> int:
        self._what = "key 'general.alignment'"
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            self._fail(f"{_shown(value)} is no power of two up to {MAX_ALIGNMENT}")
        return value

    def _value(self, kind: int) -> MetadataValue:
        if kind != _ARRAY:
            return self._items(kind, 1)[0]
        kind = self._number("I")
        if kind == _ARRAY:
            self._fail("an array of arrays")
        return self._items(kind, self._number("Q"))

    def _items(self, kind: int, count: int) -> tuple[Scalar, ...]:
        if kind == _STRING:
            self._check_room(count, _LEAST_STRING)
            return tuple(self._string(self._end) for _ in range(count))
        if kind == _BOOL:
            raw = self._bytes(count)
            if raw.strip(b"\0\1"):
                self._fail("a bool that is neither 0 nor 1")
            return tuple(map(bool, raw))
        if kind not in _NUMBERS:
            self._fail(f"unknown value type {kind}")
        # The count stands in a struct format, so it must be small before it gets there.
        self._check_room(count, struct.calcsize("<" + _NUMBERS[kind]))
        layout = f"<{count}{_NUMBERS[kind]}"
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for index in range(count):
            self._what = f"tensor {index + 1} of {count}"
            name = self._string(MAX_NAME_NBYTES)
            self._what = f"tensor {_shown(name)}"
            if name in found:
                self._fail("is there twice")
            found[name] = self._tensor(name)
        data_start = -(-self._at // alignment) * alignment
        placed: dict[str, TensorInfo] = {}
        for info in found.values():
            self._what = f"tensor {_shown(info.name)}"
            if info.offset % alignment:
                self._fail(f"offset {info.offset} is no multiple of the alignment {alignment}")
            offset = data_start + info.offset
            if offset + info.nbytes > len(self._data):
                self._fail(f"{info.nbytes} bytes at {offset} reach beyond the file's end at {len(self._data)}")
            placed[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
        self._check_apart(placed)
        return placed

    def _tensor(self, name: str) -> TensorInfo:
        dims = self._number("I")
        if not 1 <= dims <= MAX_DIMS:
            self._fail(f"{dims} dimensions; 1 to {MAX_DIMS} are possible")
        shape = struct.unpack(layout := f"<{dims}Q", self._bytes(struct.calcsize(layout)))
        if 0 in shape:
            self._fail(f"a dimension of zero in {shape}")
        number = self._number("I")
        try:
            kind = GgmlType(number)
        except ValueError:
            self._fail(f"unknown tensor type {number}")
        if shape[0] % kind.block_items:
            self._fail(f"rows of {shape[0]} are no whole blocks of {kind.name} ({kind.block_items})")
        return TensorInfo(name, shape, kind, self._number("Q"), kind.nbytes(shape))

    def _check_apart(self, tensors: dict[str, TensorInfo]) -> None:
        end = 0
        for info in sorted(tensors.values(), key=lambda info: info.offset):
            if info.offset < end:
                self._what = f"tensor {_shown(info.name)}"
                self._fail("overlaps another one")
            end = info.offset + info.nbytes

    def _count(self, what: str, least_nbytes: int) -> int:
        count = self._number("Q")
        self._what = f"the count of {what}"
        if count > MAX_COUNT:
            self._fail(f"{count}; {MAX_COUNT} are possible")
        self._check_room(count, least_nbytes)
        return count

    def _check_room(self, count: int, item_nbytes: int) -> None:
        if count > (self._end - self._at) // item_nbytes:
            self._fail(f"{count} items do not fit {self._limit}")

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(full := f"<{layout}", self._bytes(struct.calcsize(full)))[0]
        return value

    def _string(self, longest: int) -> str:
        nbytes = self._number("Q")
        if nbytes > longest:
            self._fail(f"a string of {nbytes} bytes; {longest} are possible")
        try:
            return self._bytes(nbytes).decode()
        except UnicodeDecodeError:
            self._fail("a string that is not UTF-8")

    def _bytes(self, nbytes: int) -> bytes:
        if nbytes > self._end - self._at:
            self._fail(f"{nbytes} bytes do not fit {self._limit}")
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    @property
    def _limit(self) -> str:
        if self._end == MAX_HEADER_NBYTES:
            return f"a header's {MAX_HEADER_NBYTES} bytes"
        return f"the file's {self._end} bytes: is it truncated?"

    def _fail(self, reason: str) -> NoReturn:
        raise ModelFileError(f"{self._filename}: {self._what}: {reason}")


def _shown(value: object) -> str:
    """On one line and short, whatever the file holds."""
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:96]}..."
