"""A server for as long as a command runs: a child on a free port, with a data folder of its own."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

import typer

#: A process that ends the server and removes its folder when this command could not (kill -9): its input closes then.
_EXECUTOR = """
import os, shutil, signal, sys, time
if not sys.stdin.read():
    try:
        os.kill(int(sys.argv[1]), signal.SIGTERM)
        for _ in range(100):
            os.kill(int(sys.argv[1]), 0)
            time.sleep(0.1)
    except OSError:
        pass
    shutil.rmtree(sys.argv[2], ignore_errors=True)
"""
_READY_S = 30.0
_STOP_S = 15.0


def answers(endpoint: str) -> bool:
    """Whether a Lambent listens there."""
    try:
        with urllib.request.urlopen(f"{endpoint}/_lambent/health", timeout=2):
            return True
    except (OSError, ValueError):
        return False


class TemporaryServer:
    """Raises typer.Exit when it does not start, after saying why."""

    def __init__(self, ended: threading.Event) -> None:
        """`ended` is set when it ends."""
        self.folder = Path(tempfile.mkdtemp(prefix="lambent-dev-"))
        self.log = self.folder / "server.log"
        command = [sys.executable, "-m", "lambent", "up", "--port", "0", "--data", str(self.folder)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LAMBENT_")}
        with self.log.open("wb") as log:
            # In a session of its own: Ctrl-C is for us, and we end it when we are done with it.
            self._process = subprocess.Popen(
                [*command, "--drain-seconds", "0.5"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True, env=environ,
            )  # fmt: skip
        self._executor = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _EXECUTOR, str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.url = self._wait_ready()
        threading.Thread(target=self._wait_end, args=(ended,), daemon=True).start()

    def _wait_ready(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _READY_S)
        line = self._process.stdout.readline().decode() if ready else ""
        match = re.fullmatch(r"Lambent ready on (http://\S+)\n", line)
        if match is None:
            typer.echo(f"lambent: the server did not start:\n{self.log.read_text(errors='replace')}", err=True)
            self.stop(False)
            raise typer.Exit(1)
        return match[1]

    def _wait_end(self, ended: threading.Event) -> None:
        self._process.wait()
        ended.set()

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self, keep: bool) -> Path | None:
        """End it and remove its folder; with `keep` the folder is returned."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._executor.communicate(b"done")
        if keep:
            return self.folder
        shutil.rmtree(self.folder, ignore_errors=True)
        return None
