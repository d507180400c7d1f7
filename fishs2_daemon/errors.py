"""Every error that crosses a module border.

    Fishs2Error
      ConfigError                 a setting is wrong; the process ends with status 78
      ListenError                 an address is taken, or not this machine's
      RequestError                the caller's fault: the same request fails again
        InvalidRequest
          MissingFiles            a voice without a clip
          InvalidReferenceAudio   a clip that is no audio, or of a kind that is not read
            ReferenceAudioTooShort, ReferenceAudioTooLong
          MissingTranscript       a clip to clone without the words that are said in it
          UploadTooLarge          too many bytes or clips
          VoiceExists             the id is taken
          TooManyVoices           the voice store is full
          BrokenVoice             a stored voice that cannot speak as it lies there
        TextTooLong
        UnknownVoice
        PeerRefused               not from a network that is answered
      Unavailable                 nobody's fault: the same request may work later
        Busy
        Loading
        ShuttingDown
        EngineUnavailable         the engine does not start; its reason is in the text
      SynthesisError              ours: the request was good and was not spoken to its end
        DeadlineExceeded
        WorkerCrashed
        EngineError               the engine reported a failure of its own
          ModelFileError, PromptError, ShapeError, UnsupportedOperation    drawn where the S2 engine has them
          UpstreamError         another server's; drawn in engines/remote/errors.py
      StorageError                the voice store cannot be written or read: a full disk, a wrong owner
      ArtifactError               a model file; what can be wrong with it is drawn in artifacts/errors.py
      ProtocolError               a peer broke the wire format

`code` is the stable, machine-readable name that doors put beside the text.
"""

import re
from typing import ClassVar

#: Engines name files in their reasons. Peers get the file's name, the log gets the path.
_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>|:;,()]+)*[/\\]([^\s/\\'\"<>|:;,()]+)")


class Fishs2Error(Exception):
    """Root of the tree. Its text is written for the person who can act on it."""

    code: ClassVar[str] = "internal"


class ConfigError(Fishs2Error):
    code = "config"


class ListenError(Fishs2Error):
    code = "listen"


class RequestError(Fishs2Error):
    """`param` names the field of the request that is wrong, where there is one."""

    code = "invalid"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    pass


class MissingFiles(InvalidRequest):
    code = "missing-files"


class InvalidReferenceAudio(InvalidRequest):
    code = "invalid-reference-audio"


class ReferenceAudioTooShort(InvalidReferenceAudio):
    code = "reference-audio-too-short"


class ReferenceAudioTooLong(InvalidReferenceAudio):
    code = "reference-audio-too-long"


class UploadTooLarge(InvalidRequest):
    code = "upload-too-large"


class VoiceExists(InvalidRequest):
    code = "voice-exists"


class TooManyVoices(InvalidRequest):
    code = "too-many-voices"


class MissingTranscript(InvalidRequest):
    code = "missing-transcript"


class BrokenVoice(InvalidRequest):
    code = "broken-voice"


class TextTooLong(RequestError):
    code = "text-too-long"


class UnknownVoice(RequestError):
    code = "unknown-voice"


class PeerRefused(RequestError):
    code = "forbidden"


class Unavailable(Fishs2Error):
    """`retry_after_s` is a hint for when to ask again."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Busy(Unavailable):
    pass


class Loading(Unavailable):
    code = "loading"


class ShuttingDown(Unavailable):
    code = "shutting-down"


class EngineUnavailable(Unavailable):
    code = "engine-unavailable"


class SynthesisError(Fishs2Error):
    pass


class DeadlineExceeded(SynthesisError):
    code = "timeout"


class WorkerCrashed(SynthesisError):
    pass


class EngineError(SynthesisError):
    pass


class StorageError(Fishs2Error):
    code = "storage"


class ProtocolError(Fishs2Error):
    code = "protocol"


def without_paths(text: str) -> str:
    """`text` with every absolute path cut down to its last part."""
    return _PATH.sub(r"\1", text)
