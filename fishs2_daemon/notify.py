"""systemd's notify protocol: one datagram of KEY=value lines a message (sd_notify(3), sd_watchdog_enabled(3))."""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

_log = logging.getLogger(__name__)

#: systemd takes at most 4096 bytes a message: this many characters fit in any script.
_STATUS_CHARS = 500


class Notifier:
    """Tells the service manager where the daemon stands. Without a manager every message is a no-op.

    No message raises or blocks: the manager may be gone, or slow to read, and speech goes on all the same.
    """

    def __init__(self, address: str | None = None, watchdog_interval_s: float | None = None) -> None:
        """`address` is a socket path, or `@name` for Linux's abstract namespace."""
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._watchdog_interval_s = watchdog_interval_s if address else None
        self._socket: socket.socket | None = None
        self._loss_logged = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier":
        """The manager that `environ` names. Its variables are removed: a child with them could speak for the daemon."""
        address = environ.pop("NOTIFY_SOCKET", None)
        watchdog_usec = environ.pop("WATCHDOG_USEC", "")
        watchdog_pid = environ.pop("WATCHDOG_PID", str(os.getpid()))
        if address and address[0] not in "/@":
            _log.debug("NOTIFY_SOCKET=%s is neither a path nor abstract: not used", address)
            address = None
        if watchdog_pid != str(os.getpid()) or not watchdog_usec.isdecimal() or int(watchdog_usec) == 0:
            return cls(address)
        return cls(address, int(watchdog_usec) / 2 / 1_000_000)

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often `watchdog` is to be called, half the manager's limit; None where nobody waits for it."""
        return self._watchdog_interval_s

    def ready(self) -> None:
        """Start-up, or a reload, is finished."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Show `text` in `systemctl status`, as one line."""
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        self._send(f"STATUS={line[:_STATUS_CHARS]}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it. `Type=notify-reload` matches it to its signal by the time stamp."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for `seconds` more, from now, for the start or stop in progress."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def watchdog(self) -> None:
        """The daemon is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            self._socket.sendto(message.encode(), self._address)
        except OSError as error:
            if not self._loss_logged:
                self._loss_logged = True
                _log.debug("service manager not reached (%s): %s", error, message.partition("\n")[0])
