"""Sandboxes of one host: asked of the zygotes, parked ahead, handed out, given back.

A parked sandbox has its namespaces, mounts and control group and waits for a function; parked ones take the slow part
of a cold start off the path (moving a process into a fresh control group alone may take 5 to 15 ms, see
docs/performance.md). They are made again in the background, one at a time, while a core is free for it.
"""

from __future__ import annotations

import array
import asyncio
import collections
import itertools
import json
import logging
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lambent.model.limits import OPEN_FILES_MAX, PROCESSES_MAX, TMP_DEFAULT_MIB
from lambent.sandbox.interpreters import Interpreter
from lambent.sandbox.runtimes import Runtime, RuntimeMissing, fill, find, pool_key
from lambent.sandbox.seccomp import compile_filter
from lambent.worker.launcher import (
    MESSAGE_MAX_BYTES,
    Launcher,
    LauncherState,
    SandboxUnavailable,
    TemplateZygote,
    Zygote,
    ZygoteConfig,
    interpreter_prefix,
    runtime_packages,
)

_log = logging.getLogger("lambent.worker")
#: Host user ids of environments: one each, from here on.
UID_BASE = 200_000
SLOTS = 4_096
#: User ids of SnapStart templates and the environments restored from them: SLOTS for each template, from here on.
TEMPLATE_UID_BASE = 300_000
TEMPLATES_MAX = 1_024
#: Sandboxes that wait, restored, for a request of their version.
_PARKED_RESTORED = 4
#: Sandboxes in a row that were not restored, after which a template is given up.
_FAILURES_MAX = 3
#: After a start has probably ended: the two would wait for the same locks of the kernel.
_REFILL_DELAY_S = 0.008
_CPUS = os.cpu_count() or 1
_API_PORT = 9001
_FDS_MAX = 16
_CREDENTIALS = struct.Struct("3i")
#: Names of descriptors in messages of a sandbox -> attributes of Sandbox.
_KEPT = {
    "log": "log_fd",
    "api": "api_fd",
    "memory.peak": "peak_fd",
    "memory.events": "events_fd",
    "freezer.state": "freezer_fd",
    "extension_log": "extension_log_fd",
}


class Sandbox:
    """One sandbox: its control channel and the descriptors that came with it (-1 for those that did not)."""

    __slots__ = (
        "api_fd",
        "channel",
        "events_fd",
        "extension_log_fd",
        "freezer_fd",
        "freezes_by_v1",
        "link",
        "log_fd",
        "name",
        "on_lost",
        "on_message",
        "on_parked",
        "peak_fd",
        "pid",
        "pool",
        "runtime",
        "slot",
        "uid",
        "zygote",
    )

    def __init__(self, name: str, slot: int, zygote: Zygote, runtime: Runtime, channel: socket.socket) -> None:
        self.name = name
        self.slot = slot
        #: Of its processes, on the host; inside it may have another number.
        self.uid = UID_BASE + slot
        #: Set where it was made for one version (SnapStart).
        self.pool: RuntimePool | None = None
        self.zygote = zygote
        self.runtime = runtime
        self.channel = channel
        self.freezes_by_v1 = True
        #: Of its first process, as this process sees it; known where environments share a user id.
        self.pid = 0
        self.log_fd = self.api_fd = self.peak_fd = self.events_fd = self.freezer_fd = self.extension_log_fd = -1
        #: Our ends of the link to a runtime process that nobody has taken yet.
        self.link: tuple[int, int] | None = None
        self.on_parked: Callable[[Sandbox], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        #: Called with each message; None when the sandbox is gone.
        self.on_message: Callable[[dict[str, Any] | None], None] | None = None

    @property
    def restores(self) -> bool:
        """It holds a runtime process whose Init is done (SnapStart)."""
        return self.pool is not None and self.pool.restores

    def take_link(self) -> tuple[int, int] | None:
        link, self.link = self.link, None
        return link

    def send(self, message: dict[str, Any]) -> bool:
        """False when the sandbox is gone (its end will be reported by on_message)."""
        try:
            self.channel.send(json.dumps(message).encode())
        except OSError:
            return False
        return True


class RuntimePool:
    """The zygote of one runtime, or the template of one version, and its parked sandboxes."""

    def __init__(
        self,
        zygote: Zygote,
        name: str,
        runtime: Runtime,
        parked_max: int,
        uid_base: int = UID_BASE,
        tmp_mib: int = TMP_DEFAULT_MIB,
    ) -> None:
        self.zygote = zygote
        self.parked_max = parked_max
        #: Of slot 0, on the host.
        self.uid_base = uid_base
        #: Its sandboxes hold a runtime process whose Init is done, and only have to be restored.
        self.restores = isinstance(zygote, TemplateZygote)
        self.tmp_mib = tmp_mib
        #: Sandboxes that stand, parked or in use.
        self.alive = 0
        #: Called when sandboxes keep failing.
        self.on_failing: Callable[[], None] | None = None
        #: Called when `alive` comes to 0.
        self.on_empty: Callable[[], None] | None = None
        self.name = name
        self.runtime = runtime
        self.parked: collections.deque[Sandbox] = collections.deque(maxlen=SLOTS)
        self.making = 0
        #: Sandboxes in a row that could not be made, the last reason, and when parking may try again.
        self.failures = 0
        self.failure = ""
        self.retry_at = 0.0


class Sandboxes:
    """All sandboxes of this host."""

    def __init__(
        self,
        launcher: Launcher,
        *,
        namespaces: bool,
        run_dir: Path,
        code_dir: Path,
        interpreters: dict[int, Interpreter],
        strict_runtimes: bool,
        parked: int,
        seccomp: bytes,
    ) -> None:
        self._launcher = launcher
        self._state: LauncherState = launcher.state
        self.namespaces = namespaces
        self.rootless = self._state.rootless
        self._run_dir = run_dir
        self._code_dir = code_dir
        self._interpreters = interpreters
        self._strict = strict_runtimes
        self._parked_target = parked
        self._seccomp = seccomp
        self._pools: dict[str, asyncio.Task[RuntimePool]] = {}
        self._template_pools: dict[RuntimePool, None] = {}
        self._template_numbers = collections.deque(range(TEMPLATES_MAX), maxlen=TEMPLATES_MAX)
        #: First in, first out: a user id rests before it is used again.
        self._free_slots = collections.deque(range(SLOTS), maxlen=SLOTS)
        self._serial = itertools.count(1)
        self._busy_starts = 0
        self._refill_timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def has_cgroups(self) -> bool:
        return bool(self._state.cgroups)

    # --- runtimes ---------------------------------------------------------------------------------------

    async def pool(self, runtime: str) -> RuntimePool:
        """The pool of a runtime, starting its zygote when it is the first. Raises SandboxUnavailable."""
        key = pool_key(runtime)
        task = self._pools.get(key)
        if task is not None and task.done() and (task.exception() or task.result().zygote.lost):
            task = None
        if task is None:
            task = asyncio.create_task(self._start_pool(runtime), name=f"zygote {runtime}")
            self._pools[key] = task
        return await asyncio.shield(task)

    def ready_pool(self, runtime: str) -> RuntimePool | None:
        """The pool when it stands already, without waiting."""
        task = self._pools.get(pool_key(runtime))
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        pool = task.result()
        return None if pool.zygote.lost else pool

    async def _start_pool(self, name: str) -> RuntimePool:
        try:
            runtime = await asyncio.to_thread(find, name, self._interpreters, sys.version_info[1], self._strict)
        except RuntimeMissing as error:
            raise SandboxUnavailable(str(error)) from error
        zygote = Zygote(self._launcher, runtime.zygote, self._zygote_config(name, runtime))
        await zygote.wait_ready()
        pool = RuntimePool(zygote, name, runtime, min(self._parked_target, runtime.row.parked_max))
        self._schedule_refill(0.0)
        return pool

    def _zygote_config(self, name: str, runtime: Runtime) -> ZygoteConfig:
        row = runtime.row
        packages = runtime_packages(row.folder)
        if self.namespaces:
            root = self._run_dir / f"root-{pool_key(name)}"
            root.mkdir(parents=True, exist_ok=True)
            import_path = ["/var/runtime/_lambent", f"/var/runtime/_{row.folder}", "/var/runtime"]
        else:
            root = self._run_dir
            farm = self._farm(packages)
            import_path = [str(farm / "_lambent"), str(farm / f"_{row.folder}"), str(farm)]
        prefixes = [interpreter_prefix(runtime.zygote.interpreter.path)]
        links = {}
        if runtime.program:
            prefixes.append(interpreter_prefix(Path(runtime.program)))
            links = dict.fromkeys(_link_names(row.program, runtime.zygote.interpreter), runtime.program)
        park: dict[str, Any] = {"kind": "fork" if row.forks else "none"}
        if row.park:
            argv = fill(row.park, {"program": runtime.program, "runtime": self.client_folder(runtime)})
            park = {"kind": "exec", "argv": argv, "environ": {"PATH": "/usr/bin:/bin", "LANG": "en_US.UTF-8"}}
        return ZygoteConfig(
            namespaces=self.namespaces,
            rootless=self.rootless,
            cgroup_version=self._state.cgroup_version,
            cgroups=self._state.cgroups,
            root=str(root),
            prefixes=list(dict.fromkeys(prefixes)),
            packages=packages,
            links=links,
            park=park,
            rlimits=self.rlimits(),
            import_path=import_path,
            code_store=str(self._code_dir),
            uid_base=UID_BASE,
            slots=1 if self.rootless else SLOTS,
            seccomp=self._seccomp.hex(),
            seccomp_template=self._template_filter().hex() if row.forks else "",
        )

    def _template_filter(self) -> bytes:
        """A template may do one thing more than a function: enter the namespaces of its environments."""
        return compile_filter(("setns",)) if self._seccomp and self.can_restore else b""

    @property
    def can_restore(self) -> bool:
        """Whether there can be SnapStart templates: they need user ids of their own, which only root can give."""
        return self.namespaces and not self.rootless

    def _farm(self, packages: dict[str, str]) -> Path:
        """Stands in for /var/runtime where there are no mounts."""
        farm = self._run_dir / "var-runtime"
        farm.mkdir(parents=True, exist_ok=True)
        for name, target in packages.items():
            link = farm / name
            link.parent.mkdir(exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target)
        return farm

    def client_folder(self, runtime: Runtime) -> str:
        """Where the runtime's client stands, as its processes see it."""
        name = f"_{runtime.row.folder}"
        return f"/var/runtime/{name}" if self.namespaces else str(self._run_dir / "var-runtime" / name)

    def rlimits(self) -> dict[str, int]:
        """Limits of every process of an environment."""
        limits = {"RLIMIT_NOFILE": OPEN_FILES_MAX, "RLIMIT_CORE": 0}
        if self.namespaces:
            # Counted per user id, or per user namespace: either way an environment is counted alone.
            limits["RLIMIT_NPROC"] = PROCESSES_MAX
        return limits

    # --- sandboxes --------------------------------------------------------------------------------------

    def take(self, pool: RuntimePool, on_parked: Callable[[Sandbox], None], on_lost: Callable[[], None]) -> Sandbox:
        """A sandbox for a function: a parked one (`on_parked` is called at once), or a new one, for which either
        `on_parked` or `on_lost` is called later.

        Raises SandboxUnavailable when no slot is free or the zygote is gone.
        """
        while pool.parked:
            sandbox = pool.parked.popleft()
            self._schedule_refill(_REFILL_DELAY_S)
            on_parked(sandbox)
            return sandbox
        sandbox = self._make(pool)
        sandbox.on_parked = on_parked
        sandbox.on_lost = on_lost
        return sandbox

    def _make(self, pool: RuntimePool, uid_base: int = 0, **more: Any) -> Sandbox:
        if not self._free_slots:
            raise SandboxUnavailable(f"all {SLOTS} sandboxes of this host are in use")
        slot = self._free_slots.popleft()
        name = f"e{next(self._serial)}"
        owner = (uid_base or pool.uid_base) + slot
        try:
            channel = pool.zygote.fork(name, UID_BASE + slot, pool.tmp_mib, _api_address(slot), owner=owner, **more)
        except SandboxUnavailable:
            self._free_slots.append(slot)
            raise
        if self.rootless:
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sandbox = Sandbox(name, slot, pool.zygote, pool.runtime, channel)
        sandbox.freezes_by_v1 = self._state.cgroup_version == 1
        sandbox.uid = owner
        sandbox.pool = pool
        pool.making += 1
        pool.alive += 1
        loop = asyncio.get_running_loop()
        loop.add_reader(channel.fileno(), self._on_readable, loop, pool, sandbox)
        return sandbox

    def _on_readable(self, loop: asyncio.AbstractEventLoop, pool: RuntimePool, sandbox: Sandbox) -> None:
        try:
            raw, descriptors, pid = _receive(sandbox.channel)
        except BlockingIOError:
            return
        except OSError:
            raw, descriptors, pid = b"", [], 0
        message = json.loads(raw) if raw else None
        if message is not None:
            found = dict(zip(message.get("fds", ()), descriptors, strict=True))
            if "link_in" in found:
                sandbox.link = (found.pop("link_in"), found.pop("link_out"))
            for name, descriptor in found.items():
                setattr(sandbox, _KEPT[name], descriptor)
        if message is not None and message["op"] == "parked":
            sandbox.pid = pid
            self._parked(pool, sandbox)
        elif sandbox.on_message is not None:
            if message is not None and message["op"] == "failed":
                _log.error("sandbox %s: %s", sandbox.name, message["error"])
            sandbox.on_message(message)
        elif message is None:
            self._lost(pool, sandbox)
        elif message["op"] == "failed":
            pool.failure = message["error"]

    def _parked(self, pool: RuntimePool, sandbox: Sandbox) -> None:
        pool.making -= 1
        pool.failures = 0
        os.set_blocking(sandbox.log_fd, False)
        if sandbox.on_parked is not None:
            sandbox.on_parked(sandbox)
        elif self._closing or pool.zygote.lost:
            self.release(sandbox)
        else:
            pool.parked.append(sandbox)

    def _lost(self, pool: RuntimePool, sandbox: Sandbox) -> None:
        """A sandbox that nobody had taken is gone: it could not be made, or died parked."""
        if sandbox in pool.parked:
            pool.parked.remove(sandbox)
        else:
            pool.making -= 1
            pool.failures += 1
            if pool.failures == 1:
                _log.error("a sandbox of %s could not be made: %s", pool.name, pool.failure or "it ended")
            pool.retry_at = time.monotonic() + min(30.0, 0.25 * 2**pool.failures)
        self.release(sandbox)
        if pool.failures >= _FAILURES_MAX and pool.on_failing is not None:
            pool.on_failing()
        if sandbox.on_lost is not None:
            sandbox.on_lost()

    def release(self, sandbox: Sandbox) -> None:
        """End a sandbox (it may be gone already) and free what it held. Call once."""
        asyncio.get_running_loop().remove_reader(sandbox.channel.fileno())
        sandbox.channel.close()
        for descriptor in (*(getattr(sandbox, name) for name in _KEPT.values()), *(sandbox.take_link() or ())):
            if descriptor >= 0:
                os.close(descriptor)
        self._free_slots.append(sandbox.slot)
        pool = sandbox.pool
        if pool is not None:
            pool.alive -= 1
            if not pool.alive and pool.on_empty is not None:
                pool.on_empty()

    # --- templates --------------------------------------------------------------------------------------

    def make_template(
        self, pool: RuntimePool, on_parked: Callable[[Sandbox], None], on_lost: Callable[[], None]
    ) -> tuple[Sandbox, int]:
        """A sandbox whose runtime process becomes a template, and the number that stands for its user ids; as `take`.
        Give the number back with `free_template`."""
        if not self._template_numbers:
            raise SandboxUnavailable(f"all {TEMPLATES_MAX} templates of this host are in use")
        number = self._template_numbers.popleft()
        users = {"inside": UID_BASE, "outside": TEMPLATE_UID_BASE + number * SLOTS, "count": SLOTS}
        try:
            sandbox = self._make(pool, users["outside"], template=users)
        except SandboxUnavailable:
            self._template_numbers.append(number)
            raise
        sandbox.on_parked = on_parked
        sandbox.on_lost = on_lost
        return sandbox, number

    def free_template(self, number: int) -> None:
        self._template_numbers.append(number)

    def add_template(self, sandbox: Sandbox, number: int, tmp_mib: int, template_bytes: int) -> RuntimePool:
        """The template in this sandbox is ready: environments can be taken from the pool that is given back."""
        zygote = TemplateZygote(sandbox.zygote, sandbox.channel, template_bytes)
        uid_base = TEMPLATE_UID_BASE + number * SLOTS
        parked_max = min(self._parked_target, _PARKED_RESTORED)
        pool = RuntimePool(zygote, f"the template {sandbox.name}", sandbox.runtime, parked_max, uid_base, tmp_mib)
        self._template_pools[pool] = None
        self._schedule_refill(0.0)
        return pool

    def drop_template(self, pool: RuntimePool) -> None:
        """Nothing is restored from it any more; what is in use goes on."""
        self._template_pools.pop(pool, None)
        pool.zygote.close()
        while pool.parked:
            self.release(pool.parked.popleft())

    # --- parking ----------------------------------------------------------------------------------------

    def starting(self, count: int) -> None:
        """Environments begin (+1) or finish (-1) starting: parking waits while they keep the machine busy."""
        self._busy_starts += count
        if self._busy_starts < _CPUS:
            self._schedule_refill(_REFILL_DELAY_S)

    def _schedule_refill(self, delay_s: float) -> None:
        if self._refill_timer is None and self._parked_target and not self._closing:
            self._refill_timer = asyncio.get_running_loop().call_later(delay_s, self._refill)

    def _refill(self) -> None:
        """Make one more parked sandbox where one is missing; again soon while any is."""
        self._refill_timer = None
        if self._closing or self._busy_starts >= _CPUS:
            return
        for pool in self._all_pools():
            if pool.zygote.lost or len(pool.parked) + pool.making >= pool.parked_max:
                continue
            if pool.failures:
                if time.monotonic() < pool.retry_at:
                    self._schedule_refill(1.0)
                    return
                if pool.making:
                    continue
            try:
                self._make(pool)
            except SandboxUnavailable:
                return
            self._schedule_refill(0.005)
            return

    def _all_pools(self) -> list[RuntimePool]:
        """Those of templates first: they are few, and made for somebody."""
        tasks = self._pools.values()
        return [
            *self._template_pools,
            *(task.result() for task in tasks if task.done() and not task.cancelled() and not task.exception()),
        ]

    def close(self) -> None:
        """End all parked sandboxes and the zygotes. Environments in use are released by their owner."""
        self._closing = True
        if self._refill_timer is not None:
            self._refill_timer.cancel()
        for task in self._pools.values():
            if task.done() and not task.cancelled() and not task.exception():
                pool = task.result()
                while pool.parked:
                    self.release(pool.parked.popleft())
                pool.zygote.close()
            else:
                task.cancel()


def _api_address(slot: int) -> tuple[str, int]:
    """A loopback address for each environment; servers side by side differ in its second part."""
    if sys.platform != "linux":
        return "127.0.0.1", 0
    return f"127.{1 + os.getpid() % 254}.{slot >> 8}.{slot & 255}", _API_PORT


def _link_names(program: str, interpreter: Interpreter) -> tuple[str, ...]:
    """Names in /var/lang/bin."""
    return (program,) if program else ("python", "python3", interpreter.runtime)


def _receive(channel: socket.socket) -> tuple[bytes, list[int], int]:
    """A message, its descriptors, and the sender's process id where the socket passes credentials."""
    room = socket.CMSG_SPACE(_FDS_MAX * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
    raw, ancillary, _, _ = channel.recvmsg(MESSAGE_MAX_BYTES, room)
    descriptors, pid = array.array("i"), 0
    for level, kind, data in ancillary:
        if level != socket.SOL_SOCKET:
            continue
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        elif kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
    return raw, list(descriptors), pid
