"""The system calls that no function needs and that widen the kernel's attack surface, as a compiled BPF program.

AWS runs functions in a virtual machine of their own; sharing a kernel, the next best is to close what a container
runtime closes. Refused calls answer EPERM; clone3 answers ENOSYS so that libc falls back to clone, whose flags can be
read. Everything else is allowed.
"""

from __future__ import annotations

import errno
import tempfile

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
]
#: CLONE_NEW* flags of clone(2): NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME.
_CLONE_FLAGS = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80)
#: Address families beyond Internet, Unix and (for getaddrinfo) netlink: AF_ALG, AF_VSOCK, AF_PACKET, AF_KEY, ...
_SOCKET_FAMILIES = (15, 17, 21, 29, 30, 31, 37, 38, 40, 44)


def compile_filter() -> bytes:
    """The program for this machine's architecture. Raises OSError or ImportError where libseccomp is missing."""
    import pyseccomp

    program = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    refuse = pyseccomp.ERRNO(errno.EPERM)
    for name in _REFUSED:
        try:
            program.add_rule(refuse, name)
        except (OSError, ValueError, RuntimeError):
            continue  # not a call of this architecture, or unknown to this libseccomp
    program.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    for flag in _CLONE_FLAGS:
        program.add_rule(refuse, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
    for family in _SOCKET_FAMILIES:
        program.add_rule(refuse, "socket", pyseccomp.Arg(0, pyseccomp.EQ, family))
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()
