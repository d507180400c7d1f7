"""A voice to measure with, in a folder of its own: what is cached beside its clip may come and go."""

import math
import random
import shutil
from array import array
from pathlib import Path

from fishs2_daemon.audio import wav
from fishs2_daemon.bench.texts import Texts
from fishs2_daemon.speech import Clip

#: Id of the voice in the folder.
VOICE = "bench"

_RATE = 44100
_PITCHES_HZ = (110.0, 220.0, 700.0, 1800.0)
_TONE = 3000
_NOISE = 1500

#: Syllables: loud four times a second.
_SYLLABLES_HZ = 4.0


def copied(clip: Clip, folder: Path) -> None:
    """The voice of `clip` alone, as `VOICE` in the folder of voices `folder`."""
    source = Path(clip.path)
    home = folder / VOICE
    home.mkdir(parents=True)
    shutil.copyfile(source, home / f"{VOICE}{source.suffix}")
    (home / f"{VOICE}.txt").write_text(clip.transcript, encoding="utf-8")


def made_up(seconds: float, folder: Path) -> None:
    """`VOICE` as tones and noise, with a transcript that is as long as speech of those seconds would be."""
    home = folder / VOICE
    home.mkdir(parents=True)
    pcm = _sound(seconds).tobytes()
    (home / f"{VOICE}.wav").write_bytes(wav.header(_RATE, len(pcm)) + pcm)
    (home / f"{VOICE}.txt").write_text(Texts(seconds, start=0).take(), encoding="utf-8")


def forget_codes(folder: Path) -> None:
    """As if no engine had ever heard the voice."""
    for file in (folder / VOICE).glob(".*.codes.npy"):
        file.unlink()


def _sound(seconds: float) -> "array[int]":
    noise = random.Random(1)  # noqa: S311 - sound
    samples = array("h")
    for index in range(round(seconds * _RATE)):
        turn = 2 * math.pi * index / _RATE
        tones = sum(math.sin(pitch_hz * turn) for pitch_hz in _PITCHES_HZ)
        loudness = 0.6 - 0.4 * math.cos(_SYLLABLES_HZ * turn)
        samples.append(round(loudness * (_TONE * tones + noise.uniform(-_NOISE, _NOISE))))
    return samples
