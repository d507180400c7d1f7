"""Listening sockets: from addresses, or handed over by systemd."""

import asyncio
import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fishs2_daemon import configuration
from fishs2_daemon.errors import ConfigError, ListenError
from fishs2_daemon.settings import Settings
from fishs2_daemon.sockets import Address, adopt, listen_tcp, listen_unix, name_of, open_doors, parse_uri

#: Of a network for examples (RFC 5737): no machine has it.
FOREIGN = "203.0.113.77"


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextmanager
def closing_all(sockets: list[socket.socket]) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(closing(sock))
        yield sockets


def assert_answers(sock: socket.socket, address: Any = None) -> None:
    """Somebody who connects to `address` is accepted by `sock`."""
    with socket.socket(socket.AF_INET if isinstance(address, tuple) and "." in address[0] else sock.family) as client:
        client.settimeout(5)
        client.connect(address or sock.getsockname())
        sock.settimeout(5)
        accepted, _ = sock.accept()
        with accepted:
            accepted.sendall(b"here")
            assert client.recv(4) == b"here"


# Addresses


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("tcp://0.0.0.0:10200", Address("tcp", "0.0.0.0", 10200)),
        ("tcp://localhost:0/", Address("tcp", "localhost", 0)),
        ("tcp://[::]:10200", Address("tcp", "::", 10200)),
        ("TCP://[::1]:65535", Address("tcp", "::1", 65535)),
        ("unix:///run/fishs2/wyoming.sock", Address("unix", path=Path("/run/fishs2/wyoming.sock"))),
        ("unix:/run/wyoming.sock", Address("unix", path=Path("/run/wyoming.sock"))),
        ("stdio://", Address("stdio")),
    ],
)
def test_addresses_are_read(uri: str, address: Address) -> None:
    assert parse_uri(uri) == address


@pytest.mark.parametrize(
    "uri",
    [
        "", "tcp://", "tcp://:10200", "tcp://host", "tcp://host:", "tcp://host:x", "tcp://host:65536", "tcp://host:-1",
        "tcp://[::1", "tcp://::1:10200x", "tcp://host:1/path", "unix://", "unix:///", "unix://run/x.sock", "stdio://x",
        "stdio:///x", "http://host:1", "0.0.0.0:10200", "host", "//host:1", "udp://host:1", "tcp//host:1",
    ],
)  # fmt: skip
def test_other_addresses_are_refused_with_what_is_allowed(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_uri(uri)
    assert str(refused.value) == (
        f"FISHS2_URI (--uri): {uri!r} is not allowed; allowed: tcp://host:port, unix:///path, stdio://"
    )


@given(
    st.builds(
        str.__add__, st.sampled_from(["", "tcp://", "tcp://h:", "tcp://[", "unix:", "unix:///", "stdio:"]), st.text()
    )
)
@example("tcp://[::1]x:1")
@example("tcp://\u2100:1")
@example("tcp://h:\u0661")
@example("unix:///\ud800")
def test_any_string_is_an_address_or_a_wrong_setting_in_one_line(uri: str) -> None:
    try:
        address = parse_uri(uri)
    except ConfigError as error:
        refusal = str(error)
        assert refusal.isprintable()
        return
    match address:
        case Address("tcp", host, port, None):
            assert host
            assert 0 <= port <= 65535
        case Address("unix", "", 0, path):
            assert str(path) not in ("", "/", ".")
        case _:
            assert address == Address("stdio")


@pytest.mark.parametrize("uri", ["tcp://127.0.0.1:0", pytest.param("tcp://[::1]:0", marks=needs_ipv6)])
def test_the_name_of_a_tcp_socket_is_an_address_that_leads_to_it(uri: str) -> None:
    address = parse_uri(uri)
    with closing_all(listen_tcp(address.host, address.port)) as (sock,):
        assert parse_uri(name_of(sock)) == Address("tcp", address.host, sock.getsockname()[1])


def test_the_name_of_a_unix_socket_is_an_address_that_leads_to_it(tmp_path: Path) -> None:
    with closing(listen_unix(tmp_path / "x.sock")) as sock:
        assert parse_uri(name_of(sock)) == Address("unix", path=tmp_path / "x.sock")


# TCP


def test_port_0_is_a_free_port_that_answers_and_does_not_block_the_loop() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        assert sock.getsockname()[1] > 0
        assert not sock.getblocking()
        assert_answers(sock)


def test_localhost_is_each_of_its_addresses() -> None:
    with closing_all(listen_tcp("localhost", 0)) as sockets:
        addresses = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
        assert {sock.getsockname()[0] for sock in sockets} == addresses
        for sock in sockets:
            assert_answers(sock)


@needs_ipv6
def test_two_colons_take_ipv4_too() -> None:
    with closing_all(listen_tcp("::", 0)) as (sock,):
        port = sock.getsockname()[1]
        assert_answers(sock, ("::1", port))
        assert_answers(sock, ("127.0.0.1", port))


@needs_ipv6
def test_any_other_ipv6_address_leaves_ipv4_alone() -> None:
    with closing_all(listen_tcp("::1", 0)) as (six,):
        port = six.getsockname()[1]
        with closing_all(listen_tcp("127.0.0.1", port)) as (four,):
            assert_answers(six)
            assert_answers(four)


def test_a_taken_port_is_refused_in_words() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(ListenError) as refused:
            listen_tcp("127.0.0.1", port)
        assert str(refused.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
        assert_answers(sock)


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(ListenError, match=rf"^cannot listen on {FOREIGN}:1234: Cannot assign requested address$"):
        listen_tcp(FOREIGN, 1234)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "\udcff"])
def test_a_host_that_cannot_be_one_is_refused_in_words(host: str) -> None:
    with pytest.raises(ListenError, match=rf"^cannot listen on {host}:1: "):
        listen_tcp(host, 1)


def test_a_restarted_daemon_gets_its_port_although_old_connections_linger() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        address = sock.getsockname()
        with socket.create_connection(address) as client:
            sock.settimeout(5)
            sock.accept()[0].close()  # our side first: the kernel keeps the pair for a minute
            assert client.recv(1) == b""
    with closing_all(listen_tcp(*address)) as (sock,):
        assert_answers(sock)


# Unix


def test_a_unix_socket_answers(tmp_path: Path) -> None:
    with closing(listen_unix(tmp_path / "x.sock")) as sock:
        assert not sock.getblocking()
        assert_answers(sock)


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    listen_unix(path).close()
    assert path.is_socket()
    with closing(listen_unix(path)) as sock:
        assert_answers(sock)


def test_a_socket_that_somebody_listens_on_is_refused_and_goes_on_working(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with closing(listen_unix(path)) as sock:
        with pytest.raises(ListenError) as refused:
            listen_unix(path)
        assert str(refused.value) == f"cannot listen on {path}: Address already in use"
        sock.settimeout(5)
        sock.accept()[0].close()  # the question whether somebody listens
        assert_answers(sock)


def test_a_socket_whose_listener_is_too_busy_to_answer_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX))
        busy.bind(str(path))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ListenError, match="Address already in use"):
            listen_unix(path)
        busy.accept()[0].close()
        assert path.is_socket()


def test_a_socket_of_another_kind_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(path))
        with pytest.raises(ListenError, match="Address already in use"):
            listen_unix(path)
        assert path.is_socket()


def test_a_regular_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    path.write_text("precious")
    with pytest.raises(ListenError, match="Address already in use"):
        listen_unix(path)
    assert path.read_text() == "precious"


def test_a_link_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    path, target = tmp_path / "x.sock", tmp_path / "stale.sock"
    listen_unix(target).close()
    path.symlink_to(target)
    with pytest.raises(ListenError, match="Address already in use"):
        listen_unix(path)
    assert path.is_symlink()
    assert target.is_socket()


@pytest.mark.parametrize("name", ["missing/x.sock", "x" * 200, "file/x.sock", "a\0b"])
def test_a_path_that_cannot_be_is_refused_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ListenError, match=r"^cannot listen on /.*: .+"):
        listen_unix(tmp_path / name)


# All doors


def settings_of(*uris: str, host: str = "127.0.0.1", port: int = 0, http: bool = True) -> Settings:
    return configuration.load(uri=list(uris), host=host, port=port, http=http)


def open_files() -> int:
    return psutil.Process().num_fds()


def test_each_address_is_listened_on(tmp_path: Path) -> None:
    before, path = open_files(), tmp_path / "x.sock"
    doors = open_doors(settings_of("tcp://127.0.0.1:0", f"unix://{path}", "stdio://"))
    assert [sock.family for sock in doors.wyoming] == [socket.AF_INET, socket.AF_UNIX]
    assert len(doors.http) == 1
    assert doors.stdio
    for sock in (*doors.wyoming, *doors.http):
        assert_answers(sock)
    doors.close()
    assert not path.exists(), "nobody listens there any more"
    assert open_files() == before


def test_without_http_and_stdio_there_is_neither() -> None:
    doors = open_doors(settings_of("tcp://127.0.0.1:0", http=False))
    assert (len(doors.wyoming), doors.http, doors.stdio) == (1, [], False)
    doors.close()


@pytest.mark.parametrize("taken", ["wyoming", "http"])
def test_nothing_stays_open_when_one_address_is_taken(tmp_path: Path, taken: str) -> None:
    path = tmp_path / "x.sock"
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        port, before = sock.getsockname()[1], open_files()
        uris = ["tcp://127.0.0.1:0", f"unix://{path}", *([f"tcp://127.0.0.1:{port}"] if taken == "wyoming" else [])]
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}"):
            open_doors(settings_of(*uris, port=port if taken == "http" else 0))
        assert open_files() == before
        assert not path.exists()


def test_a_wrong_address_opens_none_of_the_others(tmp_path: Path) -> None:
    before, path = open_files(), tmp_path / "x.sock"
    with pytest.raises(ConfigError, match="http://x"):
        open_doors(settings_of(f"unix://{path}", "http://x"))
    assert open_files() == before
    assert not path.exists()


# Handed over by systemd

#: Puts its arguments' descriptors where systemd puts them, adopts them, and tells what it has got.
ADOPTING = """
import json, os, subprocess, sys
from fishs2_daemon.errors import ConfigError
from fishs2_daemon.sockets import adopt, name_of
for place, descriptor in enumerate(sys.argv[1:]):
    os.dup2(int(descriptor), 3 + place)
    os.close(int(descriptor))
os.environ.setdefault("LISTEN_PID", str(os.getpid()))
try:
    doors = adopt()
except ConfigError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
sockets = [sock for door in doors.values() for sock in door]
print(json.dumps({
    "doors": {door: [name_of(sock) for sock in adopted] for door, adopted in doors.items()},
    "environment": [name for name in os.environ if name.startswith("LISTEN_")],
    "inheritable": any(os.get_inheritable(sock.fileno()) for sock in sockets),
    "blocking": any(sock.getblocking() for sock in sockets),
}))
for sock in sockets:
    sock.close()
"""


def adopted_by_child(*files: Any, **environment: str) -> dict[str, Any]:
    """What a child says that inherits `files`."""
    # Out of the way of the places where they are wanted.
    descriptors = [fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 100) for file in files]
    try:
        child = subprocess.run(
            [sys.executable, "-W", "error", "-c", ADOPTING, *map(str, descriptors)],
            env={**os.environ, "LISTEN_FDS": str(len(files)), **environment},
            pass_fds=descriptors, capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    assert child.stderr == "", "something was left open"
    answer: dict[str, Any] = json.loads(child.stdout)
    return answer


def test_inherited_sockets_go_to_the_doors_they_are_named_for(tmp_path: Path) -> None:
    with (
        closing_all([*listen_tcp("127.0.0.1", 0), *listen_tcp("127.0.0.1", 0)]) as (http, wyoming),
        closing(listen_unix(tmp_path / "x.sock")) as unix,
    ):
        answer = adopted_by_child(http, wyoming, unix, LISTEN_FDNAMES="fishs2-HTTP.socket:wyoming")
        assert answer == {
            "doors": {"http": [name_of(http)], "wyoming": [name_of(wyoming), name_of(unix)]},
            "environment": [],
            "inheritable": False,
            "blocking": False,
        }


def test_without_names_all_sockets_are_for_wyoming() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        assert adopted_by_child(sock)["doors"] == {"wyoming": [name_of(sock)]}


def test_sockets_for_another_process_are_left_alone_and_forgotten() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        answer = adopted_by_child(sock, LISTEN_PID="1")
        assert (answer["doors"], answer["environment"]) == ({}, [])


@pytest.mark.parametrize("count", ["0", "", "x", "-1"])
def test_a_count_that_is_none_hands_over_nothing(count: str) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count, "LISTEN_FDNAMES": "http", "OTHER": "stays"}
    assert adopt(environment) == {}
    assert environment == {"OTHER": "stays"}


def test_a_machine_without_systemd_hands_over_nothing() -> None:
    assert adopt({}) == {}


def test_what_is_no_listening_stream_socket_is_refused_with_its_number_and_name(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as silent,
    ):
        refused = "LISTEN_FDS: descriptor 3 (odd) is not a"
        assert adopted_by_child(file, LISTEN_FDNAMES="odd")["error"].startswith(f"{refused} socket")
        assert adopted_by_child(datagram, LISTEN_FDNAMES="odd")["error"] == f"{refused} listening stream socket"
        assert adopted_by_child(silent, LISTEN_FDNAMES="odd")["error"] == f"{refused} listening stream socket"


def test_a_count_that_is_too_high_is_refused() -> None:
    with closing_all(listen_tcp("127.0.0.1", 0)) as (sock,):
        answer = adopted_by_child(sock, LISTEN_FDS="2")
        assert answer["error"].startswith("LISTEN_FDS: descriptor 4 () is not a socket")


#: Serves one connection on each door, telling the door's name.
SERVING = """
from fishs2_daemon import configuration
from fishs2_daemon.sockets import open_doors
doors = open_doors(configuration.load(uri="tcp://203.0.113.77:1", host="203.0.113.77", port=1))
for name, (sock,) in (("wyoming", doors.wyoming), ("http", doors.http)):
    sock.setblocking(True)
    connection, _ = sock.accept()
    connection.sendall(name.encode())
    connection.close()
    sock.close()
"""


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
async def test_systemd_hands_over_sockets_that_stand_in_for_the_configured_addresses(tmp_path: Path) -> None:
    paths = [tmp_path / "wyoming.sock", tmp_path / "http.sock"]
    process = await asyncio.create_subprocess_exec(
        "systemd-socket-activate", "-l", str(paths[0]), "-l", str(paths[1]), "--fdname=wyoming:http",
        sys.executable, "-W", "error", "-c", SERVING,
        cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            for path, name in zip(paths, (b"wyoming", b"http"), strict=True):
                while not path.is_socket():
                    await asyncio.sleep(0.01)
                reader, writer = await connected(path)
                assert await reader.read() == name
                writer.close()
                await writer.wait_closed()
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        assert b"Traceback" not in errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    while True:
        try:
            return await asyncio.open_unix_connection(path)
        except ConnectionRefusedError:  # bound, and not listening yet
            await asyncio.sleep(0.01)
