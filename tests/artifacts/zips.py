"""Zip files, good ones and such as nobody should have made."""

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

#: Where the fields lie in an entry's record of the central directory (APPNOTE.TXT 4.3.12): offset and format.
_FIELDS = {"flags": (8, "<H"), "method": (10, "<H"), "crc": (16, "<I"), "size": (24, "<I"), "attributes": (38, "<I")}

_CENTRAL = b"PK\x01\x02"


@dataclass(frozen=True, slots=True)
class Odd:
    """An entry whose record is changed afterwards."""

    data: bytes = b"x"
    flags: int | None = None
    method: int | None = None
    crc: int | None = None
    size: int | None = None
    attributes: int | None = None


def zipped(entries: Mapping[str, bytes | Odd] | list[tuple[str, bytes | Odd]], *, stored: bool = False) -> bytes:
    """A zip file; a list may name an entry twice. Names are written as they are."""
    pairs = list(entries.items()) if isinstance(entries, Mapping) else entries
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as file:
        for number, (_, entry) in enumerate(pairs):
            file.writestr(f"<{number:06}>", entry.data if isinstance(entry, Odd) else entry)
    return _changed(buffer.getvalue(), pairs)


def _changed(data: bytes, pairs: list[tuple[str, bytes | Odd]]) -> bytes:
    """With the names that `zipfile` would mend, and with the changed fields."""
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        infos, directory = file.infolist(), file.start_dir
    bodies, records, place = bytearray(), bytearray(), directory
    for info, (name, entry) in zip(infos, pairs, strict=True):
        local = data[info.header_offset : info.header_offset + 30]
        size = info.compress_size
        body = data[info.header_offset + 30 + 8 : info.header_offset + 30 + 8 + size]
        coded = name.encode()
        record = bytearray(data[place : place + 46])
        place += 46 + 8
        struct.pack_into("<H", record, 8, 0x800)
        struct.pack_into("<H", record, 28, len(coded))
        struct.pack_into("<I", record, 42, len(bodies))
        if isinstance(entry, Odd):
            for field, (offset, kind) in _FIELDS.items():
                if (value := getattr(entry, field)) is not None:
                    struct.pack_into(kind, record, offset, value)
        head = bytearray(local)
        struct.pack_into("<H", head, 6, 0x800)
        struct.pack_into("<H", head, 26, len(coded))
        bodies += head + coded + body
        records += record + coded
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, len(pairs), len(pairs), len(records), len(bodies), 0)
    return bytes(bodies + records + end)
