"""libs2's objects, from the files to an answer. All of it is called by one thread."""

import logging
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fishs2_daemon.engines.s2cpp import generation
from fishs2_daemon.engines.s2cpp.callbacks import Callbacks
from fishs2_daemon.engines.s2cpp.generation import Generation
from fishs2_daemon.engines.s2cpp.library import S2Library
from fishs2_daemon.engines.s2cpp.model import Device, ModelFiles
from fishs2_daemon.engines.s2cpp.samples import FRAME_SAMPLES, SAMPLE_RATE, pcm16
from fishs2_daemon.engines.s2cpp.thread import Handover
from fishs2_daemon.errors import EngineError

_log = logging.getLogger(__name__)

_QUIET = 0

_OK = 1
_CANCELLED = -10

#: What the return codes of the functions that speak mean to the one who reads the error.
_SPEAKING = {
    0: "it was given bad arguments, or its pipeline is not ready",
    -1: "it could not read the reference and spoke in another voice",
    -4: "the synthesis failed",
    -6: "it could not write its WAV file",
    -7: "a reference needs the words that are said in it",
    -8: "the reference came without its length",
    -9: "it was given nothing to hand its audio to",
    _CANCELLED: "it stopped, and nobody had asked it to",
}

#: And those of the one that encodes a reference.
_ENCODING = {
    0: "it was given bad arguments, or its pipeline is not ready",
    -1: "it cannot read or encode the audio",
}


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording as libs2 keeps it, and what is said in it. To be given back with `Pipeline.release`."""

    codes: Any
    frames: int
    transcript: str


class Pipeline:
    """One model on one device."""

    def __init__(self, library: S2Library, files: ModelFiles, device: Device) -> None:
        """Of files that were checked. Raises `EngineError` where libs2 does not load them there."""
        self.device = device
        self._library = library
        self._calls = library.calls
        self._ffi = library.ffi
        self._releases: list[Callable[[], None]] = []
        self._is_closed = False
        self._callbacks = Callbacks(self._ffi, SAMPLE_RATE)
        try:
            self._pipeline = self._load(files)
            self._generation = self._new("GenerateParams")
            # A vector without codes is no reference; whether NULL is one too, libs2 does not say.
            self._no_codes = self._new("AudioPromptCodes")
            self._buffer = None if self.streams else self._new("AudioBuffer", 0)
        except EngineError:
            self.close()
            raise

    @property
    def streams(self) -> bool:
        """Whether sound comes while it is computed. Where it does not, an answer cannot be stopped midway."""
        return self._library.has("S2SynthesizeStreamingEx") or self._library.has("S2SynthesizeStreaming")

    def encode(self, wav: Path, transcript: str, name: str, n_threads: int) -> Reference:
        """A reference of the audio file `wav`, which the error calls `name`."""
        self._check_open()
        codes, frames = self._calls.AllocS2AudioPromptCodes(), self._ffi.new("int32_t *")
        if codes == self._ffi.NULL:
            raise _no_memory()
        status = self._calls.InitializeAudioPromptCodes(self._pipeline, n_threads, os.fsencode(wav), codes, frames)
        reference = Reference(codes, frames[0], transcript)
        if status == _OK and reference.frames > 0:
            return reference
        self.release(reference)
        raise _encoding_failed(status, name) if status != _OK else EngineError(f"libs2 found no voice in {name}")

    def release(self, reference: Reference) -> None:
        self._calls.ReleaseS2AudioPromptCodes(reference.codes)

    def speak(self, text: str, wanted: Generation, reference: Reference | None, sink: Handover) -> None:
        """Returns when libs2 does: the text was spoken, or the sink cancelled. Raises `EngineError`.

        The reference is one of codes always, never a file: libs2 speaks in another voice where it cannot read one.
        """
        self._check_open()
        if self._calls.InitializeS2GenerateParams(self._generation, *astuple(wanted), _QUIET) != _OK:
            raise EngineError("libs2 does not take the sampling settings")
        codes, frames, transcript = self._no_codes, 0, ""
        if reference:
            codes, frames, transcript = reference.codes, reference.frames, reference.transcript
        given = (codes, self._ffi.new("int32_t *", frames), b"", _utf8(transcript), _utf8(text))
        status, message, heard = self._stream(given, sink) if self.streams else self._whole(given, sink)
        if sink.cancelled:
            if status not in (_OK, _CANCELLED):
                _log.info("an answer that was cancelled: %s", _speaking_failed(status, message))
        elif status != _OK:
            raise _speaking_failed(status, message)
        elif not heard:
            raise EngineError("libs2 spoke the text without a sound")

    def close(self) -> None:
        """Give everything back, what uses before what is used. References are released before."""
        self._is_closed = True
        while self._releases:
            self._releases.pop()()

    def _check_open(self) -> None:
        """A text that was being spoken may come for its next phrase behind `close`."""
        if self._is_closed:
            raise EngineError("libs2 is not loaded")

    def _stream(self, given: tuple[Any, ...], sink: Handover) -> tuple[int, str, bool]:
        with self._callbacks.to(sink) as answer:
            if self._library.has("S2SynthesizeStreamingEx"):
                # The settings' order is that of the struct; what is not named here is as libs2 has it by itself.
                settings = (self._stride, generation.HOLDBACK_FRAMES, generation.CONTEXT_FRAMES, 0, 0, 180, 0)
                last = self._ffi.new("S2StreamingParams *", (*settings, self._ffi.NULL, self._ffi.NULL))
                speak = self._calls.S2SynthesizeStreamingEx
            else:
                last, speak = self._stride, self._calls.S2SynthesizeStreaming
            status = speak(self._pipeline, self._generation, self._callbacks.pointer, *given, last)
        if answer.failure:
            raise answer.failure
        return status, answer.message, answer.heard

    def _whole(self, given: tuple[Any, ...], sink: Handover) -> tuple[int, str, bool]:
        if sink.cancelled:
            return _CANCELLED, "", False
        count = self._ffi.new("int32_t *")
        status = self._calls.S2Synthesize(self._pipeline, self._generation, self._buffer, *given, b"", count)
        data = self._calls.GetS2AudioBufferDataPointer(self._buffer)
        if status != _OK or data == self._ffi.NULL or count[0] <= 0:
            return status, "", False
        wave = np.frombuffer(self._ffi.buffer(data, 4 * count[0]), np.float32)
        for start in range(0, len(wave), FRAME_SAMPLES):
            if not sink.put(pcm16(wave[start : start + FRAME_SAMPLES])):
                break
        return status, "", True

    @property
    def _stride(self) -> int:
        return generation.GPU_STRIDE_FRAMES if self.device.is_gpu else generation.CPU_STRIDE_FRAMES

    def _new(self, kind: str, *arguments: int) -> Any:
        made = getattr(self._calls, f"AllocS2{kind}")(*arguments)
        if made == self._ffi.NULL:
            raise _no_memory()
        self._releases.append(partial(getattr(self._calls, f"ReleaseS2{kind}"), made))
        return made

    def _load(self, files: ModelFiles) -> Any:
        model, tokenizer, device = os.fsencode(files.model), os.fsencode(files.tokenizer), self.device
        place = device.gpu_device, device.backend_type
        calls = self._calls
        if self._library.has("InitializeS2PipelineFromFiles"):
            pipeline = self._new("Pipeline")
            # The codec on the model's GPU: on a processor it would be slower than the model itself. libs2 measures both
            # first, and reads the model's file twice more for that.
            loaded = calls.InitializeS2PipelineFromFiles(
                pipeline, model, tokenizer, *place, device.gpu_layers, int(device.is_gpu)
            )
            if loaded != _OK:
                raise self._refused(f"{files.model.name} and {files.tokenizer.name}", loaded)
            return pipeline
        # Released in the opposite order: the pipeline borrows the others, and where the codec shares the model's file
        # it owns what the model still points to.
        words, codec, transformer, pipeline = (
            self._new(kind) for kind in ("Tokenizer", "AudioCodec", "Model", "Pipeline")
        )
        self._load_model(transformer, model, files.model.name)
        if (status := calls.InitializeS2Tokenizer(words, tokenizer)) != _OK:
            raise self._refused(files.tokenizer.name, status)
        calls.SyncS2TokenizerConfigFromS2Model(transformer, words)
        if self._library.has("InitializeS2AudioCodecModelShared"):
            status = calls.InitializeS2AudioCodecModelShared(transformer, codec, model, *place)
        else:
            _log.info("this libs2 reads the model's file twice: it takes twice the memory")
            status = calls.InitializeS2AudioCodec(codec, model, *place)
        if status != _OK:
            raise self._refused(f"the codec of {files.model.name}", status)
        if (status := calls.InitializeS2Pipeline(pipeline, words, transformer, codec)) != _OK:
            raise self._refused(f"a pipeline of {files.model.name}", status)
        return pipeline

    def _load_model(self, model: Any, path: bytes, name: str) -> None:
        device, calls = self.device, self._calls
        place = device.gpu_device, device.backend_type
        if self._library.has("InitializeS2ModelWithGpuLayers"):
            status = calls.InitializeS2ModelWithGpuLayers(model, path, *place, device.gpu_layers)
        else:
            if device.gpu_layers >= 0:
                _log.warning("FISHS2_N_GPU_LAYERS has no effect: this libs2 puts all layers on the GPU")
            status = calls.InitializeS2Model(model, path, *place)
        if status != _OK:
            raise self._refused(name, status)

    def _refused(self, what: str, status: int) -> EngineError:
        return EngineError(
            f"libs2 cannot load {what} on {self.device} ({status}): the file may be broken or of another model, the "
            "device missing, or its memory too small; libs2's own words are in the log"
        )


def _utf8(text: str) -> bytes:
    return text.replace("\0", " ").encode("utf-8", "replace")


def _no_memory() -> EngineError:
    return EngineError("libs2 has no memory left")


def _speaking_failed(status: int, message: str = "") -> EngineError:
    """`message` is what libs2 said of it, where it did."""
    return _failed("libs2 could not speak the text", _SPEAKING, status, message)


def _encoding_failed(status: int, name: str) -> EngineError:
    return _failed(f"libs2 could not make a voice of {name}", _ENCODING, status, "")


def _failed(what: str, meanings: dict[int, str], status: int, message: str) -> EngineError:
    meaning = meanings.get(status, "a code that this daemon does not know")
    return EngineError(f"{what}: {meaning} ({status})" + (f": {message}" if message else ""))
