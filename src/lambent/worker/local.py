"""The worker in this process: the environments of this host by number, and what each of them is given to start with."""

from __future__ import annotations

import asyncio
import collections
import logging
import os
from typing import Any

from lambent.core.events import AnyEvent, EnvironmentDied, EnvironmentReady, InitFailed, ResetDone
from lambent.model.function import LogFormat, VersionSpec
from lambent.model.invocation import InitializationType
from lambent.model.limits import MEMORY_PER_VCPU_MIB, MIB, OPEN_FILES_MAX, PROCESSES_MAX
from lambent.worker.environment import Environment
from lambent.worker.interface import (
    CodeFolders,
    EnvironmentInfo,
    Invocation,
    InvocationResult,
    LogStreams,
    WorkerListener,
)
from lambent.worker.launcher import SandboxUnavailable
from lambent.worker.sandboxes import SLOTS, RuntimePool, Sandbox, Sandboxes

_log = logging.getLogger("lambent.worker")
#: Starts at one time, and how long one may count as such.
_STARTING_MAX = 8 * (os.cpu_count() or 1)
_STARTING_TURN_S = 0.25
_PATH = "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"
_LIBRARIES = "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib"


class LocalWorker:
    """Implements worker.interface.Worker."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        code: CodeFolders,
        log_streams: LogStreams,
        *,
        endpoint_url: str,
        hard_cpu: bool,
    ) -> None:
        self.sandboxes = sandboxes
        self.log_streams = log_streams
        self.loop = asyncio.get_running_loop()
        self.listener: WorkerListener
        self.endpoint_url = endpoint_url
        self._code = code
        self._hard_cpu = hard_cpu
        self._environments: dict[int, Environment] = {}
        #: Environments that are being started right now, and those that wait for their turn.
        self._starting: set[int] = set()
        self._waiting: collections.deque[Environment] = collections.deque(maxlen=SLOTS)
        self._at_hand: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- commands ---------------------------------------------------------------------------------------

    async def prepare(self, spec: VersionSpec) -> None:
        await asyncio.gather(self._code.ensure_unpacked(spec.code_sha256), self.sandboxes.pool(spec.runtime))
        self._at_hand.add(spec.code_sha256)

    def start(self, environment: int, spec: VersionSpec) -> None:
        made = Environment(self, environment, spec)
        self._environments[environment] = made
        if len(self._starting) < _STARTING_MAX:
            self._begin(made)
        else:
            self._waiting.append(made)

    def _begin(self, made: Environment) -> None:
        """A burst is started a few at a time: all at once, each would take as long as all, and Init has a limit."""
        self._starting.add(made.id)
        self.sandboxes.starting(+1)
        # A handler that waits in its Init must not hold up others for longer than a start usually takes.
        self.loop.call_later(_STARTING_TURN_S, self._started, made.id)
        pool = self.sandboxes.ready_pool(made.spec.runtime)
        if pool is not None and made.spec.code_sha256 in self._at_hand:
            self._take(made, pool)
            return
        task = self.loop.create_task(self._start_after_preparing(made))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _started(self, environment: int) -> None:
        """Its turn is over: it is ready, or gone, or slow."""
        if environment not in self._starting:
            return
        self._starting.discard(environment)
        self.sandboxes.starting(-1)
        while self._waiting and len(self._starting) < _STARTING_MAX:
            following = self._waiting.popleft()
            if following.id in self._environments:
                self._begin(following)

    async def _start_after_preparing(self, environment: Environment) -> None:
        try:
            await self.prepare(environment.spec)
            pool = await self.sandboxes.pool(environment.spec.runtime)
        except Exception as error:
            _log.error("environment %d of %s can not start: %s", environment.id, environment.spec.arn, error)
            if environment.id in self._environments:
                environment.stop()
            return
        if environment.id in self._environments:
            self._take(environment, pool)

    def _take(self, environment: Environment, pool: RuntimePool) -> None:
        try:
            self.sandboxes.take(pool, environment.attach, environment.stop)
        except SandboxUnavailable as error:
            _log.error("environment %d of %s can not start: %s", environment.id, environment.spec.arn, error)
            environment.stop()

    def dispatch(self, environment: int, invocation: Invocation, deadline_ns: int, cold: bool, reinit: bool) -> None:
        found = self._environments.get(environment)
        if found is not None:  # gone a moment ago: EnvironmentDied is on its way and ends the request
            found.dispatch(invocation, deadline_ns, cold, reinit)

    def expire(self, environment: int, request_id: str, timeout_s: float) -> InvocationResult:
        return self._environments[environment].expire(request_id, timeout_s)

    def reset(self, environment: int) -> None:
        found = self._environments.get(environment)
        if found is not None:
            found.reset()

    def stop(self, environment: int) -> None:
        found = self._environments.get(environment)
        if found is not None:
            found.stop()

    def info(self, environment: int) -> EnvironmentInfo | None:
        found = self._environments.get(environment)
        return None if found is None else found.info()

    # --- for environments -------------------------------------------------------------------------------

    def fact(self, event: AnyEvent) -> None:
        self.listener.on_fact(event)
        if isinstance(event, EnvironmentReady | InitFailed | ResetDone | EnvironmentDied):
            self._started(event.environment)

    def forget(self, environment: Environment) -> None:
        self._environments.pop(environment.id, None)

    def runtime_version(self, sandbox: Sandbox) -> str:
        """As INIT_START names it, e.g. `python:3.11.v7`: language, minor version, and the interpreter's patch level."""
        major, minor, patch = sandbox.zygote.version.split(".")
        return f"python:{major}.{minor}.v{patch}"

    def assignment(self, spec: VersionSpec, sandbox: Sandbox) -> dict[str, Any]:
        """What makes an empty sandbox one function version's; read by runtimes/python/environment.py.

        The interpreter is shared by all environments and charged to none; on AWS each has its own. So that a function
        has as much memory left here as there, the shared part is taken off the limit.
        """
        return {
            "code": spec.code_sha256,
            "tmp_mib": spec.tmp_mib,
            "memory_bytes": spec.memory_mib * MIB - sandbox.zygote.baseline_bytes,
            "vcpus": spec.memory_mib / MEMORY_PER_VCPU_MIB,
            "hard_cpu": self._hard_cpu,
            "processes_max": PROCESSES_MAX,
        }

    def runtime_order(self, environment: Environment, sandbox: Sandbox) -> dict[str, Any]:
        """What a runtime process is given; read by runtimes/python/bootstrap.py."""
        spec = environment.spec
        isolated = self.sandboxes.namespaces
        task_root = "/var/task" if isolated else str(self._code.unpacked_path(spec.code_sha256))
        rlimits = {"RLIMIT_NOFILE": OPEN_FILES_MAX, "RLIMIT_CORE": 0}
        if isolated:
            # Counted per user id, or per user namespace: either way this environment is counted alone.
            rlimits["RLIMIT_NPROC"] = PROCESSES_MAX
        if not self.sandboxes.has_cgroups:
            rlimits["RLIMIT_DATA"] = spec.memory_mib * MIB
        return {
            "handler": spec.handler,
            "task_root": task_root,
            "environ": self._environ(environment, task_root),
            "rlimits": rlimits,
            "measures_itself": sandbox.peak_fd < 0,
        }

    def _environ(self, environment: Environment, task_root: str) -> dict[str, str]:
        """The platform's variables around the function's own (fact sheet 2.5; the reserved ones always win)."""
        spec = environment.spec
        environ = {
            "TZ": ":UTC",
            "LANG": "en_US.UTF-8",
            "LC_CTYPE": "C.UTF-8",
            "SHLVL": "0",
            "PATH": _PATH,
            "LD_LIBRARY_PATH": _LIBRARIES,
            "PYTHONPATH": "/var/runtime",
            "PWD": task_root,
            "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
            "_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1",
            "_AWS_XRAY_DAEMON_PORT": "2000",
            "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
            # SDKs in the function talk to this server, in the function's own account.
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }
        if not self.sandboxes.namespaces:
            environ["PATH"] = os.environ.get("PATH", _PATH)
            del environ["LD_LIBRARY_PATH"]
        environ.update(spec.environment)
        environ.update(
            {
                "_HANDLER": spec.handler,
                "AWS_REGION": spec.key.region,
                "AWS_DEFAULT_REGION": spec.key.region,
                "AWS_EXECUTION_ENV": f"AWS_Lambda_{spec.runtime}",
                "AWS_ACCESS_KEY_ID": spec.key.account,
                "AWS_SECRET_ACCESS_KEY": "lambent",
                "AWS_SESSION_TOKEN": "lambent",
                "AWS_LAMBDA_FUNCTION_NAME": spec.key.name,
                "AWS_LAMBDA_FUNCTION_VERSION": spec.version,
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_mib),
                "AWS_LAMBDA_LOG_GROUP_NAME": spec.log_group,
                "AWS_LAMBDA_LOG_STREAM_NAME": environment.stream_name,
                "AWS_LAMBDA_INITIALIZATION_TYPE": InitializationType.ON_DEMAND,
                "LAMBDA_TASK_ROOT": task_root,
                "LAMBDA_RUNTIME_DIR": "/var/runtime",
            }
        )
        if spec.log_format == LogFormat.JSON:
            environ["AWS_LAMBDA_LOG_FORMAT"] = "JSON"
            environ["AWS_LAMBDA_LOG_LEVEL"] = spec.application_log_level or "INFO"
        return environ

    # --- ending -----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End what is left. The data plane has drained before."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for environment in list(self._environments.values()):
            environment.stop()
        self.sandboxes.close()
