"""Which kind of body an answer has."""

from collections.abc import Mapping

from fishs2_daemon.engines.remote.body import PCM_RATE, Body, PcmBody, WavBody
from fishs2_daemon.engines.remote.errors import BrokenBody
from fishs2_daemon.engines.remote.sse import SseBody


def body_of(headers: Mapping[str, str], asked_format: str) -> Body:
    """For an answer with these headers (lower-case names) to a request for "wav" or "pcm"."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise BrokenBody("it is compressed, which nobody asked for")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return SseBody(_plain_body(asked_format, headers))
    if kind in ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"):
        return WavBody()
    if kind in ("audio/pcm", "audio/x-pcm"):
        return _plain_body("pcm", headers)
    if kind in ("", "application/octet-stream"):
        return _plain_body(asked_format, headers)
    raise BrokenBody(f"it is {kind[:60]!r}, not {asked_format}")


def _plain_body(format_: str, headers: Mapping[str, str]) -> Body:
    """Without events around it."""
    if format_ != "pcm":
        return WavBody()
    if (headers.get("x-channels", "1"), headers.get("x-bit-depth", "16")) != ("1", "16"):
        raise BrokenBody("it is not 16-bit mono")
    rate = headers.get("x-sample-rate", "").strip() or str(PCM_RATE)
    if not (rate.isascii() and rate.isdigit() and len(rate) <= 9):
        raise BrokenBody(f"its sample rate is {rate[:60]!r}")
    return PcmBody(int(rate))
