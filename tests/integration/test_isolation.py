"""What a function can see and do in its sandbox. These are facts of the namespace sandbox."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .harness import Function, Server

Deploy = Callable[..., Function]

PROBE = """
import ctypes, errno, os, resource, socket, subprocess, sys, time

libc = ctypes.CDLL(None, use_errno=True)

def handler(event, context):
    return eval(event, globals(), {"context": context})

def refused(call, *arguments):
    result = getattr(libc, call)(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "allowed"

def opened(path, mode="r"):
    try:
        with open(path, mode) as file:
            return file.read(200) if mode == "r" else "written"
    except OSError as error:
        return errno.errorcode[error.errno]

def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\\n").split(":\\t", 1) for line in file if ":\\t" in line)

def family(number):
    try:
        socket.socket(number, socket.SOCK_RAW if number == 17 else socket.SOCK_STREAM).close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"

def descriptors():
    paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
    return {path[14:]: os.readlink(path) for path in paths if os.path.exists(path)}

def uid_after(seconds):
    time.sleep(seconds)
    return os.getuid()
"""


@pytest.fixture(scope="module")
def probe(server: Server) -> Iterator[Function]:
    if server.page("health")["sandbox"] != "namespace":
        pytest.skip("this machine does not allow the namespace sandbox; see `lambent doctor`")
    function = server.deploy(PROBE, "probe", MemorySize=256)
    yield function
    server.lambda_.delete_function(FunctionName=function.name)


def test_every_environment_has_a_user_id_of_its_own(server: Server, probe: Function) -> None:
    if server.page("health")["rootless"]:
        pytest.skip("without root all environments share the server's user id")
    with ThreadPoolExecutor(4) as pool:
        uids = list(pool.map(probe.call, ["uid_after(0.4)"] * 4))
    assert len(set(uids)) == 4
    assert 0 not in uids
    assert all(uid >= 200_000 for uid in uids)


def test_the_user_has_awss_name_and_no_groups(probe: Function) -> None:
    assert probe.call("__import__('pwd').getpwuid(os.getuid()).pw_name") == "sbx_user1051"
    assert probe.call("os.getresuid() == (os.getuid(),) * 3 and os.getresgid() == (os.getgid(),) * 3") is True
    assert set(probe.call("os.getgroups()")) <= {probe.call("os.getgid()")}


def test_no_privileges_and_no_way_to_get_them(probe: Function) -> None:
    found = probe.call("status()")
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name
    assert (
        probe.call("subprocess.run(['/bin/sh', '-c', 'su -c id root </dev/null'], capture_output=True).returncode") != 0
    )


@pytest.mark.parametrize(
    "expression",
    [
        "refused('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
        "refused('umount2', b'/tmp', 2)",
        "refused('unshare', 0x10000000)",
        "refused('unshare', 0x00020000)",
        "refused('setns', 0, 0)",
        "refused('chroot', b'/tmp')",
        "refused('ptrace', 0, 0, 0, 0)",
        "refused('sethostname', b'x', 1)",
        "refused('reboot', 0)",
        "refused('syscall', 321, 0, 0, 0)",
        "refused('syscall', 250, 0, 0, 0, 0, 0)",
        "refused('syscall', 323, 0)",
        "refused('syscall', 425, 1, 0)",
        "refused('setuid', 0)",
        "family(17)",
        "family(38)",
        "family(40)",
    ],
)
def test_refused_calls(probe: Function, expression: str) -> None:
    # In a user namespace there is no user 0 to become.
    assert probe.call(expression) in {"EPERM", "EACCES"} | ({"EINVAL"} if "setuid" in expression else set())


def test_clone3_falls_back_so_that_threads_and_children_work(probe: Function) -> None:
    assert probe.call("refused('syscall', 435, 0, 0)") == "ENOSYS"
    assert probe.call("subprocess.run(['/bin/echo', 'hi'], capture_output=True, text=True).stdout") == "hi\n"
    assert probe.call("__import__('concurrent.futures').futures.ThreadPoolExecutor(4).submit(lambda: 5).result()") == 5


@pytest.mark.parametrize(
    "path", ["/var/task/x", "/opt/x", "/var/runtime/x", "/usr/x", "/etc/x", "/x", "/var/x", "/dev/x"]
)
def test_read_only(probe: Function, path: str) -> None:
    assert probe.call(f"opened({path!r}, 'w')") in {"EROFS", "EACCES"}


def test_code_can_not_be_changed(probe: Function) -> None:
    assert probe.call("opened('/var/task/m.py', 'a')") in {"EROFS", "EACCES"}
    assert probe.call("os.listdir('/var/task')") == ["m.py"]
    assert probe.call("refused('unlink', b'/var/task/m.py')") in {"EROFS", "EACCES"}


def test_tmp_has_the_configured_size_and_is_private(server: Server, probe: Function, deploy: Deploy) -> None:
    size = "(lambda s: s.f_blocks * s.f_frsize >> 20)(os.statvfs('/tmp'))"
    assert probe.call(size) == 512
    assert oct(probe.call("os.stat('/tmp').st_mode")) == "0o41777"
    assert probe.call("os.listdir('/tmp')") == []
    larger = deploy(PROBE, EphemeralStorage={"Size": 700})
    assert larger.call(size) == 700
    assert larger.call("opened('/tmp/mine', 'w')") == "written"
    assert probe.call("os.listdir('/tmp')") == []


def test_host_and_other_functions_are_out_of_sight(server: Server, probe: Function) -> None:
    data = str(server.data)
    # A folder on the way to the interpreter is there, and holds only that way.
    way = [data, "/root", "/home", "/mnt", "/opt"]
    prefix = os.path.realpath(sys.base_prefix)
    for path in way:
        seen = [prefix[len(path) :].split("/")[1]] if prefix.startswith(f"{path}/") else []
        assert probe.call(f"os.path.exists({path!r}) and os.listdir({path!r})") in (False, [], seen), path
    for path in (
        "/work",
        "/.code",
        "/.old",
        "/sys/fs/cgroup/memory",
        "/var/lib",
        "/boot",
    ):
        assert probe.call(f"os.path.exists({path!r}) and os.listdir({path!r})") in (False, []), path
    mounts = probe.call("open('/proc/self/mountinfo').read()")
    assert "/.code" not in mounts
    pids = probe.call("sorted(int(entry) for entry in os.listdir('/proc') if entry.isdigit())")
    assert len(pids) <= 3
    assert pids[0] == 1
    assert probe.call("os.getppid()") == 1
    assert probe.call("opened('/proc/1/environ')") in {"EACCES", "EPERM", "ENOENT"}
    assert probe.call("os.uname().nodename") != os.uname().nodename


def test_environment_of_the_server_is_not_handed_down(probe: Function) -> None:
    names = set(probe.call("list(os.environ)"))
    assert not {name for name in names if name.startswith(("LAMBENT", "PYTEST", "PYENV"))}
    assert not names & {"HOME", "USER", "VIRTUAL_ENV"}


def test_only_its_own_descriptors_are_open(probe: Function) -> None:
    found = probe.call("descriptors()")
    assert found.pop("0") == "/dev/null"
    kinds = sorted(target.partition(":")[0] for target in found.values())
    assert set(kinds) <= {"pipe", "socket"}, json.dumps(found)
    assert len(found) <= 6


def test_resource_limits(probe: Function) -> None:
    limits: dict[str, Any] = probe.call(
        "{name: resource.getrlimit(getattr(resource, name)) for name in ('RLIMIT_NOFILE', 'RLIMIT_CORE')}"
    )
    assert limits == {"RLIMIT_NOFILE": [1024, 1024], "RLIMIT_CORE": [0, 0]}


def test_dev_is_small(probe: Function) -> None:
    expected = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr"}
    assert set(probe.call("os.listdir('/dev')")) == expected
    assert probe.call("len(open('/dev/urandom', 'rb').read(8))") == 8
    assert probe.call("opened('/dev/full', 'w')") in {"written", "ENOSPC"}
