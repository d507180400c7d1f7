"""The bytes of a file, from wherever they stopped last time to the end."""

import logging
import time

import httpx2

from fishs2_daemon.artifacts import ranges
from fishs2_daemon.artifacts.artifact import Artifact
from fishs2_daemon.artifacts.errors import DownloadFailed
from fishs2_daemon.artifacts.part import Origin, Part
from fishs2_daemon.artifacts.progress import Progress, Tell
from fishs2_daemon.artifacts.refusal import refusal, unreachable
from fishs2_daemon.artifacts.remote import Remote

_log = logging.getLogger(__name__)

CONNECT_S = 10.0

#: A server that sends nothing for so long has lost us.
STALL_S = 30.0

#: Attempts in a row that bring no new byte, after which it is given up, and the pause before each of them.
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 8.0)

_OK, _PARTIAL, _BEYOND = 200, 206, 416

#: Statuses that may be different a moment later.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class _Passing(Exception):
    """It may work a moment later. Its text is an error's for the user."""


def transfer(artifact: Artifact, remote: Remote, part: Part, tell: Tell) -> None:
    """Fill `part`, resuming it and going on after a broken connection.

    Raises `DownloadFailed`, after which the part is what it was or longer, and `ArtifactError`.
    """
    best = part.size
    fruitless = 0
    reached = False
    while True:
        try:
            _attempt(artifact, remote, part, tell)
            return
        except (_Passing, httpx2.TransportError) as error:
            fruitless = 0 if part.size > best else fruitless + 1
            reached = reached or part.size > best or isinstance(error, _Passing)
            best = max(best, part.size)
            # Nobody there at all is told at once: the person at the terminal can do something about it.
            if fruitless > len(PAUSES_S) or not reached:
                raise _given_up(artifact, remote, part, error) from None
            pause_s = PAUSES_S[max(fruitless - 1, 0)]
            _log.warning("%s: %s; going on in %.0f s", artifact.file, str(error) or type(error).__name__, pause_s)
            time.sleep(pause_s)
        except (httpx2.HTTPError, httpx2.InvalidURL, ImportError, ValueError, ConnectionError) as error:
            raise unreachable(artifact, remote.url, error, part.kept()) from None


def _attempt(artifact: Artifact, remote: Remote, part: Part, tell: Tell) -> None:
    """One request. Returns when the part has all bytes."""
    from huggingface_hub import get_session

    wanted = Origin(remote.source, remote.sha256, remote.total)
    if not wanted.continues(part.origin) or (remote.total and part.size > remote.total):
        part.begin(wanted)
    total = remote.total or part.origin.total
    if part.size and part.size == total:
        return
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    if part.size:
        part.sha256()  # before the request: its server would wait for us
        headers["Range"] = f"bytes={part.size}-"
        if not remote.sha256:
            # A known hash names the content; without one the server has to say that it is still the same.
            headers["If-Range"] = part.origin.validator
    timeout = httpx2.Timeout(STALL_S, connect=CONNECT_S)
    with get_session().stream("GET", remote.url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        body = _placed(artifact, remote, part, response)
        total = body.total or remote.total
        if remote.total and total != remote.total:
            raise DownloadFailed(
                f"{artifact.file} was not fetched: the server has {total} bytes, the hub speaks of {remote.total}"
            )
        if not total and not remote.sha256 and "transfer-encoding" not in response.headers:
            raise DownloadFailed(
                f"{artifact.file} was not fetched: the server does not say how long it is, so nobody could tell "
                "whether it came whole; name its SHA-256 with FISHS2_MODEL_SHA256, FISHS2_TOKENIZER_SHA256 or "
                "FISHS2_RUNTIME_ZIP_SHA256"
            )
        if body.begin == 0:
            part.begin(Origin(remote.source, remote.sha256, total, ranges.validator(response.headers)))
        part.check_room(total)
        for data in response.iter_bytes():
            part.append(data)
            tell(Progress("fetching", artifact.file, part.size, total or None))
    if total and part.size != total:
        raise _Passing(f"the body ended after {part.size} of {total} bytes")


def _placed(artifact: Artifact, remote: Remote, part: Part, response: httpx2.Response) -> ranges.Body:
    """Raises `_Passing` where another attempt, maybe from the start, is due."""
    status = response.status_code
    if status == _BEYOND and part.size:
        part.begin(Origin(remote.source, remote.sha256, remote.total))
        raise _Passing("the server has no such part of it")
    if status in _PASSING:
        raise _Passing(f"the server is busy or broken ({status})")
    if status not in (_OK, _PARTIAL):
        raise refusal(artifact, remote.url, status, response.headers, part.kept())
    try:
        return ranges.place(status, response.headers, part.size)
    except ranges.BadRange as error:
        part.begin(Origin(remote.source, remote.sha256, remote.total))
        raise _Passing(f"the server sent {error}") from None


def _given_up(artifact: Artifact, remote: Remote, part: Part, error: Exception) -> DownloadFailed:
    if isinstance(error, _Passing):
        return DownloadFailed(f"{artifact.file} was not fetched: {error}; try again later{part.kept()}")
    return unreachable(artifact, remote.url, error, part.kept())
