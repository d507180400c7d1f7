import asyncio
import contextlib
import gc
import logging
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ifaddr import IP, Adapter
from zeroconf import NonUniqueNameException, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from fishs2_daemon import __version__, discovery
from fishs2_daemon.discovery import SERVICE_TYPE, Discovery, choose_addresses, default_name, listening_addresses


def adapter(name: str, *addresses: str) -> Adapter:
    ips = [IP((address, 0, 0) if ":" in address else address, 24, name) for address in addresses]
    return Adapter(name, name, ips, index=1)


HOME = [
    adapter("lo", "127.0.0.1", "::1"),
    adapter("eth0", "fe80::1", "fd00::2", "192.168.1.5"),
    adapter("eth0:1", "192.168.1.6"),
    adapter("wlan0", "169.254.7.7", "10.0.0.5"),
    adapter("docker0", "172.17.0.1"),
    adapter("br-3f2a", "172.18.0.1"),
    adapter("veth12", "172.19.0.1"),
    adapter("virbr0", "192.168.122.1"),
    adapter("tailscale0", "100.64.0.9", "fd7a::9"),
    adapter("wg0", "10.8.0.1"),
    adapter("tun0", "10.9.0.1"),
]


@pytest.mark.parametrize(
    ("bound", "interfaces", "expected"),
    [
        (["0.0.0.0"], [], ["192.168.1.5", "192.168.1.6", "10.0.0.5"]),
        (["::"], [], ["fd00::2"]),
        (["::", "0.0.0.0"], [], ["192.168.1.5", "192.168.1.6", "10.0.0.5", "fd00::2"]),
        (["192.168.1.5"], [], ["192.168.1.5"]),
        (["::ffff:192.168.1.5"], [], ["192.168.1.5"]),
        (["127.0.0.1", "10.0.0.5"], [], ["10.0.0.5"]),
        (["127.0.0.1"], [], []),
        (["127.0.0.1"], ["lo"], ["127.0.0.1"]),
        (["127.0.0.1"], ["eth0"], []),
        (["0.0.0.0"], ["127.0.0.1"], ["127.0.0.1"]),
        (["172.17.0.1"], [], ["172.17.0.1"]),
        (["fe80::1%eth0"], [], ["fe80::1"]),
        (["0.0.0.0"], ["eth0"], ["192.168.1.5", "192.168.1.6"]),
        (["0.0.0.0", "::"], ["eth0"], ["192.168.1.5", "192.168.1.6", "fd00::2"]),
        (["::"], ["FD00:0::2"], ["fd00::2"]),
        (["0.0.0.0"], ["wlan0", "docker0"], ["10.0.0.5", "172.17.0.1"]),
        (["0.0.0.0"], ["169.254.7.7"], ["169.254.7.7"]),
        (["0.0.0.0"], ["eth9"], []),
        (["192.168.1.5"], ["wlan0"], []),
        ([], [], []),
    ],
)
def test_addresses_are_those_that_home_assistant_can_reach(
    bound: list[str], interfaces: list[str], expected: list[str]
) -> None:
    assert choose_addresses(HOME, bound, interfaces) == expected


# No interface has an IPv4-mapped address; where one is bound, it counts as the IPv4 address.
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda ip: not ip.ipv4_mapped)).map(str)
NAMES = st.sampled_from(["lo", "eth0", "eth0:1", "docker0", "wg1"])


@given(
    st.lists(st.tuples(NAMES, st.lists(ADDRESSES, max_size=4)), max_size=5),
    st.lists(ADDRESSES | st.sampled_from(["0.0.0.0", "::"]), max_size=3),
    st.lists(ADDRESSES | NAMES, max_size=3),
)
def test_chosen_addresses_exist_and_answer(
    present: list[tuple[str, list[str]]], bound: list[str], interfaces: list[str]
) -> None:
    chosen = choose_addresses([adapter(name, *ips) for name, ips in present], bound, interfaces)
    wildcards = {ip_address(item).version for item in bound if ip_address(item).is_unspecified}
    assert set(chosen) <= {item for _, ips in present for item in ips}
    assert all(item in bound or ip_address(item).version in wildcards for item in chosen)
    assert [ip_address(item).version for item in chosen] == sorted(ip_address(item).version for item in chosen)
    assert len(chosen) == len(set(chosen))
    if not interfaces:
        assert not any(ip_address(item).is_loopback for item in chosen)


def test_a_dual_stack_wildcard_answers_on_both() -> None:
    with socket.create_server(("127.0.0.1", 0)) as v4, socket.socket(socket.AF_UNIX) as local:
        assert listening_addresses([v4, local]) == ["127.0.0.1"]
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6) as v6,
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both,
    ):
        assert listening_addresses([v6]) == ["::"]
        assert listening_addresses([both]) == ["::", "0.0.0.0"]


def test_the_default_name_is_the_machines_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    # Written out: another name would be another device to Home Assistant.
    assert default_name(file) == "fishs2-5ed8c5e2"
    file.write_text("f" * 32)
    assert default_name(file) != "fishs2-5ed8c5e2"


@pytest.mark.parametrize("content", [None, b"", b"uninitialized\n", b"\xff" * 32])
@pytest.mark.parametrize("hostname", ["gpubox", "localhost"])
def test_without_a_machine_id_the_name_is_still_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, hostname: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: hostname)
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_bytes(content)
    assert default_name(file) == default_name(file)
    assert len(default_name(file)) == len("fishs2-01234567")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("living room", "living room"),
        ("tts.kitchen", "tts-kitchen"),
        ("a\x00b\n", "a-b-"),
        ("ü" * 63, "ü" * 31),
        (None, default_name()),
        ("  ", default_name()),
    ],
)
def test_a_name_is_one_dns_label(name: str | None, label: str) -> None:
    assert Discovery(10200, ["0.0.0.0"], name, []).service_name == f"{label}.{SERVICE_TYPE}"


class Neighbour:
    """Another machine on the network: an mDNS stack of its own, on loopback."""

    def __init__(self) -> None:
        self.zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])
        self.seen: asyncio.Queue[tuple[str, ServiceStateChange]] = asyncio.Queue()
        self._browser = AsyncServiceBrowser(self.zeroconf.zeroconf, SERVICE_TYPE, handlers=[self._on_change])

    def _on_change(self, *, name: str, state_change: ServiceStateChange, **_: Any) -> None:
        self.seen.put_nowait((name, state_change))

    async def sees(self, name: str, change: ServiceStateChange) -> None:
        async with asyncio.timeout(10):
            while await self.seen.get() != (name, change):
                pass

    async def resolve(self, name: str) -> AsyncServiceInfo:
        info = await self.zeroconf.async_get_service_info(SERVICE_TYPE, name, timeout=10_000)
        assert info is not None
        return info

    async def hold(self, label: str) -> None:
        info = AsyncServiceInfo(
            SERVICE_TYPE, f"{label}.{SERVICE_TYPE}", port=9, server=f"{label}.local.", parsed_addresses=["127.0.0.9"]
        )
        await (await self.zeroconf.async_register_service(info, cooperating_responders=True))

    async def close(self) -> None:
        await self._browser.async_cancel()
        await self.zeroconf.async_close()


@pytest.fixture
async def neighbour() -> AsyncIterator[Neighbour]:
    neighbour = Neighbour()
    yield neighbour
    await neighbour.close()


@pytest.fixture
def label() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probing without its pauses; tests about the name itself do without this."""
    monkeypatch.setattr("zeroconf._core._CHECK_TIME", 20)
    monkeypatch.setattr("zeroconf._core._PROBE_RANDOM_DELAY_INTERVAL", (1, 2))
    monkeypatch.setattr(discovery, "_LISTEN_S", 0.01)


@contextlib.asynccontextmanager
async def running(subject: Discovery) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(subject.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.done()
        assert task.cancelled() or task.exception() is None


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_neighbour_finds_the_service_and_hears_it_leave(neighbour: Neighbour, label: str) -> None:
    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"])
    async with running(subject):
        await neighbour.sees(subject.service_name, ServiceStateChange.Added)
        info = await neighbour.resolve(subject.service_name)
        assert info.port == 10255
        assert info.parsed_addresses() == ["127.0.0.1"]
        assert info.server == f"{label}.local."
        assert info.decoded_properties == {"software": "fishs2-daemon", "version": __version__}
        stopped = time.monotonic()
    assert time.monotonic() - stopped < discovery.GOODBYE_S
    await neighbour.sees(subject.service_name, ServiceStateChange.Removed)


@pytest.mark.usefixtures("quick")
async def test_the_machines_own_host_name_is_left_to_it(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: f"{label.upper()}.lan")
    subject = Discovery(10255, ["127.0.0.1"], label, ["127.0.0.1"])
    async with running(subject):
        assert (await neighbour.resolve(subject.service_name)).server == f"{label}-fishs2.local."


async def test_a_taken_name_gets_the_port(neighbour: Neighbour, label: str, caplog: pytest.LogCaptureFixture) -> None:
    await neighbour.hold(label)
    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"])
    async with running(subject):
        await neighbour.sees(f"{label}-10255.{SERVICE_TYPE}", ServiceStateChange.Added)
        assert (await neighbour.resolve(subject.service_name)).port == 10255
    (warning,) = warnings_in(caplog)
    assert f"{label}-10255" in warning
    assert "FISHS2_ZEROCONF_NAME" in warning


@pytest.mark.usefixtures("quick")
async def test_two_taken_names_are_tried_again(
    label: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    async def refuse(_: AsyncZeroconf, info: AsyncServiceInfo) -> None:
        tried.append(info.name.removesuffix(f".{SERVICE_TYPE}"))
        raise NonUniqueNameException

    monkeypatch.setattr(AsyncZeroconf, "async_register_service", refuse)
    async with running(Discovery(10255, ["0.0.0.0"], "ä" * 40, ["lo"], retry_delay_s=0.001)):
        await until(lambda: len(tried) >= 4)
    assert tried[:4] == ["ä" * 31, *["ä" * 28 + "-10255"] * 3]
    assert len(warnings_in(caplog)) == 2
    assert "NonUniqueNameException" in warnings_in(caplog)[1]


@pytest.mark.usefixtures("quick")
async def test_an_interface_may_come_later(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subject = Discovery(10255, ["0.0.0.0"], label, ["nope0", "lo:7"], poll_interval_s=0.02)
    async with running(subject):
        await asyncio.sleep(0.2)
        (warning,) = warnings_in(caplog)
        assert "nope0, lo:7" in warning
        assert " lo" in warning.partition("interfaces with an address:")[2]
        monkeypatch.setattr(discovery, "get_adapters", lambda: [adapter("nope0", "127.0.0.1")])
        assert (await neighbour.resolve(subject.service_name)).parsed_addresses() == ["127.0.0.1"]


@pytest.mark.usefixtures("quick")
async def test_a_change_of_address_is_announced(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "get_adapters", lambda: [adapter("lo", "127.0.0.1")])
    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"], poll_interval_s=0.02)
    async with running(subject):
        await neighbour.resolve(subject.service_name)
        monkeypatch.setattr(discovery, "get_adapters", lambda: [adapter("lo", "127.0.0.1", "127.0.0.2")])
        await neighbour.sees(subject.service_name, ServiceStateChange.Updated)
        addresses = (await neighbour.resolve(subject.service_name)).parsed_addresses()
        assert sorted(addresses) == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.usefixtures("quick")
async def test_a_network_that_comes_back_is_announced_under_the_same_name(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"], poll_interval_s=0.02)
    name = subject.service_name
    async with running(subject):
        await neighbour.sees(name, ServiceStateChange.Added)
        with monkeypatch.context() as offline:
            offline.setattr(discovery, "get_adapters", list)
            await neighbour.sees(name, ServiceStateChange.Removed)
        await neighbour.sees(name, ServiceStateChange.Added)
    assert len(warnings_in(caplog)) == 1


@pytest.mark.usefixtures("quick")
async def test_failures_are_logged_once_and_retried(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([OSError(98, "Address already in use")] * 2 + [RuntimeError("No adapter found")])

    def flaky(**options: Any) -> AsyncZeroconf:
        if error := next(failures, None):
            raise error
        return AsyncZeroconf(**options)

    monkeypatch.setattr(discovery, "AsyncZeroconf", flaky)
    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"], retry_delay_s=0.01)
    async with running(subject):
        await neighbour.resolve(subject.service_name)
    first, second = warnings_in(caplog)
    assert "Address already in use" in first
    assert "FISHS2_ZEROCONF_INTERFACE" in first
    assert "No adapter found" in second


@pytest.mark.usefixtures("quick")
async def test_an_interface_without_multicast_is_not_called_announced(
    label: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zeroconf._utils.net.add_multicast_member", lambda *_: False)
    async with running(Discovery(10255, ["0.0.0.0"], label, ["lo"])):
        await until(lambda: warnings_in(caplog))
    assert "multicast" in warnings_in(caplog)[0]


@pytest.mark.parametrize("bound", [["127.0.0.1"], ["127.0.0.1", "::1"], []], ids=str)
async def test_a_port_of_this_machine_alone_is_not_announced(
    bound: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    await asyncio.wait_for(Discovery(10255, bound, None, []).run(), 1)
    (warning,) = warnings_in(caplog)
    assert "FISHS2_URI=tcp://0.0.0.0:10255" in warning


@pytest.mark.parametrize(("turns", "delay_s"), [(0, 0), (1, 0), (2, 0), (3, 0), (5, 0), (0, 0.1), (0, 0.5), (0, 1.0)])
async def test_cancelling_at_any_moment_leaves_nothing_open(
    label: str, turns: int, delay_s: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opening = asyncio.Event()

    def observed(**options: Any) -> AsyncZeroconf:
        opening.set()
        return AsyncZeroconf(**options)

    monkeypatch.setattr(discovery, "AsyncZeroconf", observed)
    async with running(Discovery(10255, ["0.0.0.0"], label, ["lo"])):
        await opening.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        if delay_s:
            await asyncio.sleep(delay_s)
    await asyncio.sleep(0)
    gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not warnings_in(caplog)


@pytest.mark.usefixtures("quick")
async def test_a_goodbye_that_hangs_is_cut_short(
    neighbour: Neighbour, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing: list[AsyncZeroconf] = []

    async def hang(zeroconf: AsyncZeroconf) -> None:
        closing.append(zeroconf)
        await asyncio.sleep(60)

    subject = Discovery(10255, ["0.0.0.0"], label, ["lo"])
    async with running(subject) as task:
        await neighbour.resolve(subject.service_name)
        with monkeypatch.context() as broken:
            broken.setattr(AsyncZeroconf, "async_close", hang)
            broken.setattr(discovery, "GOODBYE_S", 0.05)
            started = time.monotonic()
            task.cancel()
            await asyncio.wait([task], timeout=5)
            assert time.monotonic() - started < 1
    assert closing[0].zeroconf.done
