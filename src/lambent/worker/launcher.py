"""The server's side of the launcher and of the zygotes: start them, wait for them, ask them for sandboxes.

server ──channel── launcher (keeps root) ──starts── zygote of a runtime ──forks── first process of a sandbox
   └───────────────────────channel──────────────────────┘                               │
   └──────────────────────────────control channel───────────────────────────────────────┘
"""

from __future__ import annotations

import asyncio
import collections
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from lambent.sandbox.interpreters import Choice

RUNTIMES = Path(__file__).resolve().parent.parent / "runtimes"
_SANDBOX = RUNTIMES / "sandbox"
MESSAGE_MAX_BYTES = 262_144
_READY_TIMEOUT_S = 30.0
#: What stands in /var/runtime beside our own files: the runtime client and the SDK, as on AWS.
PACKAGES = (
    "awslambdaric",
    "boto3",
    "botocore",
    "dateutil",
    "jmespath",
    "s3transfer",
    "simplejson",
    "six",
    "snapshot_restore_py",
    "urllib3",
)


class SandboxUnavailable(Exception):
    """A runtime can not be served on this host; the message says why and what to do."""


class LauncherState(msgspec.Struct, frozen=True):
    """What the launcher found: the isolation that this host allows."""

    namespaces: bool
    rootless: bool
    cgroup_version: int
    cgroups: dict[str, str]
    problems: list[str]


def runtime_packages(folder: str) -> dict[str, str]:
    """Name in /var/runtime -> path on the host, for the runtime whose client is in this folder of lambent/runtimes."""
    found = {"_lambent": str(_SANDBOX)}
    if folder:
        found[f"_{folder}"] = str(RUNTIMES / folder)
    for name in PACKAGES if folder == "python" else ():
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        origin = Path(spec.origin)
        path = origin.parent if origin.name == "__init__.py" else origin
        found[path.name] = str(path)
    if folder == "python" and (debugger := debugpy_folder()):
        found["_debug/debugpy"] = debugger  # on the import path of debugged environments only
    return found


def debugpy_folder() -> str:
    """Where the Python debugger is installed beside Lambent; "" if it is not."""
    spec = importlib.util.find_spec("debugpy")
    return str(Path(spec.origin).parent) if spec is not None and spec.origin is not None else ""


class Launcher:
    """The privileged child. Start it before giving up root."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        python = getattr(sys, "_base_executable", None) or sys.executable
        script = Path(__file__).resolve().parent.parent / "sandbox" / "launcher.py"
        self._channel = ours
        self.process = subprocess.Popen(
            [python, "-I", "-S", str(script), str(theirs.fileno()), str(_SANDBOX)],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.state = LauncherState(False, False, 0, {}, ["the launcher has not answered yet"])

    def wait_ready(self) -> LauncherState:
        """Block until the launcher has looked at the machine (a few milliseconds). Raises SandboxUnavailable."""
        self._channel.settimeout(_READY_TIMEOUT_S)
        try:
            message = self._channel.recv(MESSAGE_MAX_BYTES)
        except TimeoutError:
            message = b""
        if not message:
            raise SandboxUnavailable("the launcher process ended before it was ready; see its output above")
        self.state = msgspec.json.decode(message, type=LauncherState)
        self._channel.setblocking(False)
        return self.state

    def start_zygote(self, python: Path) -> socket.socket:
        """Start an interpreter as a zygote; returns our end of its channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order = {"op": "zygote", "python": str(python), "script": str(_SANDBOX / "zygote.py")}
        try:
            socket.send_fds(self._channel, [json.dumps(order).encode()], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise SandboxUnavailable(f"the launcher process is gone ({error}); restart the server") from error
        finally:
            theirs.close()
        ours.setblocking(False)
        return ours

    def watch(self, loop: asyncio.AbstractEventLoop, on_lost: Any) -> None:
        """Call `on_lost` when the launcher ends: nothing can be started any more, and all environments are dead."""

        def readable() -> None:
            loop.remove_reader(self._channel.fileno())
            on_lost()

        loop.add_reader(self._channel.fileno(), readable)

    def close(self) -> None:
        """End the launcher, the zygotes and every environment; waits until they are gone."""
        self._channel.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ZygoteConfig(msgspec.Struct, frozen=True):
    """First message to a zygote; field names are read by runtimes/sandbox/zygote.py and environment.py.

    `park`: {"kind": "fork"}: of the zygote; {"kind": "exec", "argv", "environ"}: a program; {"kind": "none"}.
    """

    namespaces: bool
    rootless: bool
    cgroup_version: int
    cgroups: dict[str, str]
    root: str
    prefixes: list[str]
    packages: dict[str, str]
    links: dict[str, str]
    park: dict[str, Any]
    rlimits: dict[str, int]
    import_path: list[str]
    code_store: str
    uid_base: int
    slots: int
    #: Compiled filter, hexadecimal; empty for none.
    seccomp: str
    #: The same for processes that environments are restored from.
    seccomp_template: str


class _ZygoteAnswer(msgspec.Struct, frozen=True):
    """The zygote's only message: ready, or failed and why."""

    op: str
    error: str = ""
    baseline_bytes: int = 0
    version: str = ""
    missing: list[str] = []


class Zygote:
    """One runtime's zygote. `fork` asks for a sandbox; the answer comes on the sandbox's own channel."""

    def __init__(self, launcher: Launcher, choice: Choice, config: ZygoteConfig) -> None:
        self.choice = choice
        self.baseline_bytes = 0
        self.shared_bytes = 0
        self.version = ""
        self.missing: list[str] = []
        self.lost = False
        #: Orders that the zygote has not taken yet: at most one for each slot of the host.
        self._orders: collections.deque[tuple[bytes, socket.socket]] = collections.deque(maxlen=65_536)
        self._channel = launcher.start_zygote(choice.interpreter.path)
        self._channel.send(msgspec.json.encode(config))

    async def wait_ready(self) -> None:
        """Raises SandboxUnavailable when the interpreter can not serve."""
        loop = asyncio.get_running_loop()
        try:
            message = await asyncio.wait_for(loop.sock_recv(self._channel, MESSAGE_MAX_BYTES), _READY_TIMEOUT_S)
        except TimeoutError:
            message = b""
        answer = (
            msgspec.json.decode(message, type=_ZygoteAnswer)
            if message
            else _ZygoteAnswer("failed", error="it ended or did not answer")
        )
        if answer.op != "ready":
            self.lost = True
            self._channel.close()
            raise SandboxUnavailable(
                f"{self.choice.interpreter.path} can not serve as a zygote: {answer.error}. See `lambent doctor`."
            )
        self.baseline_bytes = self.shared_bytes = answer.baseline_bytes
        self.version = answer.version
        self.missing = answer.missing
        loop.add_reader(self._channel.fileno(), self._on_lost)

    def _on_lost(self) -> None:
        """A zygote says nothing after ready: readable means that it is gone, and its sandboxes with it."""
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self.lost = True
        self._drop_orders()

    def fork(self, name: str, uid: int, tmp_mib: int, api: tuple[str, int], **more: Any) -> socket.socket:
        """Ask for a sandbox whose APIs are served at `api`; returns our end of its control channel. Raises
        SandboxUnavailable. `more` goes into the order.

        In a burst the orders wait here for the zygote, in the order in which they came.
        """
        if self.lost:
            raise SandboxUnavailable(f"the zygote of python{self.version} is gone")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        order = json.dumps({"op": "fork", "name": name, "uid": uid, "tmp_mib": tmp_mib, "api": api, **more}).encode()
        self._orders.append((order, theirs))
        if len(self._orders) == 1:
            self._send_orders()
        return ours

    def _send_orders(self) -> None:
        loop = asyncio.get_running_loop()
        while self._orders:
            order, theirs = self._orders[0]
            try:
                socket.send_fds(self._channel, [order], [theirs.fileno()])
            except BlockingIOError:
                loop.add_writer(self._channel.fileno(), self._send_orders)
                return
            except OSError:
                self._drop_orders()
                return
            theirs.close()
            self._orders.popleft()
        loop.remove_writer(self._channel.fileno())

    def _drop_orders(self) -> None:
        """The zygote is gone: closing their ends tells each waiting sandbox's owner."""
        asyncio.get_running_loop().remove_writer(self._channel.fileno())
        while self._orders:
            self._orders.popleft()[1].close()

    def close(self) -> None:
        if not self._channel._closed:  # type: ignore[attr-defined]
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.fileno())
            self._drop_orders()
            self._channel.close()


class TemplateZygote(Zygote):
    """A SnapStart template in a zygote's place: `fork` makes an environment restored from it. The channel is the
    template's own sandbox's; its owner reads it, and says when it is lost."""

    def __init__(self, runtime: Zygote, channel: socket.socket, template_bytes: int) -> None:
        self.choice = runtime.choice
        self.baseline_bytes = runtime.baseline_bytes
        #: What the template occupies: shared by its environments, and charged to none of them.
        self.shared_bytes = runtime.baseline_bytes + template_bytes
        self.version = runtime.version
        self.missing = runtime.missing
        self.lost = False
        self._orders = collections.deque(maxlen=65_536)
        self._channel = channel

    def lose(self) -> None:
        """No environment can be restored any more; those that are there live on until the channel closes."""
        self.lost = True
        self._drop_orders()

    def close(self) -> None:
        self.lose()


def interpreter_prefix(path: Path) -> str:
    """The folder that holds an interpreter and its library: /usr, or a version manager's folder."""
    return os.fspath(path.parent.parent)
