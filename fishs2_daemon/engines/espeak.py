"""The preview engine: espeak-ng through cffi. It needs no download and no GPU, and sounds robotic.

The library keeps one global state, so all calls run on one thread, one phrase after the other: utterances that speak
at the same time take turns phrase by phrase.
"""

import asyncio
import importlib
import re
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cffi

from fishs2_daemon.engines.base import EngineOptions, Progress, Utterance, pauses
from fishs2_daemon.errors import EngineError
from fishs2_daemon.speech import EngineInfo, Pcm, Voice

#: Turns are taken phrase by phrase and a phrase costs a few milliseconds, so many utterances may run side by side.
_SLOTS = 16

#: The library's own smallest audio buffer is 60 ms, and that is what it hands to each callback.
_BUFFER_MS = 60

_DEFAULT_VOICE = "en-us"

# From espeak-ng's speak_lib.h, 1.52.
_CDEF = """
typedef struct {
    const char *name; const char *languages; const char *identifier;
    unsigned char gender; unsigned char age; unsigned char variant; unsigned char xx1;
    int score; void *spare;
} espeak_VOICE;
typedef int (t_espeak_callback)(short *wav, int numsamples, void *events);
int espeak_Initialize(int output, int buflength, const char *path, int options);
void espeak_SetSynthCallback(t_espeak_callback *SynthCallback);
int espeak_Synth(const void *text, size_t size, unsigned int position, int position_type, unsigned int end_position,
                 unsigned int flags, unsigned int *unique_identifier, void *user_data);
int espeak_SetVoiceByName(const char *name);
int espeak_SetParameter(int parameter, int value, int relative);
const espeak_VOICE **espeak_ListVoices(espeak_VOICE *voice_spec);
int espeak_Terminate(void);
"""
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_ENDPAUSE = 0x1000
_RATE, _WORDS_PER_MINUTE = 1, 175
_SENTENCE_ENDS = tuple(".!?…:。！？؟।")

#: The one region by number (UN M.49) that clients have a name for.
_LATIN_AMERICA = "419"

_GO_ON, _STOP = 0, 1


_TAG = re.compile(r"\[[^\[\]]*\]")


class _Sink:
    """Carries samples from the library's thread to the loop; whatever has gathered is taken at once."""

    def __init__(self) -> None:
        self.aborted = False
        self._loop = asyncio.get_running_loop()
        self._came = asyncio.Event()
        self._lock = threading.Lock()
        self._gathered = bytearray()
        self._ended = False

    def feed(self, samples: bytes) -> None:
        with self._lock:
            first = not self._gathered
            self._gathered += samples
        if first:
            self._loop.call_soon_threadsafe(self._came.set)

    def end(self) -> None:
        self._ended = True
        self._loop.call_soon_threadsafe(self._came.set)

    async def take(self) -> bytes:
        """What has gathered since the last call, or nothing once the phrase is over."""
        while True:
            await self._came.wait()
            self._came.clear()
            with self._lock:
                samples = bytes(self._gathered)
                self._gathered.clear()
            if samples or self._ended:
                if self._ended:
                    self._came.set()
                return samples


class EspeakEngine:
    """`Engine` over libespeak-ng: the wheel `espeakng-loader`, or the system's library."""

    def __init__(self, _options: EngineOptions | None = None) -> None:
        """No option means anything to it."""
        self._ffi = cffi.FFI()
        self._ffi.cdef(_CDEF)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="espeak")
        self._lib: Any = None
        self._callback: Any = None
        self._sink: _Sink | None = None
        self._voice: str | None = None
        self._identifiers: dict[str, bytes] = {}
        self._info: EngineInfo | None = None

    async def load(self, progress: Progress) -> EngineInfo:
        progress("loading espeak-ng", 0.0)
        self._info = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        return self._info

    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineError("espeak-ng is not loaded")
        return self._info

    async def speak(self, utterance: Utterance) -> AsyncGenerator[Pcm, None]:
        rate = self.info().sample_rate
        async for phrase in utterance.phrases:
            sink = _Sink()
            # It would read S2's tags aloud.
            job = self._thread.submit(self._synthesise, utterance.voice, _TAG.sub(" ", phrase), sink)
            done = asyncio.wrap_future(job)
            try:
                while samples := await sink.take():
                    yield Pcm(samples, rate)
                await done
                for silence in pauses(phrase, rate):
                    yield silence
            finally:
                sink.aborted = True
                if not job.cancel():
                    await asyncio.wait([done])

    async def close(self) -> None:
        if self._lib is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._lib.espeak_Terminate)
        self._thread.shutdown(wait=False)

    def _open(self) -> EngineInfo:
        library, data = _locate()
        try:
            self._lib = self._ffi.dlopen(library)
        except OSError as error:
            raise EngineError(
                f"espeak-ng is not installed ({error}): python3 run.py installs it, or pip install espeakng-loader"
            ) from None
        path = data.encode() if data else self._ffi.NULL
        rate = self._lib.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, _BUFFER_MS, path, _INITIALIZE_DONT_EXIT)
        if rate <= 0:
            raise EngineError(f"espeak-ng cannot use its data folder {data or '(built in)'}: error {rate}")
        self._callback = self._ffi.callback("t_espeak_callback", self._on_samples, error=_STOP)
        self._lib.espeak_SetSynthCallback(self._callback)
        voices = tuple(self._list_voices())
        if not voices:
            raise EngineError(f"espeak-ng has no voices in {data or 'its data folder'}")
        default = _DEFAULT_VOICE if _DEFAULT_VOICE in self._identifiers else voices[0].id
        return EngineInfo("espeak", rate, _SLOTS, default, voices)

    def _list_voices(self) -> list[Voice]:
        listed, index, voices = self._lib.espeak_ListVoices(self._ffi.NULL), 0, []
        while listed[index] != self._ffi.NULL:
            entry = listed[index]
            index += 1
            identifier = self._text(entry.identifier)
            if identifier.startswith("mb/"):
                continue  # mbrola voices need another program
            tags = self._tags(entry.languages)
            name = tags[0] if tags[0] not in self._identifiers else identifier.rpartition("/")[2].lower()
            self._identifiers[name] = identifier.encode()
            voices.append(Voice(name, self._text(entry.name), _languages(tags)))
        return voices

    def _tags(self, languages: Any) -> list[str]:
        """`languages` is a list of (priority byte, tag, NUL), closed by a NUL; the first tag is the voice's own."""
        tags = []
        while languages[0] != b"\0":
            tags.append(self._text(languages + 1))
            languages += len(tags[-1]) + 2
        return tags

    def _text(self, pointer: Any) -> str:
        text = self._ffi.string(pointer)
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else text

    def _on_samples(self, wav: Any, count: int, _events: Any) -> int:
        sink = self._sink
        if sink is None or sink.aborted:
            return _STOP
        if wav != self._ffi.NULL and count > 0:
            sink.feed(bytes(self._ffi.buffer(wav, 2 * count)))
        return _GO_ON

    def _synthesise(self, voice: str, phrase: str, sink: _Sink) -> None:
        """Runs on the library's thread until the phrase is spoken or its sink is aborted."""
        self._sink = sink
        try:
            if sink.aborted:
                return
            self._choose(voice)
            text = phrase.replace("\0", " ").encode("utf-8", "replace") + b"\0"
            flags = _CHARS_UTF8 | (_ENDPAUSE if phrase.rstrip().endswith(_SENTENCE_ENDS) else 0)
            status = self._lib.espeak_Synth(text, len(text), 0, 0, 0, flags, self._ffi.NULL, self._ffi.NULL)
            if status != 0:
                raise EngineError(f"espeak-ng could not speak the text: error {status}")
        finally:
            self._sink = None
            sink.end()

    def _choose(self, voice: str) -> None:
        if voice == self._voice:
            return
        identifier = self._identifiers.get(voice)
        if identifier is None or self._lib.espeak_SetVoiceByName(identifier) != 0:
            self._voice = None
            raise EngineError(f"espeak-ng cannot load the voice {voice!r}")
        # Some voices set a pace of their own, and the library keeps it for the voices after them until a rate is set.
        self._lib.espeak_SetParameter(_RATE, _WORDS_PER_MINUTE, 0)
        self._voice = voice


def _locate() -> tuple[str, str | None]:
    """Library and data folder of the wheel, or the system's library with its own data."""
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        return "libespeak-ng.so.1", None
    # The library wants the folder that holds espeak-ng-data or that folder itself; both exist in the wheel.
    return loader.get_library_path(), str(Path(loader.get_data_path()))


def _languages(tags: list[str]) -> tuple[str, ...]:
    """BCP 47 tags of a voice, the narrowest first: `en-gb-x-rp` and `en` become en-GB, en."""
    languages = []
    for tag in tags:
        primary, *rest = tag.split("-")
        if rest and (len(rest[0]) == 2 or rest[0] == _LATIN_AMERICA):
            languages.append(f"{primary}-{rest[0].upper()}")
        languages.append(primary)
    return tuple(dict.fromkeys(sorted(languages, key=len, reverse=True)))
