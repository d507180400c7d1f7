import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fishs2_daemon.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's end: NOTIFY_SOCKET and the socket that it names."""
    name = f"@fishs2-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1) if request.param == "abstract" else name)
        receiver.settimeout(2)
        yield name, receiver


@pytest.fixture
def notifier(manager: tuple[str, socket.socket]) -> Iterator[Notifier]:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager[0]})
    yield notifier
    notifier.close()


def test_messages_arrive_one_datagram_each(manager: tuple[str, socket.socket], notifier: Notifier) -> None:
    notifier.ready()
    notifier.watchdog()
    notifier.extend_timeout(2.5)
    notifier.stopping()
    received = [manager[1].recv(4096) for _ in range(4)]
    assert received == [b"READY=1", b"WATCHDOG=1", b"EXTEND_TIMEOUT_USEC=2500000", b"STOPPING=1"]


def test_reloading_carries_the_monotonic_clock_in_microseconds(
    manager: tuple[str, socket.socket], notifier: Notifier
) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    flag, stamp = manager[1].recv(4096).decode().split("\n")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert flag == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= after


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("speaking 2, waiting 1", "speaking 2, waiting 1"),
        ("two\nlines\r\n and\ttabs ", "two lines and tabs"),
        ("READY=1\nWATCHDOG=trigger", "READY=1 WATCHDOG=trigger"),
        ("nul\0 and half a pair \ud800", "nul and half a pair"),
        ("lädt 話", "lädt 話"),
        ("", ""),
    ],
)
def test_a_status_is_one_line(manager: tuple[str, socket.socket], notifier: Notifier, text: str, line: str) -> None:
    notifier.status(text)
    assert manager[1].recv(4096).decode() == f"STATUS={line}"


def test_a_status_fits_a_message(manager: tuple[str, socket.socket], notifier: Notifier) -> None:
    notifier.status("\U0001f41f" * 100_000)
    assert len(manager[1].recv(1 << 20)) < 4096


def test_a_restarted_manager_is_reached_again(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    notifier = Notifier(str(path))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(path))
            receiver.settimeout(2)
            notifier.ready()
            assert receiver.recv(100) == b"READY=1"
        path.unlink()
        notifier.ready()
    notifier.close()


def test_a_full_socket_neither_blocks_nor_raises(
    manager: tuple[str, socket.socket], notifier: Notifier, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG, logger="fishs2_daemon.notify"):
        for _ in range(20_000):
            notifier.watchdog()
    assert time.monotonic() - started < 5
    assert len(caplog.records) == 1
    assert manager[1].recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    "address", ["/nonexistent/notify", "@fishs2-nobody-listens", "/" + "long" * 100, "vsock:2:1234"]
)
def test_a_manager_out_of_reach_is_logged_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="fishs2_daemon.notify"):
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
        notifier.ready()
        notifier.stopping()
    notifier.close()
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_happens(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="fishs2_daemon.notify"):
        notifier = Notifier.from_environment({**environ, "WATCHDOG_USEC": "30000000"})
        notifier.ready()
        notifier.status("loading")
        notifier.close()
    assert notifier.watchdog_interval_s is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("watchdog", "interval_s"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "500000"}, 0.25),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only_with_our_pid(watchdog: dict[str, str], interval_s: float | None) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "@x", **watchdog})
    assert notifier.watchdog_interval_s == interval_s


def test_children_do_not_inherit_the_manager() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    Notifier.from_environment(environ)
    assert environ == {"PATH": "/bin"}
