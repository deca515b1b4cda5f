"""Syntax errors as `lambent dev` tells them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lambent.cli.checking import syntax_errors

PYTHON = f"python3.{sys.version_info[1]}"


def test_python(tmp_path: Path) -> None:
    good, bad, worse = (tmp_path / f"{name}.py" for name in ("good", "bad", "worse"))
    good.write_text("x = 1\n")
    bad.write_text("def f():\n    return (1,\n")
    worse.write_text("    x = 1\n")
    assert syntax_errors([good, tmp_path / "gone.py"], PYTHON) == []
    assert syntax_errors([bad, good, worse], PYTHON) == [
        "bad.py:2: SyntaxError: '(' was never closed\n    return (1,\n           ^",
        "worse.py:1: IndentationError: unexpected indent\n    x = 1\n    ^",
    ]
    bad.write_bytes(b"x = '\xff'\n")
    assert syntax_errors([bad], PYTHON)
    assert syntax_errors([bad], "nodejs20.x") == []


def test_a_newer_python_has_newer_syntax(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text("type X = int\n")
    assert syntax_errors([file], "python3.99") == []
    if (
        sys.version_info < (3, 12)
        and subprocess.run("python3.13 -c pass", shell=True, capture_output=True).returncode == 0
    ):
        assert syntax_errors([file], "python3.13") == []
        assert syntax_errors([file], PYTHON) != []
        file.write_text("type X = \n")
        assert "SyntaxError" in syntax_errors([file], "python3.13")[0]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_node(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.mjs", tmp_path / "bad.cjs"
    good.write_text("export const handler = async () => 1;\n")
    bad.write_text("exports.handler = async ( => 1;\n")
    (told,) = syntax_errors([good, bad], "nodejs20.x")
    assert told.startswith("bad.cjs:1\nexports.handler = async ( => 1;")
    assert told.endswith("SyntaxError: Unexpected token '=>'")
