"""`meta.json` of a stored voice, and the values it is read into.

    voices/anna/anna.wav
    voices/anna/meta.json      {"voice_id": "anna", "created": 1760000000, "model": null, "language": "en",
                                "prompt_text": "What is said in anna.wav.",
                                "files": [{"filename": "anna.wav", "size": 264044, "text": null}]}
    voices/whisper/meta.json   {"based_on": "anna", "style": "whisper"}

Every key may be absent or null, and keys that are unknown here are kept. Besides those above, which the reference
wrapper writes too: `title` and `description` for people, `languages` (the narrowest first) where it is more than one,
`tags`, `visibility`, `style` (spoken in front of every text as the tag `[whisper]`), `sampling` (see
`SamplingOverrides`) and `based_on`. The id is the folder's name, whatever `voice_id` says.

A voice without clips of its own that is `based_on` another speaks with the other's clips, and with its language, model
and sampling where it has none itself. One level: the other has clips of its own.

The transcript of a clip is the first of these that is not blank:
  1. `text` of its entry in `files`
  2. `prompt_text`, for the first clip in alphabetical order, which is the reference
  3. `<stem>.txt`, else `<clip>.txt`, beside it
  4. for the first clip, `prompts/<id>.txt` beside the voices folder, else in it. Only where its entry in `files` has
     no key `text`, which every uploaded clip has: such a file outlives the voice that it was written for.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from fishs2_daemon.errors import InvalidRequest
from fishs2_daemon.speech import SamplingOverrides

FILE_NAME = "meta.json"

#: A transcript of 4096 characters for each of 16 clips takes a quarter of this.
META_BYTES = 1024 * 1024

#: As the reference wrapper allows.
TRANSCRIPT_CHARS = 4096

#: Bounds of what is shown to people; generous, so that a listing stays one.
TITLE_CHARS = 200
DESCRIPTION_CHARS = 4096
TAGS = 32
TAG_CHARS = 64
STYLE_CHARS = 200

VISIBILITIES = ("private", "public", "unlist")

#: 9999-12-31, the last day that a client's calendar knows.
_LAST_SECOND = 253_402_300_799

#: Characters that would end a style's tag, or begin one of the model's control tokens.
_NO_STYLE = frozenset("[]<>|")

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A recording in the store. `sha256` is that of the file when the voice was resolved, and None in a listing."""

    path: Path
    filename: str
    size_bytes: int
    transcript: str | None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """`created` in Unix seconds; `clips` in alphabetical order, the first is the reference; `style` has no brackets."""

    id: str
    title: str
    description: str
    created: int
    model: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    visibility: str
    style: str | None
    sampling: SamplingOverrides
    based_on: str | None
    clips: tuple[StoredClip, ...]

    @property
    def has_clips_of_another(self) -> bool:
        return any(clip.path.parent.name != self.id for clip in self.clips)

    @property
    def language(self) -> str | None:
        return self.languages[0] if self.languages else None


@dataclass(frozen=True, slots=True)
class FileEntry:
    """`is_uploaded` says that the entry has a key `text`, whatever its value."""

    text: str | None
    is_uploaded: bool


@dataclass(frozen=True, slots=True)
class Meta:
    """What a valid `meta.json` says; None where it says nothing."""

    title: str | None
    description: str | None
    created: int | None
    model: str | None
    languages: tuple[str, ...]
    prompt_text: str | None
    tags: tuple[str, ...]
    visibility: str | None
    style: str | None
    sampling: SamplingOverrides
    based_on: str | None
    files: Mapping[str, FileEntry]


def load(content: bytes) -> dict[str, Any]:
    """The object in a file. Raises `InvalidRequest`."""
    if len(content) > META_BYTES:
        raise InvalidRequest(f"it has more than {META_BYTES} bytes")
    try:
        raw = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"it is no JSON ({error})") from None
    if not isinstance(raw, dict):
        raise InvalidRequest("it is no JSON object")
    return raw


def dump(raw: Mapping[str, Any]) -> bytes:
    """The file of an object. Raises `InvalidRequest` for what `load` would not take back."""
    try:
        content = json.dumps(raw, ensure_ascii=False, indent=2).encode("utf-8", "replace") + b"\n"
    except RecursionError:
        raise InvalidRequest("the voice's meta.json is nested too deeply") from None
    if len(content) > META_BYTES:
        raise InvalidRequest(f"the voice's meta.json would have more than {META_BYTES} bytes")
    return content


def parse(raw: Mapping[str, Any]) -> Meta:
    """Raises `InvalidRequest` whose `param` is the key that is wrong."""
    language = text(raw, "language", TAG_CHARS)
    languages = _texts(raw, "languages")
    return Meta(
        title=text(raw, "title", TITLE_CHARS),
        description=text(raw, "description", DESCRIPTION_CHARS),
        created=_created(raw),
        model=text(raw, "model", TITLE_CHARS),
        languages=languages if language is None else tuple(dict.fromkeys((language, *languages))),
        prompt_text=text(raw, "prompt_text", TRANSCRIPT_CHARS),
        tags=_texts(raw, "tags"),
        visibility=_visibility(raw),
        style=_style(raw),
        sampling=_sampling(raw),
        based_on=text(raw, "based_on", TITLE_CHARS),
        files=_files(raw),
    )


def text(raw: Mapping[str, Any], key: str, longest: int) -> str | None:
    """None for a text that is absent or blank. Lone surrogates, which no protocol carries, become question marks."""
    value = _typed(raw, key, lambda value: isinstance(value, str), "a text", "")
    stripped = str(value).strip().encode("utf-8", "replace").decode("utf-8")
    if len(stripped) > longest:
        raise InvalidRequest(f"{key} has more than {longest} characters", param=key)
    return stripped or None


def _typed(raw: Mapping[str, Any], key: str, fits: Callable[[Any], bool], what: str, absent: _Value) -> _Value:
    value = raw.get(key)
    if value is None:
        return absent
    if not fits(value):
        raise InvalidRequest(f"{key} must be {what}", param=key)
    return value  # type: ignore[no-any-return]


def _texts(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values: list[Any] = _typed(raw, key, lambda value: isinstance(value, list), f"a list of at most {TAGS} texts", [])
    if len(values) > TAGS:
        raise InvalidRequest(f"{key} must be a list of at most {TAGS} texts", param=key)
    given = [text({key: value}, key, TAG_CHARS) for value in values]
    return tuple(dict.fromkeys(value for value in given if value))


def _created(raw: Mapping[str, Any]) -> int | None:
    # `type` is exact: true is no time. The comparison is false for what is not a number.
    what = "a time in Unix seconds"
    value: float | None = _typed(
        raw, "created", lambda value: type(value) in (int, float) and 0 <= value <= _LAST_SECOND, what, None
    )
    return None if value is None else int(value)


def _visibility(raw: Mapping[str, Any]) -> str | None:
    value = text(raw, "visibility", TAG_CHARS)
    if value is not None and value not in VISIBILITIES:
        raise InvalidRequest(f"visibility must be one of {', '.join(VISIBILITIES)}", param="visibility")
    return value


def _style(raw: Mapping[str, Any]) -> str | None:
    value = text(raw, "style", STYLE_CHARS)
    if value is not None and (not value.isprintable() or _NO_STYLE & set(value)):
        raise InvalidRequest("style must be one line without brackets, < > and |, such as whisper", param="style")
    return value


def _sampling(raw: Mapping[str, Any]) -> SamplingOverrides:
    given: dict[str, Any] = _typed(raw, "sampling", lambda value: isinstance(value, dict), "an object", {})
    names = {field.name for field in fields(SamplingOverrides)}
    if unknown := sorted(given.keys() - names):
        raise InvalidRequest(f"sampling has no {unknown[0]!r}; it has {', '.join(sorted(names))}", param="sampling")
    return SamplingOverrides(**given)


def _files(raw: Mapping[str, Any]) -> dict[str, FileEntry]:
    entries: list[Any] = _typed(raw, "files", lambda value: isinstance(value, list), "a list of objects", [])
    if not all(isinstance(entry, dict) and isinstance(entry.get("filename"), str) for entry in entries):
        raise InvalidRequest("files must be a list of objects with a filename", param="files")
    return {entry["filename"]: FileEntry(text(entry, "text", TRANSCRIPT_CHARS), "text" in entry) for entry in entries}
