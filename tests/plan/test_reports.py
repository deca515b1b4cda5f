"""REPORT lines in the forms in which tools print them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lambent.plan.planner import Request, simulate
from lambent.plan.reports import read
from lambent.plan.workload import WorkloadError

MS = 1_000_000
COLD = (
    "REPORT RequestId: 0f\tDuration: 100.00 ms\tBilled Duration: 351 ms\tMemory Size: 512 MB\tMax Memory Used: 40 MB\t"
    "Init Duration: 250.00 ms\t\n"
)
WARM = (
    "REPORT RequestId: 1f\tDuration: 50.5 ms\tBilled Duration: 51 ms\tMemory Size: 512 MB\tMax Memory Used: 40 MB\t\n"
)
# The cold one ends at 1.0 s and began at 0.65 s; the warm one ends at 0.9 s and began at 0.8495 s.
EXPECTED = [(0, 100 * MS, 250 * MS, 0), (int(199.5 * MS), int(50.5 * MS), 250 * MS, 0)]


def _text() -> str:
    return (
        f"2026-01-01T00:00:00.900000+00:00 2026/01/01/[$LATEST]x {WARM}"
        "2026-01-01T00:00:00.950000+00:00 x START RequestId: 1\n"
        f"2026-01-01T01:00:01+01:00 x {COLD}"
        "no time REPORT RequestId: 9 Duration: 1 ms\n"
    )


def _events() -> list[dict[str, object]]:
    return [
        {"timestamp": 1_767_225_600_900, "message": WARM},
        {"timestamp": 1_767_225_600_950, "message": "START RequestId: 1"},
        {"timestamp": 1_767_225_601_000, "message": COLD},
    ]


@pytest.mark.parametrize("form", ["text", "json", "lines"])
def test_forms(tmp_path: Path, form: str) -> None:
    path = tmp_path / "log"
    if form == "text":
        path.write_text(_text())
    elif form == "json":
        path.write_text(json.dumps({"events": _events(), "searchedLogStreams": []}, indent=4))
    else:
        path.write_text("\n".join(json.dumps(event) for event in _events()))
    assert read(path) == (EXPECTED, 512)
    summary = simulate(Request(reports=path))
    assert summary.invocations == summary.environments_started == 2
    assert summary.functions[0].memory_mib == 512


@pytest.mark.parametrize(
    "text", ["", "nothing\n", '{"events": [3]}', "{broken", "2026-99-99T00:00:00Z REPORT x\n", "\0"]
)
def test_nothing_to_use(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(WorkloadError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
