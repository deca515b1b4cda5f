"""`lambent doctor`: what this machine allows a server started by this user, and what to do about the rest."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from typing import Any, NamedTuple

from lambent.cli.client import print_json
from lambent.sandbox import interpreters, runtimes


class Finding(NamedTuple):
    """`level`: ok, warn (works, less well) or bad (does not work)."""

    level: str
    what: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Tries things for real: starts the launcher as the server would, and stops it."""
    from lambent.worker.launcher import Launcher, SandboxUnavailable

    findings = [Finding("ok", "system", f"{platform.system()} {platform.release()} {platform.machine()}")]
    user = "root; the server itself gives up root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    advice = (
        "" if os.geteuid() == 0 else "as root each environment has a user id of its own, and limits need no delegation"
    )
    findings.append(Finding("ok" if os.geteuid() == 0 else "warn", "privileges", user, advice))
    launcher = Launcher()
    try:
        state = launcher.wait_ready()
    except SandboxUnavailable as error:
        return [*findings, Finding("bad", "launcher", str(error), "report this")]
    finally:
        launcher.close()
    if state.namespaces:
        how = "mount, pid, ipc, uts" + (" inside a user namespace" if state.rootless else "")
        findings.append(Finding("ok", "namespaces", how))
    else:
        findings.append(
            Finding(
                "warn", "namespaces", next((p for p in state.problems if "namespaces" in p), "not available"),
                "the process sandbox is used, for development only. Run as root, or allow unprivileged user namespaces "
                "(sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0; with AppArmor "
                "kernel.apparmor_restrict_unprivileged_userns=0)",
            )
        )  # fmt: skip
    if state.cgroups:
        findings.append(Finding("ok", "cgroups", f"version {state.cgroup_version}: memory, CPU and process limits"))
    else:
        problem = next((p for p in state.problems if "cgroup" in p), "no cgroup")
        findings.append(
            Finding(
                "warn", "cgroups", problem,
                "memory is limited per process only (RLIMIT_DATA), CPU shares and process counts are not limited",
            )
        )  # fmt: skip
    findings += [_seccomp(), *_interpreters(), _node(), _freezer(), _descriptors(), _memory()]
    return findings


def _seccomp() -> Finding:
    try:
        from lambent.sandbox.seccomp import compile_filter

        return Finding("ok", "seccomp", f"filter of {len(compile_filter()) // 8} instructions")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(
            "warn",
            "seccomp",
            f"no filter: {error}",
            "install libseccomp (Debian: apt-get install libseccomp2)",
        )


def _interpreters() -> list[Finding]:
    found = interpreters.find()
    findings = []
    for minor in range(interpreters.OLDEST, interpreters.NEWEST + 1):
        choice = interpreters.choose(f"python3.{minor}", found)
        assert choice is not None
        if choice.warning is None:
            findings.append(Finding("ok", f"python3.{minor}", str(choice.interpreter.path)))
        else:
            findings.append(
                Finding(
                    "warn", f"python3.{minor}", f"not installed; served by {choice.interpreter.runtime}",
                    f"install python3.{minor}, or start with --strict-runtimes to refuse such functions",
                )
            )  # fmt: skip
    return findings


def _node() -> Finding:
    try:
        found = runtimes.find("nodejs20.x", interpreters.find(), sys.version_info[1], strict=False)
    except runtimes.RuntimeMissing as error:
        return Finding("warn", "nodejs", "not installed", str(error))
    return Finding("ok", "nodejs", f"{found.version} ({found.program})")


def _freezer() -> Finding:
    for path in ("/sys/fs/cgroup/freezer", "/sys/fs/cgroup/cgroup.controllers"):
        if os.path.exists(path) and os.geteuid() == 0:
            return Finding("ok", "freezer", "idle environments are frozen by their control group")
    return Finding("ok", "freezer", "idle environments are stopped by signals")


def _descriptors() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard in (-1, resource.RLIM_INFINITY) or hard >= 8_192:
        return Finding("ok", "open files", "unlimited" if hard == resource.RLIM_INFINITY else f"{hard:,}")
    return Finding("warn", "open files", f"{hard:,}", "about 8 a live environment: raise it with ulimit -Hn 65536")


def _memory() -> Finding:
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_048_576
    wrk = "" if shutil.which("wrk") else "; wrk is not installed (make bench falls back to its own driver)"
    return Finding("ok", "memory", f"{total_mib:,} MiB, {os.cpu_count()} CPUs{wrk}")


def doctor(endpoint: str, as_json: bool) -> int:
    """Exit status 1 when something does not work at all."""
    findings = examine()
    server = _running_server(endpoint)
    if as_json:
        print_json({"findings": [f._asdict() for f in findings], "server": server})
    else:
        _show(findings, endpoint, server)
    return 1 if any(f.level == "bad" for f in findings) else 0


def _running_server(endpoint: str) -> Any:
    import json
    import urllib.request

    try:
        with urllib.request.urlopen(f"{endpoint.rstrip('/')}/_lambent/health", timeout=2) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def _show(findings: list[Finding], endpoint: str, server: Any) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    marks = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "bad": "[red]bad [/]"}
    for finding in findings:
        console.print(f"{marks[finding.level]} [bold]{finding.what:<12}[/] {escape(finding.found)}")
        if finding.advice:
            console.print(f"                  {escape(finding.advice)}", style="dim")
    if server is None:
        console.print(f"     no server at {endpoint}", style="dim")
    else:
        console.print(f"     server at {endpoint}: sandbox {server['sandbox']}, data in {server['data_dir']}")
    sys.stdout.flush()
