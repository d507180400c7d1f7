"""How a server wants to be asked. OpenAI's API leaves open how a stream is asked for and how a recording is sent."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
