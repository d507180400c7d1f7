"""Announces the Wyoming port by multicast DNS, so that Home Assistant finds the daemon by itself."""

import asyncio
import hashlib
import logging
import socket
import uuid
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ifaddr import Adapter, get_adapters
from zeroconf import DNSQuestionType, NonUniqueNameException
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from fishs2_daemon import __version__

SERVICE_TYPE = "_wyoming._tcp.local."

#: Addresses change rarely, with a lease or a cable, and Home Assistant does not follow a change at once either.
POLL_INTERVAL_S = 30.0

#: The first retry catches a network that is still coming up; the cap keeps a box without multicast quiet.
RETRY_DELAY_S = 2.0
RETRY_CAP_S = 300.0

#: Three goodbye packets take a quarter of a second. A stop of the daemon must not wait for a network that is gone.
GOODBYE_S = 2.0

#: Who holds the name may wait a second before it answers (RFC 6762 §6); registration itself listens for 1.2 s more.
_LISTEN_S = 0.4

#: RFC 1035 §2.3.4
_LABEL_BYTES = 63

#: Networks inside this machine, and tunnels: Home Assistant cannot reach, or must not use, an address there.
_VIRTUAL = ("docker", "br-", "veth", "virbr", "podman", "tailscale", "tun", "wg")

_log = logging.getLogger(__name__)


def listening_addresses(sockets: Iterable[socket.socket]) -> list[str]:
    """The addresses that TCP `sockets` are bound to. A dual-stack wildcard counts as both `::` and `0.0.0.0`."""
    addresses = []
    for sock in sockets:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        addresses.append(str(sock.getsockname()[0]))
        if addresses[-1] == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            addresses.append("0.0.0.0")
    return addresses


def choose_addresses(
    adapters: Iterable[Adapter], bound_addresses: Iterable[str], interfaces: Sequence[str]
) -> list[str]:
    """The addresses to announce, IPv4 first: those that answer and, where `interfaces` names any, that lie there.

    `0.0.0.0` answers on every IPv4 address, `::` on every IPv6 one. Loopback and interfaces inside this machine count
    only where `interfaces` asks for them, a link-local address only where it is itself asked for or bound.
    """
    bound = {_address(item) for item in bound_addresses}
    wildcards = {item.version for item in bound if item and item.is_unspecified}
    asked = {_address(item) for item in interfaces}
    chosen = []
    for interface, address in _candidates(adapters):
        if address not in bound and address.version not in wildcards:
            continue
        if interfaces and interface not in interfaces and address not in asked:
            continue
        if address.is_link_local and address not in asked | bound:
            continue
        if not interfaces and (address.is_loopback or (interface.startswith(_VIRTUAL) and address not in bound)):
            continue
        chosen.append(address)
    return [str(address) for address in sorted(dict.fromkeys(chosen), key=lambda address: address.version)]


def default_name(machine_id_file: Path = Path("/etc/machine-id")) -> str:
    """The instance name of this machine, the same for ever: Home Assistant builds its entry's id from it."""
    try:
        machine = machine_id_file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        machine = ""
    # Images ship the file empty or with the word "uninitialized"; machine-id(5) wants the id itself kept private.
    if len(machine) != 32:
        host = socket.gethostname()
        machine = host if host not in ("", "localhost") else f"{uuid.getnode():012x}"
    return f"fishs2-{hashlib.sha256(f'fishs2-daemon discovery {machine}'.encode()).hexdigest()[:8]}"


class Discovery:
    """One announced service. `run` is its whole life."""

    def __init__(
        self,
        port: int,
        bound_addresses: Sequence[str],
        name: str | None,
        interfaces: Sequence[str],
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
        retry_delay_s: float = RETRY_DELAY_S,
    ) -> None:
        """`bound_addresses` are those of the Wyoming sockets, `interfaces` are names (eth0) or addresses; none: all."""
        self._port = port
        self._bound_addresses = bound_addresses
        self._interfaces = interfaces
        self._label = _label(name or "") or default_name()
        self._poll_interval_s = poll_interval_s
        self._retry_delay_s = retry_delay_s
        self._failures = 0
        self._warned: set[str] = set()

    @property
    def service_name(self) -> str:
        """The full name on the network. It changes once at most, when another machine or daemon has it already."""
        return f"{self._label}.{SERVICE_TYPE}"

    async def run(self) -> None:
        """Announce until cancelled, then say goodbye. Raises nothing else: speech does not depend on it.

        The port must answer already, as Home Assistant connects the moment it sees the announcement. Returns early
        where there is nothing that another machine could reach.
        """
        # Malformed packets of other people's devices are none of this log's business.
        logging.getLogger("zeroconf").setLevel(logging.ERROR)
        bound = [_address(item) for item in self._bound_addresses]
        if not self._interfaces and all(address is None or address.is_loopback for address in bound):
            self._warn(
                "no other machine can reach the Wyoming port, so it is not announced. "
                f"FISHS2_URI=tcp://0.0.0.0:{self._port} opens it to the network; FISHS2_ZEROCONF=false silences this"
            )
            return
        while True:
            delay_s = self._poll_interval_s
            try:
                if addresses := await self._addresses():
                    await self._announce(addresses)
            except Exception as error:  # noqa: BLE001 - whatever the network does, it must not stop the server
                delay_s = min(self._retry_delay_s * 2 ** min(self._failures, 16), RETRY_CAP_S)
                self._failures += 1
                self._warn(
                    f"not announced ({_reason(error)}); trying again. FISHS2_ZEROCONF_NAME and "
                    "FISHS2_ZEROCONF_INTERFACE choose another name or interface; Home Assistant's Wyoming integration "
                    f"also takes this machine's address and port {self._port} by hand"
                )
            await asyncio.sleep(delay_s)

    async def _addresses(self) -> list[str]:
        adapters = list(await asyncio.to_thread(get_adapters))
        chosen = choose_addresses(adapters, self._bound_addresses, self._interfaces)
        here = {item for candidate in _candidates(adapters) for item in candidate}
        missing = [item for item in self._interfaces if item not in here and _address(item) not in here]
        if missing:
            names = sorted(item for item in here if isinstance(item, str))
            self._warn(
                f"FISHS2_ZEROCONF_INTERFACE: no interface or address {', '.join(missing)}; "
                f"interfaces with an address: {', '.join(names)}. Looking again"
            )
        elif not chosen:
            self._warn(f"no address to announce for {', '.join(self._bound_addresses)}; looking again")
        return chosen

    async def _announce(self, addresses: list[str]) -> None:
        """Keep the announcement up to date; return when no address is left."""
        mdns = AsyncZeroconf(interfaces=_multicast_addresses(addresses))
        try:
            await self._register(mdns, addresses)
            while True:
                await asyncio.sleep(self._poll_interval_s)
                current = await self._addresses()
                if not current:
                    return
                if current != addresses:
                    await (await mdns.async_update_service(self._service(current)))
                    _log.info("%s moved from %s to %s", self._label, ", ".join(addresses), ", ".join(current))
                    addresses = current
                # Unconditional, and nothing where all is well: a socket that could not be opened has another chance.
                await mdns.async_update_interfaces(_multicast_addresses(addresses))
        finally:
            await _say_goodbye(mdns)

    async def _register(self, mdns: AsyncZeroconf, addresses: list[str]) -> None:
        await mdns.zeroconf.async_wait_for_start()
        if not mdns.zeroconf.engine.senders:
            raise OSError("no interface takes multicast")
        # Registration asks for the name by unicast, and among several responders on one machine the answer reaches any
        # one of them. A browser asks by multicast, and registration sees those answers too.
        async with AsyncServiceBrowser(
            mdns.zeroconf, SERVICE_TYPE, handlers=[lambda **_: None], question_type=DNSQuestionType.QM
        ):
            await asyncio.sleep(_LISTEN_S)
            try:
                broadcasts = await mdns.async_register_service(self._service(addresses))
            except NonUniqueNameException:
                taken, suffix = self._label, f"-{self._port}"
                if taken.endswith(suffix):
                    raise
                self._label = _label(taken, suffix)
                self._warn(f"{taken} is taken: announcing {self._label}. FISHS2_ZEROCONF_NAME gives each its own name")
                broadcasts = await mdns.async_register_service(self._service(addresses))
        await broadcasts
        self._failures = 0
        self._warned.clear()
        _log.info("announced %s at %s, port %d", self._label, ", ".join(addresses), self._port)

    def _service(self, addresses: list[str]) -> AsyncServiceInfo:
        # The machine's own name is avahi's: a second owner with other addresses would make it rename the machine.
        own = self._label.casefold() == socket.gethostname().partition(".")[0].casefold()
        return AsyncServiceInfo(
            SERVICE_TYPE,
            self.service_name,
            port=self._port,
            server=f"{_label(self._label, '-fishs2') if own else self._label}.local.",
            parsed_addresses=addresses,
            properties={"software": "fishs2-daemon", "version": __version__},
        )

    def _warn(self, text: str) -> None:
        """Log `text` once until an announcement succeeds: retries meet the same causes again and again."""
        _log.log(logging.DEBUG if text in self._warned else logging.WARNING, "%s", text)
        self._warned.add(text)


async def _say_goodbye(mdns: AsyncZeroconf) -> None:
    # In a task of its own, as zeroconf does not close fully in one that is being cancelled.
    closing = asyncio.create_task(mdns.async_close())
    try:
        await asyncio.wait([closing], timeout=GOODBYE_S)
    finally:
        if not closing.done():
            closing.cancel()
            mdns.zeroconf.close()
        elif error := closing.exception():
            _log.debug("goodbye not sent: %s", _reason(error))


def _multicast_addresses(addresses: list[str]) -> list[str]:
    # Every client listens on IPv4, and one odd IPv6 interface would cost the whole announcement.
    return [address for address in addresses if ":" not in address] or addresses


def _candidates(adapters: Iterable[Adapter]) -> list[tuple[str, IPv4Address | IPv6Address]]:
    """Interface and address pairs. An alias (`eth0:1`) counts as its interface."""
    return [
        (adapter.name.partition(":")[0], ip_address(ip.ip if isinstance(ip.ip, str) else ip.ip[0]))
        for adapter in adapters
        for ip in adapter.ips
    ]


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _label(name: str, suffix: str = "") -> str:
    """`name` and `suffix` as one DNS label. A dot would start the next one."""
    clean = "".join("-" if char == "." or not char.isprintable() else char for char in name).strip()
    return clean.encode()[: _LABEL_BYTES - len(suffix)].decode(errors="ignore") + suffix


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
