"""SnapStart in the platform's lines: RESTORE_START, RESTORE_REPORT, and what REPORT says of a restored environment."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lambent.model.function import LogFormat, VersionSpec
from lambent.model.names import FunctionKey
from lambent.worker.report import PlatformLines, Restore, billed_ms

ID = "8f507cfc-xmpl-4697-b07a-ac58fc914c95"
NOW = 1_700_000_000_007


def lines(log_format: LogFormat = LogFormat.TEXT) -> PlatformLines:
    spec = VersionSpec(
        key=FunctionKey("123456789012", "eu-west-1", "f"),
        version="7",
        runtime="python3.13",
        handler="f.handler",
        role="arn:aws:iam::123456789012:role/r",
        code_sha256="0" * 64,
        memory_mib=512,
        timeout_s=3,
        tmp_mib=512,
        log_format=log_format,
        snap_start=True,
    )
    return PlatformLines(spec, "snap-start")


def record(line: str | None) -> Any:
    assert line is not None
    return json.loads(line)["record"]


def test_text() -> None:
    text = lines()
    start = text.restore_start(NOW, "python:3.13.v47")
    assert start is not None
    assert start.startswith(
        "RESTORE_START Runtime Version: python:3.13.v47\tRuntime Version ARN: arn:aws:lambda:eu-west-1"
    )
    assert text.restore_report(NOW, 1_236_040_000, "success", None) is None
    assert text.restore_report(NOW, 1_236_040_000, "timeout", None) == (
        "RESTORE_REPORT Restore Duration: 1236.04 ms\tStatus: timeout\n"
    )
    assert text.restore_report(NOW, 1_000_000, "error", "Runtime.AfterRestoreError") == (
        "RESTORE_REPORT Restore Duration: 1.00 ms\tStatus: error\tError Type: Runtime.AfterRestoreError\n"
    )
    # The figures of a log on AWS.
    report = text.report(NOW, ID, 306_340_000, 155, None, restore=Restore(511_250_000, 303))
    assert report == (
        f"REPORT RequestId: {ID}\tDuration: 306.34 ms\tBilled Duration: 610 ms\tMemory Size: 512 MB\t"
        "Max Memory Used: 155 MB\tRestore Duration: 511.25 ms\tBilled Restore Duration: 303 ms\t\n"
    )


def test_json() -> None:
    events = lines(LogFormat.JSON)
    started = record(events.restore_start(NOW, "python:3.13.v47"))
    assert (started["functionName"], started["functionVersion"], "phase" in started) == ("f", "7", False)
    assert record(events.restore_report(NOW, 2_500_000, "success", None)) == {
        "status": "success",
        "metrics": {"durationMs": 2.5},
    }
    metrics = record(events.report(NOW, ID, 306_340_000, 155, None, restore=Restore(511_250_000, 303)))["metrics"]
    assert (metrics["restoreDurationMs"], metrics["billedRestoreDurationMs"]) == (511.25, 303)
    assert (metrics["billedDurationMs"], "initDurationMs" in metrics) == (610, False)


@given(st.integers(0, 10**12), st.integers(0, 10**10), st.integers(0, 10_000))
def test_text_and_json_bill_the_same(duration_ns: int, restore_ns: int, billed: int) -> None:
    restore = Restore(restore_ns, billed)
    text = lines().report(NOW, ID, duration_ns, 1, None, restore=restore)
    metrics = record(lines(LogFormat.JSON).report(NOW, ID, duration_ns, 1, None, restore=restore))["metrics"]
    assert text is not None
    assert f"\tBilled Duration: {metrics['billedDurationMs']} ms\t" in text
    assert metrics["billedDurationMs"] == billed_ms(duration_ns, None) + billed
