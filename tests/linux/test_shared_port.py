"""Another socket's port: what leaves from it, what is heard on it, and that its owner hears everything still."""

import os
import select
import socket
from ipaddress import ip_address, ip_interface

import pytest
from lab.patience import LIMIT
from throwaway import Namespace

from overlayd.errors import MechanismError
from overlayd.linux.link import await_own
from overlayd.linux.netlink import Netlink
from overlayd.linux.rtnetlink import LOOPBACK
from overlayd.linux.shared_port import SharedPort, _checksum

PORT, SERVER = 51820, 3478
STUN = bytes.fromhex("0001 0000 2112a442") + bytes(12)


@pytest.fixture(params=[4, 6])
def place(request):
    """A namespace, the version, an address of ours and the server's."""
    with Namespace() as here:
        ours, theirs = ("192.0.2.1", "192.0.2.2") if request.param == 4 else ("2001:db8::1", "2001:db8::2")
        bits, family = (24, socket.AF_INET) if request.param == 4 else (64, socket.AF_INET6)
        for address in (ours, theirs):
            here.ip(f"address add {address}/{bits} dev lo {'nodad' if request.param == 6 else ''}")
        with here.entered():
            with Netlink() as netlink:
                for address in (ours, theirs):  # of IPv6 a kernel worker makes the route
                    await_own(netlink, LOOPBACK, ip_interface(address))
            owner, server = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
            shared = SharedPort(request.param, PORT)
            owner.bind(("", PORT))
            server.bind((theirs, SERVER))
            for each in (owner, server):
                each.settimeout(LIMIT)
            yield shared, owner, server, ours, theirs
        for each in (shared, owner, server):
            each.close()


def heard(shared):
    """The next datagram on the shared port."""
    assert select.select([shared.socket], [], [], LIMIT)[0]
    return shared.receive()


@pytest.mark.parametrize("more", [b"", b"x", b"odd", bytes(range(256)) * 5])
def test_a_datagram_leaves_from_the_port_and_its_answer_comes_to_both(place, more):
    shared, owner, server, _, theirs = place
    shared.send(STUN + more, (ip_address(theirs), SERVER))
    datagram, sender = server.recvfrom(2000)  # its checksum was right, else the kernel had dropped it
    assert datagram == STUN + more
    assert sender[1] == PORT
    server.sendto(STUN + more, sender)
    assert heard(shared) == (STUN + more, (ip_address(theirs), SERVER))
    assert owner.recv(2000) == STUN + more


def test_nothing_but_stun_for_the_port_is_copied(place):
    shared, owner, server, ours, theirs = place
    for other in (b"\x01\0\0\0" + bytes(144), b"", STUN[:7], b"\x80" + STUN[1:], STUN[:4] + bytes(16)):
        server.sendto(other, (ours, PORT))
        assert owner.recv(2000) == other
    server.sendto(STUN, (theirs, SERVER))
    assert server.recv(2000) == STUN
    assert shared.receive() is None
    server.sendto(STUN, (ours, PORT))
    assert heard(shared) == (STUN, (ip_address(theirs), SERVER))
    assert shared.receive() is None


def test_a_checksum_of_zero_is_written_as_all_ones():
    source, destination = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    rest = _checksum(source, destination, STUN + bytes(2))
    assert _checksum(source, destination, STUN + rest.to_bytes(2)) == 0xFFFF


def test_no_way_there_is_said():
    with Namespace() as here, here.entered():
        shared = SharedPort(4, PORT)
        with pytest.raises(MechanismError, match=r"51820 to 198\.51\.100\.1"):
            shared.send(STUN, (ip_address("198.51.100.1"), SERVER))
        shared.close()


def test_without_the_capability_it_is_refused():
    child = os.fork()
    if not child:
        os.setresuid(65534, 65534, 65534)
        try:
            SharedPort(4, PORT)
        except MechanismError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1  # EPERM
