"""Reaching for what is not the function's: the host's files, other functions' code and secrets, kernel settings."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from integration.harness import Function, Server, make_zip

from .attacker import Attacker

NO = {"ENOENT", "EACCES", "EPERM", "ENOTDIR", "EROFS"}


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/etc/shadow",
            "/etc/sudoers",
            "/etc/ssh/sshd_config",
            "/root/.bashrc",
            "/root/.ssh/id_rsa",
            "/etc/machine-id",
        ),
        *("/var/run/docker.sock", "/run/dbus/system_bus_socket", "/var/log/syslog", "/sys/kernel/uevent_helper"),
        *("/.code", "/.old/etc/shadow", "/proc/1/root/etc/shadow", "/proc/1/cwd/etc/shadow", "/proc/1/exe"),
        *("/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd/0", "/proc/1/fd/3", "/proc/1/fdinfo/3"),
        *("/proc/1/stack", "/proc/1/syscall", "/proc/1/auxv", "/proc/1/ns/mnt", "/proc/1/mountinfo"),
        *("/proc/kcore", "/proc/kmsg", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/timer_list", "/proc/kpagecount"),
        *("/proc/kpageflags", "/proc/sysrq-trigger", "/proc/self/root/../../etc/shadow", "/proc/self/cwd/../../root"),
    ],
)
def test_out_of_reach(attacker: Attacker, path: str) -> None:
    wanted = NO | {"EISDIR"} if path in ("/.code", "/proc/self/cwd/../../root") else NO
    if path == "/proc/1/mountinfo":
        # What process 1 has mounted is what the function sees as well.
        assert attacker("opened('/proc/1/mountinfo')") in NO | {attacker("opened('/proc/self/mountinfo')")}
        return
    assert attacker(f"opened({path!r})") in wanted


def test_what_the_server_keeps(sandboxed: Server, attacker: Attacker) -> None:
    paths = [str(path) for path in (*list(sandboxed.data.rglob("*"))[:200], sandboxed.log_path)]
    assert any(path.endswith("state.db") for path in paths)
    assert attacker(f"[path for path in {paths} if os.path.lexists(path)]") == []
    assert attacker(f"tried(os.listdir, {str(sandboxed.data)!r})") in NO
    assert attacker("[path for path in os.listdir('/var/runtime') if path == 'lambent']") == []


def test_paths_of_the_host_lead_nowhere(sandboxed: Server, attacker: Attacker) -> None:
    """The list of mounts names folders of the host; the names are all that can be had."""
    sources = {root for root, _, _ in attacker("mounts()") if root.startswith(str(sandboxed.data))}
    assert sources
    assert attacker(f"[path for path in {sorted(sources)} if os.path.lexists(path)]") == []


class Secret(NamedTuple):
    """Halves of a text that the owner has in its code, layer, variables, memory, /tmp and logs; the attacker gets them
    apart, so that it does not find itself."""

    first: str
    second: str
    owner: Function


@pytest.fixture
def secret(sandboxed: Server) -> Iterator[Secret]:
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    whole = first + second
    layer = sandboxed.lambda_.publish_layer_version(
        LayerName=f"secret-{first[:8]}", Content={"ZipFile": make_zip({"secret.txt": whole})}
    )
    source = f"""
        import os
        WHOLE = {whole!r}
        def handler(event, context):
            open("/tmp/secret", "w").write(WHOLE)
            print(WHOLE)
            return open("/opt/secret.txt").read()
    """
    owner = sandboxed.deploy(
        source, "owner", Environment={"Variables": {"SECRET": whole}}, Layers=[layer["LayerVersionArn"]]
    )
    assert owner.call() == whole
    yield Secret(first, second, owner)
    assert owner.call() == whole
    sandboxed.lambda_.delete_function(FunctionName=owner.name)
    sandboxed.lambda_.delete_layer_version(LayerName=f"secret-{first[:8]}", VersionNumber=1)


SEARCH = """
    first, second = {first!r}.encode(), {second!r}.encode()
    found, looked = [], 0

    def look(path, data):
        at = data.find(first)
        while at >= 0:
            if data[at + len(first): at + len(first) + len(second)] == second:
                found.append(path)
            at = data.find(first, at + 1)

    roots = ["/"]
    for pid in range(1, 300):
        for name in ("root", "cwd", "fd", "task", "map_files"):
            roots.append("/proc/%d/%s" % (pid, name))
    shared = ("/usr", "/proc", "/lib", "/root", "/bin", "/sbin", "/var/runtime/bot")
    for root in roots:
        for folder, folders, files in os.walk(root):
            if root == "/":
                folders[:] = [each for each in folders if not os.path.join(folder, each).startswith(shared)]
            elif folder == root:
                files = []
                folders[:] = [] if root.startswith("/proc/%d/" % os.getpid()) else folders[:50]
            for name in files:
                path = os.path.join(folder, name)
                try:
                    if stat.S_ISREG(os.stat(path).st_mode):
                        with open(path, "rb") as file:
                            look(path, file.read(1 << 20))
                            looked += 1
                except OSError:
                    pass
    for pid in range(1, 300):
        for name in ("environ", "cmdline", "stack", "wchan", "mountinfo"):
            try:
                with open("/proc/%d/%s" % (pid, name), "rb") as file:
                    look(file.name, file.read())
            except OSError:
                pass
    for path in os.environ.values():
        look("environment", path.encode())
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in maps.read().splitlines():
            span, rights = line.split()[:2]
            if rights.startswith("rw") and "[v" not in line:
                start, end = (int(each, 16) for each in span.split("-"))
                try:
                    look("memory " + line, os.pread(memory.fileno(), end - start, start))
                except OSError:
                    pass
    result = [looked, found]
"""


def test_another_functions_secret_is_nowhere(sandboxed: Server, attacker: Attacker, secret: Secret) -> None:
    """In files, in processes, or in what this process was forked with; then in the owner, where the search finds it."""
    code = SEARCH.format(first=secret.first, second=secret.second)
    looked, found = attacker(code)
    assert looked > 20
    assert found == []
    attacker(f"open('/tmp/planted', 'w').write('{secret.first}' + '{secret.second}')")
    assert "/tmp/planted" in attacker(code)[1]
    attacker("os.unlink('/tmp/planted')")


SETTINGS = [
    ("/proc/sys/kernel/core_pattern", "|/tmp/evil"),
    ("/proc/sys/kernel/modprobe", "/tmp/evil"),
    ("/proc/sys/kernel/hotplug", "/tmp/evil"),
    ("/proc/sys/kernel/randomize_va_space", "0"),
    ("/proc/sys/kernel/hostname", "evil"),
    ("/proc/sys/kernel/sysrq", "1"),
    ("/proc/sys/kernel/pid_max", "500"),
    ("/proc/sys/kernel/ns_last_pid", "1"),
    ("/proc/sys/vm/overcommit_memory", "2"),
    ("/proc/sys/vm/drop_caches", "3"),
    ("/proc/sys/vm/panic_on_oom", "1"),
    ("/proc/sys/fs/binfmt_misc/register", ":evil:M::evil::/tmp/evil:"),
    ("/proc/sys/fs/suid_dumpable", "1"),
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    ("/proc/sys/net/core/somaxconn", "1"),
    ("/proc/sys/user/max_user_namespaces", "100000"),
    ("/proc/sysrq-trigger", "b"),
    ("/proc/acpi/wakeup", "PBTN"),
    ("/proc/irq/default_smp_affinity", "1"),
    ("/proc/1/oom_score_adj", "-1000"),
    ("/proc/1/comm", "evil"),
    ("/proc/1/cgroup", "/"),
    ("/proc/1/uid_map", "0 0 1"),
    ("/proc/self/uid_map", "0 0 1"),
    ("/proc/self/gid_map", "0 0 1"),
    ("/proc/self/setgroups", "allow"),
    ("/proc/self/oom_score_adj", "-1000"),
    ("/proc/self/attr/current", "unconfined"),
    ("/sys/fs/cgroup/cgroup.procs", "0"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1"),
    ("/sys/fs/cgroup/cgroup.subtree_control", "-memory"),
    ("/sys/kernel/mm/transparent_hugepage/enabled", "never"),
    ("/sys/power/state", "mem"),
]


@pytest.mark.parametrize(("path", "text"), SETTINGS, ids=[path for path, _ in SETTINGS])
def test_settings_of_the_kernel(attacker: Attacker, path: str, text: str) -> None:
    before = _read(path) if path.startswith(("/proc/sys/", "/sys/")) else None
    assert attacker(f"wrote({path!r}, {text!r})") in NO | {"EINVAL"}
    if before is not None:
        assert _read(path) == before


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text()
    except OSError:
        return None


def test_addresses_of_the_kernel_are_not_told(attacker: Attacker) -> None:
    symbols = attacker("opened('/proc/kallsyms')")
    assert symbols in NO or {line.split()[0].strip("0") for line in symbols.splitlines()[:-1]} <= {""}
    assert attacker("refused('klogctl', 3, ctypes.create_string_buffer(99), 99)") == "EPERM"


def test_its_own_limits_are_out_of_reach(sandboxed: Server, attacker: Attacker) -> None:
    assert attacker("os.path.exists('/sys/fs/cgroup')") is False
    assert attacker("refused('mount', b'none', b'/tmp', b'cgroup', 0, b'memory')") == "EPERM"
    assert attacker("refused('mount', b'none', b'/tmp', b'cgroup2', 0, None)") == "EPERM"
    if not sandboxed.page("health")["rootless"]:
        groups = attacker("open('/proc/self/cgroup').read()")
        assert {line.rsplit(":", 1)[1] for line in groups.splitlines()} == {"/"}  # not where they are on the host
    assert attacker("tried(os.nice, -1)") == "EPERM"
    assert attacker("tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))") == "EPERM"
    assert attacker("tried(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))") in {"EPERM"}
    assert attacker("tried(time.clock_settime, time.CLOCK_REALTIME, 0)") == "EPERM"


def test_symbolic_links_of_its_own(attacker: Attacker) -> None:
    """A link leads where the function could have gone without it."""
    for target in ("/proc/1/root", "/../../../../root/.ssh", "/proc/self/root/.old", "/.code", os.path.expanduser("~")):
        listed = attacker(f"""
            os.path.lexists("/tmp/link") and os.unlink("/tmp/link")
            os.symlink({target!r}, "/tmp/link")
            result = [tried(os.listdir, "/tmp/link"), os.path.exists("/tmp/link") and os.listdir("/tmp/link")]
        """)
        assert listed[0] in NO or listed[1] in ([], [".pyenv"]), target
