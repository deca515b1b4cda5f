"""Who is at the other end of a TCP connection on this host: the kernel is asked (sock_diag), not the client.

Every environment's API listens on a loopback address that any local process can reach. Linux tells for an exact pair of
addresses which user id and which socket inode the other end has, in some 10 µs and without privileges. Elsewhere, and
where the kernel was built without it, the factories give None: there is nothing to ask.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from lambent.worker.api.interface import Admits

Address = tuple[str, int]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ALL_STATES = 0xFFFFFFFF
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_REQUEST = struct.Struct("=BBBBI")  # inet_diag_req_v2 up to its id: family, protocol, extensions, padding, states
_PORTS = struct.Struct("!HH")
_NO_INTERFACE_NO_COOKIE = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_OWNER = struct.Struct("=II")
#: In the answer: the socket's state, user id and inode (inet_diag_msg after nlmsghdr).
_STATE_AT = _HEADER.size + 1
_OWNER_AT = _HEADER.size + 4 + 48 + 12
_ANSWER_BYTES = 4_096

_netlink: socket.socket | None = None
_sequence = 0


class PeerOwner(NamedTuple):
    """User id, as this process's user namespace sees it, and inode of a socket; inode 0: no process has it (yet)."""

    uid: int
    inode: int


def owner_of(local: Address, peer: Address) -> PeerOwner | None:
    """The owner of the socket that has `peer` as its own address and is connected to `local`. None: there is none."""
    found = _ask(peer, local)
    return None if found is None or found[0] == _TCP_LISTEN else found[1]


def listener_owner(address: Address) -> PeerOwner | None:
    """The owner of the socket that listens on `address`, or on all addresses with that port. None: there is none."""
    found = _ask(address, (address[0], 0))  # port 0: connected to by no one
    return found[1] if found is not None and found[0] == _TCP_LISTEN else None


def _ask(source: Address, destination: Address) -> tuple[int, PeerOwner] | None:
    """(TCP state, owner) of the socket with this pair of addresses."""
    global _netlink, _sequence
    if _netlink is None:
        _netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        _netlink.setblocking(False)
        _netlink.connect((0, 0))
    _sequence = sequence = (_sequence + 1) & 0xFFFFFFFF
    family = socket.AF_INET6 if ":" in source[0] else socket.AF_INET
    pad = b"" if family == socket.AF_INET6 else bytes(12)
    body = b"".join(
        (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES),
            _PORTS.pack(source[1], destination[1]),
            socket.inet_pton(family, source[0]), pad, socket.inet_pton(family, destination[0]), pad,
            _NO_INTERFACE_NO_COOKIE,
        )
    )  # fmt: skip
    try:
        _netlink.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence, 0) + body)
        while True:  # the kernel answers within the send; older answers belong to calls that failed
            told = _netlink.recv(_ANSWER_BYTES)
            if _HEADER.unpack_from(told)[3] == sequence:
                break
    except OSError:
        _netlink.close()
        _netlink = None
        return None
    if _HEADER.unpack_from(told)[1] != _SOCK_DIAG_BY_FAMILY or len(told) < _OWNER_AT + _OWNER.size:
        return None  # NLMSG_ERROR: no such socket
    return told[_STATE_AT], PeerOwner(*_OWNER.unpack_from(told, _OWNER_AT))


def is_available() -> bool:
    """Does this kernel answer? Tried on a connection of our own."""
    if sys.platform != "linux":
        return False
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return listener_owner(server.getsockname()) is not None
    except OSError:
        return False


def admit_uid(uid: int, local: Address) -> Admits | None:
    """Admits the connections to `local` that belong to user `uid`: for environments with a user id of their own."""
    if sys.platform != "linux":
        return None

    def admits(peer: Address) -> bool:
        owner = owner_of(local, peer)
        return owner is not None and owner.uid == uid and owner.inode != 0

    return admits


def admit_inode(local: Address, processes: Callable[[], Iterable[int]]) -> Admits | None:
    """Admits the connections to `local` whose socket one of `processes` holds, by /proc/<pid>/fd: for environments that
    share a user id. The process ids are those of this process's namespace."""
    if sys.platform != "linux":
        return None

    def admits(peer: Address) -> bool:
        owner = owner_of(local, peer)
        return owner is not None and owner.inode != 0 and _is_held(owner.inode, processes())

    return admits


def deliver_uid(uid: int) -> Callable[[Address], bool] | None:
    """Is it a process of user `uid` that listens there? For telemetry, which connects to where it is told."""
    if sys.platform != "linux":
        return None

    def may_deliver(address: Address) -> bool:
        owner = listener_owner(address)
        return owner is not None and owner.uid == uid

    return may_deliver


def deliver_inode(processes: Callable[[], Iterable[int]]) -> Callable[[Address], bool] | None:
    """Is it one of `processes` that listens there?"""
    if sys.platform != "linux":
        return None

    def may_deliver(address: Address) -> bool:
        owner = listener_owner(address)
        return owner is not None and owner.inode != 0 and _is_held(owner.inode, processes())

    return may_deliver


def _is_held(inode: int, processes: Iterable[int]) -> bool:
    wanted = f"socket:[{inode}]"
    for process in processes:
        folder = f"/proc/{process}/fd"
        try:
            names = os.listdir(folder)
        except OSError:
            continue  # it has ended, or is not ours to look at
        for name in names:
            try:
                if os.readlink(f"{folder}/{name}") == wanted:
                    return True
            except OSError:
                continue
    return False
