"""What is said of a voice when it is made or changed, as the keys of its `meta.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from fishs2_daemon.speech import SamplingOverrides
from fishs2_daemon.voices import meta
from fishs2_daemon.voices.clips import ReceivedClip


@dataclass(frozen=True, slots=True)
class NewVoice:
    """A voice to be made. Its id comes from `voice_id`, else `title`, else the first clip's name.

    `transcript` is that of the reference, the first clip in alphabetical order, where none came with the clip.
    """

    voice_id: str | None = None
    title: str | None = None
    description: str | None = None
    model: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    visibility: str | None = None
    transcript: str | None = None
    style: str | None = None
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    based_on: str | None = None


class VoiceChanges(TypedDict, total=False):
    """What can be changed of a voice; None takes away what its `meta.json` says. `transcript` is the reference's."""

    title: str | None
    description: str | None
    model: str | None
    languages: tuple[str, ...]
    tags: tuple[str, ...]
    visibility: str | None
    transcript: str | None
    style: str | None
    sampling: SamplingOverrides


def of_new(new: NewVoice, voice_id: str, created: int) -> dict[str, Any]:
    """Raises `InvalidRequest` whose `param` is the key that is wrong."""
    raw: dict[str, Any] = {"voice_id": voice_id, "created": created}
    raw |= _keys({name: value for name, value in asdict(new).items() if name not in ("voice_id", "sampling")})
    raw |= _keys({"sampling": new.sampling})
    meta.parse(raw)
    return raw


def of_changes(changes: VoiceChanges) -> dict[str, Any]:
    """Only the keys that change."""
    return _keys(changes)


def with_clips(raw: Mapping[str, Any], clips: Sequence[ReceivedClip]) -> dict[str, Any]:
    """The reference's transcript goes where other programs look for it, into `prompt_text`."""
    files = [{"filename": clip.filename, "size": clip.size_bytes, "text": clip.transcript} for clip in clips]
    prompt_text = raw.get("prompt_text")
    if clips:
        prompt_text = clips[0].transcript or prompt_text
        files[0]["text"] = None
    return {**raw, "prompt_text": prompt_text, "files": files}


def with_sizes(raw: Mapping[str, Any], sizes_bytes: Mapping[str, int], is_transcript_new: bool) -> dict[str, Any]:
    """`files` as they are now, by name in alphabetical order; a new `prompt_text` takes the reference's `text` away."""
    known = {entry["filename"]: entry for entry in raw.get("files") or []}
    files = [{**known.get(name, {}), "filename": name, "size": size} for name, size in sizes_bytes.items()]
    if files and is_transcript_new and "text" in files[0]:
        files[0]["text"] = None
    return {**raw, "files": files}


def _keys(given: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for name, value in given.items():
        match name, value:
            case "transcript", _:
                keys["prompt_text"] = value
            case "languages", _:
                keys |= {"language": value[0] if value else None, "languages": list(value) if len(value) > 1 else None}
            case "tags", _:
                keys["tags"] = list(value)
            case "sampling", SamplingOverrides():
                keys["sampling"] = {name: number for name, number in asdict(value).items() if number is not None}
            case _:
                keys[name] = value
    return keys
