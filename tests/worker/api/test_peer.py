"""Who is at the other end, asked of the kernel about real connections, also of other users."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.worker.api.rig import PATIENCE_S, Rig, wire

from lambent.worker.api import peer
from lambent.worker.api.peer import admit_inode, admit_uid, deliver_inode, deliver_uid, listener_owner, owner_of

pytestmark = pytest.mark.skipif(not peer.is_available(), reason="the kernel does not answer sock_diag")
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can start processes of other users")
OTHER_UID = 54_321
#: One that every user can run, where there is one; ours may lie in somebody's home.
INTERPRETER = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable
#: Connects, asks for ping, prints what it gets, and waits for the end of its input.
CALLER = """
import socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
try:
    client.sendall(b"GET /2018-06-01/ping HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    got = client.recv(1000)
except ConnectionError:
    got = b""
print("pong" if b"pong" in got else "refused", flush=True)
"""


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(PATIENCE_S)
        yield made


def call_as(uid: int, port: int) -> str:
    command = [INTERPRETER, "-S", "-c", CALLER, str(port)]
    done = subprocess.run(command, user=uid, capture_output=True, text=True, timeout=20, env={}, cwd="/", check=True)
    return done.stdout.strip()


def other_users_can_run_python() -> bool:
    try:
        subprocess.run([INTERPRETER, "-S", "-c", ""], user=OTHER_UID, env={}, cwd="/", check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def test_the_owner_of_a_connection(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()) as client:
        accepted, address = server.accept()
        with accepted:
            found = owner_of(server.getsockname(), address)
            assert found is not None
            assert found.uid == os.getuid()
            assert found.inode == os.fstat(client.fileno()).st_ino


def test_ipv6() -> None:
    try:
        made = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this host")
    with made as server, socket.create_connection(server.getsockname()[:2]) as client:
        accepted, address = server.accept()
        with accepted:
            found = owner_of(server.getsockname()[:2], address[:2])
            assert found is not None
            assert found.inode == os.fstat(client.fileno()).st_ino


def test_nobody(server: socket.socket) -> None:
    with socket.create_connection(server.getsockname()) as client:
        address = client.getsockname()
    assert owner_of(server.getsockname(), ("127.0.0.1", 1)) is None
    assert owner_of(("127.0.0.1", 1), address) is None
    assert listener_owner(("127.0.0.1", 1)) is None


def test_a_listener_is_no_peer(server: socket.socket) -> None:
    """An exact pair that does not exist: the kernel then finds who listens there, which is not who calls."""
    assert owner_of(("127.0.0.1", 1), server.getsockname()) is None


def test_the_owner_of_a_listener(server: socket.socket) -> None:
    found = listener_owner(server.getsockname())
    assert found is not None
    assert found.uid == os.getuid()
    assert found.inode == os.fstat(server.fileno()).st_ino


def test_a_listener_on_all_addresses() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        found = listener_owner(("127.0.0.1", server.getsockname()[1]))
        assert found is not None
        assert found.inode == os.fstat(server.fileno()).st_ino


def test_the_netlink_socket_is_made_again(server: socket.socket) -> None:
    assert listener_owner(server.getsockname()) is not None
    assert peer._netlink is not None
    peer._netlink.close()
    assert listener_owner(server.getsockname()) is None
    assert listener_owner(server.getsockname()) is not None


def test_admit_uid(server: socket.socket) -> None:
    rig = Rig(make_admits=lambda local: admit_uid(os.getuid(), local))
    try:
        assert rig.client().call("GET", "/2018-06-01/ping").body == b"pong"
    finally:
        rig.close()
    rig = Rig(make_admits=lambda local: admit_uid(os.getuid() + 1, local))
    try:
        client = rig.client()
        assert client.is_cut
    finally:
        rig.close()


@as_root
def test_another_user() -> None:
    if not other_users_can_run_python():
        pytest.skip("this interpreter can not be run by other users")
    for admitted, expected in ((OTHER_UID, "pong"), (OTHER_UID + 1, "refused")):
        rig = Rig(make_admits=lambda local, uid=admitted: admit_uid(uid, local))
        try:
            assert call_as(OTHER_UID, rig.address[1]) == expected
        finally:
            rig.close()


def test_admit_inode() -> None:
    processes: list[int] = [999_999_999]
    rig = Rig(make_admits=lambda local: admit_inode(local, lambda: processes))
    try:
        assert rig.client().is_cut
        assert call_as(os.getuid(), rig.address[1]) == "refused"
        processes.append(os.getpid())
        client = rig.client()
        client.send(wire("GET", "/2018-06-01/ping"))
        assert client.answer().body == b"pong"
        assert call_as(os.getuid(), rig.address[1]) == "refused"  # same user, other process
    finally:
        rig.close()


def test_deliver(server: socket.socket) -> None:
    address = server.getsockname()
    for may_deliver, expected in (
        (deliver_uid(os.getuid()), True),
        (deliver_uid(os.getuid() + 1), False),
        (deliver_inode(lambda: [os.getpid()]), True),
        (deliver_inode(lambda: [1]), os.getpid() == 1),
    ):
        assert may_deliver is not None
        assert may_deliver(address) is expected
        assert may_deliver(("127.0.0.1", 1)) is False


def test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert admit_uid(0, ("127.0.0.1", 1)) is None
    assert admit_inode(("127.0.0.1", 1), list) is None
    assert deliver_uid(0) is None
    assert deliver_inode(list) is None
    assert not peer.is_available()
