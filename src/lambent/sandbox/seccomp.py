"""The system calls that no function needs and that widen the kernel's attack surface, as a compiled BPF program.

AWS runs functions in a virtual machine of their own; sharing a kernel, the next best is to close what a container
runtime closes. Refused calls answer EPERM; clone3 answers ENOSYS so that libc falls back to clone, whose flags can be
read. Everything else is allowed; the system calls of other architectures (int 0x80, x32) end the process.

The kernel takes 32 bits of an `int` argument and a filter sees 64, so arguments are compared under a mask: with a plain
comparison, socket(0x100000000 + AF_VSOCK) would be another family to the filter and AF_VSOCK to the kernel.
"""

from __future__ import annotations

import errno
import platform
import tempfile
from collections.abc import Collection
from typing import Any

_REFUSED = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "adjtimex",
    "settimeofday",
    "create_module",
    "delete_module",
    "finit_module",
    "init_module",
    "get_kernel_syms",
    "query_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "umount",
    "umount2",
    "pivot_root",
    "chroot",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "request_key",
    "lookup_dcookie",
    "name_to_handle_at",
    "open_by_handle_at",
    "nfsservctl",
    "perf_event_open",
    "pidfd_getfd",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "sethostname",
    "setdomainname",
    "setns",
    "swapoff",
    "swapon",
    "syslog",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vhangup",
    "vm86",
    "vm86old",
    "move_pages",
    "migrate_pages",
    "fanotify_init",
    "open_tree_attr",
    "sysfs",
]
#: Answered as by a kernel without them. The contexts of io_setup are counted for the whole host (fs.aio-max-nr), so one
#: function could take them from every other program; of clone3 see above.
_MISSING = ("clone3", "io_setup")
#: Calls younger than the libseccomps in use, by number: since 5.1 it is the same on these architectures.
_YOUNG = {"open_tree_attr": 467}
_YOUNG_ON = ("x86_64", "aarch64")
#: CLONE_NEW* flags of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
_CLONE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80)
#: Unix, Internet, and netlink for getaddrinfo. The kernel knows 46 families, and loads modules for those it has not.
_AF_NETLINK = 16
_SOCKET_FAMILIES = (1, 2, 10, _AF_NETLINK)
_FAMILIES_END = 64
_NETLINK_PROTOCOL_BITS = (1, 2, 4, 8, 16)
_INT = 0xFFFFFFFF


def compile_filter(allowed: Collection[str] = ()) -> bytes:
    """The program for this machine's architecture; it lets calls named in `allowed` pass. Raises OSError or
    ImportError where libseccomp is missing."""
    import pyseccomp

    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in set(_REFUSED).difference(allowed):
        _add(program, refuse, name)
    for name in _MISSING:
        _add(program, pyseccomp.ERRNO(errno.ENOSYS), name)
    for flag in _CLONE_FLAGS:
        program.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for family in set(range(_FAMILIES_END)).difference(_SOCKET_FAMILIES):
        for name in ("socket", "socketpair"):
            program.add_rule(refuse, name, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _INT, family))
    netlink = pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _INT, _AF_NETLINK)
    for bit in _NETLINK_PROTOCOL_BITS:  # all but 0, NETLINK_ROUTE
        program.add_rule(refuse, "socket", netlink, pyseccomp.Arg(2, pyseccomp.MASKED_EQ, bit, bit))
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


def _add(program: Any, action: int, name: str) -> None:
    """Answer a call with `action`, where this architecture has it and this libseccomp knows it."""
    call: int | str = name
    if platform.machine() in _YOUNG_ON:
        call = _YOUNG.get(name, name)
    try:
        program.add_rule(action, call)
    except (OSError, ValueError, RuntimeError):
        pass
