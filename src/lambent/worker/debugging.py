"""Which functions are debugged, and which environment of each a debugger can attach to: one at a time.

A function with a setting gives its port to the first environment that is started for its $LATEST; the others run as
ever. The one with the port is never frozen, its Init and its requests have no time limit (EnvironmentDebugged), and
requests find it before the others. When it ends, the next one that is started takes the port over; so that it does not
have to be waited for, environments of the function that are idle then are ended.

Settings are kept in memory: they are a developer's, and end with the server.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lambent.core.events import EnvironmentDebugged
from lambent.model.function import DebugSpec
from lambent.model.limits import MIB
from lambent.model.names import LATEST, FunctionKey
from lambent.sandbox.runtimes import Runtime, fill, row_of

if TYPE_CHECKING:
    from lambent.worker.environment import Environment
    from lambent.worker.local import LocalWorker
    from lambent.worker.template import Template

#: What a debugger needs for itself comes on top of the function's memory.
DEBUGGER_BYTES = 256 * MIB
#: A port whose last owner is being killed is free within milliseconds.
_PORT_WAIT_S = 2.0
_PORT_POLL_S = 0.01
_LOOPBACK = "127.0.0.1"
#: Releases of Node.js that have --inspect-wait: from 20.15 on, and from 22.2 on.
_INSPECT_WAIT_SINCE = ((20, 15), (22, 2))


class Debugging:
    """Of one LocalWorker; on the event-loop thread."""

    def __init__(self, worker: LocalWorker) -> None:
        self._worker = worker
        self._settings: dict[FunctionKey, DebugSpec] = {}
        self._holders: dict[FunctionKey, Environment] = {}

    @property
    def settings(self) -> dict[FunctionKey, DebugSpec]:
        return self._settings

    def set(self, key: FunctionKey, setting: DebugSpec | None) -> None:
        """From the next environment on; idle ones that run otherwise are ended."""
        if setting == self._settings.get(key):
            return
        if setting is None:
            del self._settings[key]
        else:
            self._settings[key] = setting
        self._worker.loop.call_soon(self._make_way, key)

    def start(self, environment: Environment, begin: Callable[[Environment], None]) -> None:
        """Call `begin`, for an environment that is to have the port as soon as it is free."""
        spec = environment.spec
        setting = self._settings.get(spec.key)
        row = row_of(spec.runtime)
        debuggable = spec.version == LATEST and row is not None and (row.forks or bool(row.inspect))
        if setting is None or spec.key in self._holders or not debuggable:
            begin(environment)
            return
        self._holders[spec.key] = environment
        self._start_when_free(environment, setting, self._worker.loop.time() + _PORT_WAIT_S, begin)

    def _start_when_free(
        self, environment: Environment, setting: DebugSpec, until: float, begin: Callable[[Environment], None]
    ) -> None:
        if not self._worker.lives(environment):
            return  # stopped meanwhile
        if _is_free(setting.port):
            environment.debugger = setting
            self._worker.fact(EnvironmentDebugged(environment.id))
            begin(environment)
        elif self._worker.loop.time() < until:
            again = (environment, setting, until, begin)
            self._worker.loop.call_later(_PORT_POLL_S, self._start_when_free, *again)
        else:
            del self._holders[environment.spec.key]
            environment.notes.append(
                f"LAMBENT_WARNING: port {setting.port} is in use; this environment runs without a debugger.\n"
            )
            begin(environment)

    def forget(self, environment: Environment) -> None:
        """It is gone."""
        key = environment.spec.key
        if self._holders.get(key) is environment:
            del self._holders[key]
            self._worker.loop.call_soon(self._make_way, key)

    def _make_way(self, key: FunctionKey) -> None:
        """End idle environments that do not run as the function's setting says, so that the next request starts one."""
        setting, holder = self._settings.get(key), self._holders.get(key)
        if holder is not None and holder.debugger == setting:
            return
        for environment in self._worker.environments_of(key):
            if environment.is_spare and (setting is not None or environment is holder):
                environment.stop()

    # --- what is started --------------------------------------------------------------------------------

    def complete(self, order: dict[str, Any], environment: Environment | Template, runtime: Runtime) -> None:
        """Add to the order of a runtime process that it is debugged, if it is."""
        setting: DebugSpec | None = getattr(environment, "debugger", None)
        if setting is None:
            return
        row = runtime.row
        if row.forks:
            folder = f"{self._worker.sandboxes.client_folder(runtime).rpartition('/')[0]}/_debug"
            debug = {"host": _LOOPBACK, "port": setting.port, "wait": setting.wait, "folder": folder}
            order["debug"] = debug
            if order["program"] is not None:
                order["environ"]["_LAMBENT_DEBUG"] = json.dumps(debug)
        else:
            how = "wait" if setting.wait and _has_inspect_wait(runtime.version) else "brk"
            option = "--inspect-" + how if setting.wait else "--inspect"
            options = fill(row.inspect, {"option": option, "host": _LOOPBACK, "port": str(setting.port)})
            for argv in order["program"]:
                argv[argv.index(runtime.program) + 1 : argv.index(runtime.program) + 1] = options
            order["parked"] = False
        if "RLIMIT_DATA" in order["rlimits"]:
            order["rlimits"]["RLIMIT_DATA"] += DEBUGGER_BYTES


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))  # never listen: a client that waits for the port would come here
        except OSError:
            return False
    return True


def _has_inspect_wait(version: str) -> bool:
    """`version` as in INIT_START, `nodejs:20.v19`."""
    match = re.fullmatch(r"\w+:(\d+)\.v(\d+)", version)
    if match is None:
        return False
    release = int(match[1]), int(match[2])
    return any(release >= since and (release[0] == since[0] or since[0] == 22) for since in _INSPECT_WAIT_SINCE)
