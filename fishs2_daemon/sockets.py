"""Listening sockets: opened from addresses, or handed over by systemd."""

import os
import socket
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from fishs2_daemon.errors import ConfigError, Fishs2Error, ListenError
from fishs2_daemon.settings import Settings

#: Connections that may wait in the kernel while the daemon starts or is busy.
BACKLOG = 512

_FIRST_FD = 3


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; `tcp` has host and port, `unix` a path, `stdio` nothing."""

    scheme: str
    host: str = ""
    port: int = 0
    path: Path | None = None


def parse_uri(uri: str) -> Address:
    """Raises `ConfigError` that names what is allowed."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    path = Path(parts.path)
    is_whole = not (parts.query or parts.fragment)  # what stands behind ? or # would be lost
    if is_whole and parts.scheme == "tcp" and parts.hostname and port is not None and parts.path in ("", "/"):
        return Address("tcp", parts.hostname, port)
    if is_whole and parts.scheme == "unix" and path.is_absolute() and path.name and not parts.netloc:
        return Address("unix", path=path)
    if is_whole and parts.scheme == "stdio" and not (parts.netloc or parts.path):
        return Address("stdio")
    raise ConfigError(f"FISHS2_URI (--uri): {uri!r} is not allowed; allowed: tcp://host:port, unix:///path, stdio://")


@dataclass(slots=True)
class DoorSockets:
    """What each door listens on. `stdio` says that Wyoming is also spoken on stdin and stdout."""

    wyoming: list[socket.socket] = field(default_factory=list)
    http: list[socket.socket] = field(default_factory=list)
    stdio: bool = False
    unix_paths: list[Path] = field(default_factory=list)

    def close(self) -> None:
        for sock in (*self.wyoming, *self.http):
            sock.close()
        for path in self.unix_paths:
            path.unlink(missing_ok=True)


def open_doors(settings: Settings) -> DoorSockets:
    """Sockets that systemd handed over stand in for a door's configured addresses. Raises `ConfigError` or
    `ListenError`; nothing is left open then."""
    addresses = [parse_uri(uri) for uri in settings.uri]
    adopted = adopt()
    doors = DoorSockets(adopted.get("wyoming", []), adopted.get("http", []))
    doors.stdio = any(address.scheme == "stdio" for address in addresses)
    try:
        for address in () if doors.wyoming else addresses:
            if address.path:
                doors.wyoming.append(listen_unix(address.path))
                doors.unix_paths.append(address.path)
            elif address.scheme == "tcp":
                doors.wyoming += listen_tcp(address.host, address.port)
        if settings.http and not doors.http:
            doors.http = listen_tcp(settings.host, settings.port)
    except Fishs2Error:
        doors.close()
        raise
    return doors


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """One listening socket for each address of `host`; `::` takes IPv4 too. Raises `ListenError`."""
    sockets: list[socket.socket] = []
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            sock.bind(address)
            _listen(sock)
    except (OSError, ValueError) as error:  # ValueError: a host that no resolver takes
        for sock in sockets:
            sock.close()
        raise ListenError(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    return sockets


def listen_unix(path: Path) -> socket.socket:
    """Takes the place of a socket that nobody listens on any more. Raises `ListenError`."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.lstat().st_mode) and not _is_alive(path):
                path.unlink()
        sock.bind(str(path))
        _listen(sock)
    except (OSError, ValueError) as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {getattr(error, 'strerror', None) or error}") from None
    return sock


def adopt(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """Listening sockets that systemd handed over, by door: `wyoming` or `http` (FileDescriptorName=).

    A name that says neither is Wyoming's. The variables are removed, so that no child takes them for its own. Raises
    `ConfigError` for a descriptor that is not a listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return {}
    adopted: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        descriptor = _FIRST_FD + index
        name = names[index] if index < len(names) else ""
        try:
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
            adopted.setdefault("http" if "http" in name.lower() else "wyoming", []).append(sock)
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            _close(adopted)
            raise ConfigError(f"LISTEN_FDS: descriptor {descriptor} ({name}) is not a socket: {error}") from None
        if not listening or sock.type != socket.SOCK_STREAM:
            _close(adopted)
            raise ConfigError(f"LISTEN_FDS: descriptor {descriptor} ({name}) is not a listening stream socket")
        sock.setblocking(False)
    return adopted


def name_of(sock: socket.socket) -> str:
    """The address in words, as a URI."""
    address = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix://{address}"
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"tcp://{host}:{address[1]}"


def _close(adopted: dict[str, list[socket.socket]]) -> None:
    for sockets in adopted.values():
        for sock in sockets:
            sock.close()


def _listen(sock: socket.socket) -> None:
    sock.listen(BACKLOG)
    sock.setblocking(False)


def _is_alive(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # busy, of another kind, or not ours to ask: somebody's
        return True
