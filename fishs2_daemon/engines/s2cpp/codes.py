"""What libs2's return codes mean to the one who reads the error."""

from fishs2_daemon.errors import EngineError

OK = 1
CANCELLED = -10

#: Of the functions that speak.
_SPEAKING = {
    0: "it was given bad arguments, or its pipeline is not ready",
    -1: "it could not read the reference and spoke in another voice",
    -4: "the synthesis failed",
    -6: "it could not write its WAV file",
    -7: "a reference needs the words that are said in it",
    -8: "the reference came without its length",
    -9: "it was given nothing to hand its audio to",
    CANCELLED: "it stopped, and nobody had asked it to",
}

#: Of the one that encodes a reference.
_ENCODING = {
    0: "it was given bad arguments, or its pipeline is not ready",
    -1: "it cannot read or encode the audio",
}


def speaking_failed(status: int, message: str = "") -> EngineError:
    """`message` is what libs2 said of it, where it did."""
    return _error("libs2 could not speak the text", _SPEAKING, status, message)


def encoding_failed(status: int, name: str) -> EngineError:
    return _error(f"libs2 could not make a voice of {name}", _ENCODING, status, "")


def _error(what: str, meanings: dict[int, str], status: int, message: str) -> EngineError:
    meaning = meanings.get(status, "a code that this daemon does not know")
    return EngineError(f"{what}: {meaning} ({status})" + (f": {message}" if message else ""))
