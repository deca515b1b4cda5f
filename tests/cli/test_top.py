"""`lambent top` on a real server: in a real pseudo-terminal, in a pipe, and as JSON."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from integration.harness import PATIENCE_S, Function, Server, serving, wait_until

Deploy = Callable[..., Function]
SLEEPER = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"


def command(server: Server, *options: str) -> list[str]:
    return [sys.executable, "-m", "lambent", "top", "--endpoint", server.url, *options]


def plain(written: bytes) -> str:
    """Without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode(errors="replace"))


class Terminal:
    """A program on a pseudo-terminal of a certain size, and all that it has written."""

    def __init__(self, arguments: list[str], columns: int, lines: int) -> None:
        self.master, slave = pty.openpty()
        self.size(columns, lines)
        environ = {**os.environ, "TERM": "xterm-256color"}
        environ = {name: value for name, value in environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            # Its controlling terminal: keys and sizes then make signals.
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environ, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.written = b""

    def size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, pattern: str) -> str:
        """What is written from now on until the pattern is in it, without colours."""
        seen, end = b"", time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                seen += os.read(self.master, 65_536)
                if re.search(pattern, plain(seen)):
                    self.written += seen
                    return plain(seen)
            assert self.process.poll() is None, seen
        raise AssertionError(f"{pattern} was not written: {seen[-3000:]!r}")

    def rest(self) -> bytes:
        while select.select([self.master], [], [], 0)[0]:
            self.written += os.read(self.master, 65_536)
        return self.written

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self.slave)
        os.close(self.master)


@contextlib.contextmanager
def terminal(arguments: list[str], columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    opened = Terminal(arguments, columns, lines)
    try:
        yield opened
    finally:
        opened.close()


def test_live_in_a_terminal(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER, "watched")
    deploy(SLEEPER, "watched-too")
    with (
        concurrent.futures.ThreadPoolExecutor(3) as pool,
        terminal(command(server, "--interval", "0.2", "--function", "watched")) as screen,
    ):
        first = screen.read_until(r"q quit")
        assert "by concurrency" in first
        calls = [pool.submit(function.call, 2) for _ in range(3)]
        screen.read_until(r"█░* 3/1,000 +■■■")  # three run, in three cells
        assert [call.result() for call in calls] == [2, 2, 2]
        screen.read_until(r"···")  # and are frozen
        screen.type(b"s")
        screen.read_until(r"by requests")
        for _ in range(4):
            screen.type(b"s")
        screen.read_until(r"by concurrency")
        screen.size(150, 40)
        screen.read_until(r"concurrency +req/s")  # the wide table
        screen.type(b"q")
        assert screen.process.wait(PATIENCE_S) == 0
        written = screen.rest()
        assert re.search(r"cold [1-3]", plain(written))
        assert b"\x1b[?1049h" in written  # on a screen of its own
        assert written.rindex(b"\x1b[?1049l") > written.rindex(b"\x1b[?1049h")  # and away from it
        assert b"\x1b[2J" not in written.split(b"\x1b[?1049h")[1][100:]  # frames are not cleared: no flicker
        assert termios.tcgetattr(screen.slave) == screen.before


@pytest.mark.parametrize("ending", ["ctrl-c", "SIGINT"])
def test_interrupted(server: Server, ending: str) -> None:
    with terminal(command(server, "--interval", "0.2")) as screen:
        screen.read_until(r"q quit")
        if ending == "ctrl-c":
            screen.type(b"\x03")
        else:
            os.kill(screen.process.pid, signal.SIGINT)
        assert screen.process.wait(PATIENCE_S) in (0, -signal.SIGINT)
        assert termios.tcgetattr(screen.slave) == screen.before


def test_a_server_that_goes_away_and_comes_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    data = tmp_path_factory.mktemp("away")
    with serving(data) as server:
        port = server.port
        screen = Terminal(command(server, "--interval", "0.2"), 80, 24)
        screen.read_until(r"0 requests/s")
    try:
        screen.read_until(r"no answer from http://127\.0\.0\.1:\d+")
        with serving(data, "--port", str(port)):
            screen.read_until(r"first look")  # it counts anew
            screen.read_until(r"0 requests/s")
        screen.read_until(r"no answer from")
        screen.type(b"q")
        assert screen.process.wait(PATIENCE_S) == 0
    finally:
        screen.close()


def run(arguments: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environ}
    )


def test_one_frame_in_a_pipe(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER, "piped")
    function.call(0)
    done = run(command(server, "--once", "--interval", "0.2", "--function", function.name), COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert function.name[:34] in done.stdout
    assert "q quit" not in done.stdout


def test_json_has_what_happened_in_the_interval(server: Server, deploy: Deploy) -> None:
    function = deploy(SLEEPER, "counted")
    function.call(0)
    arguments = command(server, "--json", "--interval", "1", "--function", function.name)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        first = json.loads(watching.stdout.readline())
        for _ in range(10):
            function.call(0.02)
        rows = []
        while sum(row["invocations"] for row in rows) < 10:
            rows.append(json.loads(watching.stdout.readline())["functions"][0])
        watching.send_signal(signal.SIGINT)
        assert watching.wait(PATIENCE_S) == 0
    assert first["functions"][0]["limit"] == first["accounts"][0]["unreserved_max"]
    assert sum(row["invocations"] for row in rows) == 10
    assert sum(row["cold_starts"] for row in rows) == 0
    busiest = max(rows, key=lambda row: row["invocations"])
    assert 20 <= busiest["p50_ms"] <= busiest["p95_ms"] <= busiest["p99_ms"] < 2_000
    assert sum(busiest["environments"].values()) == 1


def test_without_freezing_idle_environments_stay_idle(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("warm"), "--no-freeze") as server:
        function = server.deploy(SLEEPER, "warm")
        function.call(0)

        def rested() -> dict[str, Any] | None:
            found: dict[str, Any] = server.environments(function)[0]
            return found if found["state"] == "idle" and found["in_state_s"] > 0.2 else None

        assert not wait_until(rested, "idle for much longer than it takes to be frozen")["frozen"]
        cells = [row["environments"] for row in server.page("top")["functions"]]
        assert cells == [{"idle": 1}]


def test_no_server_and_wrong_options(server: Server) -> None:
    done = run([sys.executable, "-m", "lambent", "top", "--once", "--endpoint", "http://127.0.0.1:9"])
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    done = run(command(server, "--sort", "colour"))
    assert done.returncode == 2
    assert "concurrency, requests" in done.stderr
