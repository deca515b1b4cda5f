"""What is left of a function that did its worst when it is deleted, and of a server when it is killed: nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.harness import Server, wait_until

from .attacker import Attacker

BUSY = """
    ready, done = os.pipe()
    for number in range(5):
        if os.fork() == 0:
            os.setsid()
            open("/tmp/kept%d" % number, "w").write("x" * 100_000)
            kept = [socket.socket(), os.memfd_create("x"), os.open("/var/task", os.O_RDONLY)]
            kept[0].bind(("127.0.0.1", 0))
            kept[0].listen()
            os.write(done, b"x")
            while True:
                time.sleep(0.01)
    result = sum(len(os.read(ready, 1)) for _ in range(5))
"""


def _groups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/lambent-*/e*") if path.is_dir()}


def _processes_of(server: Server) -> set[int]:
    return {pid for pid in server.family() if pid != server.process.pid}


def _mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.parametrize("user", ["root", "rootless"])
def test_of_a_deleted_function(request: pytest.FixtureRequest, user: str) -> None:
    if user == "rootless" and os.geteuid() != 0:
        pytest.skip("the same as the other")
    server: Server = request.getfixturevalue("server" if user == "root" else "rootless_server")
    mounts = _mounts()
    attacker = Attacker(server)
    assert attacker(BUSY) == 5
    mine = {pid for pid in _processes_of(server) if _holds(pid, "memfd:x")}
    assert len(mine) == 5
    groups = {group for group in _groups() if mine & _members(group)}
    attacker.delete()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in mine), "the processes are gone")
    wait_until(lambda: not any(os.path.exists(group) for group in groups), "the control groups are gone")
    assert _mounts() == mounts


def _holds(pid: int, what: str) -> bool:
    try:
        return any(what in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _members(group: str) -> set[int]:
    try:
        return {int(line) for line in (Path(group) / "cgroup.procs").read_text().split()}
    except OSError:
        return set()


def test_of_a_killed_server(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    attacker = Attacker(server)
    attacker(BUSY)
    mine = _processes_of(server) | {server.process.pid}
    assert len(mine) >= 7
    server.kill()
    wait_until(lambda: not any(_lives(pid) for pid in mine), "everything ends with the server")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
