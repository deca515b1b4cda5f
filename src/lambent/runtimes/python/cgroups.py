"""Control groups of environments, versions 1 and 2, seen from inside the zygote and the sandbox's first process.

The launcher made one parent group per controller; the zygote opens the parents as directory descriptors before it
leaves the host's file system, so that groups can still be made and removed from inside.
"""

import errno
import os

#: v1 file names by meaning; v2 uses one directory for all controllers.
_V1 = {
    "memory": {
        "limit": "memory.limit_in_bytes",
        "swap_limit": "memory.memsw.limit_in_bytes",
        "peak": "memory.max_usage_in_bytes",
        "events": "memory.oom_control",
    },
    "cpu": {"weight": "cpu.shares", "quota": "cpu.cfs_quota_us"},
    "pids": {"max": "pids.max"},
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
            return Group(0, {})
        for directory in self._directories():
            os.mkdir(name, 0o755, dir_fd=directory)
        names = _V1 if self.version == 1 else _V2
        files = {}
        for controller, directory in self.folders.items():
            for meaning, file in names[controller].items():
                writable = meaning not in ("peak", "events")
                try:
                    files[controller + "." + meaning] = os.open(
                        name + "/" + file, os.O_WRONLY if writable else os.O_RDONLY, dir_fd=directory
                    )
                except FileNotFoundError:  # no swap accounting, or a kernel without memory.peak
                    continue
        for directory in self._directories():
            descriptor = os.open(name + "/cgroup.procs", os.O_WRONLY, dir_fd=directory)
            os.write(descriptor, b"0")
            os.close(descriptor)
        return Group(self.version, files)

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


class Group:
    """The open control files of one environment's group."""

    def __init__(self, version, files):
        self.version = version
        self.files = files

    def _write(self, name, value):
        descriptor = self.files.get(name)
        if descriptor is not None:
            os.write(descriptor, str(value).encode())

    def limit(self, memory_bytes, vcpus, hard_cpu, processes_max):
        """Apply the limits of one function version. Swap is never a way around the memory limit."""
        if not self.files:
            return
        self._write("memory.limit", memory_bytes)
        self._write("memory.swap_limit", memory_bytes if self.version == 1 else 0)
        lowest, highest = _WEIGHT_RANGE[self.version]
        self._write("cpu.weight", max(lowest, min(highest, int(_FULL_VCPU_WEIGHT[self.version] * vcpus))))
        if hard_cpu:
            quota = max(1_000, int(PERIOD_US * vcpus))
            self._write("cpu.quota", quota if self.version == 1 else "{} {}".format(quota, PERIOD_US))
        self._write("pids.max", processes_max)
