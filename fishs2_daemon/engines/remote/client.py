"""HTTP with an upstream, and the key that it wants: what goes wrong there in the words of `remote/errors.py`."""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from fishs2_daemon import __version__
from fishs2_daemon.engines.remote.errors import (
    UpstreamBusy,
    UpstreamError,
    UpstreamFailed,
    UpstreamLacks,
    UpstreamRefused,
    message_in,
    retry_after_s,
)
from fishs2_daemon.engines.remote.request import Deadlines
from fishs2_daemon.errors import EngineError
from fishs2_daemon.peers import INSTANCE_HEADER

_log = logging.getLogger(__name__)

#: Longer than any key; a file that is larger is another file.
_KEY_FILE_BYTES = 4096

#: Servers close an idle connection after 5 s or later; one that is just being closed cannot be asked again.
_IDLE_S = 3.0
_MOST_IDLE = 64

#: Of an error's body, which is an explanation; of a list, that of a server with a thousand voices.
_ERROR_BYTES = 16 * 1024
_LIST_BYTES = 4 * 1024 * 1024

#: For the words of an error whose status is known.
_EXPLAINING_S = 2.0

_UNAUTHORIZED, _TOO_MANY, _UNAVAILABLE = 401, 429, 503

#: The server's own trouble, or ours with it: another one may do. 401 and 403: it wants another key than the others.
_TROUBLE = frozenset({_UNAUTHORIZED, 403, 407, 408, 425})

#: There is no such thing at that address.
NOT_THERE = frozenset({404, 405, 501})


class ApiKey:
    """The first line of `path` that is neither blank nor a comment, as of the last `read`; empty without a path."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._value = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._value}"} if self._value else {}

    def without(self, body: bytes) -> bytes:
        """What a server says, which may repeat the key."""
        return body.replace(self._value.encode(), b"[key]") if self._value else body

    def read(self) -> None:
        """Blocks. Raises `EngineError` that names the setting and never shows what is in the file."""
        if self._path is None:
            return
        try:
            with Path(self._path).open("rb") as file:
                text = file.read(_KEY_FILE_BYTES).decode("ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it holds more than ASCII"
            raise EngineError(f"FISHS2_REMOTE_API_KEY_FILE: {self._path} cannot be used: {reason}") from None
        lines = (line.strip() for line in text.splitlines())
        value = next((line for line in lines if line and not line.startswith("#")), "")
        if not value or not value.isprintable() or " " in value:
            raise EngineError(f"FISHS2_REMOTE_API_KEY_FILE: there is no key in {self._path}")
        self._value = value

    def read_again(self) -> bool:
        """Whether it is another one now. A file that is wrong in this moment changes nothing."""
        before = self._value
        try:
            self.read()
        except EngineError as error:
            _log.warning("%s; the key of before is kept", error)
        return self._value != before


class Client:
    """One for all upstreams. Raises `UpstreamError`."""

    def __init__(self, key: ApiKey, deadlines: Deadlines, *, instance: str, speaks_tls: bool) -> None:
        """`instance` is the daemon that asks. With `speaks_tls` it blocks for some 20 ms: the certificates that are
        trusted are read."""
        # It has a line for every request, and a server's health is asked for every few seconds.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self._key = key
        self._http = httpx2.AsyncClient(
            verify=speaks_tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),  # which trusts nobody
            timeout=httpx2.Timeout(None, connect=deadlines.connect_s),
            # How much is asked at a time is the service's business; nobody waits for a connection here.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=_MOST_IDLE, keepalive_expiry=_IDLE_S),
            headers={
                "user-agent": f"fishs2-daemon/{__version__}",
                "accept-encoding": "identity",
                INSTANCE_HEADER: instance,
            },
            follow_redirects=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def read_key_again(self) -> bool:
        """Whether it is another one now."""
        return await asyncio.to_thread(self._key.read_again)

    async def status(self, url: str) -> int:
        """Of a GET, whose body does not matter."""
        async with _explained(url), self._http.stream("GET", url, headers=self._key.headers) as response:
            return response.status_code

    async def listing(self, url: str) -> Any:
        """The JSON at `url`; None where there is none."""
        async with _explained(url), self._http.stream("GET", url, headers=self._key.headers) as response:
            if not response.is_success:
                return None
            body = await _read(response, _LIST_BYTES)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            return None

    async def ask(self, url: str, body: bytes) -> "Answer":
        """A POST of JSON. Its answer, which has a status below 300, is to be closed."""
        for attempt in (1, 2):
            headers = {"content-type": "application/json", "accept": "*/*", **self._key.headers}
            async with _explained(url):
                request = self._http.build_request("POST", url, content=body, headers=headers)
                response = await self._http.send(request, stream=True)
            if response.is_success:
                return Answer(url, response)
            try:
                words = message_in(self._key.without(await _said(response)))
            finally:
                await response.aclose()
            # Somebody may have changed the key at both ends.
            if response.status_code != _UNAUTHORIZED or attempt == 2:
                break
            if not await self.read_key_again():
                break
        raise _refusal(url, response, words)


class Answer:
    """The body of a good answer, as it arrives."""

    def __init__(self, url: str, response: httpx2.Response) -> None:
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self._url = url
        self._response = response
        self._blocks = response.aiter_raw()

    async def read(self) -> bytes:
        """What has come, at most some 64 KB; empty at the end."""
        async with _explained(self._url):
            return await anext(self._blocks, b"")

    async def close(self) -> None:
        await self._blocks.aclose()
        await self._response.aclose()


@asynccontextmanager
async def _explained(url: str) -> AsyncIterator[None]:
    """Exceptions of the HTTP client as `UpstreamFailed`."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise UpstreamFailed(f"{_shown(url)}: nobody answers there ({_reason(error)})", is_gone=True) from None
    except (
        *(httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError),
        *(ImportError, ValueError, OSError),  # a name that is none, a proxy's address that cannot be used
        RuntimeError,  # the client was closed
    ) as error:
        raise UpstreamFailed(f"{_shown(url)}: the connection broke ({_reason(error)})") from None


async def _said(response: httpx2.Response) -> bytes:
    """An error's body, as far as it comes."""
    body = b""
    with suppress(httpx2.HTTPError, httpx2.StreamError, TimeoutError):
        async with asyncio.timeout(_EXPLAINING_S):
            body = await _read(response, _ERROR_BYTES)
    return body


async def _read(response: httpx2.Response, most_bytes: int) -> bytes:
    body = bytearray()
    async with aclosing(response.aiter_raw()) as blocks:
        async for block in blocks:
            body += block
            if len(body) >= most_bytes:
                break
    return bytes(body[:most_bytes])


def _refusal(url: str, response: httpx2.Response, words: str) -> UpstreamError:
    status, headers = response.status_code, response.headers
    text = f"{_shown(url)}: {words or 'no reason was given'} ({status})"
    if status < 400:
        return UpstreamFailed(f"{_shown(url)}: it sends us elsewhere ({status}), and redirects are not followed")
    if status in (_TOO_MANY, _UNAVAILABLE) and headers.get("x-should-retry") != "false":
        return UpstreamBusy(text, retry_after_s=retry_after_s(headers))
    if (status >= 500 and status not in NOT_THERE) or status in _TROUBLE:
        return UpstreamFailed(text)
    return UpstreamLacks(text) if status in NOT_THERE else UpstreamRefused(text)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
