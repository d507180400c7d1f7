"""Writes GGUF files, version 3, a tensor's rows at a time: made for models that are larger than memory."""

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from fishs2_daemon.engines.s2.ggml_type import GgmlType
from fishs2_daemon.engines.s2.gguf import DEFAULT_ALIGNMENT, MetadataValue, TensorInfo

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], GgmlType]]) -> list[TensorInfo]:
    """Places tensors one after the other; their offsets count from the start of the data."""
    plain = [(name, shape, kind, kind.nbytes(shape)) for name, shape, kind in tensors]
    starts = accumulate((_aligned(nbytes) for *_, nbytes in plain), initial=0)
    return [
        TensorInfo(name, shape, kind, start, nbytes)
        for (name, shape, kind, nbytes), start in zip(plain, starts, strict=False)
    ]


def header(metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorInfo]) -> bytes:
    """All that comes before the data, padding included. Whole numbers are written as u32 if they can be, else as i32;
    arrays are of i32, floats of 32 bits."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    for info in tensors:
        dims = len(info.shape)
        parts.append(_string(info.name) + struct.pack(f"<I{dims}QIQ", dims, *info.shape, info.type, info.offset))
    packed = b"".join(parts)
    return packed.ljust(_aligned(len(packed)), b"\0")


def write_gguf(
    path: Path,
    metadata: Mapping[str, MetadataValue],
    tensors: Sequence[TensorInfo],
    chunks: Callable[[TensorInfo], Iterable[bytes]],
) -> None:
    """`chunks` yields a tensor's bytes, in pieces. The file appears under its name once it is whole."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(header(metadata, tensors))
            for info in tensors:
                written = sum(file.write(chunk) for chunk in chunks(info))
                if written != info.nbytes:
                    raise ValueError(f"tensor {info.name}: {written} bytes, {info.nbytes} planned")
                file.write(bytes(_aligned(written) - written))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: MetadataValue) -> bytes:
    if isinstance(value, tuple):
        return struct.pack(f"<IIQ{len(value)}i", _ARRAY, _I32, len(value), *value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<II", _U32, value) if value >= 0 else struct.pack("<Ii", _I32, value)
