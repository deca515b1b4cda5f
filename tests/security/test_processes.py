"""Reaching for other processes: signals, tracing, memory, priorities; and for a life after the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.harness import Neighbour, Server, wait_until

from .attacker import Attacker


@pytest.fixture
def victim(sandboxed: Server) -> Iterator[Attacker]:
    """An environment that must notice nothing: neither end, nor start anew."""
    made = Attacker(sandboxed)
    made("globals().update(kept='mine')")
    yield made
    assert made("globals().get('kept')") == "mine"
    made.delete()


GUESSES = "[pid for pid in (*range(1, 400), *range(400, 40000, 97)) if pid != os.getpid()]"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM, signal.SIGUSR1])
def test_signals(sandboxed: Server, victim: Attacker, any_neighbour: Neighbour, number: signal.Signals) -> None:
    """To everyone by number, to all at once, to process 1, to its own group and session and to guessed groups."""
    before = _family(sandboxed)
    attacker = Attacker(sandboxed, Timeout=1)
    attacker.attempt(f"""
        mine = os.getpid()
        if os.fork() == 0:
            for pid in {GUESSES}:
                if pid != mine:
                    tried(os.kill, pid, {int(number)})
                    tried(os.killpg, pid, {int(number)})
            tried(os.kill, 1, {int(number)})
            tried(os.kill, 0, {int(number)})
            tried(os.killpg, 0, {int(number)})
            tried(os.kill, -1, {int(number)})
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.wait()
    """)
    assert sandboxed.process.poll() is None
    assert _stopped(before & _family(sandboxed)) == set()
    assert attacker("1 + 1") == 2
    attacker.delete()


def _family(server: Server) -> set[int]:
    """The server, its launcher and zygotes: whatever is not below a zygote."""
    found = {server.process.pid}
    for _ in range(2):
        found |= {pid for parent in found for pid in _children(parent)}
    return found


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _stopped(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "Tt":
                found.add(pid)
        except OSError:
            continue
    return found


def test_no_process_of_a_sandbox_shares_group_or_session_with_the_server(sandboxed: Server, attacker: Attacker) -> None:
    """kill(0) reaches a group across namespaces, where the user id allows it; without root it does."""
    seen = attacker("[os.getpgid(0) == os.getpid(), os.getsid(0), os.getpgid(1)]")
    assert seen[0] is True
    assert seen[1] == 1  # 0 would be a session outside
    assert seen[2] == 1


def test_priorities_of_others(attacker: Attacker, victim: Attacker) -> None:
    assert attacker("tried(os.setpriority, os.PRIO_PROCESS, 1, 19)") in {"EPERM", "EACCES"}
    # All of one's own user id, of which only those in sight count; process 1 has it too without root.
    before = victim("os.getpriority(os.PRIO_PROCESS, 0)")
    assert before < 19
    assert attacker("tried(os.setpriority, os.PRIO_USER, 0, 19)") in {"allowed", "EPERM"}
    assert attacker("tried(os.setpriority, os.PRIO_PGRP, 0, 19)") == "allowed"
    assert victim("os.getpriority(os.PRIO_PROCESS, 0)") == before


TRACING = {
    "attach": "system_call(101, 16, pid, 0, 0)",
    "seize": "system_call(101, 0x4206, pid, 0, 0)",
    "process_vm_readv": "(lambda b: system_call(310, pid, b, 1, b, 1, 0))(ctypes.create_string_buffer(16))",
    "process_vm_writev": "(lambda b: system_call(311, pid, b, 1, b, 1, 0))(ctypes.create_string_buffer(16))",
    "kcmp": "system_call(312, os.getpid(), pid, 0, 0, 0)",
    "move_pages": "system_call(279, pid, 0, 0, 0, 0, 0)",
    "process_madvise": "system_call(440, pid, 0, 0, 0, 0)",
    "pidfd_getfd": "system_call(438, 0, 0, 0)",
    "mem": "opened('/proc/%d/mem' % pid, 'rb+')",
    "mem of a thread": "opened('/proc/%d/task/%d/mem' % (pid, pid), 'rb+')",
    "fd": "opened('/proc/%d/fd/3' % pid)",
    "environ": "opened('/proc/%d/environ' % pid)",
}


@pytest.mark.parametrize("way", TRACING)
def test_memory_of_other_processes(attacker: Attacker, victim: Attacker, way: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    told = attacker(f"""
        told = set()
        for pid in {GUESSES}:
            told.add({TRACING[way]})
        result = sorted(told)
    """)
    assert set(told) <= {"EPERM", "EACCES", "ENOENT", "ESRCH"}, told


DAEMON = """
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.setsid()
        os.chdir("/tmp")
        os.closerange(0, 1024)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        for number in signal.valid_signals():
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        libc.prctl(1, 0)
        count = 0
        while True:
            count += 1
            with open("/tmp/count.new", "w") as file:
                file.write("%d %d" % (count, os.getpid()))
            os.rename("/tmp/count.new", "/tmp/count")
    os.wait()
    while not os.path.exists("/tmp/count"):
        time.sleep(0.001)
    result = open("/tmp/count").read()
"""


def test_a_daemon_that_ignores_everything(sandboxed: Server) -> None:
    """It is frozen with its environment, ends with a reset, and the one after that ends with the function."""
    attacker = Attacker(sandboxed)
    attacker(DAEMON)

    def environment() -> dict[str, object]:
        found: dict[str, object] = sandboxed.environments(attacker.function)[0]
        return found

    root = _outside(attacker, sandboxed)
    wait_until(lambda: environment()["frozen"], "the environment is frozen")
    used = [_cpu_ticks(pid) for pid in root]
    assert root
    for _ in range(20):
        assert environment()["frozen"]
    assert [_cpu_ticks(pid) for pid in root] == used
    pid = int(attacker("open('/tmp/count').read()").split()[1])
    assert attacker(f"os.path.exists('/proc/{pid}')") is True
    assert attacker.attempt("os.kill(os.getpid(), 9)\n") == "Runtime.ExitError"
    assert attacker(f"os.path.exists('/proc/{pid}')") is False
    assert attacker("open('/tmp/count').read() == (time.sleep(0.01), open('/tmp/count').read())[1]") is True
    attacker(DAEMON)
    root = _outside(attacker, sandboxed)
    assert root
    attacker.delete()
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in root), "the daemon is gone")


def _outside(attacker: Attacker, server: Server) -> list[int]:
    """The daemon as the host sees it: it has the deepest process id, and a session of its own."""
    inside = int(attacker("open('/tmp/count').read()").split()[1])
    found = []
    for pid in _below(server.process.pid):
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        numbers = next(line.split()[1:] for line in text.splitlines() if line.startswith("NSpid:"))
        session = next(line.split()[1:] for line in text.splitlines() if line.startswith("NSsid:"))
        if int(numbers[-1]) == inside and session[-1] == numbers[-1]:
            found.append(pid)
    return found


def _below(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        found += _children(each)
    return found[1:]


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])
