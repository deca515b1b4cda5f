"""What is written into control groups of both versions. Version 2 can not be had on every machine, its values can."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RUNTIME = Path(__file__).resolve().parents[2] / "src" / "lambent" / "runtimes" / "sandbox"
MIB = 1_048_576


@pytest.fixture
def cgroups(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module as the zygote sees it: imported from its own folder."""
    monkeypatch.syspath_prepend(str(RUNTIME))
    yield importlib.import_module("cgroups")
    for name in ("cgroups", "linux"):
        sys.modules.pop(name, None)


def group(cgroups: Any, version: int, folder: Path, names: tuple[str, ...]) -> Any:
    files = {name: os.open(folder / name, os.O_RDWR | os.O_CREAT) for name in names}
    return cgroups.Group(version, files)


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.read_text()}


ALL = ("memory.limit", "memory.swap_limit", "memory.usage", "memory.notify", "cpu.weight", "cpu.quota", "pids.max")


def test_version_1_leaves_room_for_tmp_because_the_watch_holds_the_limit(cgroups: Any, tmp_path: Path) -> None:
    group(cgroups, 1, tmp_path, ALL).limit(100 * MIB, 512 * MIB, 128 / 1769, False, 1_024)
    assert written(tmp_path) == {
        "memory.limit": str(612 * MIB),
        "memory.swap_limit": str(612 * MIB),
        "cpu.weight": "74",
        "pids.max": "1024",
    }


def test_version_2_counts_tmp_as_memory_and_allows_no_swap(cgroups: Any, tmp_path: Path) -> None:
    names = tuple(name for name in ALL if name not in ("memory.usage", "memory.notify"))
    group(cgroups, 2, tmp_path, names).limit(100 * MIB, 512 * MIB, 2.0, True, 1_024)
    assert written(tmp_path) == {
        "memory.limit": str(100 * MIB),
        "memory.swap_limit": "0",
        "cpu.weight": "200",
        "cpu.quota": "200000 100000",
        "pids.max": "1024",
    }


def test_the_quota_of_a_small_function_is_its_share_of_a_cpu(cgroups: Any, tmp_path: Path) -> None:
    group(cgroups, 1, tmp_path, ALL).limit(100 * MIB, 512 * MIB, 128 / 1769, True, 1_024)
    assert written(tmp_path)["cpu.quota"] == str(int(100_000 * 128 / 1769))


def test_a_group_without_files_limits_nothing(cgroups: Any) -> None:
    cgroups.Group(0, {}).limit(MIB, MIB, 1.0, True, 1)


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory", os.W_OK) or not Path("/sys/fs/cgroup/memory/tasks").exists(),
    reason="needs a writable cgroup v1 memory hierarchy",
)
def test_a_real_group_is_made_entered_and_removed(cgroups: Any) -> None:
    parents = cgroups.Parents(1, {"pids": "/sys/fs/cgroup/pids"})
    name = f"lambent-test-{os.getpid()}"
    pid = os.fork()
    if pid == 0:
        try:
            made = parents.create(name)
            made.limit(MIB, 0, 1.0, False, 7)
            inside = str(os.getpid()) in Path(f"/sys/fs/cgroup/pids/{name}/cgroup.procs").read_text().split()
            limited = Path(f"/sys/fs/cgroup/pids/{name}/pids.max").read_text() == "7\n"
            os._exit(0 if inside and limited else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert parents.remove(name)
    assert not Path(f"/sys/fs/cgroup/pids/{name}").exists()
    parents.close()
