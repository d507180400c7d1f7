"""A stored voice as the hosted service's clients take it: they refuse one that lacks a key."""

from datetime import UTC, datetime
from typing import Any

from fishs2_daemon.voices.meta import StoredVoice

#: Whose all voices are.
AUTHOR_ID = "fishs2-daemon"


def voice_entry(voice: StoredVoice) -> dict[str, Any]:
    """`state` is trained where the voice can be cloned, and created where the words of its recording are missing."""
    created_at = datetime.fromtimestamp(voice.created, UTC).isoformat()
    return {
        "_id": voice.id,
        "type": "tts",
        "title": voice.title or voice.id,
        "description": voice.description or "",
        "cover_image": "",
        "train_mode": "fast",
        "state": "trained" if voice.clips and voice.clips[0].transcript else "created",
        "tags": list(voice.tags),
        "samples": [
            {"title": clip.filename, "text": clip.transcript or "", "task_id": "", "audio": ""} for clip in voice.clips
        ],
        "created_at": created_at,
        "updated_at": created_at,
        "languages": list(voice.languages),
        "visibility": voice.visibility,
        "lock_visibility": False,
        "like_count": 0,
        "mark_count": 0,
        "shared_count": 0,
        "task_count": 0,
        "liked": False,
        "marked": False,
        "author": {"_id": AUTHOR_ID, "nickname": AUTHOR_ID, "avatar": ""},
    }
