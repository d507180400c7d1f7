"""A small hub on this machine: the routes, redirects and headers that a download meets, and what may go wrong."""

import hashlib
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPOSITORY = "rodrigomt/s2-pro-gguf"
COMMIT = "5e7b0f4c1d2a3948576a6b5c4d3e2f1a09f8e7d6"

_RESOLVE = re.compile(rf"/{REPOSITORY}/resolve/(main|{COMMIT})/([\w.-]+)")


@dataclass
class Seen:
    """A request that came: to the hub, or to the storage behind it."""

    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0


@dataclass
class Hub:
    """`files` are served through a redirect to another address. The other fields are what goes wrong."""

    files: dict[str, bytes] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    is_large_storage: bool = True
    moved: bool = False
    refuses: tuple[int, str] | None = None
    storage_refuses: list[int] = field(default_factory=list)
    has_ranges: bool = True
    has_length: bool = True
    etag: str = '"1"'
    cuts: list[float] = field(default_factory=list)
    always_cut: float | None = None
    piece_bytes: int = 65536
    piece_pause_s: float = 0.0
    silent: bool = False
    lies: bool = False
    seen: list[Seen] = field(default_factory=list)
    address: str = ""
    storage: str = ""

    def url(self, file: str) -> str:
        """Where `file` lies without any hub."""
        return f"{self.storage}/{file}"

    def gets(self, file: str) -> list[Seen]:
        """The storage's requests for `file`."""
        return [seen for seen in self.seen if seen.method == "GET" and seen.path == f"/{file}"]

    def sent(self, file: str) -> int:
        return sum(seen.sent for seen in self.gets(file))


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    with _server(_HubDoor, hub, "127.0.0.1") as hub.address, _server(_StorageDoor, hub, "localhost") as hub.storage:
        yield hub


@contextmanager
def _server(handler: type["_Door"], hub: Hub, host: str) -> Iterator[str]:
    class Bound(handler):  # type: ignore[valid-type,misc]
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client was killed, which is what the test is about
            super().handle()

    def note(self) -> Seen:
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = Seen(self.command, self.path, headers)
        self.hub.seen.append(seen)
        return seen

    def answer(self, seen: Seen, status: int, headers: dict[str, str]) -> None:
        seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


class _HubDoor(_Door):
    def do_HEAD(self) -> None:
        self._resolve()

    def do_GET(self) -> None:
        self._resolve()

    def _resolve(self) -> None:
        hub, seen = self.hub, self.note()
        if hub.refuses:
            status, code = hub.refuses
            self.answer(seen, status, {"X-Error-Code": code, "Content-Length": "0"})
            return
        match = _RESOLVE.fullmatch(self.path.removeprefix("/moved"))
        if not match or match[2] not in hub.files:
            code = "EntryNotFound" if match else "RepoNotFound"
            self.answer(seen, 404, {"X-Error-Code": code, "Content-Length": "0"})
            return
        if hub.moved and not self.path.startswith("/moved"):
            self.answer(seen, 307, {"Location": f"/moved{self.path}", "Content-Length": "0"})
            return
        data = hub.files[match[2]]
        headers = {"X-Repo-Commit": COMMIT, "Content-Length": "0", "Location": f"{hub.storage}/{match[2]}"}
        if hub.is_large_storage:
            sha256 = hub.hashes.get(match[2]) or hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256}"'}
        else:
            headers |= {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        self.answer(seen, 302, headers)


class _StorageDoor(_Door):
    def do_GET(self) -> None:
        hub, seen = self.hub, self.note()
        if hub.storage_refuses:
            self.answer(seen, hub.storage_refuses.pop(0), {"Content-Length": "0"})
            return
        data = hub.files.get(self.path.lstrip("/").partition("?")[0])
        if data is None:
            self.answer(seen, 404, {"Content-Length": "0"})
            return
        begin, status, headers = 0, 200, {"ETag": hub.etag}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and hub.has_ranges and self.headers.get("If-Range", hub.etag) == hub.etag:
            begin, status = int(wanted[1]), 206
            if begin >= len(data):
                self.answer(seen, 416, {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
                return
            shown = begin - 1 if hub.lies else begin
            headers["Content-Range"] = f"bytes {shown}-{len(data) - 1 - begin + shown}/{len(data)}"
        if hub.has_length:
            headers["Content-Length"] = str(len(data) - begin)
        else:
            headers["Connection"] = "close"
        self.answer(seen, status, headers)
        end = len(data)
        cut = hub.cuts.pop(0) if hub.cuts else hub.always_cut
        if cut is not None:
            end = int(cut * len(data))
            self.close_connection = True
        self._send(seen, data[begin : max(begin, end)])

    def _send(self, seen: Seen, data: bytes) -> None:
        hub = self.hub
        for start in range(0, len(data), hub.piece_bytes):
            piece = data[start : start + hub.piece_bytes]
            self.wfile.write(piece)
            seen.sent += len(piece)
            if hub.piece_pause_s:
                time.sleep(hub.piece_pause_s)
        if hub.silent:
            time.sleep(2.0)
            self.close_connection = True
