"""Which peers a door answers."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

#: What asks in the name of a daemon tells which one that is: a door that is asked by its own worker would be asked for
#: ever.
INSTANCE_HEADER = "x-fishs2-asked-by"

_LOOPBACK = IPv4Address("127.0.0.1")

Networks = Sequence[IPv4Network | IPv6Network]


def is_allowed(peername: Any, networks: Networks, sockname: Any = None) -> bool:
    """Whether a socket's peer lies in one of `networks`. Peers without an address (unix, stdio) are local: allowed.

    Where 127.0.0.1 does, so does this machine by any of its addresses: the socket's own, `sockname`, is the peer's.
    """
    if (peer := _address(peername)) is None:
        return True
    return _is_in(peer, networks) or (peer == _address(sockname) and _is_in(_LOOPBACK, networks))


def _is_in(address: IPv4Address | IPv6Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


def _address(name: Any) -> IPv4Address | IPv6Address | None:
    if not isinstance(name, tuple) or not name:
        return None
    address = ip_address(str(name[0]).partition("%")[0])
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
