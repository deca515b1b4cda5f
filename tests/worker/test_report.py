"""The platform's lines, literally as AWS writes them (fact sheet, sections 3.1 to 3.4, 3.6 and 5.3)."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.model.function import LogFormat, VersionSpec
from lambent.model.names import FunctionKey
from lambent.worker.report import PlatformLines, billed_ms, error_body, exit_words, runtime_version_arn

ID = "8f507cfc-xmpl-4697-b07a-ac58fc914c95"
NOW = 1_700_000_000_007
STAMP = "2023-11-14T22:13:20.007Z"


def spec(**changes: Any) -> VersionSpec:
    values: dict[str, Any] = {
        "key": FunctionKey("123456789012", "eu-west-1", "f"),
        "version": "$LATEST",
        "runtime": "python3.13",
        "handler": "f.handler",
        "role": "arn:aws:iam::123456789012:role/r",
        "code_sha256": "0" * 64,
        "memory_mib": 128,
        "timeout_s": 3,
        "tmp_mib": 512,
    }
    return VersionSpec(**{**values, **changes})


TEXT = PlatformLines(spec())
JSON = PlatformLines(spec(log_format=LogFormat.JSON))


def record(line: str | None) -> Any:
    assert line is not None
    assert line.endswith("}\n")
    return json.loads(line)


def test_init_start() -> None:
    arn = runtime_version_arn("python3.13", "eu-west-1")
    assert arn.startswith("arn:aws:lambda:eu-west-1::runtime:")
    assert len(arn.rpartition(":")[2]) == 64
    expected = f"INIT_START Runtime Version: python:3.13.v47\tRuntime Version ARN: {arn}\n"
    assert TEXT.init_start(NOW, "python:3.13.v47") == expected


def test_start_and_end() -> None:
    assert TEXT.start(NOW, ID) == f"START RequestId: {ID} Version: $LATEST\n"
    assert PlatformLines(spec(version="7")).start(NOW, ID) == f"START RequestId: {ID} Version: 7\n"
    assert TEXT.end(NOW, ID, 1, "success") == f"END RequestId: {ID}\n"


def test_report_of_a_cold_call() -> None:
    assert TEXT.report(NOW, ID, 3_010_000, 36, 110_100_000) == (
        f"REPORT RequestId: {ID}\tDuration: 3.01 ms\tBilled Duration: 114 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 36 MB\tInit Duration: 110.10 ms\t\n"
    )


def test_report_of_a_warm_call() -> None:
    assert TEXT.report(NOW, ID, 3_010_000, 36, None) == (
        f"REPORT RequestId: {ID}\tDuration: 3.01 ms\tBilled Duration: 4 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 36 MB\t\n"
    )


def test_report_of_a_timeout() -> None:
    assert TEXT.report(NOW, ID, 3_000_000_000, 73, 402_040_000, "timeout") == (
        f"REPORT RequestId: {ID}\tDuration: 3000.00 ms\tBilled Duration: 3403 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 73 MB\tInit Duration: 402.04 ms\tStatus: timeout\n"
    )


def test_report_of_a_crash_and_of_an_exception() -> None:
    line = TEXT.report(NOW, ID, 1_000_000, 128, None, "error", "Runtime.OutOfMemory")
    assert line is not None
    assert line.endswith("\tMax Memory Used: 128 MB\tStatus: error\tError Type: Runtime.OutOfMemory\n")
    plain = TEXT.report(NOW, ID, 1_000_000, 40, None, "error")
    assert plain is not None
    assert plain.endswith("\tMax Memory Used: 40 MB\t\n")


def test_init_report() -> None:
    assert TEXT.init_report(NOW, 1_236_040_000, "init", "timeout", None) == (
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: init\tStatus: timeout\n"
    )
    assert TEXT.init_report(NOW, 1_236_040_000, "invoke", "error", "Runtime.ExitError") == (
        "INIT_REPORT Init Duration: 1236.04 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ExitError\n"
    )


@pytest.mark.parametrize(
    ("duration_ns", "init_ns", "billed"),
    [
        (1, None, 1),
        (1_000_000, None, 1),
        (1_000_001, None, 2),
        (80_000_000, 133_610_000, 214),  # AWS's own example: one rounding, of the sum
        (500_000, 500_000, 1),
        (500_000, 500_001, 2),
        (3_016_780_000, 84_000_000, 3_101),
        (900_000_000_000, 502_370_000, 900_503),
        (0, None, 0),
    ],
)
def test_billed_duration(duration_ns: int, init_ns: int | None, billed: int) -> None:
    assert billed_ms(duration_ns, init_ns) == billed


@given(st.integers(0, 10**12), st.none() | st.integers(0, 10**11))
def test_billed_duration_is_the_next_whole_millisecond(duration_ns: int, init_ns: int | None) -> None:
    total_ns = duration_ns + (init_ns or 0)
    assert total_ns <= billed_ms(duration_ns, init_ns) * 1_000_000 < total_ns + 1_000_000


def test_json_lines() -> None:
    started = record(JSON.init_start(NOW, "python:3.13.v47"))
    assert (started["time"], started["type"]) == (STAMP, "platform.initStart")
    assert started["record"] == {
        "initializationType": "on-demand",
        "phase": "init",
        "functionName": "f",
        "functionVersion": "$LATEST",
        "runtimeVersion": "python:3.13.v47",
        "runtimeVersionArn": runtime_version_arn("python3.13", "eu-west-1"),
        "instanceMaxMemory": 134_217_728,
    }
    assert record(JSON.start(NOW, ID)) == {
        "time": STAMP,
        "type": "platform.start",
        "record": {"requestId": ID, "version": "$LATEST"},
    }
    assert record(JSON.report(NOW, ID, 3_010_000, 36, 110_100_000)) == {
        "time": STAMP,
        "type": "platform.report",
        "record": {
            "requestId": ID,
            "metrics": {
                "durationMs": 3.01,
                "billedDurationMs": 114,
                "memorySizeMB": 128,
                "maxMemoryUsedMB": 36,
                "initDurationMs": 110.1,
            },
            "status": "success",
        },
    }
    crashed = record(JSON.report(NOW, ID, 3_010_000, 36, None, "error", "Runtime.ExitError"))
    assert (crashed["record"]["status"], crashed["record"]["errorType"]) == ("error", "Runtime.ExitError")
    assert "initDurationMs" not in crashed["record"]["metrics"]
    assert record(JSON.init_report(NOW, 2_500_000, "init", "timeout", None))["record"] == {
        "initializationType": "on-demand",
        "phase": "init",
        "status": "timeout",
        "metrics": {"durationMs": 2.5},
    }


def test_system_log_level_filters_by_aws_table() -> None:
    def shown(level: str) -> set[str]:
        lines = PlatformLines(spec(log_format=LogFormat.JSON, system_log_level=level))
        made = {
            "initStart": lines.init_start(NOW, "v"),
            "initReport": lines.init_report(NOW, 1, "init", "error", "Runtime.ExitError"),
            "start": lines.start(NOW, ID),
            "runtimeDone": lines.end(NOW, ID, 1, "success"),
            "runtimeDone of an error": lines.end(NOW, ID, 1, "error"),
            "report": lines.report(NOW, ID, 1, 1, None),
            "report of an error": lines.report(NOW, ID, 1, 1, None, "error"),
        }
        return {name for name, line in made.items() if line is not None}

    warnings = {"initReport", "runtimeDone of an error", "report of an error"}
    assert shown("WARN") == warnings
    assert shown("INFO") == warnings | {"initStart", "start", "report"}
    assert shown("DEBUG") == warnings | {"initStart", "start", "report", "runtimeDone"}


def test_text_lines_are_never_filtered() -> None:
    assert PlatformLines(spec(system_log_level="WARN")).start(NOW, ID) == f"START RequestId: {ID} Version: $LATEST\n"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "Runtime exited without providing a reason"),
        (3 << 8, "Runtime exited with error: exit status 3"),
        (127 << 8, "Runtime exited with error: exit status 127"),
        (signal.SIGKILL, "Runtime exited with error: signal: killed"),
        (signal.SIGSEGV, "Runtime exited with error: signal: segmentation fault"),
        (signal.SIGSEGV | 0x80, "Runtime exited with error: signal: segmentation fault"),
        (signal.SIGABRT, "Runtime exited with error: signal: aborted"),
        (signal.SIGUSR1, "Runtime exited with error: signal: signal 10"),
        (40, "Runtime exited with error: signal: signal 40"),
        (33, "Runtime exited with error: signal: signal 33"),
    ],
)
def test_exit_words(status: int, words: str) -> None:
    assert exit_words(status) == words


def test_platform_errors_put_the_type_first() -> None:
    body = error_body("Sandbox.Timedout", f"RequestId: {ID} Error: Task timed out after 1.00 seconds")
    assert body == (
        b'{"errorType":"Sandbox.Timedout",'
        b'"errorMessage":"RequestId: 8f507cfc-xmpl-4697-b07a-ac58fc914c95 Error: Task timed out after 1.00 seconds"}'
    )
