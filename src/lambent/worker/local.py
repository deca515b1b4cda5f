"""The worker in this process: the environments of this host by number, and what each of them is given to start with."""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

from lambent.core.events import AnyEvent, EnvironmentDied, EnvironmentReady, InitFailed, ResetDone
from lambent.model.function import DebugSpec, LogFormat, VersionSpec
from lambent.model.invocation import InitializationType
from lambent.model.limits import MEMORY_PER_VCPU_MIB, MIB, PROCESSES_MAX
from lambent.model.names import LATEST, FunctionKey
from lambent.sandbox.runtimes import IMAGE, Runtime, fill, row_of
from lambent.worker.api.interface import Admits
from lambent.worker.api.peer import admit_inode, admit_uid, deliver_inode, deliver_uid
from lambent.worker.debugging import DEBUGGER_BYTES, Debugging
from lambent.worker.environment import Environment
from lambent.worker.freezer import Freezer
from lambent.worker.interface import (
    CodeFolders,
    EnvironmentInfo,
    Invocation,
    InvocationResult,
    LogStreams,
    WorkerListener,
)
from lambent.worker.launcher import SandboxUnavailable
from lambent.worker.report import timeout_body
from lambent.worker.sandboxes import SLOTS, RuntimePool, Sandbox, Sandboxes
from lambent.worker.shared_environment import SharedEnvironment
from lambent.worker.template import Template

_log = logging.getLogger("lambent.worker")
#: Starts at one time, and how long one may count as such.
_STARTING_MAX = 8 * (os.cpu_count() or 1)
_STARTING_TURN_S = 0.25
_PATH = "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin"
#: The longest that extensions may take to shut down, and a little.
_SHUTDOWN_MAX_S = 2.5
_NOT_FOR_EXTENSIONS = frozenset(
    [
        *("AWS_EXECUTION_ENV", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME", "AWS_XRAY_CONTEXT_MISSING"),
        *("AWS_XRAY_DAEMON_ADDRESS", "LAMBDA_RUNTIME_DIR", "LAMBDA_TASK_ROOT"),
    ]
)
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
        freeze: bool = True,
    ) -> None:
        self.sandboxes = sandboxes
        self.log_streams = log_streams
        self.loop = asyncio.get_running_loop()
        self.listener: WorkerListener
        self.endpoint_url = endpoint_url
        self._code = code
        self._hard_cpu = hard_cpu
        self.freezer = Freezer(self.loop, freeze)
        self.rests = self.freezer.rests
        self.works = self.freezer.works
        self._environments: dict[int, Environment] = {}
        #: Environments that are being started right now, and those that wait for their turn.
        self._starting: set[int] = set()
        self._waiting: collections.deque[Environment] = collections.deque(maxlen=SLOTS)
        #: Digests of code and layers, by version, that lie unpacked on this host.
        self._at_hand: set[tuple[str, ...]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: SnapStart: what the versions that may be invoked are restored from.
        self._templates: dict[tuple[str, str], Template] = {}
        self._tell_lost: Callable[[VersionSpec], None] = lambda _: None
        self.debugging = Debugging(self)

    # --- commands ---------------------------------------------------------------------------------------

    async def prepare(self, spec: VersionSpec) -> None:
        await asyncio.gather(self._have_files(spec), self.sandboxes.pool(_runtime_of(spec)))

    async def _have_files(self, spec: VersionSpec) -> None:
        if spec.image is not None:
            if not self.sandboxes.namespaces:
                raise SandboxUnavailable("Container images need the namespace sandbox; see `lambent doctor`.")
            await self._code.ensure_image(spec.image.digest)
        else:
            await self._code.ensure_unpacked(spec.code_sha256)
        if spec.layers:
            await self._code.ensure_layers(spec.layers)
        self._at_hand.add(self._files_of(spec))

    def _files_of(self, spec: VersionSpec) -> tuple[str, ...]:
        return (spec.image.digest if spec.image is not None else spec.code_sha256, *spec.layers)

    async def snapshot(self, spec: VersionSpec) -> None:
        await self._have_files(spec)
        template = Template(self, spec)
        obstacle = self._obstacle(spec)
        if obstacle:
            template.give_up(obstacle)
        else:
            await template.make()
        key = _template_key(spec)
        previous = self._templates.get(key)
        self._templates[key] = template
        if previous is not None:
            previous.close()

    def _obstacle(self, spec: VersionSpec) -> str:
        """What of this host or this version rules a snapshot out."""
        row = row_of(spec.runtime)
        if row is None or not row.forks:
            return f"Lambent makes none of {spec.runtime}"
        if spec.environment.keys() & row.fixed_at_start:
            return "AWS_LAMBDA_EXEC_WRAPPER is set"
        if not self.sandboxes.can_restore:
            return "this server runs without root, or without namespaces"
        return ""

    def has_snapshot(self, spec: VersionSpec) -> bool:
        return self._template_pool(spec) is not None

    def drop_snapshot(self, spec: VersionSpec) -> None:
        template = self._templates.pop(_template_key(spec), None)
        if template is not None:
            template.close()

    def on_snapshot_lost(self, told: Callable[[VersionSpec], None]) -> None:
        self._tell_lost = told

    def template_lost(self, template: Template) -> None:
        """A template's: it has ended by itself."""
        key = _template_key(template.spec)
        if self._templates.get(key) is template:
            del self._templates[key]
            _log.warning("the snapshot of %s is lost", template.spec.arn)
            self._tell_lost(template.spec)

    def _template_pool(self, spec: VersionSpec) -> RuntimePool | None:
        if not spec.snap_start:
            return None
        template = self._templates.get(_template_key(spec))
        return None if template is None else template.pool

    def start(self, environment: int, spec: VersionSpec, initialization_type: InitializationType) -> None:
        # Whether it is restored is only known when it has its sandbox.
        provisioned = initialization_type is InitializationType.PROVISIONED_CONCURRENCY
        if spec.is_shared:
            made: Environment = SharedEnvironment(self, environment, spec)
        elif spec.is_managed:
            made = Environment(self, environment, spec, InitializationType.MANAGED_INSTANCES)
        else:
            made = Environment(self, environment, spec, *((initialization_type,) if provisioned else ()))
        self._environments[environment] = made
        if self.debugging.settings and not spec.is_shared:
            self.debugging.start(made, self._enter)
        else:
            self._enter(made)

    def _enter(self, made: Environment) -> None:
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
        pool = self._template_pool(made.spec)
        if pool is not None:
            self._take(made, pool)
            return
        pool = self.sandboxes.ready_pool(_runtime_of(made.spec))
        if pool is not None and self._files_of(made.spec) in self._at_hand:
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
            pool = await self.sandboxes.pool(_runtime_of(environment.spec))
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
        found = self._environments.get(environment)
        if found is None:  # lost in the moment in which its time was up
            return InvocationResult(timeout_body(request_id, timeout_s), True)
        return found.expire(request_id, timeout_s)

    def reset(self, environment: int) -> None:
        found = self._environments.get(environment)
        if found is not None:
            found.reset()

    def stop(self, environment: int) -> None:
        found = self._environments.get(environment)
        if found is not None:
            found.stop()

    def debug(self, key: FunctionKey, setting: DebugSpec | None) -> None:
        self.debugging.set(key, setting)

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
        self.debugging.forget(environment)

    def lives(self, environment: Environment) -> bool:
        return environment.id in self._environments

    def environments_of(self, key: FunctionKey) -> list[Environment]:
        """Those of its $LATEST."""
        found = self._environments.values()
        return [each for each in found if each.spec.key == key and each.spec.version == LATEST]

    def runtime_version(self, sandbox: Sandbox) -> str:
        """As INIT_START names it, e.g. `python:3.11.v7`: language, minor version, and the interpreter's patch level."""
        if sandbox.runtime.version:
            return sandbox.runtime.version
        major, minor, patch = sandbox.zygote.version.split(".")
        return f"python:{major}.{minor}.v{patch}"

    def warnings(self, spec: VersionSpec | None, sandbox: Sandbox) -> list[str]:
        """What the function's log should say before all else. `spec`: of an environment, None of a template."""
        found = [f"{sandbox.runtime.warning}\n"] if sandbox.runtime.warning else []
        if "boto3" in sandbox.zygote.missing:
            found.append(
                "LAMBENT_WARNING: this interpreter can not import boto3, whose current release needs Python 3.10; "
                "bundle an older one with the function.\n"
            )
        if spec is not None and spec.snap_start:
            template = self._templates.get(_template_key(spec))
            reason = template.obstacle if template is not None else "the snapshot is being made again"
            found.append(f"LAMBENT_WARNING: this environment is not restored from a snapshot: {reason}.\n")
        return found

    def speaks_frames(self, spec: VersionSpec, sandbox: Sandbox) -> bool:
        """A fork of the zygote does; what is started as a program speaks HTTP."""
        row = sandbox.runtime.row
        return row.forks and not spec.is_shared and not (spec.environment.keys() & row.fixed_at_start)

    def own_connections(
        self, sandbox: Sandbox, local: tuple[str, int]
    ) -> tuple[Admits | None, Callable[[tuple[str, int]], bool] | None]:
        """Who may use the environment's APIs, and where telemetry may be delivered: its own processes alone, as far as
        the host can tell them apart."""
        if not self.sandboxes.namespaces:
            return None, None
        if not self.sandboxes.rootless:
            return admit_uid(sandbox.uid, local), deliver_uid(sandbox.uid)
        processes = functools.partial(_family, sandbox.pid)
        return admit_inode(local, processes), deliver_inode(processes)

    def assignment(self, spec: VersionSpec, sandbox: Sandbox, debugged: bool = False) -> dict[str, Any]:
        """What makes an empty sandbox one function version's; read by runtimes/sandbox/environment.py.

        The interpreter is shared by all environments and charged to none; on AWS each has its own. So that a function
        has as much memory left here as there, the shared part is taken off the limit.
        """
        return {
            "code": spec.code_sha256,
            "layers": self._code.layers_folder(spec.layers) if spec.layers else "",
            "image": self._code.image_folder(spec.image.digest) if spec.image is not None else "",
            "tmp_mib": spec.tmp_mib,
            "memory_bytes": spec.memory_mib * MIB - sandbox.zygote.baseline_bytes + DEBUGGER_BYTES * debugged,
            "vcpus": _vcpus(spec),
            "hard_cpu": self._hard_cpu,
            "processes_max": PROCESSES_MAX,
        }

    def orders(self, environment: Environment | Template, sandbox: Sandbox) -> dict[str, Any]:
        """What is started in a sandbox and how: the runtime process, and extensions where there are any."""
        spec = environment.spec
        task_root, layers_root = self._roots(spec)
        environ = self._environ(environment, sandbox, task_root, layers_root)
        rlimits = self.sandboxes.rlimits()
        if not self.sandboxes.has_cgroups and sandbox.runtime.row.forks:
            rlimits["RLIMIT_DATA"] = spec.memory_mib * MIB
        runtime: dict[str, Any] = {
            "program": None,
            "parked": False,
            "handler": spec.handler,
            "task_root": task_root,
            "layers_root": layers_root,
            "cwd": task_root,
            "environ": environ,
            "rlimits": rlimits,
            "measures_itself": sandbox.peak_fd < 0,
            # All that a restored process learns; the rest it remembers.
            "restored": {"AWS_LAMBDA_RUNTIME_API": environment.api_address},
        }
        if not self.speaks_frames(spec, sandbox):
            self._add_program(runtime, spec, sandbox.runtime)
        self.debugging.complete(runtime, environment, sandbox.runtime)
        order: dict[str, Any] = {"runtime": runtime}
        if spec.layers or spec.image is not None or not self.sandboxes.namespaces:
            order["extensions"] = {"folder": f"{layers_root}/extensions", "environ": _for_extensions(environ)}
        return order

    def _add_program(self, order: dict[str, Any], spec: VersionSpec, runtime: Runtime) -> None:
        """What to execute: the runtime's own program or the image's, behind AWS_LAMBDA_EXEC_WRAPPER where it is set."""
        row = runtime.row
        if spec.image is not None:
            programs = [[*spec.image.entry_point, *spec.image.command]]
            order["cwd"] = spec.image.working_directory or "/"
        else:
            places = {
                "program": runtime.program,
                "runtime": self.sandboxes.client_folder(runtime),
                "task": order["task_root"],
                "layers": order["layers_root"],
            }
            programs = [fill(argv, places) for argv in row.start]
            order["parked"] = bool(row.park) and not (spec.environment.keys() & row.fixed_at_start)
        wrapper = spec.environment.get("AWS_LAMBDA_EXEC_WRAPPER")
        order["program"] = [[wrapper, *argv] for argv in programs[:1]] if wrapper and row.managed else programs

    def _roots(self, spec: VersionSpec) -> tuple[str, str]:
        """Where code and layers are seen by the function: /var/task and /opt, but where there are no mounts."""
        if self.sandboxes.namespaces:
            return "/var/task", "/opt"
        code = str(self._code.unpacked_path(spec.code_sha256))
        if not spec.layers:
            return code, "/opt"
        return code, os.path.join(os.path.dirname(code), self._code.layers_folder(spec.layers))

    def _environ(
        self, environment: Environment | Template, sandbox: Sandbox, task_root: str, layers_root: str
    ) -> dict[str, str]:
        """The platform's variables around the function's own (fact sheet 2.5; the reserved ones always win)."""
        spec = environment.spec
        row = sandbox.runtime.row
        environ: dict[str, str] = {
            "TZ": ":UTC",
            "LANG": "en_US.UTF-8",
            "PATH": _PATH,
            "LD_LIBRARY_PATH": _LIBRARIES,
            "AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1:2000",
            "_AWS_XRAY_DAEMON_ADDRESS": "169.254.100.1",
            "_AWS_XRAY_DAEMON_PORT": "2000",
            "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
            # SDKs in the function talk to this server, in the function's own account.
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }
        if row.managed and spec.image is None:
            major = row.names.fullmatch(spec.runtime)
            places = {"task": task_root, "layers": layers_root, "major": major[1] if major else ""}
            environ.update({name: text.format_map(places) for name, text in row.environ.items()})
            environ.update({"SHLVL": "0", "PWD": task_root})
        if not self.sandboxes.namespaces:
            environ["PATH"] = os.environ.get("PATH", _PATH)
            del environ["LD_LIBRARY_PATH"]
        if spec.image is not None:
            environ.update(spec.image.environment)
        environ.update(spec.environment)
        environ.update(
            {
                "_HANDLER": spec.handler if spec.image is None else next(iter(spec.image.command), ""),
                "AWS_REGION": spec.key.region,
                "AWS_DEFAULT_REGION": spec.key.region,
                "AWS_ACCESS_KEY_ID": spec.key.account,
                "AWS_SECRET_ACCESS_KEY": "lambent",
                "AWS_SESSION_TOKEN": "lambent",
                "AWS_LAMBDA_FUNCTION_NAME": spec.key.name,
                "AWS_LAMBDA_FUNCTION_VERSION": spec.version,
                "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_mib),
                "AWS_LAMBDA_LOG_GROUP_NAME": spec.log_group,
                "AWS_LAMBDA_LOG_STREAM_NAME": environment.stream_name,
                "AWS_LAMBDA_INITIALIZATION_TYPE": InitializationType.ON_DEMAND,
                "AWS_LAMBDA_RUNTIME_API": environment.api_address,
                "LAMBDA_TASK_ROOT": task_root,
                "LAMBDA_RUNTIME_DIR": "/var/runtime",
            }
        )
        if row.managed and spec.image is None:
            environ["AWS_EXECUTION_ENV"] = f"AWS_Lambda_{spec.runtime}"
        if spec.log_format == LogFormat.JSON:
            environ["AWS_LAMBDA_LOG_FORMAT"] = "JSON"
            environ["AWS_LAMBDA_LOG_LEVEL"] = spec.application_log_level or "INFO"
        if spec.is_managed:
            environ["AWS_LAMBDA_MAX_CONCURRENCY"] = str(spec.concurrency_per_environment)
        if isinstance(environment, Template) or sandbox.restores:
            environ["AWS_LAMBDA_INITIALIZATION_TYPE"] = InitializationType.SNAP_START
            del environ["AWS_LAMBDA_LOG_GROUP_NAME"], environ["AWS_LAMBDA_LOG_STREAM_NAME"]
        else:
            environ["AWS_LAMBDA_INITIALIZATION_TYPE"] = environment.initialization_type
        return environ

    # --- ending -----------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End what is left. The data plane has drained before."""
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for environment in list(self._environments.values()):
            environment.stop()
        end = self.loop.time() + _SHUTDOWN_MAX_S
        while self._environments and self.loop.time() < end:  # extensions are told, and have their time
            await asyncio.sleep(0.01)
        for environment in list(self._environments.values()):
            environment.end_now()
        for template in list(self._templates.values()):
            template.end_now()
        self.freezer.close()
        self.sandboxes.close()


def _runtime_of(spec: VersionSpec) -> str:
    return IMAGE if spec.image is not None else spec.runtime


def _vcpus(spec: VersionSpec) -> float:
    if spec.is_managed:
        return spec.memory_mib / 1_024 / spec.memory_gib_per_vcpu
    return spec.memory_mib / MEMORY_PER_VCPU_MIB


def _template_key(spec: VersionSpec) -> tuple[str, str]:
    return spec.arn, spec.revision_id


def _for_extensions(environ: dict[str, str]) -> dict[str, str]:
    """What extensions see of the environment (fact sheet 2.5)."""
    return {
        name: value for name, value in environ.items() if name not in _NOT_FOR_EXTENSIONS and not name.startswith("_")
    }


def _family(pid: int) -> list[int]:
    """A process of this host and all its descendants."""
    found, at = [pid], 0
    while at < len(found):
        try:
            with open(f"/proc/{found[at]}/task/{found[at]}/children") as file:
                found += map(int, file.read().split())
        except OSError:
            pass
        at += 1
    return found
