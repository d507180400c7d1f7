"""Ids of voices and names of their files."""

import re
import unicodedata

from fishs2_daemon.errors import InvalidRequest

#: Longest id; leaves room for suffixes in the 255 bytes of a file name, and in a line of a log.
ID_CHARS = 100

#: Longest stem of a clip's file name.
STEM_CHARS = 64

#: What counts as a clip in a voice's folder.
AUDIO_SUFFIXES = frozenset(
    {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".mka", ".aif", ".aiff"}
)

#: Names that Windows gives to devices, with any suffix: such a folder could not be copied there.
_DEVICES = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")


def normalised(text: str) -> str:
    """`text` in lower-case ASCII letters, digits, single `-`, and `_`; empty where nothing of it is left."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub(r"-{2,}", "-", re.sub(r"[^a-z0-9_-]+", "-", ascii_only.lower())).strip("-_")


def voice_id(asked: str, now_s: float) -> str:
    """The id of a new voice that somebody calls `asked`; one that nothing is left of is named by the time. Raises
    `InvalidRequest`."""
    name = normalised(asked) or f"voice-{int(now_s)}"
    if len(name) > ID_CHARS:
        raise InvalidRequest(f"a voice's id has at most {ID_CHARS} characters, this one {len(name)}", param="voice_id")
    if _DEVICES.fullmatch(name):
        raise InvalidRequest(f"{name!r} cannot be a voice's id: Windows calls a device so", param="voice_id")
    return name


def base_name(filename: str) -> str:
    """The last part of a path in either notation, as browsers and programs send it."""
    return filename.replace("\\", "/").rpartition("/")[2]


def stem(filename: str) -> str:
    """`filename` without its folders and its last suffix."""
    name = base_name(filename)
    return name[: name.rindex(".")] if "." in name[1:] else name


def clip_name(filename: str, number: int, suffix: str, taken: set[str]) -> str:
    """A file name for the upload's clip `number` (from 1), free among `taken`; `suffix` is that of its content, for
    names that have no audio suffix of their own."""
    given = base_name(filename)[len(stem(filename)) :].lower()
    chosen = given if given in AUDIO_SUFFIXES else suffix
    start = normalised(stem(filename))[:STEM_CHARS].strip("-_")
    if not start or _DEVICES.fullmatch(start):
        start = f"sample_{number}"
    name, copy = start + chosen, 1
    while name in taken:
        copy += 1
        name = f"{start}-{copy}{chosen}"
    return name
