"""Makes `voices/sample-robot`: a voice to clone at once, spoken by espeak-ng, so that no person's is needed.

    .venv/bin/python scripts/make_sample_voice.py [FOLDER OF VOICES]

The recording is what `fishs2-daemon say --engine espeak` speaks, as FLAC, stored as an upload would be. The same
version of espeak-ng gives the same samples again; only `created` moves on.
"""

import argparse
import asyncio
import tempfile
import wave
from pathlib import Path

from fishs2_daemon import configuration, say
from fishs2_daemon.audio.encode import Encoder
from fishs2_daemon.audio.formats import encoding
from fishs2_daemon.voices.clips import UploadedClip
from fishs2_daemon.voices.content import NewVoice
from fishs2_daemon.voices.meta import StoredVoice
from fishs2_daemon.voices.store import VoiceStore

FOLDER = Path(__file__).resolve().parent.parent / "voices"

#: Of espeak-ng's; not its default one, so that a clone can be told from the preview.
SPEAKER = "en-gb-x-rp"

#: Seven and a half seconds, with the licence's question answered in the sound itself.
TEXT = (
    "I am a robot. This recording is synthetic speech, generated with espeak-ng. "
    "It is here so that there is a voice to clone at once."
)

#: The description is what Home Assistant shows. One language, the plain one: every further one lengthens its list.
VOICE = NewVoice(
    voice_id="sample-robot",
    title="Sample robot",
    description="Sample robot: synthetic speech generated with espeak-ng, no person",
    languages=("en",),
    tags=("sample", "synthetic"),
    transcript=TEXT,
)

#: The whole FLAC is held, so that its head tells its length and digest.
_HOLD_BYTES = 16 * 1024 * 1024


def make(folder: Path) -> StoredVoice:
    """Stores the sample in the voices' `folder`, in the place of one that is there."""
    with tempfile.TemporaryDirectory(prefix="fishs2-") as scratch:
        spoken = Path(scratch, "speech.wav")
        settings = configuration.load(engine="espeak", log_level="WARNING")
        asyncio.run(say.say(settings, TEXT, SPEAKER, str(spoken)))
        clip = UploadedClip(f"{VOICE.voice_id}.flac", _flac(spoken))
        return VoiceStore(folder).create(VOICE, [clip])


def _flac(recording: Path) -> bytes:
    """A WAV file in half its size."""
    with wave.open(str(recording)) as file:
        encoder = Encoder(encoding("flac"), file.getframerate(), hold_bytes=_HOLD_BYTES)
        return encoder.feed(file.readframes(file.getnframes())) + encoder.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the sample voice with espeak-ng.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER", help="of voices")
    voice = make(parser.parse_args().folder)
    print(f"{voice.id}: {voice.clips[0].path}, {voice.clips[0].size_bytes} bytes")


if __name__ == "__main__":
    main()
