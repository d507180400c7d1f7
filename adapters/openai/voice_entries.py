"""A voice as JSON. `id`, `name` and `created_at` are OpenAI's names, the others those of the reference wrapper."""

from typing import Any

from fishs2_daemon.speech import Voice
from fishs2_daemon.voices.meta import StoredVoice


def stored_entry(voice: StoredVoice) -> dict[str, Any]:
    return {
        **_names(voice.id, voice.title or voice.id, "audio_sample", voice.created),
        "files": [{"filename": clip.filename, "size": clip.size_bytes} for clip in voice.clips],
        "model": voice.model,
        "language": voice.language,
        "languages": list(voice.languages),
        "prompt_text": voice.clips[0].transcript if voice.clips else None,
    }


def created_entry(voice: StoredVoice) -> dict[str, Any]:
    """With a `warning` where the voice cannot be used as it is."""
    entry = stored_entry(voice) | {"sample_count": len(voice.clips)}
    if voice.clips and not voice.clips[0].transcript:
        entry["warning"] = (
            f"{voice.clips[0].filename} has no transcript, and cloning needs the words that are said in it: upload it "
            "again with prompt_text, or send reference_text with every request"
        )
    return entry


def engine_entry(voice: Voice) -> dict[str, Any]:
    """A voice of the engine's own, which nobody uploaded and nobody can delete."""
    language = voice.languages[0] if voice.languages else None
    return {
        **_names(voice.id, voice.description or voice.id, "engine", 0),
        "files": [],
        "model": None,
        "language": language,
        "languages": list(voice.languages),
        "prompt_text": None,
    }


def _names(voice_id: str, name: str, kind: str, created: int) -> dict[str, Any]:
    return {
        "id": voice_id,
        "voice_id": voice_id,
        "name": name,
        "object": "voice",
        "type": kind,
        "created": created,
        "created_at": created,
    }
