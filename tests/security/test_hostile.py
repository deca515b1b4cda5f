"""Handlers that do their worst: their own request fails with the right error, a neighbour notices nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.harness import Function, Neighbour, Server, wait_until

Deploy = Callable[..., Function]


def handler(body: str) -> str:
    """A module whose handler does `body` when it is told to, and answers a plain call otherwise."""
    lines = "".join(f"        {line}\n" for line in body.strip().splitlines())
    head = "import ctypes, os, signal, socket, struct, sys, threading, time\n"
    return f"{head}def handler(event, context):\n    if event == 'attack':\n{lines}    return 'fine'\n"


def recovers(function: Function) -> None:
    assert function.call("be good") == "fine"


def test_fork_bomb(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    function = deploy(handler(body), Timeout=2, MemorySize=256)
    reply = function.invoke("attack")
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] in {"Sandbox.Timedout", "Runtime.OutOfMemory", "Runtime.ExitError"}
    recovers(function)


def test_processes_are_limited(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError as error:
    return [error.errno, count]
"""
    function = deploy(handler(body), MemorySize=1024, Timeout=20)
    errno, count = function.call("attack")
    assert errno == 11
    assert 900 < count < 1_024


def test_filling_tmp(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
try:
    with open('/tmp/fill', 'wb') as file:
        for _ in range(600):
            file.write(bytes(1 << 20))
except OSError as error:
    return [error.errno, os.path.getsize('/tmp/fill') >> 20]
"""
    function = deploy(handler(body), MemorySize=1024, Timeout=30)
    assert function.call("attack") == [28, 512]
    recovers(function)


def test_closing_all_descriptors(deploy: Deploy, neighbour: Neighbour) -> None:
    function = deploy(handler("os.closerange(0, 1024)"))
    reply = function.invoke("attack")
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == "Runtime.ExitError"
    recovers(function)


def test_closing_all_descriptors_and_sleeping(deploy: Deploy, neighbour: Neighbour) -> None:
    function = deploy(handler("os.closerange(0, 1024)\ntime.sleep(60)"), Timeout=5)
    reply = function.invoke("attack")
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] in {"Runtime.ExitError", "Sandbox.Timedout"}
    recovers(function)


FIND_LINKS = """
def links():
    for entry in os.listdir('/proc/self/fd'):
        try:
            target = os.readlink('/proc/self/fd/' + entry)
        except OSError:
            continue
        if int(entry) > 2 and target.startswith(('socket:', 'pipe:')):
            yield int(entry)
found = sorted(links())
assert found
"""


@pytest.mark.parametrize(
    "garbage",
    [
        "b'\\xff' * 100",
        "b''.join(bytes([n]) * 9 for n in range(256))",
        "struct.pack('<IBH', 3, 1, 0)",
        "b'GET / HTTP/1.1\\r\\n\\r\\n'",
    ],
    ids=["ones", "ramp", "invoke frame", "http"],
)
def test_garbage_on_the_link(deploy: Deploy, neighbour: Neighbour, garbage: str) -> None:
    body = f"""
{FIND_LINKS.strip()}
for fd in found:
    os.set_blocking(fd, False)
    try:
        os.write(fd, {garbage})
    except OSError:
        pass
time.sleep(20)
"""
    function = deploy(handler(body), Timeout=15)
    reply = function.invoke("attack")
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == "Runtime.ExitError"
    recovers(function)


def test_half_a_frame_is_a_timeout(deploy: Deploy, neighbour: Neighbour) -> None:
    body = f"""
{FIND_LINKS.strip()}
for fd in found:
    os.set_blocking(fd, False)
    try:
        os.write(fd, struct.pack('<IBH', 6000000, 3, 10) + b'start')
    except OSError:
        pass
time.sleep(20)
"""
    function = deploy(handler(body), Timeout=1)
    assert function.invoke("attack").value["errorType"] == "Sandbox.Timedout"
    recovers(function)


def test_answering_twice(deploy: Deploy, neighbour: Neighbour) -> None:
    """What is said to a request that has been answered, or to none, is not heard by anybody."""
    body = f"""
{FIND_LINKS.strip()}
header = context.aws_request_id.encode() + b'\\0application/json'
frame = struct.pack('<IBH', 3 + len(header) + 6, 3, len(header)) + header + b'"fake"'
for fd in found:
    try:
        os.write(fd, frame * 3)
    except OSError:
        pass
"""
    function = deploy(handler(body), Timeout=15)
    reply = function.invoke("attack")
    assert reply.raw == b'"fake"'
    for _ in range(5):
        recovers(function)


def test_answering_requests_that_never_were(deploy: Deploy, neighbour: Neighbour) -> None:
    body = f"""
{FIND_LINKS.strip()}
frame = struct.pack('<IBH', 3 + 36 + 4, 3, 36) + b'x' * 36 + b'null'
for fd in found:
    try:
        os.write(fd, frame * 500)
    except OSError:
        pass
"""
    function = deploy(handler(body), Timeout=15)
    reply = function.invoke("attack")
    assert reply.value["errorType"] == "Runtime.ExitError"
    recovers(function)


def test_many_short_lines(deploy: Deploy, neighbour: Neighbour) -> None:
    function = deploy(handler("for _ in range(20):\n    os.write(1, b'\\n' * 100_000)"), Timeout=30)
    neighbour.worst_s = 0.0
    assert function.invoke("attack").error is None
    assert neighbour.worst_s < 2.0


def test_kill_everything_in_reach(server: Server, deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
try:
    os.kill(-1, signal.SIGKILL)
except OSError:
    pass
for pid in range(1, 3000):
    if pid != os.getpid():
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
os.kill(os.getpid(), signal.SIGKILL)
"""
    function = deploy(handler(body))
    reply = function.invoke("attack")
    assert reply.value["errorMessage"].endswith("Runtime exited with error: signal: killed")
    assert server.process.poll() is None
    recovers(function)


def test_huge_output(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
line = 'y' * 999 + '\\n'
for _ in range(20_000):
    sys.stdout.write(line)
os.write(1, b'z' * 3_000_000)
"""
    function = deploy(handler(body), Timeout=30)
    reply = function.invoke("attack")
    assert reply.error is None
    assert len(reply.log) == 4_096
    recovers(function)


def test_output_of_frames_that_lie(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
kind, ever = 0xa55a0003, 2**64 - 1
for head in (struct.pack('>IIQ', kind, 3, ever) + b'far', struct.pack('>IIQ', kind, 4_000_000, ever)):
    os.write(1, head)
    os.write(1, struct.pack('>IIQ', kind, 2**32 - 1, 0) + b'text\\n')
"""
    function = deploy(handler(body))
    reply = function.invoke("attack")
    assert reply.error is None
    recovers(function)
    function.wait_log("REPORT RequestId: " + reply.request_id)


def test_threads_that_never_end(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
def spin():
    while True:
        time.sleep(0.001)
for _ in range(50):
    threading.Thread(target=spin).start()
"""
    function = deploy(handler(body), Timeout=5)
    assert function.call("attack") == "fine"
    recovers(function)


def test_background_process_outlives_the_call_but_not_the_environment(
    server: Server, deploy: Deploy, neighbour: Neighbour
) -> None:
    import os
    from pathlib import Path

    body = """
import subprocess
subprocess.Popen(['/bin/sleep', '4242'], start_new_session=True)
"""

    def sleepers() -> list[str]:
        found = []
        for entry in os.listdir("/proc"):
            try:
                if entry.isdigit() and Path(f"/proc/{entry}/cmdline").read_bytes() == b"/bin/sleep\x004242\x00":
                    found.append(entry)
            except OSError:
                continue
        return found

    function = deploy(handler(body))
    assert function.call("attack") == "fine"
    wait_until(lambda: len(sleepers()) == 1, "the child runs")
    recovers(function)
    assert len(sleepers()) == 1
    server.lambda_.delete_function(FunctionName=function.name)
    wait_until(lambda: sleepers() == [], "the child is gone with its environment")


def test_ignoring_sigterm_and_catching_everything(deploy: Deploy, neighbour: Neighbour) -> None:
    body = """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        time.sleep(100)
    except BaseException:
        pass
"""
    function = deploy(handler(body), Timeout=1)
    assert function.invoke("attack").value["errorType"] == "Sandbox.Timedout"
    recovers(function)


def test_stopping_itself(deploy: Deploy, neighbour: Neighbour) -> None:
    function = deploy(handler("os.kill(os.getpid(), signal.SIGSTOP)"), Timeout=1)
    assert function.invoke("attack").value["errorType"] == "Sandbox.Timedout"
    recovers(function)


def test_returning_in_a_forked_child(deploy: Deploy, neighbour: Neighbour) -> None:
    """Both processes answer the same request: one answer counts, and the function goes on."""
    function = deploy(handler("os.fork()"), Timeout=5)
    assert function.invoke("attack").raw == b'"fine"'
    for _ in range(5):
        reply = function.invoke("be good")
        assert reply.raw == b'"fine"', reply.log


def test_memory_hog_at_init(deploy: Deploy, neighbour: Neighbour) -> None:
    reply = deploy("kept = bytearray(400 << 20)\nkept[::4096] = b'x' * len(kept[::4096])\n").invoke()
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == "Runtime.OutOfMemory"
