"""The plan against the live server: what was foreseen happens, within 5 %.

Requests come 400 ms apart and end between two arrivals, 100 ms or more from both: what happens does not hang on how
busy this machine is. All three workloads run at the same time on one server; functions sleep, so nobody is in anybody's
way. The workloads are traces, so that the times can be read here.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.harness import Server

GAP_S = 0.4
#: Init and duration end 100 ms after the 11th request has come; duration alone 200 ms after the 8th.
INIT_S, DURATION_S = 1.1, 3.0
COUNTS = ("environments_started", "cold_starts", "throttles", "peak_concurrency")

Times = list[tuple[float, float]]

STEADY: Times = [(number * GAP_S, DURATION_S) for number in range(30)]
#: One request alone, then 32 of which 4 at a time are let in.
SPIKE: Times = [(0.0, 4.2), *((4.6 + number * GAP_S, 4.2) for number in range(32))]
WORKLOADS: dict[str, tuple[Times, tuple[str, ...]]] = {
    "steady": (STEADY, ("--init", str(INIT_S))),
    "spike": (SPIKE, ("--reserved", "4")),
    "provisioned": (STEADY, ("--init", str(INIT_S), "--provisioned", "3")),
}


def _has_provisioned(server: Server) -> bool:
    from botocore.exceptions import ClientError

    try:
        server.lambda_.put_provisioned_concurrency_config(
            FunctionName="not-there", Qualifier="1", ProvisionedConcurrentExecutions=1
        )
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"] != 501
    raise AssertionError("a function that is not there was provisioned")


def _write(path: Path, times: Times) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "duration_s"))
        writer.writerows((f"{arrival_s:.3f}", duration_s) for arrival_s, duration_s in times)
    return path


@pytest.fixture(scope="module")
def replayed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `lambent replay --json` said of each workload."""
    folder = tmp_path_factory.mktemp("replay")
    running = {}
    for name, (times, options) in WORKLOADS.items():
        if name == "provisioned" and not _has_provisioned(server):
            continue
        trace = _write(folder / f"{name}.csv", times)
        running[name] = subprocess.Popen(
            [
                *(sys.executable, "-m", "lambent", "replay", "--endpoint", server.url, "--json", "--trace", trace),
                *("--record", folder / f"{name}.recorded.csv", *options),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "120"},
        )  # fmt: skip
    found: dict[str, Any] = {"folder": folder}
    for name, process in running.items():
        out, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors
        found[name] = json.loads(out)
    return found


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_plan_comes_true(name: str, replayed: dict[str, Any]) -> None:
    if name not in replayed:
        pytest.skip("the server has no PutProvisionedConcurrencyConfig")
    found = replayed[name]
    measured = found["measured"]
    assert measured["errors"] == 0
    assert measured["invocations"] == len(WORKLOADS[name][0])
    # Before anything was measured, and with the overhead and Init of this machine.
    for foreseen in (found["planned"], found["predicted"]):
        for count in COUNTS:
            assert measured[count] == pytest.approx(foreseen[count], rel=0.05), (count, found)
        assert measured["throttles_by_reason"].keys() == foreseen["throttles_by_reason"].keys()
    assert measured["latency_ms"]["p50"] == pytest.approx(found["predicted"]["latency_ms"]["p50"], rel=0.05)


def test_the_workloads_are_what_they_are_called(replayed: dict[str, Any]) -> None:
    """Otherwise the agreement would say little."""
    assert replayed["steady"]["planned"]["environments_started"] == 11
    spike = replayed["spike"]["planned"]
    assert spike["peak_concurrency"] == 4
    assert spike["throttles"] > 15
    assert spike["throttles_by_reason"].keys() == {"ReservedFunctionConcurrentInvocationLimitExceeded"}
    if "provisioned" in replayed:
        found = replayed["provisioned"]
        assert found["planned"]["spillovers"] > 5
        assert found["planned"]["environments_started"] == found["planned"]["cold_starts"] + 3
        assert found["measured"]["spillovers"] == pytest.approx(found["planned"]["spillovers"], rel=0.05)


def test_what_was_recorded_can_be_planned(replayed: dict[str, Any]) -> None:
    recorded = replayed["folder"] / "steady.recorded.csv"
    done = subprocess.run(
        [sys.executable, "-m", "lambent", "plan", "--recording", recorded, "--json"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    planned = json.loads(done.stdout)
    assert {key: planned[key] for key in COUNTS} == {key: replayed["steady"]["predicted"][key] for key in COUNTS}


def test_the_functions_are_gone(replayed: dict[str, Any], server: Server) -> None:
    names = [each["FunctionName"] for each in server.lambda_.list_functions()["Functions"]]
    assert not [name for name in names if name.startswith("lambent-replay")]
