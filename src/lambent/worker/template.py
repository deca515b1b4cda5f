"""SnapStart: the snapshot of a version: a runtime process that has run Init and is forked for each environment.

A Template lives from PublishVersion until its version is deleted, and its last environment after that. Its own sandbox
is made like that of an environment, with the version's limits and its log; how environments come from it is told in
runtimes/sandbox/keeper.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import uuid
from typing import TYPE_CHECKING, Any

from lambent.model.function import VersionSpec
from lambent.model.invocation import InitializationType
from lambent.model.limits import LONG_INIT_TIMEOUT_MAX_S, LONG_INIT_TIMEOUT_MIN_S
from lambent.wire.frames import Frame, FrameError, FrameKind
from lambent.worker.interface import SnapshotFailed
from lambent.worker.journal import Journal
from lambent.worker.link import FrameLink
from lambent.worker.memory import MemoryAccount
from lambent.worker.report import PlatformLines, exit_words

if TYPE_CHECKING:
    from lambent.worker.local import LocalWorker
    from lambent.worker.sandboxes import RuntimePool, Sandbox

_log = logging.getLogger("lambent.worker")
_PHASE = "snap-start"


class Template:
    """`make` once; then `pool` gives environments, or is None and `obstacle` says why there can be none."""

    def __init__(self, worker: LocalWorker, spec: VersionSpec) -> None:
        self.spec = spec
        self.pool: RuntimePool | None = None
        self.obstacle = ""
        self.api_address = ""
        today = time.strftime("%Y/%m/%d", time.gmtime())
        owner = "" if spec.log_group == f"/aws/lambda/{spec.key.name}" else spec.key.name
        self.stream_name = f"{today}/{owner}[{spec.version}]{uuid.uuid4().hex}"
        self._worker = worker
        lines = PlatformLines(spec, InitializationType.SNAP_START)
        self._journal = Journal(lines, worker.log_streams.open(spec, self.stream_name))
        self._memory = MemoryAccount(spec.memory_mib)
        self._sandbox: Sandbox | None = None
        self._number = -1
        self._link: FrameLink | None = None
        self._init_error: tuple[str, str] | None = None
        self._began_ns = 0
        self._is_ready: asyncio.Future[None] = worker.loop.create_future()

    # --- Init -------------------------------------------------------------------------------------------

    async def make(self) -> None:
        """Run Init and the before-snapshot hooks. Raises SnapshotFailed, SandboxUnavailable."""
        limit_s = min(max(self.spec.timeout_s, LONG_INIT_TIMEOUT_MIN_S), LONG_INIT_TIMEOUT_MAX_S)
        pool = await self._worker.sandboxes.pool(self.spec.runtime)
        _, self._number = self._worker.sandboxes.make_template(pool, self._attach, self._lost)
        try:
            await asyncio.wait_for(self._is_ready, limit_s)
        except TimeoutError:
            self._end_init("timeout", "Sandbox.Timedout")
            self._close_sandbox()
            raise SnapshotFailed(
                f"Init did not finish within {limit_s} seconds.", "FunctionError.InitTimeout"
            ) from None
        except BaseException:
            self._close_sandbox()
            raise

    def _attach(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        if self._is_ready.done():
            self._close_sandbox()
            return
        self._memory.attach(sandbox)
        sandbox.on_message = self._on_message
        self._worker.loop.add_reader(sandbox.log_fd, self._on_log_readable)
        self.api_address = _address_of(sandbox)
        for warning in self._worker.warnings(None, sandbox):
            self._journal.say(warning)
        self._journal.init_start(self._worker.runtime_version(sandbox), _PHASE)
        self._began_ns = time.monotonic_ns()
        orders = self._worker.orders(self, sandbox)
        assign = self._worker.assignment(self.spec, sandbox)
        sandbox.send({"op": "run", "generation": 1, "assign": assign, "runtime": orders["runtime"]})

    def _on_message(self, message: dict[str, Any] | None) -> None:
        if message is None:
            self._fail("the sandbox was lost", "InternalError", "Sandbox.Failure")
            self._gone()
        elif message["op"] == "failed":
            self._impossible(message["error"])
        elif message["op"] == "started":
            link = self._sandbox.take_link() if self._sandbox is not None else None
            if link is not None:
                self._link = FrameLink(self._worker.loop, link, self._on_frame, self._on_link_lost)
        elif message["op"] == "exited":
            self._exited(message["status"], message["out_of_memory"])

    def _on_frame(self, frame: Frame) -> None:
        if self._is_ready.done():
            return
        if frame.kind == FrameKind.INIT_ERROR:
            self._init_error = (frame.header.decode("utf-8", "replace"), frame.payload.decode("utf-8", "replace"))
        elif frame.kind == FrameKind.READY:
            self._ready(frame.header.decode("utf-8", "replace"))

    def _ready(self, obstacle: str) -> None:
        assert self._sandbox is not None
        self._end_init("success")
        self._is_ready.set_result(None)
        if obstacle:
            self.give_up(obstacle)
            self._close_sandbox()
            return
        template_bytes = self._memory.own_bytes()
        self.pool = self._worker.sandboxes.add_template(self._sandbox, self._number, self.spec.tmp_mib, template_bytes)
        self.pool.on_failing = self._gone
        self._sandbox.send({"op": "forks"})

    def _impossible(self, error: str) -> None:
        """It is not the function's doing: this host can not make a template."""
        if self._is_ready.done():
            self._gone()
            return
        self._is_ready.set_result(None)
        self.give_up(error)
        self._close_sandbox()

    def give_up(self, obstacle: str) -> None:
        """There can be no snapshot: say so in the function's log, once for each snapshot that is missing."""
        self.obstacle = obstacle
        _log.warning("%s is not restored from a snapshot: %s", self.spec.arn, obstacle)
        self._journal.say(
            f"LAMBENT_WARNING: environments of this version are not restored from a snapshot, because {obstacle}; "
            "each runs its own Init.\n"
        )

    def _end_init(self, status: str, error_type: str | None = None) -> None:
        if self._sandbox is not None:
            self._journal.drain(self._sandbox.log_fd, final=True)
        took_ns = time.monotonic_ns() - self._began_ns if self._began_ns else 0
        self._journal.init_end(took_ns, _PHASE, status, error_type)

    # --- ends -------------------------------------------------------------------------------------------

    def _exited(self, status: int, out_of_memory: bool) -> None:
        if self._is_ready.done():
            _log.warning("the template of %s ended: %s", self.spec.arn, exit_words(status))
            self._gone()
            return
        if self._init_error is not None:
            kind, body = self._init_error
            self._fail(_words(kind, body), "FunctionError.RuntimeInitError", kind)
        elif out_of_memory or self._memory.was_reason(status):
            kind = "Runtime.OutOfMemory"
            self._fail(f"{kind}: {exit_words(9)}", "FunctionError.InitResourceExhausted", kind)
        else:
            kind = "Runtime.ExitError"
            self._fail(f"{kind}: {exit_words(status)}", "FunctionError.RuntimeInitError", kind)

    def _fail(self, reason: str, reason_code: str, error_type: str) -> None:
        if not self._is_ready.done():
            self._end_init("error", error_type)
            self._is_ready.set_exception(SnapshotFailed(reason, reason_code))

    def _lost(self) -> None:
        """Its sandbox could not be made; it is released already."""
        self._sandbox = None
        self._fail("its sandbox could not be made; the server's log says why", "InternalError", "Sandbox.Failure")

    def _on_link_lost(self, error: FrameError | None) -> None:
        """The process has ended, which its sandbox says; or it wrote what is no frame."""
        if error is not None and self._sandbox is not None:
            self._sandbox.send({"op": "kill_runtime"})

    def _gone(self) -> None:
        """After Init: the process is no more, or its sandbox."""
        pool, self.pool = self.pool, None
        if pool is not None:
            self._retire(pool)
            self._worker.template_lost(self)

    def _retire(self, pool: RuntimePool) -> None:
        pool.on_empty = self._close_sandbox
        self._worker.sandboxes.drop_template(pool)
        if not pool.alive:
            self._close_sandbox()

    def close(self) -> None:
        """The version is gone. The process stays for as long as environments that were restored from it run."""
        pool, self.pool = self.pool, None
        if pool is not None:
            self._retire(pool)

    def end_now(self) -> None:
        self.close()
        self._close_sandbox()

    def _close_sandbox(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            self._journal.drain(sandbox.log_fd, final=True)
            self._memory.detach()
            self._worker.loop.remove_reader(sandbox.log_fd)
            self._worker.sandboxes.release(sandbox)
        if self._number >= 0:
            self._worker.sandboxes.free_template(self._number)
            self._number = -1

    def _on_log_readable(self) -> None:
        if self._sandbox is not None and not self._journal.on_readable(self._sandbox.log_fd):
            self._worker.loop.remove_reader(self._sandbox.log_fd)


def _address_of(sandbox: Sandbox) -> str:
    """Value of AWS_LAMBDA_RUNTIME_API during Init. Nothing answers there: no extension runs beside a template."""
    with socket.socket(fileno=sandbox.api_fd) as listener:
        sandbox.api_fd = -1
        host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


def _words(kind: str, body: str) -> str:
    try:
        error = json.loads(body)
        return f"{error['errorType']}: {error['errorMessage']}"
    except (ValueError, KeyError, TypeError):
        return kind
