"""What the benchmarks read from the machine: facts about it, process trees, and memory from /proc.

Linux only, since the sandbox that is measured is. Processes may end while they are read: those count as gone.
"""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # TCP_LISTEN in the `st` column of /proc/net/tcp


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process: resident, and proportional (shared pages divided among those who map them)."""

    pid: int
    command: str
    resident_bytes: int
    proportional_bytes: int


def facts() -> dict[str, object]:
    """Enough to tell whether two result files may be compared."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in (PROC / "cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_kib = int((PROC / "meminfo").read_text().split()[1])
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
        "root": os.geteuid() == 0,
    }


def descendants(root_pid: int) -> list[int]:
    """The process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command's name stands in parentheses and may hold anything; what follows the last one is regular.
            parent_pid = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        children.setdefault(parent_pid, []).append(int(entry.name))
    found = [root_pid]
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, []))
    return found


def keep_on(root_pid: int, cores: set[int]) -> None:
    """Let a process, all below it, and all their threads run on these cores only; children to come inherit it."""
    for pid in descendants(root_pid):
        try:
            for task in (PROC / str(pid) / "task").iterdir():
                os.sched_setaffinity(int(task.name), cores)
        except OSError:
            continue


def memory_of(pid: int) -> ProcessMemory | None:
    """Memory of a process; None when it is gone or is not ours to read."""
    try:
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        rows = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    kib = {name: int(value.split()[0]) for name, _, value in (row.partition(":") for row in rows)}
    return ProcessMemory(pid, command, kib.get("Rss", 0) * 1024, kib.get("Pss", 0) * 1024)


def memory_below(root_pid: int) -> list[ProcessMemory]:
    """Memory of a process and of all below it that can be read."""
    return [memory for pid in descendants(root_pid) if (memory := memory_of(pid)) is not None]


def listener_pid(root_pid: int, port: int) -> int:
    """The process of the tree that holds the listening socket: the server, where helpers stand around it."""
    wanted = f":{port:04X}"
    inodes = set()
    for table in ("tcp", "tcp6"):
        for row in (PROC / "net" / table).read_text().splitlines()[1:]:
            columns = row.split()
            if columns[1].endswith(wanted) and columns[3] == LISTENING:
                inodes.add(f"socket:[{columns[9]}]")
    for pid in descendants(root_pid):
        try:
            if any(os.readlink(entry) in inodes for entry in (PROC / str(pid) / "fd").iterdir()):
                return pid
        except OSError:
            continue
    return root_pid
