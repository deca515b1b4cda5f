"""The system-call filter, run by an interpreter of its own: what it answers to any call with any arguments."""

from __future__ import annotations

import errno
import platform
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.sandbox.seccomp import compile_filter

pyseccomp = pytest.importorskip("pyseccomp")
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OWN = ARCHITECTURES.get(platform.machine(), 0)
pytestmark = pytest.mark.skipif(not OWN, reason="the tests know x86_64 and aarch64")

ALLOW, KILL, ERRNO = 0x7FFF0000, {0x00000000, 0x80000000}, 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
_CODES = {0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&"}


def run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would answer (classic BPF over struct seccomp_data)."""
    padded = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *padded)
    steps = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        code, when, otherwise, k = steps[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x06:
            return int(k)
        elif code == 0x05:
            at += k
        else:
            assert code & 0x0F == 0x05, hex(code)
            held = {
                "==": accumulator == k,
                ">": accumulator > k,
                ">=": accumulator >= k,
                "&": bool(accumulator & k),
            }[_CODES[code & 0xF0]]
            at += when if held else otherwise


@pytest.fixture(scope="module")
def program() -> bytes:
    return compile_filter()


def number_of(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


PROGRAM = compile_filter() if OWN else b""
words = st.integers(0, 2**64 - 1)
high = st.integers(0, 2**32 - 1).map(lambda value: value << 32)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "open_tree",
            "move_mount",
            "fsopen",
            "fsmount",
        ),
        *("fsconfig", "fspick", "mount_setattr", "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "keyctl"),
        *("add_key", "request_key", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter"),
        *("io_uring_register", "kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
        *("reboot", "swapon", "swapoff", "sethostname", "setdomainname", "settimeofday", "clock_settime", "adjtimex"),
        *("acct", "syslog", "quotactl", "open_by_handle_at", "name_to_handle_at", "pidfd_getfd", "fanotify_init"),
    ],
)
@given(arguments=st.lists(words, max_size=6))
def test_refused_with_any_arguments(name: str, arguments: list[int]) -> None:
    assert run(PROGRAM, OWN, number_of(name), *arguments) == EPERM


def test_calls_younger_than_the_library(program: bytes) -> None:
    assert run(program, OWN, 467) == EPERM  # open_tree_attr


@given(family=st.integers(0, 2**32 - 1), above=high, rest=st.tuples(words, high))
def test_families_by_the_32_bits_that_the_kernel_takes(family: int, above: int, rest: tuple[int, int]) -> None:
    for name in ("socket", "socketpair"):
        answer = run(PROGRAM, OWN, number_of(name), above | family, *rest)
        known = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK}
        if family < 64:
            assert answer == (ALLOW if family in known else EPERM)


@given(protocol=st.integers(0, 31), above=high, upon=high, kind=words)
def test_netlink_by_protocol(protocol: int, above: int, upon: int, kind: int) -> None:
    answer = run(PROGRAM, OWN, number_of("socket"), above | socket.AF_NETLINK, kind, upon | protocol)
    assert answer == (ALLOW if protocol == 0 else EPERM)


@given(flags=words)
def test_clone_makes_no_namespaces(flags: int) -> None:
    namespaces = 0x7E020080
    answer = run(PROGRAM, OWN, number_of("clone"), flags)
    assert answer == (EPERM if flags & namespaces else ALLOW)


def test_answers_of_a_kernel_without_them(program: bytes) -> None:
    for name in ("clone3", "io_setup"):
        assert run(program, OWN, number_of(name)) == ENOSYS


@given(architecture=st.sampled_from([0x40000003, 0x40000028, 0x8, 0xC000003E, 0xC00000B7, 0]), number=words)
def test_other_architectures_end_the_process(architecture: int, number: int) -> None:
    if architecture != OWN:
        assert run(PROGRAM, architecture, number) in KILL


@given(number=st.integers(0, 600))
def test_x32_ends_the_process(number: int) -> None:
    if platform.machine() == "x86_64":
        assert run(PROGRAM, OWN, 0x40000000 | number) in KILL


@pytest.mark.parametrize(
    "name",
    [
        *(
            "read",
            "write",
            "openat",
            "mmap",
            "futex",
            "epoll_wait",
            "execve",
            "wait4",
            "ioctl",
            "memfd_create",
            "prctl",
        ),
        *("sched_setaffinity", "getrandom", "accept4", "sendmsg", "splice", "inotify_add_watch", "setsid", "kill"),
        *("seccomp", "landlock_create_ruleset", "rseq", "set_robust_list", "membarrier", "copy_file_range", "statx"),
    ],
)
def test_what_programs_need(program: bytes, name: str) -> None:
    number = number_of(name)
    if number < 0:
        pytest.skip("not a call of this architecture")
    assert run(program, OWN, number, 1, 2, 3, 4, 5, 6) == ALLOW
