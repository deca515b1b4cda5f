"""Control groups of environments, versions 1 and 2, seen from inside the zygote and the sandbox's first process.

The launcher made one parent group per controller; the zygote opens the parents as directory descriptors before it
leaves the host's file system, so that groups can still be made and removed from inside.
"""

import errno
import os
import sys

if sys.platform == "linux":
    import linux

#: v1 file names by meaning; v2 uses one directory for all controllers.
_V1 = {
    "memory": {
        "limit": "memory.limit_in_bytes",
        "swap_limit": "memory.memsw.limit_in_bytes",
        "peak": "memory.max_usage_in_bytes",
        "events": "memory.oom_control",
        "usage": "memory.usage_in_bytes",
        "stat": "memory.stat",
        "notify": "cgroup.event_control",
    },
    "cpu": {"weight": "cpu.shares", "quota": "cpu.cfs_quota_us"},
    "pids": {"max": "pids.max"},
    "freezer": {"state": "freezer.state"},
}
_V2 = {
    "memory": {
        "limit": "memory.max",
        "swap_limit": "memory.swap.max",
        "peak": "memory.peak",
        "events": "memory.events",
    },
    "cpu": {"weight": "cpu.weight", "quota": "cpu.max"},
    "pids": {"max": "pids.max"},
    "freezer": {"state": "cgroup.freeze"},
}
PERIOD_US = 100_000
_FULL_VCPU_WEIGHT = {1: 1024, 2: 100}
_WEIGHT_RANGE = {1: (2, 262_144), 2: (1, 10_000)}


class Parents:
    """The parent groups: `version` (1 or 2, 0 for none) and controller -> host folder."""

    def __init__(self, version, folders):
        self.version = version
        self.folders = {name: os.open(path, os.O_RDONLY | os.O_DIRECTORY) for name, path in folders.items()}

    def _directories(self):
        return list(dict.fromkeys(self.folders.values())) if self.version == 1 else list(self.folders.values())[:1]

    def create(self, name):
        """Make the group and move the calling process into it. Returns the open files of the group."""
        if not self.folders:
            return Group(0, {}, [])
        for directory in self._directories():
            os.mkdir(name, 0o755, dir_fd=directory)
        names = _V1 if self.version == 1 else _V2
        files = {}
        for controller, directory in self.folders.items():
            for meaning, file in names[controller].items():
                descriptor = _open(name + "/" + file, meaning, directory)
                if descriptor is not None:
                    files[controller + "." + meaning] = descriptor
        members = [os.open(name + "/cgroup.procs", os.O_WRONLY, dir_fd=each) for each in self._directories()]
        group = Group(self.version, files, members)
        group.add(0)
        return group

    def remove(self, name):
        """Remove the group if it is there and empty; True when nothing is left of it."""
        gone = True
        for directory in self._directories():
            try:
                os.rmdir(name, dir_fd=directory)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                gone = False
        return gone

    def close(self):
        for descriptor in self.folders.values():
            os.close(descriptor)


def _open(path, meaning, directory):
    modes = {
        "events": (os.O_RDONLY,),
        "usage": (os.O_RDONLY,),
        "stat": (os.O_RDONLY,),
        "peak": (os.O_RDWR, os.O_RDONLY),
    }
    for mode in modes.get(meaning, (os.O_WRONLY,)):
        try:
            return os.open(path, mode, dir_fd=directory)
        except FileNotFoundError:  # no swap accounting, or a kernel without memory.peak
            return None
        except PermissionError:  # a peak that can not be set back, before Linux 6.12
            continue
    return None


class Group:
    """The open control files of one environment's group."""

    def __init__(self, version, files, members=()):
        self.version = version
        self.files = files
        self._members = members

    def add(self, pid):
        """Move a process into the group; 0 is the calling one."""
        for descriptor in self._members:
            os.write(descriptor, str(pid).encode())

    @property
    def members(self):
        """Descriptors by which the calling process can move itself into the group, by writing 0."""
        return tuple(self._members)

    def close(self):
        for descriptor in self.files.values():
            os.close(descriptor)
        self.close_members()

    def close_members(self):
        """Nobody will be moved any more."""
        while self._members:
            os.close(self._members.pop())

    def _write(self, name, value):
        descriptor = self.files.get(name)
        if descriptor is not None:
            os.write(descriptor, str(value).encode())

    def forget_peak(self):
        """The next runtime process starts its own account."""
        try:
            self._write("memory.peak", 0)
        except OSError:
            pass

    @property
    def can_watch(self):
        """Can usage be told apart from what lies in /tmp (which is memory here, and a disk on AWS)? Version 1 tells
        when a threshold is crossed; with version 2 what lies in /tmp counts as memory."""
        return "memory.notify" in self.files and "memory.usage" in self.files

    def limit(self, memory_bytes, tmp_bytes, vcpus, hard_cpu, processes_max, raising=False):
        """Apply the limits of one function version. Swap is never a way around the memory limit.

        Where usage can be watched, the kernel's limit leaves room for /tmp, and MemoryWatch holds the function to its
        own. `raising`: the limits were lower before."""
        if not self.files:
            return
        hard_bytes = memory_bytes + tmp_bytes if self.can_watch else memory_bytes
        limits = [("memory.limit", hard_bytes), ("memory.swap_limit", hard_bytes if self.version == 1 else 0)]
        for name, value in reversed(limits) if raising else limits:  # version 1: the second is never lower
            self._write(name, value)
        lowest, highest = _WEIGHT_RANGE[self.version]
        self._write("cpu.weight", max(lowest, min(highest, int(_FULL_VCPU_WEIGHT[self.version] * vcpus))))
        if hard_cpu:
            quota = max(1_000, int(PERIOD_US * vcpus))
            self._write("cpu.quota", quota if self.version == 1 else "{} {}".format(quota, PERIOD_US))
        self._write("pids.max", processes_max)


class MemoryWatch:
    """Holds the processes of a group to `memory_bytes`, not counting what lies in /tmp, nor the cached pages of files
    that were read: the kernel takes those back when it needs them.

    The kernel wakes `descriptor` when usage crosses the limit; `over()` then says whether it is the function's doing.
    While usage stays above the limit because of them, ask again every few milliseconds (`close_look`).
    """

    PAUSE_S = 0.005

    def __init__(self, group, memory_bytes):
        self.descriptor = linux.eventfd()
        self.close_look = False
        self._usage = group.files["memory.usage"]
        self._stat = group.files["memory.stat"]
        self._memory_bytes = memory_bytes
        order = "{} {} {}".format(self.descriptor, self._usage, memory_bytes)
        os.write(group.files["memory.notify"], order.encode())

    def acknowledge(self):
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            pass

    def over(self):
        used_bytes = int(os.pread(self._usage, 32, 0))
        self.close_look = used_bytes > self._memory_bytes
        if not self.close_look:
            return False
        tmp = os.statvfs("/tmp")
        used_bytes -= (tmp.f_blocks - tmp.f_bfree) * tmp.f_frsize
        return used_bytes > self._memory_bytes and used_bytes - self._cached_bytes() > self._memory_bytes

    def _cached_bytes(self):
        """File pages that can be taken back; those of /tmp and of shared memory are not among them."""
        names = (b"inactive_file", b"active_file")
        fields = (line.split() for line in os.pread(self._stat, 65_536, 0).splitlines())
        return sum(int(field[1]) for field in fields if field[0] in names)
