"""What an upstream is asked to speak, how it wants to be asked, and how long it is waited for.

OpenAI's API leaves open how a stream is asked for and how a recording is sent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from fishs2_daemon.speech import AS_SET, SamplingOverrides

#: Whoever speaks at that server when nobody is named.
DEFAULT_VOICE = "default"


@dataclass(frozen=True, slots=True)
class Manner:
    """`response_format` is wav where that can be streamed: its head tells the sample rate, and what the engine made is
    sent as it is. `fields` are sent with every request. `default_voice` None: no voice is named. `audio_key` is what a
    reference calls its recording. A request has at most `most_chars`, or one phrase.
    """

    response_format: str = "wav"
    fields: Mapping[str, object] = field(default_factory=dict)
    default_voice: str | None = "alloy"
    audio_key: str = "audio"
    most_references: int = 64
    most_chars: int = 300


@dataclass(frozen=True, slots=True)
class Reference:
    """A recording as a data: URL, in ASCII, and what is said in it."""

    audio: bytes
    text: str


@dataclass(frozen=True, slots=True)
class SpeechAsked:
    """With `references`, those of speaker 0, 1, ..., `voice` means nothing."""

    text: str
    voice: str = DEFAULT_VOICE
    references: tuple[Reference, ...] = ()
    sampling: SamplingOverrides = AS_SET

    def body(self, model: str, manner: Manner) -> bytes:
        """JSON for `POST /v1/audio/speech`. A recording, which may have megabytes, is copied and not parsed."""
        fields: dict[str, object] = {"model": model, "input": self.text, "response_format": manner.response_format}
        fields |= manner.fields
        if self.voice != DEFAULT_VOICE and not self.references:
            fields["voice"] = self.voice
        elif manner.default_voice is not None:
            fields["voice"] = manner.default_voice
        fields |= {name: value for name, value in asdict(self.sampling).items() if value is not None}
        body = json.dumps(fields).encode()
        if not self.references:
            return body
        references = b", ".join(
            b'{"%b": "%b", "text": %b}' % (manner.audio_key.encode(), each.audio, json.dumps(each.text).encode())
            for each in self.references
        )
        return b'%b, "references": [%b]}' % (body[:-1], references)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a server is waited for, in seconds. Two attempts at a first audio fit into the service's own 30 s, and a
    gap is noticed before the service gives up."""

    connect_s: float = 3.0
    first_audio_s: float = 14.0
    gap_s: float = 15.0
    #: For a server that is busy, before the text is given up.
    patience_s: float = 10.0
    #: Servers answer this from memory.
    health_s: float = 3.0
    health_every_s: float = 5.0
    #: A voice that somebody stores there is listed here after this.
    voices_every_s: float = 15.0
    #: The first speech of a server may load its model.
    meeting_s: float = 60.0
    #: For the others, once one server is there.
    settling_s: float = 3.0


DEADLINES = Deadlines()

#: Another of these daemons cuts the text itself and answers as it speaks. The more it has of a text, the longer a voice
#: that is nobody's stays the same person. It is not to clean what was cleaned here.
_DAEMON = Manner(fields={"stream": True, "normalize": False}, default_voice="default", most_chars=20_000)

#: Refuses streamed wav; names the rate of pcm in a header.
_SGLANG_OMNI = Manner("pcm", {"stream": True, "stream_format": "audio"}, "default")

#: `stream` alone would give events. Knows one reference.
_VLLM_OMNI = Manner(
    fields={"stream": True, "stream_format": "audio"}, default_voice=None, audio_key="audio_path", most_references=1
)

#: By `owned_by` of the models that they list.
_BY_OWNER = {"fishs2-daemon": _DAEMON, "sglang-omni": _SGLANG_OMNI, "vllm": _VLLM_OMNI, "vllm-omni": _VLLM_OMNI}

#: Tried one after the other: the last is what the oldest servers understand. Most of them would pass over a recording
#: without a word, and speak in a voice of their own.
_UNKNOWN = (
    Manner(fields={"stream": True, "stream_format": "audio"}, most_references=0),
    Manner("pcm", {"stream": True, "stream_format": "audio"}, most_references=0),
    Manner(most_references=0),
)


def manners_of(owner: str) -> Sequence[Manner]:
    """Those that may be right for a server whose models are `owned_by` that one; the best first."""
    return (_BY_OWNER[owner],) if owner in _BY_OWNER else _UNKNOWN
