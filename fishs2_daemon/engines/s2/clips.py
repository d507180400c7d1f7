"""The codes of reference clips: made once, kept beside the clip, and in memory."""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fishs2_daemon.audio.decode import DecodeLimits
from fishs2_daemon.engines import recording
from fishs2_daemon.engines.s2.prompt import LONGEST_REFERENCE_FRAMES, Reference
from fishs2_daemon.speech import Clip

_log = logging.getLogger(__name__)

Codes = npt.NDArray[np.int16]  # [K, T]

Encode = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.integer]]

#: Clips whose codes are kept in memory; ten seconds take 4 KB.
_MOST_KEPT = 1024

#: Of a digest in a file's name.
_DIGITS = 16


class ClipCodes:
    """Not safe for several threads at once. `encode` makes codes of samples; `codec` is a digest of the model's codec,
    whose codes these are."""

    def __init__(self, encode: Encode, *, sample_rate: int, frame_samples: int, codec: str) -> None:
        self._encode = encode
        self._sample_rate = sample_rate
        self._limits = DecodeLimits(longest_s=LONGEST_REFERENCE_FRAMES * frame_samples / sample_rate)
        self._codec = codec
        self._kept: OrderedDict[str, Codes] = OrderedDict()

    def reference(self, clip: Clip) -> Reference:
        """Raises `EngineError` where the clip is gone, is not the one that was meant, or is no recording."""
        codes = self._kept.get(clip.sha256)
        if codes is None:
            codes = self._kept[clip.sha256] = self._saved(clip) if self._is_saved(clip) else self._encoded(clip)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(clip.sha256)
        return Reference(codes, clip.transcript)

    def _file(self, clip: Clip) -> Path:
        path = Path(clip.path)
        return path.with_name(f".{path.name}.{clip.sha256[:_DIGITS]}.{self._codec[:_DIGITS]}.codes.npy")

    def _is_saved(self, clip: Clip) -> bool:
        try:
            return self._file(clip).stat().st_size > 0
        except OSError:
            return False

    def _saved(self, clip: Clip) -> Codes:
        """A file that is no such thing, whoever put it there, is made anew."""
        try:
            # Mapped: a header may claim anything, and an archive would be another type.
            codes: Codes = np.lib.format.open_memmap(self._file(clip), mode="r")
        except Exception as error:  # noqa: BLE001 - headers are parsed as Python, and raise whatever that does
            _log.warning("%s is made again: %s", self._file(clip).name, error)
            return self._encoded(clip)
        if codes.dtype != np.int16 or codes.ndim != 2 or not 0 < codes.shape[1] <= LONGEST_REFERENCE_FRAMES:
            _log.warning("%s is made again: it holds no codes", self._file(clip).name)
            return self._encoded(clip)
        return np.array(codes)

    def _encoded(self, clip: Clip) -> Codes:
        codes = self._encode(recording.samples(clip, self._sample_rate, self._limits)).astype(np.int16)
        self._save(clip, codes)
        return codes

    def _save(self, clip: Clip, codes: Codes) -> None:
        """Where the folder may be written. What was made of an earlier clip of that name goes."""
        file = self._file(clip)
        part = file.with_name(f"{file.name}.{os.getpid()}")
        try:
            with part.open("wb") as target:
                np.save(target, codes, allow_pickle=False)
            for stale in file.parent.glob(f".{escape(Path(clip.path).name)}.*.{self._codec[:_DIGITS]}.codes.npy"):
                stale.unlink(missing_ok=True)
            part.replace(file)
        except OSError as error:
            _log.info("the codes of %s are not kept: %s", Path(clip.path).name, error.strerror)
            with suppress(OSError):
                part.unlink(missing_ok=True)
