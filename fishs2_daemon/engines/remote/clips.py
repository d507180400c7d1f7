"""Reference clips as they are sent: base64 in a data: URL."""

import asyncio
import base64
from collections import OrderedDict

from fishs2_daemon.engines import recording
from fishs2_daemon.engines.remote.request import Reference
from fishs2_daemon.speech import Clip

#: What a voice store takes at most; a longer one is nobody's reference.
LARGEST_CLIP_BYTES = 32 * 1024 * 1024

#: Of all that is kept: two dozen clips of half a minute.
KEPT_BYTES = 64 * 1024 * 1024

#: By their first bytes; some servers want to be told.
_TYPES = ((b"RIFF", "wav"), (b"fLaC", "flac"), (b"OggS", "ogg"), (b"ID3", "mpeg"), (b"\xff", "mpeg"))


class ClipUrls:
    """The last used ones are kept by their digest."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0

    async def reference(self, clip: Clip) -> Reference:
        """Raises `EngineError` where the clip is gone, is too large, or is not the one that was meant."""
        url = self._kept.get(clip.sha256)
        if url is None:
            url = await asyncio.to_thread(_url, clip)
            self._keep(clip.sha256, url)
        else:
            self._kept.move_to_end(clip.sha256)
        return Reference(url, clip.transcript)

    def _keep(self, sha256: str, url: bytes) -> None:
        self._kept_bytes += len(url) - len(self._kept.pop(sha256, b""))
        self._kept[sha256] = url
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


def _url(clip: Clip) -> bytes:
    data = recording.read(clip, LARGEST_CLIP_BYTES)
    kind = next((name for start, name in _TYPES if data.startswith(start)), "wav")
    return b"data:audio/%b;base64,%b" % (kind.encode(), base64.b64encode(data))
