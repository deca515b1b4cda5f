"""Start the server, keep it until a signal, drain, stop.

Order matters: the socket is bound and the launcher started while this process may still be root; then privileges go;
then files are opened. Everything slow (imports, models, state) happens while the launcher looks at the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import random
import re
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import IO

from lambent.core.admission import ScalingProfile
from lambent.core.events import AnyCommand, AnyEvent
from lambent.core.recording import encode as encode_record
from lambent.core.scheduler import Scheduler
from lambent.dataplane.asynchronous import AsynchronousInvoker
from lambent.dataplane.deployments import Deployments
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.frontend.application import Application, Service
from lambent.frontend.debugging import debug_page
from lambent.frontend.function_urls.endpoint import FunctionUrlEndpoint
from lambent.frontend.invoke import InvokeEndpoint
from lambent.frontend.listener import Listener, bind
from lambent.frontend.pages import own_pages, top_page
from lambent.frontend.upstream import Upstream
from lambent.model.function import VersionSpec
from lambent.model.function_url import url_base
from lambent.model.limits import MIB, NS_PER_S
from lambent.sandbox import interpreters, privilege
from lambent.server.settings import CpuLimit, SandboxChoice, Settings
from lambent.services.autoscaling import PERIOD_S, Room, Scaler, make_autoscaling_service
from lambent.services.cloudwatch import make_cloudwatch_service
from lambent.services.lambda_.control import LambdaSettings
from lambent.services.lambda_.service import make_lambda_service
from lambent.services.logs import make_logs_service
from lambent.store.code import CodeStore
from lambent.store.database import Database
from lambent.store.images.store import ImageSettings
from lambent.telemetry.lambda_metrics import LambdaMetrics
from lambent.telemetry.log_store import LogGroupKey, LogStore, LogStream
from lambent.telemetry.metric_exposition import metrics_page
from lambent.telemetry.metric_store import MetricStore
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load as load_model
from lambent.worker.launcher import Launcher, LauncherState, SandboxUnavailable
from lambent.worker.local import LocalWorker
from lambent.worker.sandboxes import SLOTS, Sandboxes

_log = logging.getLogger("lambent.server")
_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class CanNotStart(Exception):
    """Told to the user as it is; exit status 2."""


class _FileRecorder:
    """`--record FILE`: every fact and the commands that followed, for replay. Raises CanNotStart."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise CanNotStart(f"--record {path}: {error.strerror}") from error

    def record(self, now_ns: int, event: AnyEvent, commands: list[AnyCommand]) -> None:
        self._file.write(encode_record(now_ns, event, commands))

    def close(self) -> None:
        self._file.close()


class _LogStreams:
    """worker.interface.LogStreams on the log store."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    def open(self, spec: VersionSpec, stream_name: str) -> LogStream:
        return self._store.stream(LogGroupKey(spec.key.account, spec.key.region, spec.log_group), stream_name)


def _seccomp_program() -> tuple[bytes, str | None]:
    try:
        from lambent.sandbox.seccomp import compile_filter

        return compile_filter(), None
    except (ImportError, OSError, RuntimeError) as error:
        return b"", f"seccomp: no filter ({error}); install libseccomp2"


def _choose_sandbox(settings: Settings, state: LauncherState) -> bool:
    """Whether to use namespaces. Raises CanNotStart when what was asked for can not be had."""
    if settings.sandbox is SandboxChoice.OCI:
        raise CanNotStart("--sandbox oci is not there yet; use namespace or process.")
    if settings.sandbox is SandboxChoice.PROCESS:
        return False
    if settings.sandbox is SandboxChoice.NAMESPACE and not state.namespaces:
        raise CanNotStart("--sandbox namespace: " + "; ".join(state.problems) + ". See `lambent doctor`.")
    return state.namespaces


def _check_address(settings: Settings) -> None:
    if settings.upstream is not None and not re.match(r"https?://[^/\s]", settings.upstream):
        raise CanNotStart(f"--upstream {settings.upstream}: not a URL such as http://127.0.0.1:5000.")
    try:
        url_base(settings.url_domain, settings.port)
    except ValueError as error:
        raise CanNotStart(f"--url-domain {error}") from error
    if settings.host not in _LOOPBACK and not settings.insecure:
        raise CanNotStart(
            f"--host {settings.host} is not a loopback address, and requests are not authenticated yet: whoever "
            "reaches the port could run code. Use --insecure to accept that."
        )


def _lock(data_dir: Path) -> IO[str]:
    """One server for one data folder; the lock goes with the process. Raises CanNotStart."""
    file = (data_dir / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        raise CanNotStart(
            f"--data {data_dir} is in use by another Lambent (process {owner}). Stop it, or choose another folder."
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _scaling_period_s() -> int:
    """How often Application Auto Scaling looks at the metrics; shorter than AWS's minute for trying it out."""
    text = os.environ.get("LAMBENT_AUTOSCALING_PERIOD_SECONDS", str(PERIOD_S))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= PERIOD_S):
        raise CanNotStart(f"LAMBENT_AUTOSCALING_PERIOD_SECONDS={text}: not a whole number from 1 to {PERIOD_S}.")
    return int(text)


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def serve(settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; the exit status. Raises CanNotStart."""
    if sys.flags.optimize:
        raise CanNotStart("Lambent checks its own invariants with assert; do not run it with python -O.")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _check_address(settings)
    _raise_descriptor_limit()
    try:
        sock = bind(settings.host, settings.port)
    except OSError as error:
        raise CanNotStart(f"{settings.host}:{settings.port}: {error.strerror}. Choose another --port.") from error
    launcher = Launcher()
    try:
        seccomp, seccomp_problem = _seccomp_program()
        state = launcher.wait_ready()
        namespaces = _choose_sandbox(settings, state)
        problems = [*state.problems] + ([seccomp_problem] if seccomp_problem else [])
        found = interpreters.find()  # while version managers below closed folders can still be seen
        recorder = _FileRecorder(settings.record) if settings.record else None  # below closed folders too
        try:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CanNotStart(f"--data {settings.data_dir}: {error.strerror}") from error
        if os.geteuid() == 0:
            _give_up_root(settings)
        import uvloop

        with _lock(settings.data_dir), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_Server(settings, launcher, namespaces, seccomp, problems, found, recorder).run(sock))
    except SandboxUnavailable as error:
        raise CanNotStart(str(error)) from error
    finally:
        launcher.close()


def _give_up_root(settings: Settings) -> None:
    uid = privilege.server_uid(settings.data_dir)
    privilege.own(settings.data_dir, uid)
    package = Path(__file__).resolve().parent.parent.parent
    needed = {Path(sys.prefix), Path(sys.base_prefix), package, settings.data_dir.resolve(), *settings.image_dirs}
    try:
        privilege.become(uid, sorted(needed))
    except OSError as error:
        raise CanNotStart(f"The server could not give up root for user {uid}: {error}") from error


class _Server:
    def __init__(
        self,
        settings: Settings,
        launcher: Launcher,
        namespaces: bool,
        seccomp: bytes,
        problems: list[str],
        found: dict[int, interpreters.Interpreter],
        recorder: _FileRecorder | None,
    ) -> None:
        self.settings = settings
        self.launcher = launcher
        self.namespaces = namespaces
        self.seccomp = seccomp
        self.problems = problems
        self.found = found
        self.recorder = recorder
        self.exit_status = 0

    async def run(self, sock: socket.socket) -> int:
        """Open everything, serve, and close everything in the opposite order."""
        settings = self.settings
        data = settings.data_dir
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        code = CodeStore(data / "code", ImageSettings(settings.image_dirs, settings.docker_config))
        logs = LogStore(data / "logs", settings.log_retention_mib * MIB)
        metric_store = MetricStore(data / "metrics.db")
        scaling_period_s = _scaling_period_s()
        metrics = LambdaMetrics(utilization_resolution_s=1 if scaling_period_s < PERIOD_S else PERIOD_S)
        metric_store.add_source(metrics)
        database, _, _ = await asyncio.gather(Database.open(data / "state.db"), logs.start(), metric_store.start())
        scheduler = Scheduler(
            ScalingProfile(settings.profile.value),
            int(settings.idle_s * NS_PER_S),
            provisioned_starting_max=4 * (os.cpu_count() or 1),
        )
        plane = DataPlane(scheduler, self.recorder)
        routing = RoutingTable(random.Random(), metrics)
        sandboxes = Sandboxes(
            self.launcher,
            namespaces=self.namespaces,
            run_dir=data / "run",
            code_dir=data / "code" / "unpacked",
            interpreters=self.found,
            strict_runtimes=settings.strict_runtimes,
            parked=settings.parked,
            seccomp=self.seccomp,
        )
        worker = LocalWorker(
            sandboxes,
            code,
            _LogStreams(logs),
            endpoint_url=url,
            hard_cpu=settings.cpu is CpuLimit.QUOTA,
            freeze=settings.freeze,
        )
        worker.listener = plane
        memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB
        plane.attach(worker, int(memory_mib * settings.memory_overcommit), SLOTS - settings.parked * 2)
        deployments = Deployments(plane, routing, settings.account_concurrency)
        metrics.sample = deployments.account_concurrency
        codec = RestJsonCodec(load_model("lambda"))
        lambda_service = make_lambda_service(
            codec,
            database,
            code,
            deployments,
            LambdaSettings(
                account_concurrency=settings.account_concurrency,
                upstream=settings.upstream,
                url_base=url_base(settings.url_domain, port),
            ),
        )
        await lambda_service.load()
        scaling = Room(database, lambda_service.provisioned)
        scaler = Scaler(scaling, metric_store, scaling_period_s)
        asynchronous = AsynchronousInvoker(plane, routing)
        invokes = InvokeEndpoint(plane, routing, asynchronous, codec)
        urls = FunctionUrlEndpoint(plane, routing, codec)
        services: dict[str, Service] = {
            "lambda": lambda_service,
            "logs": make_logs_service(logs),
            "monitoring": make_cloudwatch_service(metric_store),
            "application-autoscaling": make_autoscaling_service(scaling),
        }
        facts: dict[str, object] = {
            "endpoint": url,
            "sandbox": "namespace" if self.namespaces else "process",
            "rootless": self.launcher.state.rootless,
            "cgroup_version": self.launcher.state.cgroup_version,
            "data_dir": str(data),
            "pid": os.getpid(),
            "problems": self.problems,
        }
        pages = own_pages(plane, routing, facts)
        pages["code"] = lambda_service.download_code
        pages["metrics"] = metrics_page(metric_store, metrics)
        pages["debug"] = debug_page(plane, routing, host, port)
        pages["top"] = top_page(plane, routing, metric_store, metrics)
        upstream = Upstream(settings.upstream) if settings.upstream else None
        listener = Listener(Application(invokes, urls, services, pages, upstream))
        await listener.start(sock)
        scaler.start()
        self._heed_signals()
        self._say_ready(url)
        gc.collect()
        gc.freeze()  # what stands now stays; collections look only at what comes, and requests leave no cycles
        gc.set_threshold(50_000, 20, 100)
        warm_up = asyncio.create_task(_warm_up(sandboxes, routing))

        await self._stop.wait()
        started = time.monotonic()
        invokes.draining = urls.draining = True
        listener.stop_accepting()
        await scaler.close()
        warm_up.cancel()
        cut_off = await self._drain(plane)
        asynchronous.close()
        await listener.close()
        await worker.close()
        await lambda_service.close()
        await logs.close()
        await metric_store.close()
        await database.close()
        await code.close()
        if self.recorder is not None:
            self.recorder.close()
        _log.info("stopped after %.2f s%s", time.monotonic() - started, f", {cut_off} cut off" if cut_off else "")
        return self.exit_status

    def _say_ready(self, url: str) -> None:
        kind = "namespace" if self.namespaces else "process"
        if not self.namespaces:
            _log.warning(
                "sandbox: process (for development only): functions run as this user, see the host's files and each "
                "other, and their memory is limited only per process. `lambent doctor` says what is missing."
            )
        for problem in self.problems:
            _log.warning("%s", problem)
        _log.info("sandbox %s, data in %s", kind, self.settings.data_dir)
        print(f"Lambent ready on {url}", flush=True)

    def _heed_signals(self) -> None:
        """Before the first word to the outside: who reads it may tell us to stop at once."""
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()

        def on_signal() -> None:
            (self._stop_now if self._stop.is_set() else self._stop).set()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)

        def on_launcher_lost() -> None:
            _log.critical("the launcher process ended; no environment lives. Restart the server.")
            self.exit_status = 1
            self._stop.set()
            self._stop_now.set()

        self.launcher.watch(loop, on_launcher_lost)

    async def _drain(self, plane: DataPlane) -> int:
        """Running requests get `--drain-seconds`; a second signal ends the patience."""
        if plane.in_flight:
            _log.info("draining: %d requests are running", plane.in_flight)
        drained = asyncio.create_task(plane.drain(self.settings.drain_s))
        hurried = asyncio.create_task(self._stop_now.wait())
        await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if drained.done():
            return drained.result()
        drained.cancel()
        return plane.in_flight


async def _warm_up(sandboxes: Sandboxes, routing: RoutingTable) -> None:
    """Have zygotes ready for what is deployed, or else for the runtime that a newcomer will try first."""
    runtimes = {
        version.spec.runtime for function in routing.functions.values() for version in function.versions.values()
    }
    for runtime in sorted(runtimes) or [f"python3.{sys.version_info[1]}"]:
        try:
            await sandboxes.pool(runtime)
        except SandboxUnavailable as error:
            _log.warning("%s: %s", runtime, error)
