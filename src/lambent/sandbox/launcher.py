"""The launcher: the one process that keeps the server's privileges, with two narrow duties.

It owns the parent control groups and starts zygotes. It is run as a script (`python -I -S launcher.py FD`) before the
server gives up root, knows nothing of HTTP or functions, and ends when the server's end of the channel closes, however
the server ended; with it end the zygotes and with them every environment.

Messages, JSON on SOCK_SEQPACKET: out, once, {"op": "ready", "namespaces", "rootless", "cgroup_version", "cgroups",
"problems"}; in {"op": "zygote", "python", "script"} + the zygote's end of its channel to the server.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

_MESSAGE_MAX_BYTES = 65_536
_CONTROLLERS = ("memory", "cpu", "pids")
#: Version 1 has a controller for it that may be missing; with version 2 every group can freeze.
_FREEZER = "freezer"
_CGROUP_ROOT = "/sys/fs/cgroup"
_PREFIX = "lambent-"
_CLEAN_UP_S = 5.0
_ALL_ENVIRONMENTS_SHARES = 1024


class ControlGroups:
    """The parent groups below the launcher's own groups, one folder per controller (v1) or one for all (v2)."""

    def __init__(self) -> None:
        self.version = 0
        self.folders: dict[str, str] = {}
        self.problems: list[str] = []

    def make(self) -> None:
        own = _own_groups()
        for version, bases in ((1, _bases_v1(own)), (2, _bases_v2(own))):
            missing = [name for name in _CONTROLLERS if name not in bases]
            if missing:
                continue
            try:
                self.folders = self._make_v1(bases) if version == 1 else self._make_v2(bases["memory"])
                self.version = version
                return
            except OSError as error:
                self.folders = {}
                self.problems.append(
                    f"cgroup v{version}: {error.strerror or error} ({error.filename}); memory, CPU and process "
                    "limits need root, or a delegated cgroup (systemd-run --user -p Delegate=yes --scope ...)"
                )
        if not self.problems:
            self.problems.append("no cgroup hierarchy with the memory, cpu and pids controllers is mounted")

    def _make_v1(self, bases: dict[str, str]) -> dict[str, str]:
        made = {}
        for name in _CONTROLLERS:
            _remove_stale(bases[name])
            path = os.path.join(bases[name], f"{_PREFIX}{os.getpid()}")
            os.makedirs(path, exist_ok=True)
            made[name] = path
        if _FREEZER in bases:
            try:
                _remove_stale(bases[_FREEZER])
                path = os.path.join(bases[_FREEZER], f"{_PREFIX}{os.getpid()}")
                os.makedirs(path, exist_ok=True)
                made[_FREEZER] = path
            except OSError:
                pass  # then signals do it
        # All environments together weigh as much as this; at the default they would starve beside a busy server.
        _write(os.path.join(made["cpu"], "cpu.shares"), str(_ALL_ENVIRONMENTS_SHARES))
        return made

    def _make_v2(self, base: str) -> dict[str, str]:
        _remove_stale(base)
        try:
            _enable(base)
        except OSError:
            # A group with processes may not hand controllers down: move ours into a leaf first.
            leaf = os.path.join(base, f"{_PREFIX}server-{os.getpid()}")
            os.makedirs(leaf, exist_ok=True)
            for pid in (os.getpid(), os.getppid()):
                _write(os.path.join(leaf, "cgroup.procs"), str(pid))
            _enable(base)
        path = os.path.join(base, f"{_PREFIX}{os.getpid()}")
        os.makedirs(path, exist_ok=True)
        _enable(path)
        _write(os.path.join(path, "cpu.weight"), str(min(10_000, _ALL_ENVIRONMENTS_SHARES * 100 // 1024)))
        return dict.fromkeys((*_CONTROLLERS, _FREEZER), path)

    def remove(self) -> None:
        frozen = self.folders.get(_FREEZER, "")
        if self.version == 1 and frozen:
            for entry in os.listdir(frozen):
                _thaw(os.path.join(frozen, entry))
        end = time.monotonic() + _CLEAN_UP_S
        for folder in dict.fromkeys(self.folders.values()):
            while not _remove_tree(folder) and time.monotonic() < end:
                time.sleep(0.01)  # the kernel is still burying the killed processes


def _enable(folder: str) -> None:
    _write(os.path.join(folder, "cgroup.subtree_control"), " ".join(f"+{name}" for name in _CONTROLLERS))


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _own_groups() -> dict[str, str]:
    """Controller (v1) or "" (v2) -> this process's group."""
    found = {}
    try:
        with open("/proc/self/cgroup") as file:
            for line in file:
                _, names, path = line.rstrip("\n").split(":", 2)
                for name in names.split(","):
                    found[name] = path
    except OSError:
        pass
    return found


def _bases_v1(own: dict[str, str]) -> dict[str, str]:
    bases = {}
    for name in (*_CONTROLLERS, _FREEZER):
        for mounted in (f"{_CGROUP_ROOT}/{name}", f"{_CGROUP_ROOT}/cpu,cpuacct"):
            if (mounted.endswith(name) or name == "cpu") and os.path.isdir(mounted):
                below = mounted + own.get(name, "/")
                bases[name] = below if os.path.isdir(below) else mounted
                break
    return bases


def _bases_v2(own: dict[str, str]) -> dict[str, str]:
    for mounted in (_CGROUP_ROOT, f"{_CGROUP_ROOT}/unified"):
        try:
            with open(f"{mounted}/cgroup.controllers") as file:
                offered = file.read().split()
        except OSError:
            continue
        below = mounted + own.get("", "/")
        base = below if os.path.isdir(below) else mounted
        return {name: base for name in _CONTROLLERS if name in offered}
    return {}


def _remove_stale(base: str) -> None:
    """Groups of launchers that are gone (kill -9 of everything at once leaves empty ones behind)."""
    for entry in os.listdir(base):
        pid = entry.rpartition("-")[2]
        if entry.startswith(_PREFIX) and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            _remove_tree(os.path.join(base, entry))


def _remove_tree(folder: str) -> bool:
    """Remove a group and its children; False while something in it is still alive."""
    try:
        for entry in os.listdir(folder):
            child = os.path.join(folder, entry)
            if os.path.isdir(child):
                _thaw(child)
                os.rmdir(child)
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _thaw(group: str) -> None:
    """With version 1 a frozen process can not even be killed."""
    path = os.path.join(group, "freezer.state")
    try:
        _write(path, "THAWED")
    except OSError:
        pass  # of another controller, or gone


def probe_namespaces() -> tuple[bool, bool, str]:
    """Try, in a child, what a sandbox needs. Returns (works, needs a user namespace, problem)."""
    if sys.platform != "linux":
        return False, False, f"namespaces need Linux; this is {sys.platform}"
    rootless = os.geteuid() != 0
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _try_namespaces(rootless)
            os.write(write, b"ok")
        except Exception as error:
            os.write(write, str(error).encode()[:500])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(pid, 0)
    return text == "ok", rootless, "" if text == "ok" else f"namespaces: {text or 'the probe died'}"


def _try_namespaces(rootless: bool) -> None:
    import linux  # type: ignore[import-not-found]  # beside the zygote; see main()

    uid, gid = os.getuid(), os.getgid()
    if rootless:
        linux.unshare(linux.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"1000 {uid} 1")
        _write("/proc/self/gid_map", f"1000 {gid} 1")
    linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.mount("tmpfs", "/tmp", "tmpfs")
            linux.mount("proc", "/proc", "proc")
        except OSError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        problem = answer.read().decode()
    os.waitpid(pid, 0)
    if problem:
        raise RuntimeError(problem)


def _start_zygote(order: dict[str, Any], descriptor: int) -> subprocess.Popen[bytes]:
    """The zygote gets an empty environment: nothing of the server's may reach a function."""
    return subprocess.Popen(
        [order["python"], "-I", "-S", order["script"], str(descriptor)],
        pass_fds=(descriptor,),
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "random"},
        stdin=subprocess.DEVNULL,
        cwd="/",
    )


def main() -> None:
    server = socket.socket(fileno=int(sys.argv[1]))
    sys.path.insert(0, sys.argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server drains first; we end when its channel closes
    works, rootless, problem = probe_namespaces()
    groups = ControlGroups()
    groups.make()
    ready = {
        "op": "ready",
        "namespaces": works,
        "rootless": rootless,
        "cgroup_version": groups.version,
        "cgroups": groups.folders,
        "problems": ([problem] if problem else []) + ([] if groups.folders else groups.problems),
    }
    zygotes: list[subprocess.Popen[bytes]] = []
    try:
        server.send(json.dumps(ready).encode())
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, _MESSAGE_MAX_BYTES, 4)
            if not message:
                return
            zygotes = [zygote for zygote in zygotes if zygote.poll() is None]
            try:
                zygotes.append(_start_zygote(json.loads(message), descriptors[0]))
            except OSError as error:
                print(f"lambent launcher: {error}", file=sys.stderr)
            finally:
                os.close(descriptors[0])  # a zygote that did not start shows as a closed channel
    finally:
        for zygote in zygotes:
            zygote.kill()
        for zygote in zygotes:
            zygote.wait()
        groups.remove()


if __name__ == "__main__":
    main()
