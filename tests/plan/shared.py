"""Where the published measurements are, beside the repository. Tests that need them skip, visibly, without them."""

from __future__ import annotations

import csv
import gzip
import os
from pathlib import Path
from typing import NamedTuple

import pytest

SHARED = Path(os.environ.get("LAMBENT_SHARED", Path(__file__).parents[3] / "shared"))
AWS_2020 = SHARED / "data" / "aws-lambda-2020"
AZURE = SHARED / "data" / "azure-2019-sample"

needs_aws = pytest.mark.skipif(not AWS_2020.is_dir(), reason=f"no logs of AWS Lambda at {AWS_2020}")
needs_azure = pytest.mark.skipif(not AZURE.is_dir(), reason=f"no Azure sample at {AZURE}")


class Logged(NamedTuple):
    """One request as AWS served it."""

    arrival_s: float
    duration_s: float
    environment: str
    cold: bool


def aws_log(name: str) -> list[Logged]:
    with gzip.open(AWS_2020 / f"{name}.csv.gz", "rt", newline="") as file:
        rows = [
            Logged(float(row["arrival_s"]), float(row["aws_duration_s"]), row["environment"], row["cold"] == "1")
            for row in csv.DictReader(file)
        ]
    return sorted(rows, key=lambda row: row.arrival_s)


def convert(name: str, path: Path) -> list[Logged]:
    """The log's own header to the one that `lambent plan --trace` takes."""
    rows = aws_log(name)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "duration_s"))
        writer.writerows((row.arrival_s, row.duration_s) for row in rows)
    return rows
