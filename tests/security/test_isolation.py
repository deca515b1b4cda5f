"""What a function can see and do in its sandbox, as root has made it and as an ordinary user has."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from integration.harness import Server

from .attacker import SOURCE, Attacker


def test_every_environment_has_a_user_id_of_its_own(sandboxed: Server, attacker: Attacker) -> None:
    if sandboxed.page("health")["rootless"]:
        pytest.skip("without root all environments share the server's user id")
    with ThreadPoolExecutor(4) as pool:
        uids = list(pool.map(attacker, ["uid_after(0.4)"] * 4))
    assert len(set(uids)) == 4
    assert 0 not in uids
    assert all(uid >= 200_000 for uid in uids)


def test_the_user_has_awss_name_and_no_groups(attacker: Attacker) -> None:
    assert attacker("__import__('pwd').getpwuid(os.getuid()).pw_name") == "sbx_user1051"
    assert attacker("os.getresuid() == (os.getuid(),) * 3 and os.getresgid() == (os.getgid(),) * 3") is True
    assert set(attacker("os.getgroups()")) <= {attacker("os.getgid()")}


def test_no_privileges_and_no_way_to_get_them(attacker: Attacker) -> None:
    found = attacker("status()")
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[name], 16) == 0, name


def test_set_user_id_programs_are_ordinary_ones(attacker: Attacker) -> None:
    found = attacker("""
        programs = []
        for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/local/bin"):
            for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                if entry.is_file() and entry.stat().st_mode & (stat.S_ISUID | stat.S_ISGID):
                    programs.append(entry.path)
        mine = "/tmp/mine"
        with open("/bin/sh", "rb") as shell, open(mine, "wb") as copy:
            copy.write(shell.read())
        os.chmod(mine, 0o6755)
        ids = [subprocess.run([mine, "-p", "-c", "grep -E '^(Uid|CapEff)' /proc/self/status"],
                              capture_output=True, text=True).stdout]
        for program in programs:  # none has an answer for us, and none becomes somebody else
            child = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=-3)
            try:
                ids.append("Uid:\\t" + status(child.pid).get("Uid", "0"))
            except OSError:
                pass
            child.kill()
            child.wait()
        su = subprocess.run(["su", "-c", "id", "root"], stdin=subprocess.DEVNULL, capture_output=True).returncode
        os.unlink(mine)
        result = [os.getuid(), ids, su]
    """)
    uid, ids, su = found
    for text in ids:
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in text
    assert "CapEff:\t0000000000000000" in ids[0]
    assert su != 0


def test_no_mount_honours_set_user_id_or_devices(attacker: Attacker) -> None:
    for _, target, options in attacker("mounts()"):
        assert "nosuid" in options, target
        assert "nodev" in options or target.startswith("/dev/") or target == "/", target
        assert "ro" in options or target in ("/proc", "/tmp") or target.startswith("/dev/"), target


def test_clone3_falls_back_so_that_threads_and_children_work(attacker: Attacker) -> None:
    assert attacker("system_call(435, 0, 0)") == "ENOSYS"
    assert attacker("subprocess.run(['/bin/echo', 'hi'], capture_output=True, text=True).stdout") == "hi\n"
    assert attacker("__import__('concurrent.futures').futures.ThreadPoolExecutor(4).submit(lambda: 5).result()") == 5


@pytest.mark.parametrize(
    "path", ["/var/task/x", "/opt/x", "/var/runtime/x", "/usr/x", "/etc/x", "/x", "/var/x", "/dev/x", "/dev/shm/x"]
)
def test_read_only(attacker: Attacker, path: str) -> None:
    assert attacker(f"opened({path!r}, 'w')") in {"EROFS", "EACCES", "ENOENT"}


def test_code_can_not_be_changed(attacker: Attacker) -> None:
    read_only = {"EROFS", "EACCES", "EPERM"}
    for path in ("/var/task/m.py", "/var/runtime/_lambent/process.py", "/usr/bin/env", "/etc/hosts"):
        assert attacker(f"opened({path!r}, 'a')") in read_only, path
        assert attacker(f"tried(os.truncate, {path!r}, 0)") in read_only, path
        assert attacker(f"tried(os.chmod, {path!r}, 0o777)") in read_only, path
        assert attacker(f"tried(os.rename, {path!r}, '/tmp/x')") in read_only | {"EXDEV", "EBUSY"}, path
        assert attacker(f"tried(os.unlink, {path!r})") in read_only | {"EBUSY"}, path
        assert attacker(f"tried(os.link, {path!r}, '/tmp/x')") in read_only | {"EXDEV"}, path
        reopened = f"(lambda f: opened('/proc/self/fd/%d' % f.fileno(), 'a'))(open({path!r}))"
        assert attacker(reopened) in read_only, path
    assert attacker("os.listdir('/var/task')") == ["m.py"]


def test_tmp_has_the_configured_size_and_is_private(sandboxed: Server, attacker: Attacker) -> None:
    size = "(lambda s: s.f_blocks * s.f_frsize >> 20)(os.statvfs('/tmp'))"
    assert attacker(size) == 512
    assert oct(attacker("os.stat('/tmp').st_mode")) == "0o41777"
    larger = Attacker(sandboxed, EphemeralStorage={"Size": 700})
    assert larger("os.listdir('/tmp')") == []
    assert larger(size) == 700
    assert larger("opened('/tmp/mine', 'w')") == "written"
    assert "mine" not in attacker("os.listdir('/tmp')")
    larger.delete()


def test_the_host_is_out_of_sight(sandboxed: Server, attacker: Attacker) -> None:
    data = str(sandboxed.data)
    # A folder on the way to the interpreter is there, and holds only that way.
    way = [data, "/root", "/home", "/mnt", "/opt"]
    prefix = os.path.realpath(sys.base_prefix)
    for path in way:
        seen = [prefix[len(path) :].split("/")[1]] if prefix.startswith(f"{path}/") else []
        assert attacker(f"os.path.exists({path!r}) and os.listdir({path!r})") in (False, [], seen), path
    for path in ("/work", "/.code", "/.old", "/sys", "/run", "/var/lib", "/var/log", "/boot", "/srv"):
        assert attacker(f"os.path.exists({path!r}) and os.listdir({path!r})") in (False, []), path
    pids = attacker("pids()")
    assert len(pids) <= 3
    assert pids[0] == 1
    assert attacker("os.getppid()") == 1
    assert attacker("os.uname().nodename") != os.uname().nodename


def test_environment_of_the_server_is_not_handed_down(attacker: Attacker) -> None:
    names = set(attacker("list(os.environ)"))
    assert not {name for name in names if name.startswith(("LAMBENT", "PYTEST", "PYENV"))}
    assert not names & {"HOME", "USER", "VIRTUAL_ENV"}


def test_only_its_own_descriptors_are_open(attacker: Attacker) -> None:
    found = attacker("descriptors()")
    assert found.pop("0") == "/dev/null"
    kinds = sorted(target.partition(":")[0] for target in found.values())
    assert set(kinds) <= {"pipe", "socket"}, json.dumps(found)
    assert len(found) <= 6


def test_resource_limits_and_no_way_to_raise_them(attacker: Attacker) -> None:
    names = ("RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_NPROC")
    limits: dict[str, Any] = attacker(f"{{name: resource.getrlimit(getattr(resource, name))[1] for name in {names}}}")
    assert limits["RLIMIT_NOFILE"] == 1024
    assert limits["RLIMIT_CORE"] == 0
    assert limits["RLIMIT_NPROC"] == 1024
    for name, value in limits.items():
        wanted = f"(resource.{name}, ({value} * 2 + 2,) * 2)"
        raised = attacker(f"""
            try:
                resource.setrlimit{wanted}
                result = "allowed"
            except (OSError, ValueError) as error:
                result = "refused"
        """)
        assert raised == "refused", name


def test_dev_is_small(attacker: Attacker) -> None:
    expected = {"null", "zero", "full", "random", "urandom", "fd", "stdin", "stdout", "stderr"}
    assert set(attacker("os.listdir('/dev')")) == expected
    assert attacker("len(open('/dev/urandom', 'rb').read(8))") == 8
    assert attacker("opened('/dev/full', 'w')") in {"written", "ENOSPC"}


@pytest.mark.parametrize("kind", ["S_IFBLK", "S_IFCHR"])
def test_no_device_can_be_made(attacker: Attacker, kind: str) -> None:
    for major, minor in ((1, 1), (1, 2), (8, 0), (254, 0), (5, 0), (10, 200)):
        made = f"tried(os.mknod, '/tmp/device', stat.{kind} | 0o666, os.makedev({major}, {minor}))"
        assert attacker(made) == "EPERM"


def test_the_attacker_itself_works() -> None:
    """An attempt that is not made must not pass for one that failed."""
    told: dict[str, Any] = {"__name__": "m"}
    exec(compile(SOURCE, "m.py", "exec"), told)
    handler = told["handler"]
    assert handler("opened('/etc/passwd')", None).startswith("root:")
    assert handler("opened('/nowhere')", None) == "ENOENT"
    assert handler("tried(os.getpid)", None) == "allowed"
    assert handler("refused('getpid')", None) == "allowed"
    assert handler("system_call(9999)", None) == "ENOSYS"
    assert handler("a = 1\nresult = a + 1\n", None) == 2
