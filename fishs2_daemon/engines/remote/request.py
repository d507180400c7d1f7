"""What an upstream is asked to speak."""

import json
from dataclasses import asdict, dataclass

from fishs2_daemon.engines.remote.manner import Manner
from fishs2_daemon.speech import AS_SET, SamplingOverrides

#: Whoever speaks at that server when nobody is named.
DEFAULT_VOICE = "default"


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
