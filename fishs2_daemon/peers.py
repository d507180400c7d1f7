"""Which peers a door answers."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

#: What asks in the name of a daemon tells which one that is: a door that is asked by its own worker would be asked for
#: ever.
INSTANCE_HEADER = "x-fishs2-asked-by"


def is_allowed(peername: Any, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether a socket's peer lies in one of `networks`. Peers without an address (unix, stdio) are local: allowed."""
    if not isinstance(peername, tuple) or not peername:
        return True
    address = ip_address(str(peername[0]).partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
