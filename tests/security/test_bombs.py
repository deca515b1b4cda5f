"""Taking all there is: memory in every guise, disk, descriptors, processes, log lines, answers. The bomb's own request
fails or is cut short, the next one works, and a neighbour is answered all the while."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.harness import Function, Neighbour, Server, wait_until

from .attacker import Attacker

Deploy = Callable[..., Function]
#: The neighbour's longest wait. Two cores serve the bomb, the neighbour, the server and its client.
PATIENCE_S = 2.0


@pytest.fixture
def limited(server: Server) -> Server:
    if server.page("health")["cgroup_version"] == 0:
        pytest.skip("no control groups here: memory is limited by RLIMIT_DATA alone")
    return server


@pytest.fixture
def bomber(server: Server) -> Iterator[Attacker]:
    made = Attacker(server)
    assert made("1") == 1
    yield made
    made.delete()


@pytest.fixture
def quiet(neighbour: Neighbour) -> Iterator[Neighbour]:
    """The neighbour of a bomb: it must not have waited for long."""
    neighbour.worst_s = 0.0
    yield neighbour
    assert neighbour.worst_s < PATIENCE_S


MEMORY = {
    "heap": "kept = [bytearray(os.urandom(1 << 20)) for _ in range(2000)]\n",
    "anonymous map": "m = mmap.mmap(-1, 2000 << 20)\nfor at in range(0, len(m), 4096):\n    m[at] = 1\n",
    "memfd": "fd = os.memfd_create('x')\nfor _ in range(2000):\n    os.write(fd, bytes(1 << 20))\n",
    "stack": "threading.stack_size(512 << 20)\ndef deep(n):\n    x = bytes(1 << 20)\n    return deep(n + 1)\n"
    "sys.setrecursionlimit(10**7)\nt = threading.Thread(target=deep, args=(0,))\nt.start()\nt.join()\n",
    "System V segment": "libc.shmat.restype = ctypes.c_void_p\n"
    "at = libc.shmat(libc.shmget(0, 1500 << 20, 0o1600), 0, 0)\n"
    "ctypes.memset(at, 1, 1500 << 20)\n",
    "children": "for _ in range(20):\n    if os.fork() == 0:\n        x = bytearray(os.urandom(64 << 20))\n"
    "        time.sleep(60)\nos.wait()\n",
    "shared with a child": "m = mmap.mmap(-1, 1000 << 20)\npid = os.fork()\nif pid == 0:\n"
    "    for at in range(0, len(m), 4096):\n"
    "        m[at] = 1\n    os._exit(0)\nos.waitpid(pid, 0)\ntime.sleep(20)\n",
}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory(limited: Server, bomber: Attacker, quiet: Neighbour, kind: str) -> None:
    failed = bomber.attempt(MEMORY[kind])
    assert failed in {"Runtime.OutOfMemory", "MemoryError", "Runtime.ExitError"}
    assert bomber("len(bytearray(os.urandom(1 << 20)) * 50)") == 50 << 20  # with its whole memory at hand


KERNEL = {
    "pipes": """
        kept = []
        try:
            while True:
                kept += os.pipe()
                os.set_blocking(kept[-1], False)
                tried(fcntl.fcntl, kept[-1], 1031, 1 << 20)
                try:
                    while True:
                        os.write(kept[-1], bytes(65536))
                except BlockingIOError:
                    pass
        except OSError as error:
            result = name_of(error.errno)
        for each in kept:
            os.close(each)
    """,
    "Unix sockets": """
        kept = []
        try:
            while True:
                kept += socket.socketpair()
                kept[-1].setblocking(False)
                try:
                    while True:
                        kept[-1].send(bytes(65536))
                except BlockingIOError:
                    pass
        except OSError as error:
            result = name_of(error.errno)
        for each in kept:
            each.close()
    """,
    "descriptors": """
        kept = []
        try:
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            result = name_of(error.errno)
        for each in kept:
            os.close(each)
    """,
    "descriptors on their way": """
        a, b = socket.socketpair()
        a.setblocking(False)
        number = os.open("/dev/null", os.O_RDONLY)
        try:
            for _ in range(100_000):
                socket.send_fds(a, [b"x"], [number] * 100)
        except OSError as error:
            result = name_of(error.errno)
        a.close(), b.close(), os.close(number)
    """,
    "inodes": """
        count = 0
        try:
            while True:
                os.mkdir("/tmp/%d" % count)
                count += 1
        except OSError as error:
            result = name_of(error.errno)
        subprocess.run("rm -rf /tmp/*", shell=True)
    """,
    "watches": """
        number, count, result = libc.inotify_init(), 0, "ENOSPC"
        while libc.inotify_add_watch(number, b"/proc/self/task", 2) > 0 and count < 20000:
            count += 1
        os.close(number)
    """,
    "threads": """
        result, threads, done = "EAGAIN", [], threading.Event()
        try:
            while True:
                threads.append(threading.Thread(target=done.wait))
                threads[-1].start()
        except RuntimeError:
            threads.pop()
        done.set()
        for each in threads:
            each.join()
    """,
}


@pytest.mark.parametrize("kind", KERNEL)
def test_things_of_the_kernel(limited: Server, bomber: Attacker, quiet: Neighbour, kind: str) -> None:
    """They end at a limit, or at the function's memory."""
    files = len(os.listdir(f"/proc/{limited.process.pid}/fd"))
    reply = bomber.function.invoke("\n".join(line[8:] for line in KERNEL[kind].splitlines()) + "\n", LogType="None")
    if reply.error is None:
        assert reply.value in {"EMFILE", "ENFILE", "ENOSPC", "EAGAIN", "ETOOMANYREFS"}
    else:
        assert reply.value["errorType"] == "Runtime.OutOfMemory", reply.raw
    assert bomber("len(os.listdir('/tmp'))") >= 0
    assert len(os.listdir(f"/proc/{limited.process.pid}/fd")) < files + 100


def test_reading_more_than_its_memory_is_no_crime(limited: Server, deploy: Deploy) -> None:
    """Cached pages of its own code are counted for the group, and given back: not a reason to end it."""
    source = """
        def handler(event, context):
            with open("/var/task/large", "rb") as file:
                return sum(len(each) for each in iter(lambda: file.read(1 << 20), b""))
    """
    function = deploy({"m.py": source, "large": bytes(200 << 20)}, MemorySize=128)
    for path in (limited.data / "code").rglob("large"):
        with path.open() as file:  # so that the function reads from the disk, and pays
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    for _ in range(3):
        assert function.call() == 200 << 20


def test_all_of_tmp(bomber: Attacker, quiet: Neighbour) -> None:
    filled = bomber("""
        result = []
        for name in ("a", "b"):
            try:
                with open("/tmp/" + name, "wb", 0) as file:
                    while True:
                        file.write(bytes(1 << 20))
            except OSError as error:
                result += [name_of(error.errno), os.path.getsize("/tmp/" + name) >> 20]
        result.append(tried(os.truncate, "/tmp/a", 1 << 40))
        os.unlink("/tmp/a"), os.unlink("/tmp/b")
    """)
    assert filled[:4] in (["ENOSPC", 512, "ENOSPC", 0], ["ENOSPC", 511, "ENOSPC", 0])
    assert bomber("opened('/tmp/x', 'w')") == "written"


def _resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


LOGS = {
    "without a newline": "for _ in range(1600):\n    os.write(1, b'x' * 65536)\n",
    "long lines": "line = b'y' * 300_000 + b'\\n'\nfor _ in range(300):\n    os.write(1, line)\n",
    "lines": "some = (b'z' * 99 + b'\\n') * 655\nfor _ in range(1000):\n    os.write(1, some)\n",
    "newlines": "for _ in range(20):\n    os.write(1, b'\\n' * 65536)\n",
    "no text": "for _ in range(160):\n    os.write(1, os.urandom(65536))\n",
    "no text at all": "for _ in range(100):\n    os.write(2, b'\\xff\\xfe\\x00\\x1b' * 16384)\n",
}


@pytest.mark.parametrize("kind", LOGS)
@pytest.mark.parametrize("tail", ["None", "Tail"])
def test_log_floods(server: Server, bomber: Attacker, quiet: Neighbour, kind: str, tail: str) -> None:
    """What is printed is read as fast as it is kept, and what waits is bounded, also for the caller's tail."""
    before = _resident_mib(server.process.pid)
    answer = server.lambda_.invoke(
        FunctionName=bomber.function.name, LogType=tail, Payload=json.dumps(LOGS[kind]).encode()
    )
    assert "FunctionError" not in answer
    assert answer["Payload"].read() == b"null"
    # Twice the log store's buffer of 64 MiB in full, and what holds it.
    assert _resident_mib(server.process.pid) - before < 250
    assert bomber("1") == 1


ANSWERS = {
    "deep": ("x = []\nfor _ in range(100_000):\n    x = [x]\nresult = x\n", "Runtime.MarshalError"),
    "deep text": ("result = '[' * 1_000_000\n", None),
    "6 MB": ("result = 'x' * (6 * 1024 * 1024 - 2)\n", None),
    "6 MB and one": ("result = 'x' * (6 * 1024 * 1024 - 1 + 100)\n", "Function.ResponseSizeTooLarge"),
    "20 MB": ("result = 'x' * 20_000_000\n", "Function.ResponseSizeTooLarge"),
    "cycle": ("x = []\nx.append(x)\nresult = x\n", "Runtime.MarshalError"),
    "no JSON": ("result = object()\n", "Runtime.MarshalError"),
    "half a character": ("result = '\\ud800'\n", None),
    "error": ("raise type('E' * 10_000, (Exception,), {})('x' * 10_000_000)\n", "E"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers(bomber: Attacker, quiet: Neighbour, kind: str) -> None:
    code, expected = ANSWERS[kind]
    reply = bomber.function.invoke(code, LogType="None")
    if expected is None:
        assert reply.error is None, reply.raw[:300]
    else:
        assert reply.error == "Unhandled"
        assert len(reply.raw) <= 6 * 1024 * 1024
        assert expected in reply.raw[:20_000_000].decode()
    assert bomber("1") == 1


def test_fork_bomb_in_shell(limited: Server, bomber: Attacker, quiet: Neighbour) -> None:
    """Nothing is left of it after the timeout, and the limit was its own."""
    code = "subprocess.Popen(['/bin/sh', '-c', 'b() { b | b & }; b; sleep 60'])\ntime.sleep(60)\n"
    bomb = Attacker(limited, Timeout=1)
    assert bomb.attempt(code) in {"Sandbox.Timedout", "Runtime.OutOfMemory", "Runtime.ExitError"}
    assert bomb("len(pids())") <= 3
    bomb.delete()
    wait_until(lambda: not _shells(), "no shell of it is left")


def _shells() -> list[str]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and b"b() { b | b & }" in Path(f"/proc/{entry}/cmdline").read_bytes():
                found.append(entry)
        except OSError:
            continue
    return found
