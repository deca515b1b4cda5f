"""Starting and stopping what is measured: the floor and Lambent, each as a process of its own.

A server is ready when it prints `… ready on http://host:port`; the time until then is measured from before its
process exists. What it prints is kept, since it is all that there is to read when it fails.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import machine

READY = re.compile(r"ready on (http://([^:/\s]+):(\d+))")
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
FLOOR = Path(__file__).with_name("floor.py")


class ServerError(Exception):
    """A server did not start, or ended too early."""


@dataclass
class Server:
    """A running server; leave the `with` block to stop it and all that it started."""

    command: list[str]
    scratch: Path | None = None  # removed with the server
    printed: deque[str] = field(default_factory=lambda: deque(maxlen=200))
    url: str = ""
    host: str = ""
    port: int = 0
    ready_ms: float = 0.0

    def start(self) -> Self:
        """Start the process and wait for its ready line."""
        self._ready = threading.Event()
        self._began_ns = time.perf_counter_ns()
        self.process = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(READY_TIMEOUT_S) or not self.url:
            self.stop()
            said = "\n".join(self.printed) or "nothing"
            raise ServerError(f"{' '.join(self.command)} did not get ready; it printed:\n{said}")
        return self

    def _read(self) -> None:
        """Drain the output for as long as the server lives: a full pipe would stop it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.rstrip())
            found = READY.search(line)
            if found and not self.url:
                self.ready_ms = (time.perf_counter_ns() - self._began_ns) / 1e6
                self.url, self.host, self.port = found[1], found[2], int(found[3])
                self._ready.set()
        self._ready.set()

    def stop(self) -> int:
        """Ask the server to end; return how many of its processes outlived it (they are killed)."""
        below = machine.descendants(self.process.pid)[1:]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        time.sleep(0.2)  # what dies with its parent does so a moment later
        left = [pid for pid in below if machine.memory_of(pid) is not None]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        return len(left)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = self.stop()
        if left:
            print(f"warning: {left} processes outlived {self.command[0]} and were killed", file=sys.stderr)
        if error is not None:
            last_words = "\n".join(list(self.printed)[-20:])
            error.add_note(f"{' '.join(self.command)} had printed:\n{last_words}")


def floor_server(processes: int) -> Server:
    """The floor on a free port."""
    return Server([sys.executable, str(FLOOR), "--port", "0", "--processes", str(processes)])


def free_port() -> int:
    """A port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lambent_server(program: list[str], sandbox: str, *more: str) -> Server:
    """Lambent on a free port with a new data directory, which an ordinary user can reach if it drops to one."""
    scratch = Path(tempfile.mkdtemp(prefix="lambent-bench-"))
    scratch.chmod(0o755)
    options = ["--port", str(free_port()), "--data", str(scratch / "data"), "--sandbox", sandbox, *more]
    return Server([*program, "up", *options], scratch=scratch)
