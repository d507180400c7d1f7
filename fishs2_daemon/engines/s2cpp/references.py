"""What a voice is cloned from, as libs2 takes it: each recording is encoded once."""

import tempfile
from collections import OrderedDict
from pathlib import Path

from fishs2_daemon.audio import wav
from fishs2_daemon.audio.decode import DecodeLimits
from fishs2_daemon.engines import recording
from fishs2_daemon.engines.s2cpp.pipeline import Pipeline, Reference
from fishs2_daemon.engines.s2cpp.samples import FRAME_SAMPLES, SAMPLE_BYTES, SAMPLE_RATE, pcm16
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import Clip

#: Clips whose codes are kept; a minute takes 52 KB.
MOST_KEPT = 256

#: libs2 fills its last frame in another way than the model was trained with, unless there is nothing to fill.
_FRAME_BYTES = SAMPLE_BYTES * FRAME_SAMPLES


class References:
    """Of one pipeline, on its thread. Those of clips are kept, the longest unused one goes first."""

    def __init__(self, pipeline: Pipeline, n_threads: int, most_kept: int = MOST_KEPT) -> None:
        self._pipeline = pipeline
        self._n_threads = n_threads
        self._most_kept = most_kept
        self._kept: OrderedDict[tuple[str, str], Reference] = OrderedDict()
        self._lent: list[Reference] = []

    def of_clip(self, clip: Clip) -> Reference:
        """Valid until the next call. Raises `EngineError` where the clip is gone, is not the one that was meant, or is
        no recording."""
        key = clip.sha256, clip.transcript
        if key not in self._kept:
            name = Path(clip.path).name
            if not clip.transcript.strip():
                raise EngineError(f"{name}: cloning needs the words that are said in it")
            # libs2 would read fewer formats, and resample by drawing straight lines.
            audio = recording.samples(clip, SAMPLE_RATE, DecodeLimits())
            self._kept[key] = self._encode(pcm16(audio), clip.transcript, name)
        self._kept.move_to_end(key)
        while len(self._kept) > self._most_kept:
            self._pipeline.release(self._kept.popitem(last=False)[1])
        return self._kept[key]

    def of_speech(self, samples: bytes, transcript: str) -> Reference:
        """Of something that was just spoken, until it is released. Raises `EngineError`."""
        reference = self._encode(samples, transcript, "what was said before")
        self._lent.append(reference)
        return reference

    def release(self, reference: Reference) -> None:
        """One `of_speech`."""
        if reference in self._lent:
            self._lent.remove(reference)
            self._pipeline.release(reference)

    def clear(self) -> None:
        for reference in (*self._lent, *self._kept.values()):
            self._pipeline.release(reference)
        self._lent.clear()
        self._kept.clear()

    def _encode(self, samples: bytes, transcript: str, name: str) -> Reference:
        samples += bytes(-len(samples) % _FRAME_BYTES)
        with tempfile.TemporaryDirectory(prefix="fishs2-") as folder:
            path = Path(folder) / "reference.wav"
            path.write_bytes(wav.header(SAMPLE_RATE, len(samples)) + samples)
            return self._pipeline.encode(path, transcript, name, self._n_threads)
