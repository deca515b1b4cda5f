"""`lambent dev`: a function that follows the files it is made of.

One thread watches and deploys; one prints the function's log; each invocation after a deployment has its own, because a
debugger may hold it for as long as it likes. Errors are told and waited out: the next save may mend them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from lambent.cli.checking import syntax_errors
from lambent.cli.client import client, unreachable
from lambent.cli.deploying import ROLE, settings
from lambent.cli.logging_tail import LogTail
from lambent.cli.packaging import Contents, contents_of, is_part, pack
from lambent.cli.recognising import recognise
from lambent.cli.reporting import Reporter
from lambent.cli.temporary_server import TemporaryServer, answers
from lambent.cli.watching import changes

#: Between two looks at whether a deployment is done: a few milliseconds at first.
_FIRST_LOOK_S, _LOOK_MAX_S = 0.002, 0.05
_INVOKE_MAX_S = 86_400


class Options(NamedTuple):
    """As on the command line."""

    path: Path
    name: str | None
    handler: str | None
    runtime: str | None
    memory: int | None
    timeout: int | None
    env: list[str]
    layers: list[str]
    endpoint: str
    url: bool
    event: Path | None
    keep: bool
    debug_port: int | None
    wait_for_debugger: bool
    as_json: bool


class _NotDeployed(Exception):
    """The message says why; the function is as it was."""


def develop(options: Options) -> None:
    """Until SIGINT or SIGTERM. Raises typer.Exit."""
    stop = threading.Event()
    reporter = Reporter(options.as_json, stop)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server = None
    endpoint = options.endpoint.rstrip("/")
    if not answers(endpoint):
        if urllib.parse.urlsplit(endpoint).hostname not in ("127.0.0.1", "::1", "localhost"):
            raise unreachable(endpoint)
        server = TemporaryServer(stop)
        endpoint = server.url
        reporter.tell(
            "server", f"no server answers at {options.endpoint}: started one at {endpoint}", endpoint=endpoint
        )
    try:
        _Developer(options, endpoint, reporter, stop, server).run()
    finally:
        if server is not None:
            folder = server.stop(options.keep)
            if folder is not None:
                reporter.tell("kept", f"state is kept: lambent up --data {folder}", data=str(folder))
    reporter.tell("stopped", "stopped")


class _Developer:
    def __init__(
        self,
        options: Options,
        endpoint: str,
        reporter: Reporter,
        stop: threading.Event,
        server: TemporaryServer | None,
    ) -> None:
        self.options = options
        self.path = options.path.resolve()
        self.name = options.name or self.path.stem
        self.endpoint = endpoint
        self.reporter = reporter
        self.stop = stop
        self.server = server
        self.functions = client("lambda", endpoint)
        self.runtime = options.runtime or ""
        self.arn = ""
        self.exists = self.created = self.made_url = self.debugs = False
        self.digest = b""
        #: What is deployed.
        self.contents: Contents = frozenset()
        self.said = ""

    def run(self) -> None:
        tail = LogTail(self.endpoint, self.reporter, self.stop)
        try:
            self._attempt(True, time.monotonic(), tail)
            self.reporter.tell("watching", f"watching {self.options.path}; Ctrl-C ends", path=str(self.path))
            for changed in changes(self.path, self.stop):
                self._attempt(bool(changed), time.monotonic(), tail)
            if self.server is not None and self.server.has_ended:
                self.reporter.error(f"the server has ended by itself:\n{self.server.last_words()}")
                raise typer.Exit(1)
        except FileNotFoundError as error:
            self.reporter.error(f"{self.options.path} is gone")
            raise typer.Exit(1) from error
        finally:
            self.stop.set()
            tail.join()
            self._undo()

    def _attempt(self, was_told: bool, began: float, tail: LogTail) -> None:
        try:
            final = self._deploy(began)
        except _NotDeployed as error:
            if str(error) != self.said or was_told:  # not again and again
                self.reporter.error(str(error))
            self.said = str(error)
            return
        self.said = ""
        if final is not None:
            tail.start(final["LoggingConfig"]["LogGroup"])
            if self.options.event is not None:
                threading.Thread(target=self._invoke, args=(self.options.event,), daemon=True).start()

    # --- deploying --------------------------------------------------------------------------------------

    def _deploy(self, began: float) -> dict[str, Any] | None:
        """The function's configuration; None where nothing has changed. Raises _NotDeployed."""
        try:
            code = pack(self.path)
        except FileNotFoundError:
            if not self.path.exists():
                raise
            return None  # a file went away meanwhile: that is told too
        except OSError as error:
            raise _NotDeployed(f"{error.filename}: {error.strerror}") from error
        digest = hashlib.sha256(code).digest()
        if digest == self.digest:
            return None
        try:
            contents = contents_of(code)
        except zipfile.BadZipFile as error:
            raise _NotDeployed(f"{self.options.path} is not a zip file") from error
        changed = sorted(name for name, _ in self.contents ^ contents)
        if self.exists:
            problems = syntax_errors(self._sources(changed), self.runtime)
            if problems:
                self.digest = b""  # mended by going back to what runs, that is told as well
                raise _NotDeployed("\n".join(problems))
        with _told():
            final = self._update(code) if self.exists else self._create(code)
        if "Failed" in (final.get("State"), final.get("LastUpdateStatus")):
            raise _NotDeployed(str(final.get("StateReason") or final.get("LastUpdateStatusReason")))
        first, self.digest, self.contents = not self.arn, digest, contents
        self.arn = final["FunctionArn"]
        took_ms = (time.monotonic() - began) * 1000
        verb = "redeployed" if not first else "created" if self.created else "updated"
        self.reporter.deployed(self.name, verb, took_ms, len(code), sorted(set(changed)), final)
        if first:
            self._introduce(final)
        return final

    def _sources(self, names: Iterable[str]) -> list[Path]:
        return [self.path / name for name in names] if self.path.is_dir() else [self.path]

    def _create(self, code: bytes) -> dict[str, Any]:
        """Or, where there is one of this name, update it and what was said of its configuration."""
        try:
            before = self.functions.get_function_configuration(FunctionName=self.name)
        except self.functions.exceptions.ResourceNotFoundException:
            return self._create_new(code)
        self.runtime = self.options.runtime or before.get("Runtime", "")
        self._check_all()
        self._debug(before["FunctionArn"])
        options = self.options
        wanted = settings(options.memory, options.timeout, self._variables(), options.layers)
        wanted |= {name: value for name, value in (("Handler", options.handler), ("Runtime", options.runtime)) if value}
        if wanted:
            self.functions.update_function_configuration(FunctionName=self.name, **wanted)
            self._wait()
        self.exists = True
        return self._update(code)

    def _create_new(self, code: bytes) -> dict[str, Any]:
        options = self.options
        found = recognise(code)
        self.runtime = options.runtime or (found.runtime if found is not None else "")
        self._check_all()
        handler = options.handler or (found.handler if found is not None else None)
        if handler is None or not self.runtime:
            raise _NotDeployed("no handler found at the top of the code; give --handler module.function and --runtime")
        self.functions.create_function(
            FunctionName=self.name,
            Runtime=self.runtime,
            Handler=handler,
            Role=ROLE,
            Code={"ZipFile": code},
            **settings(options.memory, options.timeout, self._variables(), options.layers),
        )
        self.exists = self.created = True
        final = self._wait()
        self._debug(final["FunctionArn"])
        return final

    def _check_all(self) -> None:
        """Before the first deployment: the files at the top, one of which has the handler."""
        files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        problems = syntax_errors([file for file in files if is_part(Path(file.name))], self.runtime or _python())
        if problems:
            raise _NotDeployed("\n".join(problems))

    def _variables(self) -> dict[str, str]:
        return dict(pair.partition("=")[::2] for pair in self.options.env)

    def _update(self, code: bytes) -> dict[str, Any]:
        self.functions.update_function_code(FunctionName=self.name, ZipFile=code)
        return self._wait()

    def _wait(self) -> dict[str, Any]:
        """Until neither creation nor update is under way."""
        pause_s = _FIRST_LOOK_S
        while True:
            found: dict[str, Any] = self.functions.get_function_configuration(FunctionName=self.name)
            if found.get("State") != "Pending" and found.get("LastUpdateStatus") != "InProgress":
                return found
            time.sleep(pause_s)
            pause_s = min(_LOOK_MAX_S, pause_s * 1.5)

    def _introduce(self, final: dict[str, Any]) -> None:
        """How to reach it."""
        call = f"{self.endpoint}/2015-03-31/functions/{self.name}/invocations"
        self.reporter.tell("call", f"call it: curl {call} -d '{{}}'", url=call)
        if self.options.url:
            with _told():
                url = self._make_url()
            self.reporter.tell("url", f"function URL: {url}", url=url)
        if self.options.debug_port is not None:
            root = self._code_root(final)
            self.reporter.tell(
                "debugger",
                f"debugger: 127.0.0.1:{self.options.debug_port}, from the first invocation on; the code is at {root}",
                port=self.options.debug_port,
                code=root,
            )

    def _make_url(self) -> str:
        try:
            made = self.functions.create_function_url_config(FunctionName=self.name, AuthType="NONE")
            self.made_url = True
        except self.functions.exceptions.ResourceConflictException:
            made = self.functions.get_function_url_config(FunctionName=self.name)
            return str(made["FunctionUrl"])
        grants: list[dict[str, Any]] = [
            {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"},
            {"Action": "lambda:InvokeFunction", "InvokedViaFunctionUrl": True},
        ]
        for number, grant in enumerate(grants):
            with contextlib.suppress(self.functions.exceptions.ResourceConflictException):
                self.functions.add_permission(
                    FunctionName=self.name, StatementId=f"lambent-dev-{number}", Principal="*", **grant
                )
        return str(made["FunctionUrl"])

    # --- debugging --------------------------------------------------------------------------------------

    def _debug(self, arn: str) -> None:
        """Before the first environment starts."""
        if self.options.debug_port is None or self.debugs:
            return
        answer = self._set_debugger(arn, self.options.debug_port)
        self.debugs = True
        brings = self.path.is_dir() and (self.path / "debugpy").is_dir()
        if self.runtime.startswith("python3.") and not answer["debugpy"] and not brings:
            raise _NotDeployed(
                "debugpy is installed neither beside Lambent nor in the function: pip install 'lambent[debug]', then "
                "start the server again"
            )

    def _set_debugger(self, arn: str, port: int | None) -> Any:
        body = {"function": arn, "port": port, "wait": self.options.wait_for_debugger}
        request = urllib.request.Request(
            f"{self.endpoint}/_lambent/debug", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise _NotDeployed(f"--debug-port: {_message(error.read())}") from error
        except OSError as error:
            raise _NotDeployed(f"--debug-port: {error}") from error

    def _code_root(self, final: dict[str, Any]) -> str:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_lambent/health", timeout=10) as answer:
                health = json.load(answer)
        except OSError:
            return "/var/task"
        if health.get("sandbox") != "process":
            return "/var/task"
        digest = base64.b64decode(final["CodeSha256"]).hex()
        return f"{health['data_dir']}/code/unpacked/{digest} (another folder after each deployment)"

    # --- invoking ---------------------------------------------------------------------------------------

    def _invoke(self, event: Path) -> None:
        began = time.monotonic()
        try:
            payload = event.read_bytes()
            with _told():
                caller = client("lambda", self.endpoint, _INVOKE_MAX_S)
                began = time.monotonic()
                answer = caller.invoke(FunctionName=self.name, Payload=payload)
                result = answer["Payload"].read()
        except OSError as error:
            self.reporter.error(f"--invoke {event}: {error.strerror}")
        except _NotDeployed as error:
            if not self.stop.is_set():
                self.reporter.error(str(error))
        else:
            took_ms = (time.monotonic() - began) * 1000
            self.reporter.invoked(took_ms, result.decode("utf-8", "replace"), answer.get("FunctionError"))

    # --- ending -----------------------------------------------------------------------------------------

    def _undo(self) -> None:
        """Take back what was made, as far as the server is there and nobody said --keep."""
        steps: list[Callable[[], object]] = []
        if self.debugs and self.arn:
            steps.append(lambda: self._set_debugger(self.arn, None))
        if not self.options.keep and self.server is None:
            if self.created:
                group = f"/aws/lambda/{self.name}"
                steps.append(lambda: self.functions.delete_function(FunctionName=self.name))
                steps.append(lambda: client("logs", self.endpoint).delete_log_group(logGroupName=group))
            elif self.made_url:
                steps.append(lambda: self.functions.delete_function_url_config(FunctionName=self.name))
                steps += [functools.partial(self._revoke, f"lambent-dev-{number}") for number in (0, 1)]
        for step in steps:
            with contextlib.suppress(Exception):  # gone already, or the server is
                step()

    def _revoke(self, statement: str) -> None:
        self.functions.remove_permission(FunctionName=self.name, StatementId=statement)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """The SDK's errors as _NotDeployed."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        detail = error.response.get("Error", {})
        raise _NotDeployed(f"{detail.get('Code')}: {detail.get('Message')}") from error
    except BotoCoreError as error:
        raise _NotDeployed(str(error)) from error


def _message(raw: bytes) -> str:
    try:
        return str(json.loads(raw)["message"])
    except (ValueError, KeyError, TypeError):
        return raw.decode("utf-8", "replace")


def _python() -> str:
    return f"python3.{sys.version_info[1]}"
