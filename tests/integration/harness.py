"""A real server in a process of its own, and the clients that people use on it.

`Server` starts `python -m lambent up` and ends it; `Function` is a deployed function with its calls and its logs. Log
events are waited for by asking again until a condition holds: nothing here sleeps for a fixed time.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import boto3
import botocore.config
import botocore.session

ROLE = "arn:aws:iam::000000000000:role/lambda"
RUNTIME = f"python3.{sys.version_info[1]}"
PATIENCE_S = 20.0
_session = botocore.session.get_session()


def make_zip(files: dict[str, bytes | str]) -> bytes:
    """Sources may be indented as a whole, as triple-quoted text in a test is; scripts and programs are executable."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            raw = textwrap.dedent(data).lstrip("\n").encode() if isinstance(data, str) else data
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o755 if raw.startswith((b"#!", b"\x7fELF")) else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, raw)
    return buffer.getvalue()


def wait_until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` gives once it is true."""
    end = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_s} s: {what}")
        time.sleep(0.02)
    return found


def client(service: str, url: str, account: str = "000000000000", region: str = "us-east-1") -> Any:
    return boto3.Session(botocore_session=_session).client(
        service,
        endpoint_url=url,
        region_name=region,
        aws_access_key_id=account,
        aws_secret_access_key="anything",
        config=botocore.config.Config(
            retries={"max_attempts": 0}, read_timeout=60, max_pool_connections=128, parameter_validation=False
        ),
    )


class Reply(NamedTuple):
    """An answer to Invoke. `log` is the tail, "" when none was asked for."""

    raw: bytes
    error: str | None
    log: str
    status: int
    version: str | None
    headers: dict[str, str]

    @property
    def value(self) -> Any:
        return json.loads(self.raw)

    @property
    def request_id(self) -> str:
        return self.headers["x-amzn-requestid"]

    @property
    def report(self) -> dict[str, str]:
        """The fields of the REPORT line."""
        line = next(line for line in self.log.splitlines() if line.startswith("REPORT"))
        return dict(field.partition(": ")[::2] for field in line.split("\t") if field)


class Function:
    """One deployed function."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.group = f"/aws/lambda/{name}"

    def invoke(self, payload: Any = None, **arguments: Any) -> Reply:
        answer = self.server.lambda_.invoke(
            FunctionName=self.name,
            **{"LogType": "Tail", "Payload": json.dumps(payload).encode(), **arguments},
        )
        return Reply(
            answer["Payload"].read(),
            answer.get("FunctionError"),
            base64.b64decode(answer.get("LogResult", "")).decode(),
            answer["StatusCode"],
            answer.get("ExecutedVersion"),
            answer["ResponseMetadata"]["HTTPHeaders"],
        )

    def call(self, payload: Any = None, **arguments: Any) -> Any:
        """The value that the function returns."""
        reply = self.invoke(payload, **arguments)
        assert reply.error is None, reply.raw + b"\n" + reply.log.encode()
        return reply.value

    def wait_active(self) -> dict[str, Any]:
        """Until neither creation nor update is under way."""

        def settled() -> Any:
            found = self.server.lambda_.get_function_configuration(FunctionName=self.name)
            return found if found["State"] != "Pending" and found["LastUpdateStatus"] != "InProgress" else None

        found: dict[str, Any] = wait_until(settled, f"{self.name} is active")
        return found

    def update(self, source: dict[str, bytes | str] | str) -> None:
        self.server.lambda_.update_function_code(FunctionName=self.name, ZipFile=make_zip(_files(source)))
        assert self.wait_active()["LastUpdateStatus"] == "Successful"

    def configure(self, **changes: Any) -> None:
        self.server.lambda_.update_function_configuration(FunctionName=self.name, **changes)
        assert self.wait_active()["LastUpdateStatus"] == "Successful"

    def events(self, holds: Callable[[list[dict[str, Any]]], Any], **arguments: Any) -> list[dict[str, Any]]:
        """All log events, once `holds(events)`."""
        end = time.monotonic() + PATIENCE_S
        while True:
            found = self.server.log_events(self.group, **arguments)
            if holds(found):
                return found
            if time.monotonic() > end:
                raise AssertionError("the log never got there:\n" + "".join(event["message"] for event in found))
            time.sleep(0.03)

    def log_of(self, reply: Reply, marker: str = "REPORT") -> list[str]:
        """The messages of one invocation's stream, once its REPORT is there."""
        wanted = [marker, reply.request_id]
        events = self.events(lambda found: any(all(w in event["message"] for w in wanted) for event in found))
        return [event["message"] for event in events]

    def wait_log(self, pattern: str) -> list[str]:
        events = self.events(lambda found: any(re.search(pattern, event["message"]) for event in found))
        return [event["message"] for event in events]


def _files(source: dict[str, bytes | str] | str) -> dict[str, bytes | str]:
    return {"m.py": source} if isinstance(source, str) else source


class Server:
    """`lambent up` on a free port. `options` are command-line options."""

    def __init__(
        self,
        data: Path,
        *options: str,
        python: Sequence[str] = (sys.executable,),
        environ: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.data = data
        log = data.parent / f"{data.name}.log"
        self.log_path = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*python, "-m", "lambent", "up", "--port", "0", "--data", str(data), *options],
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environ or {})},
                cwd=cwd,
            )
        self.url = self._wait_ready()
        self.lambda_ = client("lambda", self.url)
        self.logs = client("logs", self.url)

    def _wait_ready(self) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        line = self.process.stdout.readline().decode() if ready else ""
        match = re.fullmatch(r"Lambent ready on (http://\S+)\n", line)
        if match is None:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not start: {line!r}\n{self.log_path.read_text()}")
        return match[1]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def output(self) -> str:
        return self.log_path.read_text()

    def deploy(self, source: dict[str, bytes | str] | str, name: str = "t", **configuration: Any) -> Function:
        """A function under a name of its own, active. `source`: files of the zip, or the text of m.py."""
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        arguments = {
            "Runtime": RUNTIME,
            "Handler": "m.handler",
            "Role": ROLE,
            "Code": {"ZipFile": make_zip(_files(source))},
            "Timeout": 10,
            **configuration,
        }
        self.lambda_.create_function(FunctionName=unique, **arguments)
        function = Function(self, unique)
        assert function.wait_active()["State"] == "Active"
        return function

    def log_events(self, group: str, **arguments: Any) -> list[dict[str, Any]]:
        try:
            pages = self.logs.get_paginator("filter_log_events").paginate(logGroupName=group, **arguments)
            return [event for page in pages for event in page["events"]]
        except self.logs.exceptions.ResourceNotFoundException:
            return []

    def environments(self, function: Function) -> list[dict[str, Any]]:
        return [row for row in self.page("environments") if row["function"] == function.name]

    def page(self, name: str) -> Any:
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/_lambent/{name}", timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def family(self) -> set[int]:
        """The server and everything below it: descendants, and whatever was orphaned in its session."""
        parents: dict[int, tuple[int, int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    fields = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
                    if fields[0] != "Z":
                        parents[int(entry)] = (int(fields[1]), int(fields[3]))
        found = {pid for pid, (_, session) in parents.items() if session == self.process.pid}
        while more := {pid for pid, (parent, _) in parents.items() if parent in found} - found:
            found |= more
        return found

    def terminate(self, patience_s: float = PATIENCE_S) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(patience_s)

    def wait(self, patience_s: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(patience_s)
        finally:
            if self.process.poll() is None:
                self.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def serving(data: Path, *options: str, **arguments: Any) -> Iterator[Server]:
    """A server for one test; it must also end well."""
    server = Server(data, *options, **arguments)
    try:
        yield server
    except BaseException:
        server.kill()
        raise
    assert server.terminate() == 0, server.output


class Neighbour:
    """A well-behaved function that is called all the time while something else misbehaves."""

    SOURCE = "def handler(event, context):\n    return event['n'] + 1\n"

    def __init__(self, server: Server) -> None:
        self.function = server.deploy(self.SOURCE, "neighbour")
        self.calls = 0
        self.worst_s = 0.0
        self.problems: list[str] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._done.wait(0.01):
            began = time.monotonic()
            try:
                reply = self.function.invoke({"n": self.calls})
                self.worst_s = max(self.worst_s, time.monotonic() - began)
                if reply.error is not None or reply.value != self.calls + 1:
                    self.problems.append(f"call {self.calls}: {reply.raw!r}")
            except Exception as error:
                self.problems.append(f"call {self.calls}: {error!r}")
            self.calls += 1

    def __enter__(self) -> Self:
        assert self.function.call({"n": 1}) == 2
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        seen = self.calls
        wait_until(lambda: self.calls > seen or self.problems, "the neighbour is called once more")
        self._done.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self.problems == []
