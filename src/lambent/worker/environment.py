"""One execution environment on this host: its sandbox, its runtime process of the moment, its extensions.

It carries out the scheduler's commands and turns what happens into facts. It decides nothing about requests; whatever
the runtime does (exits, is killed, closes its descriptors, writes garbage), the request it had ends in exactly one
`on_ended`, and the sandbox is either whole again (ResetDone, InitFailed) or gone (EnvironmentDied).

    start ──> waiting for a sandbox ──> Init ──> idle <──> busy
                                          │        reset: everything killed, next dispatch starts a new one (reinit)

A runtime is spoken with over frames (Python) or the HTTP Runtime API; extensions always over HTTP (worker/api). Init
and an invocation are over when the runtime and every extension wait for what comes next.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from lambent.core.events import EnvironmentDied, EnvironmentReady, EnvironmentStarted, InitFailed, ResetDone
from lambent.model.function import DebugSpec, VersionSpec
from lambent.model.invocation import InitializationType, Outcome
from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.wire.frames import Frame, FrameError, FrameKind, encode
from lambent.worker.answers import ERROR_FAMILIES, TOO_LARGE, Answer
from lambent.worker.api.interface import Admits, ApiFacts
from lambent.worker.api.server import Api
from lambent.worker.freezer import FREEZE_AFTER_NS
from lambent.worker.interface import EnvironmentInfo, Invocation, InvocationResult, StreamSource
from lambent.worker.journal import Journal, now_ms
from lambent.worker.link import FrameLink
from lambent.worker.memory import MemoryAccount
from lambent.worker.report import PlatformLines, Restore, error_body, exit_words

if TYPE_CHECKING:
    from lambent.worker.local import LocalWorker
    from lambent.worker.sandboxes import Sandbox

_ANSWERS = frozenset((FrameKind.RESULT, FrameKind.ERROR, FrameKind.TOO_LARGE))
#: Answers to no running request that one runtime process may send before it is stopped.
_STALE_ANSWERS_MAX = 64
#: An answer waits so long for its environment to be ready for the next request, then it goes out alone.
_SETTLE_S = 0.0015
#: What is left of a request without a deadline, as the function sees it: a day.
TIME_LEFT_MAX_NS = 86_400 * 1_000_000_000
#: Shutdown budgets (fact sheet 2.4) and the runtime's part of them.
_SHUTDOWN_EXTERNAL_S, _SHUTDOWN_INTERNAL_S, _SHUTDOWN_RUNTIME_S = 2.0, 0.5, 0.3
_LOST_REASON = "Runtime exited without providing a reason"


class Environment:
    """See the module's head. Made by LocalWorker.start; all methods run on the event-loop thread. An ApiOwner."""

    __slots__ = (
        "_answer",
        "_api",
        "_busy_since_ns",
        "_cold",
        "_deadline_epoch_ms",
        "_deadline_ns",
        "_exit_error",
        "_expired",
        "_frozen",
        "_frozen_at_ns",
        "_gathered",
        "_gathered_bytes",
        "_generation",
        "_init_error",
        "_init_ns",
        "_init_started_ns",
        "_invocation",
        "_journal",
        "_kill_told",
        "_link",
        "_memory",
        "_not_restored",
        "_on_gone",
        "_phase",
        "_reinit",
        "_restored_ns",
        "_restores",
        "_sandbox",
        "_settle_timer",
        "_shutdown_timer",
        "_shutdown_told",
        "_speaks_frames",
        "_stale_answers",
        "_stopping",
        "_stream",
        "_uses_api",
        "_winding_down",
        "_worker",
        "api_address",
        "debugger",
        "id",
        "idle_since_ns",
        "initialization_type",
        "notes",
        "patience_ns",
        "spec",
        "stream_name",
    )

    _journal_class: ClassVar[type[Journal]] = Journal

    def __init__(
        self,
        worker: LocalWorker,
        number: int,
        spec: VersionSpec,
        initialization_type: InitializationType = InitializationType.ON_DEMAND,
    ) -> None:
        self.id = number
        self.spec = spec
        #: What the function is told; a restored one is told otherwise.
        self.initialization_type = initialization_type
        today = time.strftime("%Y/%m/%d", time.gmtime())
        # Beside others in a custom group the stream's name says whose it is.
        owner = "" if spec.log_group == f"/aws/lambda/{spec.key.name}" else spec.key.name
        self.stream_name = f"{today}/{owner}[{spec.version}]{uuid.uuid4().hex}"
        self.api_address = ""
        self.idle_since_ns = self._frozen_at_ns = 0
        self.patience_ns = FREEZE_AFTER_NS
        self._worker = worker
        self._journal = self._journal_class(
            PlatformLines(spec, initialization_type), worker.log_streams.open(spec, self.stream_name)
        )
        self._memory = MemoryAccount(spec.memory_mib)
        self._sandbox: Sandbox | None = None
        self._api: Api | None = None
        self._link: FrameLink | None = None
        self._speaks_frames = True
        #: Whether invocations concern the API: an HTTP runtime, or extensions that are told of them.
        self._uses_api = False
        self._generation = 0
        self._phase = "init"  # init | ready | gone: of the runtime process; dead: of the sandbox
        self._stale_answers = 0
        self._invocation: Invocation | None = None
        self._answer: Answer | None = None
        self._stream = ""  # "", "sink" or "gathered" while a streamed answer runs
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._reinit = self._cold = False
        #: SnapStart: the sandbox holds a runtime process to be restored; what the runtime says that took; it failed.
        self._restores = self._not_restored = False
        self._restored_ns = 0
        self._init_error: tuple[str, bytes] | None = None
        self._exit_error = ("", "")
        self._init_ns = 0
        self._init_started_ns = self._busy_since_ns = 0
        self._deadline_epoch_ms = self._deadline_ns = 0
        #: Where a debugger attaches, and what the log should say before Init: see worker/debugging.py.
        self.debugger: DebugSpec | None = None
        self.notes: list[str] = []
        self._stopping = self._expired = self._frozen = self._winding_down = self._shutdown_told = self._kill_told = (
            False
        )
        self._on_gone: Callable[[], None] | None = None
        self._settle_timer: asyncio.TimerHandle | None = None
        self._shutdown_timer: asyncio.TimerHandle | None = None

    # --- starting ---------------------------------------------------------------------------------------

    def attach(self, sandbox: Sandbox) -> None:
        """The sandbox stands, empty: make it this version's and begin Init."""
        if self._stopping:
            self._worker.sandboxes.release(sandbox)
            return
        self._sandbox = sandbox
        self._restores = sandbox.restores
        if self._restores:
            self._journal.lines = PlatformLines(self.spec, InitializationType.SNAP_START)
        self._speaks_frames = self._worker.speaks_frames(self.spec, sandbox)
        self._memory.attach(sandbox)
        sandbox.on_message = self._on_message
        self._worker.loop.add_reader(sandbox.log_fd, self._on_log_readable)
        self._open_api(sandbox)
        for warning in () if self._restores else (*self._worker.warnings(self.spec, sandbox), *self.notes):
            self._journal.say(warning)
        self._run(self._worker.assignment(self.spec, sandbox, self.debugger is not None))

    def _open_api(self, sandbox: Sandbox) -> None:
        listener = socket.socket(fileno=sandbox.api_fd)
        sandbox.api_fd = -1
        address: tuple[str, int] = listener.getsockname()
        key = self.spec.key
        facts = ApiFacts(key.name, self.spec.version, self.spec.handler, key.account)
        admits, may_deliver = self._worker.own_connections(sandbox, address)
        self._api = self._make_api(listener, facts, admits, address[0], may_deliver)
        self._journal.telemetry = self._api
        self.api_address = self._api.address

    def _make_api(
        self,
        listener: socket.socket,
        facts: ApiFacts,
        admits: Admits | None,
        address: str,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> Api:
        return Api(self._worker.loop, listener, self, facts, admits, address, may_deliver=may_deliver)

    def _run(self, assign: dict[str, Any] | None) -> None:
        """Start the processes of the function in the sandbox."""
        assert self._sandbox is not None
        assert self._api is not None
        self._generation += 1
        self._phase = "init"
        self._init_error = None
        self._exit_error = ("", "")
        self._stale_answers = 0
        self._expired = self._winding_down = self._shutdown_told = self._kill_told = False
        self._memory.begin()
        self._api.begin(not self._speaks_frames)
        self._journal.telemetry = self._api
        self._uses_api = not self._speaks_frames
        if self._restores:
            self._journal.restore_start(self._worker.runtime_version(self._sandbox), self._reinit)
        elif not self.spec.image:
            self._journal.init_start(self._worker.runtime_version(self._sandbox), "invoke" if self._reinit else "init")
        self._init_started_ns = time.monotonic_ns()
        self._open_link()
        message = {
            "op": "run",
            "generation": self._generation,
            "assign": assign,
            **self._worker.orders(self, self._sandbox),
        }
        self._order(message)
        if not self._reinit:
            self._worker.fact(EnvironmentStarted(self.id))

    def _open_link(self) -> None:
        """A parked sandbox came with its link; a runtime process made anew brings one with `started`."""
        link = self._sandbox.take_link() if self._sandbox is not None else None
        if link is None:
            return
        if not self._speaks_frames:  # its process gives way to one that the function brings
            for descriptor in link:
                os.close(descriptor)
        else:
            self._link = FrameLink(self._worker.loop, link, self._on_frame, self._on_link_lost)

    def _order(self, message: dict[str, Any]) -> None:
        if self._frozen:
            self._thaw()
        if self._sandbox is not None:
            self._sandbox.send(message)

    # --- the sandbox's messages -------------------------------------------------------------------------

    def _on_message(self, message: dict[str, Any] | None) -> None:
        if message is None or message["op"] == "failed":
            self._die()  # gone, or it could not be made this version's: nothing of it is of use
            return
        if message["generation"] != self._generation:
            return
        op = message["op"]
        if op == "started":
            self._open_link()
        elif op == "extensions":
            self._extensions_started(message["names"], message["failed"])
        elif op == "exited":
            self._exited(message)
        elif op == "extension_exited":
            self._extension_exited(message["name"], message["status"])
        elif op == "killed":
            self._all_gone()

    def _exited(self, message: dict[str, Any]) -> None:
        """The runtime process is gone; without extensions, so is all that it started."""
        if self._phase in ("gone", "dead"):
            return
        if self._link is not None:
            self._link.drain()
        in_init = self._phase == "init"
        self._phase = "gone"
        self._close_link()
        self._drain_logs(final=True)
        if self._on_gone is not None or self._winding_down:
            self._after_runtime()
            return
        if message["error"]:
            self._exit_error = (message["error_type"], message["error"])
        error_type, body = self._init_error or self._exit_reason(message["status"], message["out_of_memory"])
        self._failed(in_init, error_type, body)

    def _exit_reason(self, status: int, out_of_memory: bool) -> tuple[str, bytes]:
        kind, words = self._exit_error
        if not words:
            if out_of_memory or self._memory.was_reason(status):
                kind, words = "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
            else:
                words = exit_words(status)
        kind = kind or "Runtime.ExitError"
        return kind, self._platform_error(kind, words)

    def _platform_error(self, kind: str, words: str) -> bytes:
        request_id = self._invocation.request_id if self._invocation else ""
        return error_body(kind, f"RequestId: {request_id} Error: {words}")

    def _failed(self, in_init: bool, error_type: str, body: bytes) -> None:
        """Init or the invocation came to nothing, by the runtime's end or an extension's."""
        if in_init:
            shown = (
                error_type if "." in error_type and error_type.split(".")[0] in ERROR_FAMILIES else "Runtime.Unknown"
            )
            self._init_end("error", shown)
            self._not_restored = self._restores
            if not self._reinit:
                self._wind_down("failure", lambda: self._worker.fact(InitFailed(self.id)))
                return
            if self._invocation is not None and not self._restores:
                self._begin(self._invocation)
            error_type = shown
        invocation = self._invocation
        if invocation is not None and in_init and self._restores:
            self._wind_down("failure", lambda: self._refuse(invocation))
            return
        if self._invocation is None:
            self._wind_down("failure", self._die)  # it ended between requests: there is nothing to give back
            return
        outcome = Outcome.INIT_ERROR if in_init else Outcome.RUNTIME_EXIT
        answer = self._answer or Answer(outcome, body, error_type, "application/json", self._stream == "sink")
        answer.outcome, answer.status, answer.error_type = outcome, "error", error_type
        self._answer = answer
        if self._phase == "gone" and not self._has_extensions:
            self._finish()
        else:
            self._send_answer()
            self._wind_down("failure", self._finish)

    def _init_end(self, status: str, error_type: str | None = None) -> None:
        """Write the end of Init, or of the restore."""
        self._init_ns = time.monotonic_ns() - self._init_started_ns
        if self._restores:
            self._journal.restore_end(self._init_ns, self._reinit, status, error_type)
        else:
            self._journal.init_end(self._init_ns, "invoke" if self._reinit else "init", status, error_type)

    # --- extensions -------------------------------------------------------------------------------------

    @property
    def _has_extensions(self) -> bool:
        return self._api is not None and bool(self._api.extensions)

    def _extensions_started(self, names: Sequence[str], failed: dict[str, str]) -> None:
        assert self._sandbox is not None
        assert self._api is not None
        if self._generation == 1:
            self._worker.loop.add_reader(self._sandbox.extension_log_fd, self._on_extension_log_readable)
        self._api.expect([name for name in names if name not in failed])
        for name, reason in failed.items():
            self._extension_failed(name, "Extension.LaunchError", reason)
            return

    def on_registered(self) -> None:
        if self._phase == "init" and not self._winding_down:
            self._order({"op": "runtime"})

    def on_extension_ready(self, name: str, events: Sequence[str]) -> None:
        self._uses_api = True
        self._journal.other("extension", "DEBUG", {"name": name, "state": "Ready", "events": list(events)})

    def on_extension_error(self, name: str, error_type: str, in_init: bool) -> None:
        self._extension_failed(name, error_type, f"extension {name} reported {error_type}")

    def on_subscribed(self, name: str, types: Sequence[str]) -> None:
        record = {"name": name, "state": "Subscribed", "types": list(types)}
        self._journal.other("telemetrySubscription", "INFO", record)

    def _extension_exited(self, name: str, status: int) -> None:
        if self._api is not None:
            self._api.forget_extension(name)
        if self._winding_down:
            if self._phase == "gone" and not self._external_left():
                self._kill_rest()
            return
        words = f"exit status {status >> 8}" if not status & 0x7F else exit_words(status).rpartition("error: ")[2]
        self._extension_failed(name, "Extension.Crash", words)

    def _extension_failed(self, name: str, error_type: str, words: str) -> None:
        if self._winding_down or self._stopping or self._phase in ("gone", "dead"):
            return
        in_init = self._phase == "init"
        record = {"name": name, "state": "Failed", "events": [], "errorType": error_type}
        self._journal.other("extension", "WARN", record)
        self._failed(in_init, error_type, self._platform_error(error_type, words))

    def _external_left(self) -> bool:
        return self._api is not None and bool(self._api.external)

    # --- the runtime's frames ---------------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        kind = frame.kind
        if kind in _ANSWERS:
            self._answered(kind, frame)
        elif kind == FrameKind.READY and self._phase == "init":
            assert self._api is not None
            if frame.header.isdigit():
                self._restored_ns = int(frame.header[:18])
            self._api.runtime_waiting()
        elif kind == FrameKind.INIT_ERROR and self._phase == "init":
            self._init_error = (frame.header.decode("utf-8", "replace"), frame.payload)
        else:
            self._on_link_lost(FrameError(f"a frame of kind {kind} where none of that kind can come"))

    def _answered(self, kind: int, frame: Frame) -> None:
        """An answer counts only for the request that is running: a forked child that returns from the handler too
        answers again, maybe while the next request runs. AWS refuses such answers and goes on; so do we, for a while.
        """
        invocation = self._invocation
        running = invocation.request_id.encode() if invocation is not None and self._phase == "ready" else None
        if running is None or self._answer is not None or not frame.header.startswith(running):
            self._stale_answers += 1
            if self._stale_answers > _STALE_ANSWERS_MAX:
                self._on_link_lost(FrameError(f"{self._stale_answers} answers to requests that are not running"))
            return
        if self._memory.told_by_runtime:
            self._note_rss(frame.header)
        if kind == FrameKind.RESULT:
            answer = Answer(Outcome.SUCCESS, frame.payload, None, "application/json", False)
        elif kind == FrameKind.ERROR:
            answer = Answer(Outcome.ERROR, frame.payload, None, "application/json", False)
        else:
            answer = Answer(Outcome.ERROR, TOO_LARGE, "Function.ResponseSizeTooLarge", "application/json", False)
        self._answer = answer
        if self._uses_api:
            assert self._api is not None
            self._api.runtime_waiting()
            self._hold_answer()
        else:
            self._finish()

    def _note_rss(self, header: bytes) -> None:
        """Without a control group the runtime tells its peak resident size, in KiB, as the header's last field."""
        _, _, kib = header.rpartition(b"\0")
        if kib.isdigit():
            self._memory.note_kib(int(kib[:12]))

    def _close_link(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _on_link_lost(self, error: FrameError | None) -> None:
        """The link is of no use any more. The runtime usually has exited, which the sandbox will say; if it only closed
        its descriptors or wrote garbage, it is killed and the same message comes."""
        if self._phase in ("gone", "dead") or self._link is None:
            return
        if error is not None:
            self._link.close()
            self._exit_error = ("", _LOST_REASON)
            self._journal.say(f"LAMBENT: the runtime was stopped because it broke the protocol of its link: {error}\n")
            self._order({"op": "kill_runtime"})
        else:
            self._worker.loop.call_later(0.05, self._kill_if_still, self._generation)

    def _kill_if_still(self, generation: int) -> None:
        """The link closed and the process did not end by itself: it closed its descriptors and lives on."""
        if generation == self._generation and self._phase not in ("gone", "dead") and not self._stopping:
            if not self._exit_error[1]:
                self._exit_error = ("", _LOST_REASON)
            self._order({"op": "kill_runtime"})

    # --- the HTTP Runtime API ---------------------------------------------------------------------------

    def on_init_error(self, error_type: str, body: bytes) -> None:
        """The runtime usually exits by itself now; it is not waited for."""
        if self._phase == "init":
            self._init_error = (error_type, body)
            self._worker.loop.call_later(0.05, self._kill_if_still, self._generation)

    def on_response(self, payload: bytes, content_type: str) -> None:
        self._http_answer(Answer(Outcome.SUCCESS, payload, None, content_type, False))

    def on_response_too_large(self) -> None:
        self._http_answer(Answer(Outcome.ERROR, TOO_LARGE, "Function.ResponseSizeTooLarge", "application/json", False))

    def on_error(self, error_type: str, body: bytes) -> None:
        shown = error_type if error_type.startswith("Runtime.") else None
        self._http_answer(Answer(Outcome.ERROR, body, shown, "application/json", False))

    def _http_answer(self, answer: Answer) -> None:
        if self._invocation is not None and self._answer is None and self._phase == "ready":
            self._answer = answer
            self._hold_answer()

    def on_stream_start(self, content_type: str, source: StreamSource) -> None:
        if self._invocation is None or self._answer is not None:
            return
        sink = self._invocation.sink
        if sink is not None:
            self._stream = "sink"
            sink.on_start(content_type, source)
        else:
            self._stream = "gathered"
            self._gathered, self._gathered_bytes = [content_type.encode()], 0

    def on_stream_chunk(self, data: bytes) -> None:
        if self._stream == "sink":
            assert self._invocation is not None
            assert self._invocation.sink is not None
            self._invocation.sink.on_chunk(data)
        elif self._stream == "gathered":
            self._gathered_bytes += len(data)
            if self._gathered_bytes <= RESPONSE_MAX_BYTES:
                self._gathered.append(data)

    def on_stream_end(self, error_type: str | None, error_body: bytes) -> None:
        stream = self._stream
        if not stream or self._answer is not None:
            return
        streamed = stream == "sink"
        if error_type is not None:
            answer = Answer(Outcome.ERROR, error_body, error_type, "application/json", streamed)
        elif streamed:
            answer = Answer(Outcome.SUCCESS, b"", None, "", True)
        elif self._gathered_bytes > RESPONSE_MAX_BYTES:
            answer = Answer(Outcome.ERROR, TOO_LARGE, "Function.ResponseSizeTooLarge", "application/json", False)
        else:
            content_type, *chunks = self._gathered
            answer = Answer(Outcome.SUCCESS, b"".join(chunks), None, content_type.decode(), False)
        self._end_stream()
        self._http_answer(answer)

    def _end_stream(self) -> None:
        self._stream = ""
        self._gathered, self._gathered_bytes = [], 0

    def on_restore_next(self) -> None:
        """No runtime on the HTTP API is told that it is of a SnapStart version."""

    def on_restore_error(self, error_type: str, body: bytes) -> None:
        """See on_restore_next."""

    # --- settled ----------------------------------------------------------------------------------------

    def on_settled(self) -> None:
        """The runtime and every extension wait for what comes next."""
        if self._winding_down:
            return
        if self._phase == "init":
            self._ready()
        elif self._answer is not None and self._phase == "ready":
            self._finish()

    def _ready(self) -> None:
        assert self._api is not None
        self._phase = "ready"
        self._drain_logs()
        self._init_end("success")
        if not self._api.has_subscribers:
            self._journal.telemetry = None
        self._uses_api = not self._speaks_frames or bool(self._api.extensions)
        if self._reinit:
            self._reinit = False
            if self._invocation is not None:
                self._begin(self._invocation)
                self._send_invocation(self._invocation)
            return
        self._worker.rests(self)
        self._worker.fact(EnvironmentReady(self.id))

    # --- one invocation ---------------------------------------------------------------------------------

    def dispatch(self, invocation: Invocation, deadline_ns: int, cold: bool, reinit: bool) -> None:
        now_ns = time.monotonic_ns()
        self._worker.works(self)
        if self._frozen:
            self.patience_ns = self._worker.freezer.patience_ns(self.patience_ns, now_ns - self._frozen_at_ns)
            self._thaw()
        self._invocation = invocation
        self._busy_since_ns = now_ns
        self._cold = cold
        self._deadline_ns = deadline_ns
        self._deadline_epoch_ms = (time.time_ns() + min(deadline_ns - now_ns, TIME_LEFT_MAX_NS)) // 1_000_000
        self._journal.begin_tail(invocation.wants_tail)
        if self._not_restored:
            self._refuse(invocation)
            return
        if reinit:
            self._reinit = True
            self._run(None)
            return
        self._begin(invocation)
        self._send_invocation(invocation)

    def _refuse(self, invocation: Invocation) -> None:
        """The after-restore hooks failed: the request ends, and the next one tries anew."""
        self._not_restored = self._reinit = False
        self._invocation = self._answer = None
        result = InvocationResult(b"", True, not_restored=True)
        self._worker.listener.on_ended(self.id, invocation.request, Outcome.INIT_ERROR, result)

    def _begin(self, invocation: Invocation) -> None:
        self._journal.start(invocation.request_id, invocation.tenant_id)

    def _send_invocation(self, invocation: Invocation) -> None:
        if self._uses_api:
            assert self._api is not None
            self._api.invoke(invocation, self._deadline_epoch_ms)
        if not self._speaks_frames:
            return
        header = (
            f"{invocation.request_id}\0{self._deadline_epoch_ms}\0{invocation.arn}\0{invocation.trace_id}\0"
            f"{invocation.client_context}\0{invocation.cognito_identity}\0{invocation.tenant_id}"
        ).encode()
        try:
            frame = encode(FrameKind.INVOKE, header, invocation.payload)
        except struct.error:  # a header over 64 KiB cannot pass the listener; refuse rather than hang
            self._exit_error = ("", "request header too large")
            self._order({"op": "kill_runtime"})
            return
        if self._link is not None:
            self._link.send(frame)

    def _hold_answer(self) -> None:
        """There is an answer, and something in the environment is still busy: usually for microseconds."""
        answer, invocation = self._answer, self._invocation
        assert answer is not None
        assert invocation is not None
        self._journal.runtime_done(
            invocation.request_id, time.monotonic_ns() - self._busy_since_ns, answer.status, answer.error_type
        )
        if not invocation.wants_tail:
            self._settle_timer = self._worker.loop.call_later(_SETTLE_S, self._send_answer)

    def _send_answer(self) -> None:
        """Answer the client before the environment is done with the invocation."""
        answer, invocation = self._answer, self._invocation
        if answer is not None and invocation is not None and not answer.is_sent and not invocation.wants_tail:
            answer.is_sent = True
            self._worker.listener.on_response(self.id, invocation.request, self._result(answer))

    def _result(self, answer: Answer, duration_ns: int = 0) -> InvocationResult:
        failed = answer.outcome is not Outcome.SUCCESS
        tail = self._journal.take_tail()
        return InvocationResult(answer.payload, failed, tail, answer.content_type, answer.streamed, duration_ns)

    def _cancel_settling(self) -> None:
        if self._settle_timer is not None:
            self._settle_timer.cancel()
            self._settle_timer = None

    def _finish(self) -> None:
        """The invocation is over: END, REPORT, and the answer. Past its deadline it is the scheduler's: see expire."""
        invocation, answer = self._invocation, self._answer
        assert invocation is not None
        assert answer is not None
        now_ns = time.monotonic_ns()
        if now_ns >= self._deadline_ns:
            return
        self._cancel_settling()
        self._drain_logs()
        self._journal.end_line()
        duration_ns = now_ns - self._busy_since_ns
        self._close_report(answer.status, answer.error_type, duration_ns)
        self._invocation = self._answer = None
        self._reinit = False
        if self._stream:
            self._end_stream()
        if self._phase == "ready":
            self._worker.rests(self)
        self._worker.listener.on_ended(self.id, invocation.request, answer.outcome, self._result(answer, duration_ns))

    def expire(self, request_id: str, timeout_s: float) -> InvocationResult:
        """The function timeout passed. The caller resets or stops this environment right after."""
        message = f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds"
        body = error_body("Sandbox.Timedout", message)
        invocation = self._invocation
        if invocation is None:  # its answer crossed the deadline on the way to the scheduler
            return InvocationResult(body, True, self._journal.take_tail())
        self._cancel_settling()
        self._drain_logs(final=True)
        if self._phase == "init" and self._reinit:
            self._init_end("timeout")
            self._begin(invocation)
        self._close_report("timeout", None, int(timeout_s * 1e9))
        answer = self._answer or Answer(
            Outcome.TIMEOUT, body, "Sandbox.Timedout", "application/json", self._stream == "sink"
        )
        self._invocation = self._answer = None
        self._reinit = False
        if self._stream:
            self._end_stream()
        self._expired = True
        return self._result(answer)

    def _close_report(self, status: str, error_type: str | None, duration_ns: int) -> None:
        invocation = self._invocation
        assert invocation is not None
        if not self._uses_api:
            self._journal.runtime_done(invocation.request_id, duration_ns, status, error_type)
        used_mib = self._memory.used_mib(duration_ns, error_type == "Runtime.OutOfMemory")
        init_ns = self._init_ns if self._cold and not self._restores else None
        restore = None
        if self._cold and self._restores:
            billed_ns = min(self._restored_ns, self._init_ns)
            restore = Restore(self._init_ns, -(-billed_ns // 1_000_000))
        self._journal.report(
            invocation.request_id, duration_ns, used_mib, init_ns, status, error_type, restore, invocation.tenant_id
        )

    # --- frozen between invocations ---------------------------------------------------------------------

    def freeze(self) -> None:
        """No process of the sandbox makes progress until the next request, or the end."""
        if self.debugger is not None:
            return
        if self._sandbox is not None and not self._frozen and self._invocation is None and self._phase == "ready":
            self._frozen = self._worker.freezer.freeze(self._sandbox)
            self._frozen_at_ns = time.monotonic_ns()

    def _thaw(self) -> None:
        self._frozen = False
        if self._sandbox is not None:
            self._worker.freezer.thaw(self._sandbox)

    # --- ending -----------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Kill the runtime process and the extensions; ResetDone follows. Told during Init, it took too long."""
        if self._phase == "init" and not self._expired:
            self._init_end("timeout")
        self._reinit = False
        self._wind_down("timeout", lambda: self._worker.fact(ResetDone(self.id)))

    def _wind_down(self, reason: str, then: Callable[[], None]) -> None:
        """End every process of the sandbox but its first, the extensions after their SHUTDOWN event; then go on."""
        if self._phase == "dead":
            return
        self._on_gone = then
        if self._winding_down:
            return
        if self._phase == "gone" and not self._has_extensions:
            self._all_gone()
            return
        self._winding_down = True
        self._worker.works(self)
        if self._phase != "gone":
            if not self._has_extensions:
                self._kill_rest()
                return
            self._order({"op": "kill_runtime"})
        self._shut_extensions_down(reason)

    def _shut_extensions_down(self, reason: str) -> None:
        assert self._api is not None
        self._shutdown_told = True
        budget_s = _SHUTDOWN_EXTERNAL_S if self._api.external else _SHUTDOWN_INTERNAL_S
        told = self._api.shut_down(reason, now_ms() + int(budget_s * 1e3))
        if told:
            self._shutdown_timer = self._worker.loop.call_later(budget_s, self._kill_rest)
        else:
            self._kill_rest()

    def _after_runtime(self) -> None:
        """While winding down, the runtime process has ended."""
        if self._kill_told:
            return
        if not self._shutdown_told:
            if self._shutdown_timer is not None:
                self._shutdown_timer.cancel()
            self._shut_extensions_down("spindown")
        elif not self._external_left():
            self._kill_rest()

    def _kill_rest(self) -> None:
        if self._kill_told:
            return
        self._kill_told = True
        if self._shutdown_timer is not None:
            self._shutdown_timer.cancel()
            self._shutdown_timer = None
        self._order({"op": "kill"})

    def _all_gone(self) -> None:
        """Nothing runs in the sandbox any more."""
        if self._phase == "dead":
            return
        self._phase = "gone"
        self._winding_down = False
        self._close_link()
        self._drain_logs(final=True)
        then, self._on_gone = self._on_gone, None
        if then is not None:
            then()

    def stop(self) -> None:
        """End it all; EnvironmentDied follows, with extensions after at most 2 s."""
        if self._stopping:
            return
        self._stopping = True
        if self._phase == "init" and self._restores and not self._reinit:
            self._drain_logs(final=True)
            self._init_end("timeout")
        if self._sandbox is None:
            self._worker.forget(self)
            self._worker.fact(EnvironmentDied(self.id))
        elif self._has_extensions and self._phase == "ready":
            self._winding_down = True
            self._on_gone = self._die
            self._worker.works(self)
            self._order({"op": "terminate"})
            self._shutdown_timer = self._worker.loop.call_later(_SHUTDOWN_RUNTIME_S, self._runtime_overdue)
        else:
            self._die()

    def _runtime_overdue(self) -> None:
        self._shutdown_timer = None
        self._order({"op": "kill_runtime"})
        self._shut_extensions_down("spindown")

    def end_now(self) -> None:
        """Without ceremony: the server's patience is over."""
        self._die()

    def _die(self) -> None:
        if self._phase == "dead":
            return
        self._phase = "dead"
        self._stopping = True
        self._on_gone = None
        for timer in (self._shutdown_timer, self._settle_timer):
            if timer is not None:
                timer.cancel()
        self._worker.works(self)
        if self._frozen:
            self._thaw()
        self._close_link()
        if self._api is not None:
            self._api.close()
        if self._invocation is not None:
            self._lose_invocation()
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            self._journal.drain(sandbox.log_fd, final=True)
            self._memory.detach()
            self._worker.loop.remove_reader(sandbox.log_fd)
            if sandbox.extension_log_fd >= 0:
                self._worker.loop.remove_reader(sandbox.extension_log_fd)
            self._worker.sandboxes.release(sandbox)
        self._worker.forget(self)
        self._worker.fact(EnvironmentDied(self.id))

    def _lose_invocation(self) -> None:
        """The whole sandbox went away under a request: out of memory in its first process, or killed from outside."""
        kind, words = "Sandbox.Failure", "The execution environment was lost"
        if self._memory.new_oom_kills():
            kind, words = "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
        if self._answer is None:
            body = self._platform_error(kind, words)
            self._answer = Answer(Outcome.RUNTIME_EXIT, body, kind, "application/json", self._stream == "sink")
        self._finish()

    # --- logs -------------------------------------------------------------------------------------------

    def _drain_logs(self, final: bool = False) -> None:
        if self._sandbox is not None:
            self._journal.drain(self._sandbox.log_fd, final)

    def _on_log_readable(self) -> None:
        if self._sandbox is not None and not self._journal.on_readable(self._sandbox.log_fd):
            self._worker.loop.remove_reader(self._sandbox.log_fd)  # every writer is gone: the sandbox's end follows

    def _on_extension_log_readable(self) -> None:
        sandbox = self._sandbox
        if sandbox is not None and not self._journal.on_extension_readable(sandbox.extension_log_fd):
            self._worker.loop.remove_reader(sandbox.extension_log_fd)

    @property
    def is_spare(self) -> bool:
        """It waits for a request, and would be gone at once."""
        waits = self._phase == "ready" and self._invocation is None
        return waits and not self._stopping and not self._winding_down and not self._has_extensions

    def info(self) -> EnvironmentInfo:
        return EnvironmentInfo(self.spec.log_group, self.stream_name, self._memory.peak_bytes(), self._frozen)
