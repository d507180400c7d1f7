"""Another server with OpenAI's speech route, measured as its client meets it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import TypeVar
from urllib.parse import urlsplit

from fishs2_daemon.bench.measure import heard
from fishs2_daemon.bench.plan import Compared
from fishs2_daemon.bench.playback import Block, Heard
from fishs2_daemon.errors import InvalidRequest

_T = TypeVar("_T")

#: To the next bytes: models compile themselves for minutes at their first request.
_TIMEOUT_S = 300.0

#: Of one read; a smaller piece that is there is taken at once.
_PIECE_BYTES = 64 * 1024

#: Of a refusal's body, what is read, and what is shown.
_REFUSAL_BYTES = 8192
_SHOWN_CHARS = 200

_SAMPLE_BYTES = 2


class Server:
    """A `Speaker` over HTTP, a connection for each text; the time that connecting takes does not count."""

    def __init__(self, compared: Compared) -> None:
        """Raises `InvalidRequest` where the address or the key's file cannot be used."""
        self.name = compared.url
        self._compared = compared
        self._url = urlsplit(compared.url)
        try:
            usable = self._url.scheme in ("http", "https") and self._url.hostname and (self._url.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise InvalidRequest(f"--compare {compared.url}: allowed: http://host:port/v1")
        self._headers = {"Content-Type": "application/json"} | self._authorization()

    async def speak(self, text: str) -> Heard:
        """Raises `InvalidRequest` with the server's own words where it refuses, or is not there."""
        return await _in_thread(lambda: self._speak(text))

    def _authorization(self) -> dict[str, str]:
        if not (file := self._compared.key_file):
            return {}
        try:
            key = file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not ASCII"
            raise InvalidRequest(f"--compare-key-file {file}: cannot be read: {reason}") from None
        if not key or not key.isprintable():
            raise InvalidRequest(f"--compare-key-file {file}: allowed: a file with one line, the key")
        return {"Authorization": f"Bearer {key}"}

    def _speak(self, text: str) -> Heard:
        secure = self._url.scheme == "https"
        kind: Callable[..., HTTPConnection] = HTTPSConnection if secure else HTTPConnection
        connection = kind(self._url.hostname, self._url.port, timeout=_TIMEOUT_S)
        asked = {
            "model": self._compared.model, "voice": self._compared.voice, "input": text, "response_format": "pcm",
            "stream": True,
        }  # fmt: skip
        try:
            connection.connect()
            connection.request("POST", f"{self._url.path}/audio/speech", json.dumps(asked), self._headers)
            began = time.perf_counter()
            response = connection.getresponse()
            if response.status != 200:
                raise InvalidRequest(f"--compare {self.name}: status {response.status}: {_reason(response)}")
            return heard(self.name, text, self._blocks(response, began))
        except (OSError, HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise InvalidRequest(f"--compare {self.name}: {reason}") from None
        finally:
            connection.close()

    def _blocks(self, response: HTTPResponse, began: float) -> list[Block]:
        blocks = []
        while piece := response.read1(_PIECE_BYTES):
            at_s = time.perf_counter() - began
            blocks.append(Block(at_s, len(piece) / _SAMPLE_BYTES / self._compared.rate, any(piece)))
        return blocks


def _reason(response: HTTPResponse) -> str:
    """The message of OpenAI's error object, or the body as it is."""
    text = response.read(_REFUSAL_BYTES).decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return " ".join(text.split())[:_SHOWN_CHARS] or response.reason


async def _in_thread(work: Callable[[], _T]) -> _T:
    """On a thread of its own, which nobody waits for when the caller is cancelled: an executor's are waited for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - handed to the one who waits
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="bench-client", daemon=True).start()
    return await future
