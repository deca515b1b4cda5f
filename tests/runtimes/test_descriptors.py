"""What becomes of open descriptors when a process is forked into a restored environment: done for real, in a fork.

The fork tells what it has seen on a pipe that both sides know as their own, like the platform's.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "src" / "lambent" / "runtimes" / "python"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/fd")


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(RUNTIME))
    yield importlib.import_module("descriptors")
    sys.modules.pop("descriptors", None)


def in_fork(descriptors: Any, others: set[int], look: Callable[[], Any]) -> Any:
    """What `look` gives in a fork that has renewed everything but `others`."""
    read, write = os.pipe()
    survey = descriptors.survey({read, write, *others})
    pid = os.fork()
    if pid == 0:
        try:
            descriptors.renew(survey)
            os.write(write, json.dumps(look()).encode())
        except BaseException as error:
            os.write(write, json.dumps(repr(error)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        found = json.load(told)
    os.waitpid(pid, 0)
    return found


@pytest.fixture
def others() -> set[int]:
    """What the test run itself has open."""
    return {int(entry) for entry in os.listdir("/proc/self/fd")}


def test_files_have_their_own_place(descriptors: Any, others: set[int], tmp_path: Path) -> None:
    (tmp_path / "data").write_text("0123456789")
    number = os.open(tmp_path / "data", os.O_RDONLY)
    os.lseek(number, 3, os.SEEK_SET)
    assert in_fork(descriptors, others - {number}, lambda: os.read(number, 4).decode()) == "3456"
    assert os.read(number, 2) == b"34", "the fork has not moved it"
    os.close(number)


def test_a_namespace_is_no_file(descriptors: Any, others: set[int]) -> None:
    number = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    assert in_fork(descriptors, others - {number}, lambda: os.readlink(f"/proc/self/fd/{number}")[:4]) == "mnt:"
    os.close(number)


def test_pipes_and_socket_pairs_are_new(descriptors: Any, others: set[int]) -> None:
    read, write = os.pipe()
    one, two = socket.socketpair()
    left, right = socket.socketpair()
    one.setblocking(False)

    def look() -> Any:
        os.write(write, b"fork")
        two.send(b"fork")
        right.send(b"other")
        return [os.read(read, 9).decode(), one.recv(9).decode(), left.recv(9).decode(), os.get_blocking(one.fileno())]

    numbers = {read, write, *(each.fileno() for each in (one, two, left, right))}
    assert in_fork(descriptors, others - numbers, look) == ["fork", "fork", "other", False]
    os.write(write, b"parent")
    two.send(b"parent")
    assert (os.read(read, 9), one.recv(9)) == (b"parent", b"parent"), "nothing of the fork's, nor of the survey's"
    for number in (read, write):
        os.close(number)
    for each in (one, two, left, right):
        each.close()


def test_connections_are_dead(descriptors: Any, others: set[int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()

        def look() -> Any:
            try:
                client.send(b"x")
            except OSError as error:
                return [type(error).__name__, client.recv(9).decode()]
            return "sent"

        numbers = {each.fileno() for each in (listener, client, peer)}
        assert in_fork(descriptors, others - numbers, look) == ["BrokenPipeError", ""]
        client.send(b"ours")
        assert peer.recv(9) == b"ours", "it is alive where it was made"
        client.close()
        peer.close()


def test_epolls_are_new_and_watch_the_same(descriptors: Any, others: set[int]) -> None:
    read, write = os.pipe()
    poll = select.epoll()
    poll.register(read, select.EPOLLIN)

    def look() -> Any:
        before = poll.poll(0)
        os.write(write, b"x")
        ready = [number == read for number, _ in poll.poll(1)]
        poll.unregister(read)
        return [before, ready, poll.poll(0)]

    assert in_fork(descriptors, others - {read, write, poll.fileno()}, look) == [[], [True], []]
    os.write(write, b"x")
    assert poll.poll(1) == [(read, select.EPOLLIN)], "the fork has not changed it"
    poll.close()
    for number in (read, write):
        os.close(number)


def test_what_has_its_other_end_elsewhere(descriptors: Any, others: set[int]) -> None:
    """A pipe of which only one end is here is not ours to make anew; such a socket is dead."""
    read, write = os.pipe()
    elsewhere = os.dup(write)
    os.close(write)
    one, two = socket.socketpair()

    def look() -> Any:
        try:
            one.send(b"x")
        except OSError as error:
            return type(error).__name__
        return "sent"

    assert in_fork(descriptors, others | {elsewhere, two.fileno()}, look) == "BrokenPipeError"
    assert two.recv(9, socket.MSG_DONTWAIT) == b"\0", "how pairs are found"
    for each in (one, two):
        each.close()
    for number in (read, elsewhere):
        os.close(number)
