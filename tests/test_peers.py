"""Which peers a door answers, whatever way their address is written."""

import socket
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fishs2_daemon import configuration
from fishs2_daemon.errors import ListenError
from fishs2_daemon.peers import is_allowed
from fishs2_daemon.sockets import listen_tcp


def networks(text: str | None = None) -> list[IPv4Network | IPv6Network]:
    return configuration.load(allowed_networks=text).allowed_networks


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.178.20", "169.254.1.1",
        "::1", "fe80::1", "fe80::1%eth0", "fd00::2", "fc00::1", "::ffff:192.168.1.2", "::ffff:c0a8:102",
    ],
)  # fmt: skip
def test_peers_of_this_machine_and_of_private_networks_are_answered(address: str) -> None:
    assert is_allowed((address, 50000, 0, 0), networks())


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "172.15.255.255", "172.32.0.0", "192.167.255.255", "11.0.0.0", "128.0.0.1", "0.0.0.0", "100.64.0.1",
        "2001:db8::1", "fec0::1", "::", "::2", "::ffff:8.8.8.8", "::ffff:808:808", "64:ff9b::127.0.0.1",
        "2002:7f00:1::",
    ],
)  # fmt: skip
def test_peers_of_the_internet_are_not(address: str) -> None:
    assert not is_allowed((address, 50000), networks())


@pytest.mark.parametrize("peername", ["", "/run/client.sock", b"\0abstract", None, ()])
def test_peers_without_an_address_are_on_this_machine(peername: object) -> None:
    assert is_allowed(peername, [])


def test_with_no_network_at_all_nobody_is_answered() -> None:
    assert not is_allowed(("127.0.0.1", 1), [])


def test_one_address_can_be_allowed_alone() -> None:
    only = networks("203.0.113.7,2001:db8::7")
    assert is_allowed(("203.0.113.7", 1), only)
    assert is_allowed(("2001:db8::7", 1, 0, 0), only)
    assert not is_allowed(("203.0.113.8", 1), only)
    assert not is_allowed(("127.0.0.1", 1), only)


@given(st.ip_addresses(v=4))
def test_an_ipv4_peer_is_the_same_over_an_ipv6_socket(address: IPv4Address) -> None:
    plain = is_allowed((str(address), 1), networks())
    assert is_allowed((f"::ffff:{address}", 1, 0, 0), networks()) == plain


@given(st.ip_addresses())
def test_zero_prefixes_answer_everybody_of_their_kind(address: IPv4Address | IPv6Address) -> None:
    mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    kind = 4 if mapped else address.version
    assert is_allowed((str(address), 1), networks("0.0.0.0/0")) == (kind == 4)
    assert is_allowed((str(address), 1), networks("::/0")) == (kind == 6)


def test_a_real_ipv4_peer_of_a_socket_that_takes_both_is_answered() -> None:
    try:
        (listener,) = listen_tcp("::", 0)
    except ListenError:
        pytest.skip("no IPv6 here")
    with closing(listener), socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=5):
        listener.settimeout(5)
        accepted, peername = listener.accept()
        accepted.close()
    assert ip_address(peername[0]).version == 6
    assert is_allowed(peername, networks())
    assert not is_allowed(peername, networks("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("peer", "own", "text", "is_answered"),
    [
        ("203.0.113.9", "203.0.113.9", None, True),
        ("2001:db8::1", "2001:db8::1", None, True),
        ("::ffff:203.0.113.9", "203.0.113.9", None, True),
        ("203.0.113.9", "203.0.113.8", None, False),
        ("203.0.113.9", None, None, False),
        ("203.0.113.9", "203.0.113.9", "192.168.0.0/16", False),
        ("192.168.1.2", "192.168.1.2", "192.168.0.0/16", True),
    ],
)
def test_this_machine_is_itself_by_any_of_its_addresses(
    peer: str, own: str | None, text: str | None, is_answered: bool
) -> None:
    assert is_allowed((peer, 50000), networks(text), own and (own, 8020)) == is_answered
