"""The Linux calls that the standard library of Python 3.9 lacks: namespaces, mounts, prctl, capabilities, seccomp.

Every function raises OSError with the call's name when the kernel refuses. Nothing here decides anything.
"""

import ctypes
import os
import platform

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_LANDLOCK_SCOPE_SINCE = 6
_LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, _LANDLOCK_SCOPE_SIGNAL = 1, 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _check(result, call):
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, "{}: {}".format(call, os.strerror(number)))
    return result


def unshare(flags):
    _check(_libc.unshare(flags), "unshare(0x{:x})".format(flags))


def setns(fd, kind):
    _check(_libc.setns(fd, kind), "setns")


def mount(source, target, kind=None, flags=0, data=None):
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        "mount({}, {})".format(source, target),
    )


def umount(target):
    _check(_libc.umount2(target.encode(), MNT_DETACH), "umount2({})".format(target))


def pivot_root(new_root, put_old):
    number = _SYS_PIVOT_ROOT[platform.machine()]
    _check(_libc.syscall(number, new_root.encode(), put_old.encode()), "pivot_root")


def sethostname(name):
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname")


def eventfd():
    """A non-blocking event counter, closed on exec (os.eventfd is of Python 3.10)."""
    return _check(_libc.eventfd(0, os.O_NONBLOCK | os.O_CLOEXEC), "eventfd")


def _prctl(option, a=0, b=0):
    _check(
        _libc.prctl(option, ctypes.c_ulong(a), ctypes.c_ulong(b), ctypes.c_ulong(0), ctypes.c_ulong(0)),
        "prctl({})".format(option),
    )


def die_with_parent(parent_pid):
    """Be killed when the parent ends; if it ended already, end now. Pass os.getppid() taken before the fork."""
    _prctl(_PR_SET_PDEATHSIG, 9)
    if parent_pid and os.getppid() != parent_pid:
        os._exit(1)


def become_subreaper():
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_dumpable(value):
    _prctl(_PR_SET_DUMPABLE, int(value))


def set_no_new_privileges():
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


class _Ruleset(ctypes.Structure):
    _fields_ = [("file_rights", ctypes.c_uint64), ("network_rights", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


def scope():
    """With Landlock (Linux 6.12), this process and its descendants reach only each other by signals and by abstract
    Unix sockets, whose names belong to no mount. True when the kernel can; needs CAP_SYS_ADMIN."""
    call = _libc.syscall
    version = call(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    if version < _LANDLOCK_SCOPE_SINCE:
        return False
    rules = _Ruleset(0, 0, _LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | _LANDLOCK_SCOPE_SIGNAL)
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    ruleset = _check(call(_SYS_LANDLOCK_CREATE_RULESET, ctypes.byref(rules), size, 0), "landlock_create_ruleset")
    try:
        _check(call(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]


def load_seccomp(program):
    """Install a compiled BPF program (bytes, 8 a instruction). Needs no_new_privs or CAP_SYS_ADMIN."""
    buffer = ctypes.create_string_buffer(program, len(program))
    arguments = _Filter(len(program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    _check(
        _libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(arguments), 0, 0),
        "prctl(seccomp)",
    )


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _CapabilityData(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]


def set_capabilities(numbers):
    """Keep exactly these capabilities (numbers of capability.h), in the effective and permitted sets."""
    header = _CapabilityHeader(0x20080522, 0)
    data = (_CapabilityData * 2)()
    for number in numbers:
        data[number // 32].effective |= 1 << (number % 32)
        data[number // 32].permitted |= 1 << (number % 32)
    _check(_libc.capset(ctypes.byref(header), data), "capset")


def raise_capabilities(raised):
    """All permitted capabilities into the effective set, or none of them."""
    header = _CapabilityHeader(0x20080522, 0)
    data = (_CapabilityData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget")
    for each in data:
        each.effective = each.permitted if raised else 0
    _check(_libc.capset(ctypes.byref(header), data), "capset")


def drop_bounding_set():
    """Empty the bounding set, so that no exec can give a capability back. Needs CAP_SETPCAP."""
    for number in range(64):
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno == 22:  # past the last capability of this kernel
                return
            raise


CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_CHROOT, CAP_SYS_ADMIN, CAP_DAC_OVERRIDE, CAP_CHOWN = (
    5,
    6,
    7,
    8,
    18,
    21,
    1,
    0,
)
