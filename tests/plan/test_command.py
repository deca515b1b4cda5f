"""`lambent plan` as people type it: what it prints, its files, and its exit status."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plan.shared import convert, needs_aws

FIXED = {
    "invocations", "cold_starts", "environments_started", "throttles", "peak_concurrency", "mean_concurrency",
    "mean_environments",
}  # fmt: skip


def plan(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lambent", "plan", *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"COLUMNS": "160"},
    )  # fmt: skip


def planned(*arguments: object) -> Any:
    done = plan(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_twenty_a_second_of_a_tenth_of_a_second_is_two() -> None:
    done = plan("--rate", 20, "--duration", 0.1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Concurrency: 2\n")
    assert "20 requests a second x 0.1 seconds each = 2 requests in flight" in done.stdout
    assert "one request at a time" in done.stdout
    assert planned("--rate", 20, "--duration", 0.1, "--arrivals", "constant")["mean_concurrency"] == pytest.approx(
        2, rel=1e-4
    )


def test_the_fixed_interface(tmp_path: Path) -> None:
    trace, out = tmp_path / "t.csv", tmp_path / "a.csv"
    trace.write_text("arrival_s,duration_s\n0,1\n0.5,1\n5.25,1\n700,1\n")
    found = planned("--trace", trace, "--assignments", out, "--reserved", 1, "--provisioned", 0)
    assert found.keys() >= FIXED
    assert {key: found[key] for key in FIXED - {"mean_concurrency", "mean_environments"}} == {
        "invocations": 4, "cold_starts": 2, "environments_started": 2, "throttles": 1, "peak_concurrency": 1,
    }  # fmt: skip
    with out.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["arrival_s", "environment", "cold"],
            ["0.0", "1", "1"],
            ["0.5", "", "0"],
            ["5.25", "1", "0"],
            ["700.0", "2", "1"],
        ]


def test_the_same_seed_gives_the_same_plan() -> None:
    options = ("--rate", 50, "--duration", 0.2, "--variation", 1, "--seconds", 100, "--init", 0.3)
    assert planned(*options, "--seed", 4) == planned(*options, "--seed", 4)
    assert planned(*options, "--seed", 4) != planned(*options, "--seed", 5)


def test_profiles_and_limits() -> None:
    found = planned(
        "--rate", 100, "--duration", 0.5, "--seconds", 30, "--profile", "classic", "--account-concurrency", 20,
        "--idle-seconds", 5, "--memory", 1024,
    )  # fmt: skip
    assert found["peak_concurrency"] == 20
    assert found["throttles"] == sum(found["throttles_by_reason"].values()) > 0
    assert found["throttles_by_reason"].keys() == {"ConcurrentInvocationLimitExceeded"}
    assert found["gb_s"] == pytest.approx(found["served"] * 0.5, rel=0.01)


def test_several_functions_share_an_account(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    rows = [f"{number / 10},1,{'ab'[number % 2]}" for number in range(200)]
    trace.write_text("arrival_s,duration_s,function\n" + "\n".join(rows) + "\n")
    found = planned("--trace", trace, "--reserved", "b=2")
    by_name = {line["name"]: line for line in found["functions"]}
    assert by_name["a"]["throttles"] == 0
    assert by_name["b"]["throttles"] == found["throttles"] > 0
    assert by_name["b"]["reserved"] == 2


@needs_aws
def test_a_log_of_aws(tmp_path: Path) -> None:
    rows = convert("2020-06-04", tmp_path / "log.csv")
    found = planned("--trace", tmp_path / "log.csv", "--profile", "aws")
    assert found["invocations"] == len(rows)
    assert found["cold_starts"] == pytest.approx(sum(row.cold for row in rows), rel=0.05)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    out, trace = tmp_path / "r.html", tmp_path / "t.csv"
    trace.write_text("arrival_s,duration_s,function\n0,1,<script>x</script>\n1,1,b\n")
    done = plan("--trace", trace, "--html", out)
    assert done.returncode == 0, done.stderr
    assert f"written: {out}" in done.stdout
    parsed = Page()
    parsed.feed(out.read_text())
    assert parsed.tags.count("svg") == 6
    assert "script" not in parsed.tags
    assert parsed.links == []
    done = plan("--rate", 5, "--duration", 1, "--reserved", 6, "--seconds", 600, "--init", 0.2, "--html", out)
    assert "Erlang B" in out.read_text()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib (extra `plot`) is not installed")
def test_png(tmp_path: Path) -> None:
    out = tmp_path / "r.png"
    assert plan("--rate", 5, "--duration", 1, "--seconds", 60, "--png", out).returncode == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of"),
        (("--rate", 1), "--rate needs"),
        (("--rate", 1, "--duration", 1, "--trace", "x.csv"), "give one of"),
        (("--trace", "/nonexistent.csv"), "cannot be read"),
        (("--rate", "-1", "--duration", 1), "--rate must be between 0 and"),
        (("--rate", "nan", "--duration", 1), "--rate must be between 0 and"),
        (("--rate", 1, "--duration", "-1"), "--duration must be between"),
        (("--rate", 1, "--duration", "inf"), "--duration must be between"),
        (("--rate", 1, "--duration", 1, "--seconds", 0), "--seconds must be between"),
        (("--rate", 1, "--duration", 1, "--arrivals", "often"), "--arrivals must be one of poisson, constant"),
        (("--rate", 1, "--duration", 1, "--profile", "x"), "--profile must be one of"),
        (("--rate", 1, "--duration", 1, "--reserved", "-3"), "--reserved must be a whole number"),
        (("--rate", 1, "--duration", 1, "--provisioned", "-5"), "--provisioned must be a whole number"),
        (("--rate", 1, "--duration", 1, "--provisioned-schedule", "25:00=1"), "no time of a day"),
        (("--rate", 1, "--duration", 1, "--provisioned-target", 0.7), "needs --provisioned-max"),
        (("--rate", 1, "--duration", 1, "--provisioned-min", 3), "bounds of --provisioned-target"),
        (("--rate", 1, "--duration", 1, "--provisioned", 3, "--snapstart"), "can not be had together"),
        (("--recording", "/nonexistent"), "cannot be read"),
        (("--config", "/nonexistent"), "cannot be read"),
        (("--rate", 1, "--duration", 1, "--shape", "ramp"), "needs --rate-to"),
        (("--rate", 1, "--percentiles", "a=b"), "--percentiles must be like"),
        (("--rate", 1, "--duration", 1, "--assignments", "/nonexistent/a.csv"), "No such file"),
    ],
)
def test_bad_input_is_told_in_one_line(options: tuple[object, ...], message: str) -> None:
    done = plan(*options, "--json")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_bad_trace_is_told_in_one_line(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,duration_s\n0,1\n2,1\n1,1\n")
    done = plan("--trace", trace, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "line 4: arrivals are not in order" in done.stderr
    assert done.stderr.count("\n") == 1


def test_reservations_that_aws_would_refuse_are_pointed_out() -> None:
    done = plan("--rate", 5, "--duration", 1, "--seconds", 60, "--reserved", 950)
    assert done.returncode == 0
    assert "AWS would refuse" in done.stdout
