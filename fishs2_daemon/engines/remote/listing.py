"""The voices that an upstream lists, and who made its models."""

from typing import Any

from fishs2_daemon.speech import Voice

#: Of one server. A picker with more is of no use, and the wire to the daemon has an end.
MOST_VOICES = 2000

#: Of an id: what a stored voice can have. Of a description and its like: what a picker shows.
_ID_CHARS = 255
_TEXT_CHARS = 200
_LANGUAGES = 16

#: A BCP 47 tag with a few parts.
_TAG_CHARS = 35


def voices_of(listing: Any) -> tuple[Voice, ...]:
    """Of `{"data": [...]}` or `{"voices": [...]}`, whose entries are ids or objects with one. What is something else is
    left out."""
    entries: list[Any] = []
    if isinstance(listing, dict):
        entries = next((found for key in ("data", "voices") if isinstance(found := listing.get(key), list)), [])
    voices: dict[str, Voice] = {}
    for entry in entries:
        voice = _voice(entry)
        if voice and len(voices) < MOST_VOICES:
            voices.setdefault(voice.id.casefold(), voice)
    return tuple(voices.values())


def owner_of(models: Any) -> str:
    """`owned_by` of the first of `{"data": [...]}`; empty where nobody is named."""
    entries = models.get("data") if isinstance(models, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    owner = first.get("owned_by") if isinstance(first, dict) else None
    return owner if isinstance(owner, str) else ""


def _voice(entry: Any) -> Voice | None:
    if isinstance(entry, str):
        entry = {"id": entry}
    if not isinstance(entry, dict):
        return None
    texts = [entry.get(key) for key in ("id", "voice_id", "name")]
    name = next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")
    if not name or len(name) > _ID_CHARS or not name.isprintable():
        return None
    shown = next((text for key in ("description", "name") if isinstance(text := entry.get(key), str) and text), name)
    description = "".join(char if char.isprintable() else " " for char in shown[:_TEXT_CHARS])
    return Voice(name, description, _languages(entry))


def _languages(entry: dict[str, Any]) -> tuple[str, ...]:
    told = entry.get("languages") or entry.get("language") or ()
    told = told if isinstance(told, list) else [told]
    tags = [tag.strip() for tag in told[:_LANGUAGES] if isinstance(tag, str)]
    return tuple(dict.fromkeys(tag for tag in tags if _is_tag(tag)))


def _is_tag(tag: str) -> bool:
    return 2 <= len(tag) <= _TAG_CHARS and tag.isascii() and all(part.isalnum() for part in tag.split("-"))
