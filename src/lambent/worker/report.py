"""The platform's own log lines, in text and in JSON, to the letter of AWS (fact sheet, sections 3.1 to 3.4 and 5.3).

Pure formatting: values in, one log event (ending in a newline) or None where the system log level filters it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import signal
from typing import Any, NamedTuple

from lambent.model.function import LogFormat, VersionSpec
from lambent.model.invocation import InitializationType

_LEVELS = {"DEBUG": 10, "INFO": 20, "WARN": 30}
#: Go's words for signals, which AWS's platform prints.
_SIGNALS: dict[int, str] = {
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception",
    signal.SIGHUP: "hangup",
    signal.SIGILL: "illegal instruction",
    signal.SIGINT: "interrupt",
    signal.SIGKILL: "killed",
    signal.SIGPIPE: "broken pipe",
    signal.SIGQUIT: "quit",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGSYS: "bad system call",
    signal.SIGTERM: "terminated",
    signal.SIGTRAP: "trace/breakpoint trap",
}


def runtime_version_arn(runtime: str, region: str) -> str:
    """A stable stand-in for AWS's runtime version: the hash is of the runtime's name."""
    return f"arn:aws:lambda:{region}::runtime:{hashlib.sha256(runtime.encode()).hexdigest()}"


class Restore(NamedTuple):
    """How an environment of a SnapStart version came up. `billed_ms`: the runtime's part of it, which is its hooks."""

    duration_ns: int
    billed_ms: int


def billed_ms(duration_ns: int, init_ns: int | None) -> int:
    """Billed Duration: Init (since August 2025) and duration together, rounded up to a millisecond."""
    return -(-(duration_ns + (init_ns or 0)) // 1_000_000)


def exit_words(status: int) -> str:
    """AWS's words for how a process ended, from its wait status."""
    if status & 0x7F:
        number = status & 0x7F
        return f"Runtime exited with error: signal: {_SIGNALS.get(number, f'signal {number}')}"
    code = status >> 8
    return (
        "Runtime exited without providing a reason" if code == 0 else f"Runtime exited with error: exit status {code}"
    )


def error_body(error_type: str, message: str) -> bytes:
    """Errors made by the platform put errorType first."""
    return json.dumps({"errorType": error_type, "errorMessage": message}, separators=(",", ":")).encode()


def timeout_body(request_id: str, timeout_s: float) -> bytes:
    """What the caller of a request gets whose time is over."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout_s:.2f} seconds"
    return error_body("Sandbox.Timedout", message)


def rfc3339(time_ms: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time_ms % 1000:03d}Z"


def _ms(duration_ns: int) -> float:
    return round(duration_ns / 1e6, 3)


class PlatformRecords:
    """The records of platform events, as the Telemetry API and JSON logs have them (fact sheet 3.4)."""

    __slots__ = ("_arn", "_initialization_type", "_memory_mib", "_name", "_version")

    def __init__(self, spec: VersionSpec, initialization_type: str = "on-demand") -> None:
        self._name = spec.key.name
        self._version = spec.version
        self._memory_mib = spec.memory_mib
        self._initialization_type = initialization_type
        self._arn = runtime_version_arn(spec.runtime, spec.key.region)

    def init_start(self, runtime_version: str, phase: str) -> dict[str, Any]:
        return {
            "initializationType": self._initialization_type,
            "phase": phase,
            "functionName": self._name,
            "functionVersion": self._version,
            "runtimeVersion": runtime_version,
            "runtimeVersionArn": self._arn,
            "instanceMaxMemory": self._memory_mib * 1_048_576,
        }

    def init_runtime_done(self, phase: str, status: str, error_type: str | None) -> dict[str, Any]:
        record = {"initializationType": self._initialization_type, "phase": phase, "status": status}
        return {**record, "errorType": error_type} if error_type else record

    def init_report(self, init_ns: int, phase: str, status: str, error_type: str | None) -> dict[str, Any]:
        return {
            "initializationType": self._initialization_type,
            "phase": phase,
            "status": status,
            "metrics": {"durationMs": _ms(init_ns)},
            **({"errorType": error_type} if error_type else {}),
        }

    def start(self, request_id: str, tenant_id: str = "") -> dict[str, Any]:
        record = {"requestId": request_id, "version": self._version}
        return {**record, "tenantId": tenant_id} if tenant_id else record

    def runtime_done(self, request_id: str, duration_ns: int, status: str, error_type: str | None) -> dict[str, Any]:
        return {
            "requestId": request_id,
            "status": status,
            "metrics": {"durationMs": _ms(duration_ns)},
            **({"errorType": error_type} if error_type else {}),
        }

    def restore_start(self, runtime_version: str) -> dict[str, Any]:
        return {
            "functionName": self._name,
            "functionVersion": self._version,
            "runtimeVersion": runtime_version,
            "runtimeVersionArn": self._arn,
            "instanceMaxMemory": self._memory_mib * 1_048_576,
        }

    def restore_done(self, status: str, error_type: str | None) -> dict[str, Any]:
        return {"status": status, **({"errorType": error_type} if error_type else {})}

    def restore_report(self, restore_ns: int, status: str, error_type: str | None) -> dict[str, Any]:
        return {**self.restore_done(status, error_type), "metrics": {"durationMs": _ms(restore_ns)}}

    def report(
        self,
        request_id: str,
        duration_ns: int,
        used_mib: int,
        init_ns: int | None,
        status: str,
        error_type: str | None,
        restore: Restore | None = None,
        tenant_id: str = "",
    ) -> dict[str, Any]:
        metrics: dict[str, Any] = {
            "durationMs": _ms(duration_ns),
            "billedDurationMs": billed_ms(duration_ns, init_ns),
            "memorySizeMB": self._memory_mib,
            "maxMemoryUsedMB": used_mib,
        }
        if init_ns is not None:
            metrics["initDurationMs"] = _ms(init_ns)
        if restore is not None:
            metrics["billedDurationMs"] += restore.billed_ms
            metrics["restoreDurationMs"] = _ms(restore.duration_ns)
            metrics["billedRestoreDurationMs"] = restore.billed_ms
        if self._initialization_type == InitializationType.MANAGED_INSTANCES:
            metrics = {"durationMs": _ms(duration_ns)}
        record: dict[str, Any] = {"requestId": request_id, "metrics": metrics, "status": status}
        if error_type:
            record["errorType"] = error_type
        if tenant_id:
            record["tenantId"] = tenant_id
        return record


class PlatformLines:
    """The lines of one function version; knows its log format and level."""

    __slots__ = ("_initialization_type", "_json", "_level", "_memory_mib", "_spec", "_start_tail", "records")

    def __init__(self, spec: VersionSpec, initialization_type: str = "on-demand") -> None:
        self._spec = spec
        self._json = spec.log_format == LogFormat.JSON
        self._level = _LEVELS.get(spec.system_log_level, 20)
        self._initialization_type = initialization_type
        self._memory_mib = spec.memory_mib
        self._start_tail = f" Version: {spec.version}\n"
        self.records = PlatformRecords(spec, initialization_type)

    def _event(self, level: str, kind: str, time_ms: int, record: dict[str, Any]) -> str | None:
        if _LEVELS[level] < self._level:
            return None
        event = {"time": rfc3339(time_ms), "type": f"platform.{kind}", "record": record}
        return json.dumps(event, separators=(",", ":")) + "\n"

    def other(self, time_ms: int, kind: str, level: str, record: dict[str, Any]) -> str | None:
        """Events that text logs show as EXTENSION or TELEMETRY lines: extension, telemetrySubscription, logsDropped."""
        if self._json:
            return self._event(level, kind, time_ms, record)
        if kind == "extension":
            tail = f"\tError Type: {record['errorType']}" if "errorType" in record else ""
            events = ", ".join(record["events"])
            return f"EXTENSION\tName: {record['name']}\tState: {record['state']}\tEvents: [{events}]{tail}\n"
        if kind == "telemetrySubscription":
            types = ", ".join(each.capitalize() for each in record["types"])
            return f"TELEMETRY\tName: {record['name']}\tState: {record['state']}\tTypes: [{types}]\n"
        return f"LOGS\tDropped: {record}\n"

    def init_start(self, time_ms: int, runtime_version: str, phase: str = "init") -> str | None:
        """`runtime_version` as in `python:3.11.v7`."""
        if not self._json:
            arn = runtime_version_arn(self._spec.runtime, self._spec.key.region)
            return f"INIT_START Runtime Version: {runtime_version}\tRuntime Version ARN: {arn}\n"
        return self._event("INFO", "initStart", time_ms, self.records.init_start(runtime_version, phase))

    def init_report(self, time_ms: int, init_ns: int, phase: str, status: str, error_type: str | None) -> str | None:
        """Of an on-demand Init in text only when it did not succeed. `status`: success, error or timeout."""
        if not self._json:
            if status == "success":
                if self._initialization_type == "on-demand":
                    return None
                return f"INIT_REPORT Init Duration: {init_ns / 1e6:.2f} ms\tPhase: {phase}\tStatus: success\n"
            tail = f"\tError Type: {error_type}" if error_type else ""
            return f"INIT_REPORT Init Duration: {init_ns / 1e6:.2f} ms\tPhase: {phase}\tStatus: {status}{tail}\n"
        level = "WARN" if status != "success" else "DEBUG" if self._initialization_type == "on-demand" else "INFO"
        return self._event(level, "initReport", time_ms, self.records.init_report(init_ns, phase, status, error_type))

    def restore_start(self, time_ms: int, runtime_version: str) -> str | None:
        if not self._json:
            arn = runtime_version_arn(self._spec.runtime, self._spec.key.region)
            return f"RESTORE_START Runtime Version: {runtime_version}\tRuntime Version ARN: {arn}\n"
        return self._event("INFO", "restoreStart", time_ms, self.records.restore_start(runtime_version))

    def restore_report(self, time_ms: int, restore_ns: int, status: str, error_type: str | None) -> str | None:
        """In text only when it did not succeed. `status`: success, error or timeout."""
        if not self._json:
            if status == "success":
                return None
            tail = f"\tError Type: {error_type}" if error_type else ""
            return f"RESTORE_REPORT Restore Duration: {restore_ns / 1e6:.2f} ms\tStatus: {status}{tail}\n"
        level = "INFO" if status == "success" else "WARN"
        return self._event(level, "restoreReport", time_ms, self.records.restore_report(restore_ns, status, error_type))

    def start(self, time_ms: int, request_id: str, tenant_id: str = "") -> str | None:
        if not self._json:
            return f"START RequestId: {request_id}{self._start_tail}"
        return self._event("INFO", "start", time_ms, self.records.start(request_id, tenant_id))

    def end(self, time_ms: int, request_id: str, duration_ns: int, status: str) -> str | None:
        if not self._json:
            return f"END RequestId: {request_id}\n"
        if self._initialization_type == InitializationType.MANAGED_INSTANCES:
            return None
        record = self.records.runtime_done(request_id, duration_ns, status, None)
        return self._event("DEBUG" if status == "success" else "WARN", "runtimeDone", time_ms, record)

    def report(
        self,
        time_ms: int,
        request_id: str,
        duration_ns: int,
        used_mib: int,
        init_ns: int | None,
        status: str = "success",
        error_type: str | None = None,
        restore: Restore | None = None,
        tenant_id: str = "",
    ) -> str | None:
        """`init_ns` exactly for the first invoke after a normal Init, `restore` after a restore. `status`: success,
        error, timeout, failure.

        A plain handler exception (status "error" without an error type) has no suffix in text.
        """
        if self._json:
            record = self.records.report(
                request_id, duration_ns, used_mib, init_ns, status, error_type, restore, tenant_id
            )
            return self._event("INFO" if status == "success" else "WARN", "report", time_ms, record)
        init, billed = "", billed_ms(duration_ns, init_ns)
        if init_ns is not None:
            init = f"Init Duration: {init_ns / 1e6:.2f} ms\t"
        elif restore is not None:
            billed += restore.billed_ms
            init = (
                f"Restore Duration: {restore.duration_ns / 1e6:.2f} ms\t"
                f"Billed Restore Duration: {restore.billed_ms} ms\t"
            )
        line = (
            f"REPORT RequestId: {request_id}\tDuration: {duration_ns / 1e6:.2f} ms\tBilled Duration: {billed} ms\t"
            f"Memory Size: {self._memory_mib} MB\tMax Memory Used: {used_mib} MB\t{init}"
        )
        if status == "timeout":
            return f"{line}Status: timeout\n"
        if error_type:
            return f"{line}Status: error\tError Type: {error_type}\n"
        return f"{line}\n"

    def managed_report(self, time_ms: int, record: dict[str, Any]) -> str | None:
        """Of an environment with several requests at once; always JSON."""
        return self._event("INFO" if record["status"] == "success" else "WARN", "report", time_ms, record)
