"""Which interpreter serves a runtime: its own, the nearest with a warning, or none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lambent.sandbox import interpreters
from lambent.sandbox.interpreters import Interpreter, choose


def having(*minors: int) -> dict[int, Interpreter]:
    return {minor: Interpreter(minor, Path(f"/opt/python3.{minor}/bin/python3.{minor}")) for minor in minors}


@pytest.mark.parametrize(
    ("runtime", "present", "served_by"),
    [
        ("python3.11", (9, 11, 13), 11),
        ("python3.14", (9, 11, 13), 13),
        ("python3.12", (11, 13), 13),
        ("python3.10", (9, 12), 9),
        ("python3.9", (12, 13), 12),
        ("python3.8", (9, 11), 9),
    ],
)
def test_the_nearest_serves_and_the_newer_on_a_tie(runtime: str, present: tuple[int, ...], served_by: int) -> None:
    choice = choose(runtime, having(*present))
    assert choice is not None
    assert choice.interpreter.minor == served_by
    assert choice.interpreter.runtime == f"python3.{served_by}"
    if choice.interpreter.runtime == runtime:
        assert choice.warning is None
    else:
        assert choice.warning == (
            f"LAMBENT_WARNING: {runtime} is not installed on this host; the function runs on python3.{served_by} "
            f"(/opt/python3.{served_by}/bin/python3.{served_by}). Install {runtime}, or start with --strict-runtimes "
            "to refuse."
        )


def test_strict_takes_only_the_runtimes_own() -> None:
    assert choose("python3.14", having(13), strict=True) is None
    choice = choose("python3.13", having(13), strict=True)
    assert choice is not None
    assert choice.warning is None


@pytest.mark.parametrize(
    "runtime", ["nodejs22.x", "provided.al2023", "python", "python3", "python3.x", "", "xpython3.11"]
)
def test_what_is_no_python_is_not_served(runtime: str) -> None:
    assert choose(runtime, having(11)) is None


def test_find_takes_interpreters_and_leaves_wrappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def place(folder: str, name: str, mode: int = 0o755) -> Path:
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
        return path

    real = place("bin", "python3.9")
    place("bin", "python3.8")
    place("bin", "python3.13-config")
    place("shims", "python3.10")
    place("env/bin", "python3.12")
    (tmp_path / "env" / "pyvenv.cfg").touch()
    (tmp_path / "bin" / "python3.14").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    folders = [str(tmp_path / name) for name in ("missing", "shims", "env/bin", "bin")]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    found = interpreters.find()
    assert found[9] == Interpreter(9, real)
    assert sys.version_info[1] in found
    for path in (interpreter.path for interpreter in found.values()):
        assert tmp_path not in path.parents or path == real
