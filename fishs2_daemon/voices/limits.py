"""How much a voice store takes in."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VoiceLimits:
    """Bounds of uploads; voices that were put into the folder by hand are not held to them."""

    clip_bytes: int = 32 * 1024 * 1024
    clips: int = 16
    voice_bytes: int = 64 * 1024 * 1024
    shortest_clip_s: float = 0.5
    longest_clip_s: float = 120.0  # 2600 tokens of the model's prompt
    voices: int = 1000
