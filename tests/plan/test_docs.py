"""docs/planner.md: its examples run, and it names every option and every fixed key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import typer

from lambent.cli.app import app
from plan.test_command import FIXED

PAGE = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
EXAMPLES = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))


def test_the_examples_run(tmp_path: Path) -> None:
    assert EXAMPLES.count("lambent plan") >= 10
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    command = bin_dir / "lambent"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lambent "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(
        ["sh", "-eu", "-c", EXAMPLES], cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
        env=os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Concurrency: 2\n")
    assert {"trace.csv", "served.csv", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert "Recommended: --reserved" in done.stdout


def test_every_option_and_key_is_documented() -> None:
    command = typer.main.get_command(app)
    options = [option for parameter in command.commands["plan"].params for option in parameter.opts]  # type: ignore[attr-defined]
    assert len(options) > 25
    missing = [name for name in [*options, *FIXED] if name != "--help" and name not in PAGE]
    assert missing == []
