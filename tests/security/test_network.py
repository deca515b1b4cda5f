"""Reaching for others by the network, which functions share with their host: what the sandbox closes, and what it does
not (docs/security.md)."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from integration.harness import Neighbour, Server, wait_until

from .attacker import Attacker

ALLOWED = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}


def test_address_families(attacker: Attacker) -> None:
    told = attacker("{number: family(number, kind) for number in range(1, 64) for kind in (1, 2, 3, 5)}")
    assert {int(number) for number, answer in told.items() if answer not in {"EPERM"}} <= ALLOWED
    # The kernel takes 32 bits of the number, a careless filter compares 64.
    tricks = attacker(
        "[system_call(41, (n << 32) + f, t, 0) for n in (1, 0x80000000) for f in (17, 38, 40) for t in (1, 3)]"
    )
    if os.uname().machine == "x86_64":
        assert set(tricks) == {"EPERM"}
    pairs = attacker("[tried(socket.socketpair, f, 1, 0) for f in (1, 30, 40)]")
    assert pairs == ["allowed", "EPERM", "EPERM"]


@pytest.mark.parametrize("kind", ["socket.AF_INET", "socket.AF_INET6"])
@pytest.mark.parametrize("protocol", [0, 1, 6, 17, 58, 89, 255])
def test_raw_sockets(attacker: Attacker, kind: str, protocol: int) -> None:
    assert attacker(f"family({kind}, socket.SOCK_RAW, {protocol})") in {"EPERM", "EPROTONOSUPPORT", "EAFNOSUPPORT"}


def test_netlink_tells_of_routes_alone(attacker: Attacker) -> None:
    told = attacker("[family(16, kind, protocol) for kind in (2, 3) for protocol in range(32)]")
    assert [index % 32 for index, answer in enumerate(told) if answer != "EPERM"] == [0, 0]
    added = attacker("""
        route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        route.bind((0, 0))
        # RTM_NEWADDR 10.9.8.7/24 on the first interface
        body = struct.pack("=BBBBI", 2, 24, 0, 0, 1) + struct.pack("=HH4s", 8, 2, bytes([10, 9, 8, 7]))
        route.send(struct.pack("=IHHII", 16 + len(body), 20, 0x405, 1, 0) + body)
        result = struct.unpack_from("=i", route.recv(4096), 16)[0]
    """)
    assert added == -1  # EPERM
    assert attacker("socket.getaddrinfo('localhost', 80)[0][1]") == socket.SOCK_STREAM


def _scopes() -> bool:
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) >= 6


def test_abstract_sockets_of_the_host(attacker: Attacker) -> None:
    if not _scopes():
        pytest.skip("the kernel has no Landlock that scopes abstract sockets (Linux 6.12)")
    name = f"\0lambent-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(name)
        host.listen()
        assert attacker(f"tried(socket.socket(socket.AF_UNIX).connect, {name!r})") == "EPERM"
        datagram = "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(name + "d")
            assert attacker(f"tried({datagram}.sendto, b'x', {name + 'd'!r})") == "EPERM"
    # Among themselves the processes of an environment may.
    assert attacker("""
        server = socket.socket(socket.AF_UNIX)
        server.bind("\\0own")
        server.listen()
        result = tried(socket.socket(socket.AF_UNIX).connect, "\\0own")
        server.close()
    """) == "allowed"  # fmt: skip


def test_abstract_sockets_of_another_environment(sandboxed: Server, attacker: Attacker) -> None:
    if not _scopes():
        pytest.skip("the kernel has no Landlock that scopes abstract sockets (Linux 6.12)")
    other = Attacker(sandboxed)
    other("globals().update(door=socket.socket(socket.AF_UNIX))")
    other("(door.bind('\\0theirs'), door.listen())")
    assert attacker("tried(socket.socket(socket.AF_UNIX).connect, '\\0theirs')") == "EPERM"
    other.delete()


ASK = """
    answers = []
    requests = [
        "GET /2018-06-01/runtime/invocation/next HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
        "POST /2018-06-01/runtime/init/error HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{{}}",
        "POST /2020-01-01/extension/register HTTP/1.1\\r\\nHost: x\\r\\nLambda-Extension-Name: e\\r\\n"
        "Content-Length: 13\\r\\n\\r\\n{{\\"events\\":[]}}",
        "GET /2018-06-01/ping HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n",
    ]
    for host, port in {addresses}:
        for request in requests:
            try:
                with socket.create_connection((host, port), {patience_s}) as connection:
                    connection.sendall(request.encode())
                    answers.append(connection.recv(1000).decode())
            except (ConnectionError, TimeoutError):
                answers.append("")
    result = answers
"""


def test_the_runtime_api_of_another_environment(sandboxed: Server, attacker: Attacker) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = Attacker(sandboxed)
        where = other("os.environ['AWS_LAMBDA_RUNTIME_API']")
        host, port = where.split(":")
        assert where != attacker("os.environ['AWS_LAMBDA_RUNTIME_API']")
        busy = pool.submit(other, "(time.sleep(0.3), 'mine')[1]")
        assert set(attacker(ASK.format(addresses=[(host, int(port))], patience_s=5))) == {""}
        assert busy.result() == "mine"
        assert set(attacker(ASK.format(addresses=[(host, int(port))], patience_s=5))) == {""}
        other.delete()
    # That the question is a good one: its own answers.
    host, port = attacker("os.environ['AWS_LAMBDA_RUNTIME_API']").split(":")
    assert attacker(ASK.format(addresses=[(host, int(port))], patience_s=5))[3].startswith("HTTP/1.1 200")


def test_every_runtime_api_by_guessing(sandboxed: Server, attacker: Attacker, any_neighbour: Neighbour) -> None:
    own = attacker("os.environ['AWS_LAMBDA_RUNTIME_API'].split(':')[0]")
    network = own.rsplit(".", 1)[0]
    guesses = [(host, 9001) for host in (f"{network}.{last}" for last in range(64)) if host != own]
    # Those of sandboxes that no function has yet take connections, and answer nothing.
    assert set(attacker(ASK.format(addresses=guesses, patience_s=0.02))) == {""}


def test_waiting_where_a_runtime_api_will_be(sandboxed: Server, attacker: Attacker) -> None:
    """Addresses that are not yet in use can be taken; the environment then has another port, and is not deceived."""
    network = attacker("os.environ['AWS_LAMBDA_RUNTIME_API']").rsplit(".", 1)[0]
    taken = attacker(f"""
        globals()["squatters"] = []
        for last in range(256):
            for port in (9001,):
                squatter = socket.socket()
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if tried(squatter.bind, ("{network}.%d" % last, port)) == "allowed":
                    if tried(squatter.listen) == "allowed":
                        squatters.append(squatter)
        result = [len(squatters), tried(socket.socket().bind, ("0.0.0.0", 9001))]
    """)
    assert taken[0] > 0
    assert taken[1] == "EADDRINUSE"
    made = [Attacker(sandboxed) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        addresses = list(
            pool.map(lambda each: each("(time.sleep(0.2), os.environ['AWS_LAMBDA_RUNTIME_API'])[1]"), made)
        )
    assert len(set(addresses)) == 8
    caught = attacker("[tried((s.setblocking(False), s)[1].accept) for s in squatters]")
    assert set(caught) <= {"EAGAIN"}
    attacker("[each.close() for each in squatters]")
    for each in made:
        each.delete()


def test_the_network_is_shared_as_the_documentation_says(sandboxed: Server, attacker: Attacker) -> None:
    """A service on the host's loopback can be reached, and so can Lambent's own API with whatever credentials."""
    with socket.create_server(("127.0.0.1", 0)) as service:
        thread = threading.Thread(target=lambda: service.accept()[0].sendall(b"hello"))
        thread.start()
        port = service.getsockname()[1]
        assert attacker(f"socket.create_connection(('127.0.0.1', {port})).recv(5).decode()") == "hello"
        thread.join()
    names = attacker("[f['FunctionName'] for f in __import__('boto3').client('lambda').list_functions()['Functions']]")
    assert attacker.function.name in names


def test_floods_of_its_own_runtime_api(sandboxed: Server, attacker: Attacker, any_neighbour: Neighbour) -> None:
    """Connections that say nothing, that speak a byte at a time, and that ask without listening."""
    before = len(os.listdir(f"/proc/{sandboxed.process.pid}/fd"))
    any_neighbour.worst_s = 0.0
    began = time.monotonic()
    count = attacker("""
        host, port = os.environ["AWS_LAMBDA_RUNTIME_API"].split(":")
        head = b"POST /2018-06-01/runtime/invocation/x/response HTTP/1.1\\r\\nContent-Length: 6000000\\r\\n\\r\\n"
        ask = b"GET /2018-06-01/ping HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 200
        open_now = []
        for number in range(900):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            open_now.append(connection)
        said = 0
        for turn in range(20):
            for number, connection in enumerate(open_now):
                try:
                    said += connection.send((b"G", head + bytes(100_000), ask)[number % 3])
                except OSError:
                    pass
        result = said
    """)
    assert count > 0
    assert any_neighbour.worst_s < 3.0, (any_neighbour.worst_s, time.monotonic() - began)
    assert len(os.listdir(f"/proc/{sandboxed.process.pid}/fd")) - before < 300
    assert attacker("1 + 1") == 2
    attacker.attempt("os._exit(0)\n")
    wait_until(lambda: len(os.listdir(f"/proc/{sandboxed.process.pid}/fd")) - before < 50, "the connections are gone")
