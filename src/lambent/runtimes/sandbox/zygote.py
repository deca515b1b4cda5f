"""The zygote: a single-threaded process per runtime that forks environments. Python's has the runtime client imported.

Run as a script by the interpreter that serves the runtime: `python -I -S zygote.py FD`, where FD is one end of a
SOCK_SEQPACKET pair to the server. The first message is the configuration; then each message is one environment to
make, with one descriptor: the environment's end of its control channel. Per environment the zygote does only

    unshare(pid) -> fork -> setns(own pid namespace)

so that the child is the first process of a new pid namespace after a single fork. All else is done by the child
(environment.py). The zygote ends when the server's end closes; the kernel then kills every environment, because each
first process has asked to die with its parent and takes its pid namespace with it.

Messages, JSON: in {"op": "configure", ...}, {"op": "fork", "slot", "name"} + descriptor;
out {"op": "ready", ...}, {"op": "failed", "error"}.
"""

import gc
import json
import os
import select
import signal
import socket
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, _HERE)

import cgroups  # noqa: E402
import environment  # noqa: E402
import keeper  # noqa: E402
import process  # noqa: E402, F401  # environments fork with all that they need already imported

if sys.platform == "linux":
    import linux
    import rootfs

_MESSAGE_MAX_BYTES = 262_144


class Zygote:
    def __init__(self, server, config):
        self.server = server
        self.config = config
        self.parents = cgroups.Parents(config["cgroup_version"], config["cgroups"])
        self.names = {}  # pid of an environment's first process -> name of its cgroup
        self.leftover = []  # cgroups whose last process had not gone yet
        self.own_pid_namespace = None
        self.baseline_bytes = 0

    def prepare(self):
        """Enter the shared root and import what every environment needs, from where environments will see it."""
        import site

        site.setquit()
        site.setcopyright()
        site.sethelper()
        sys.dont_write_bytecode = True
        statm = _open_statm()  # while /proc is still there
        if self.config["namespaces"]:
            self._enter_namespaces()
        sys.path[:] = self.config["import_path"] + [entry for entry in sys.path if entry != _HERE]
        missing = []
        if self.config["park"]["kind"] == "fork":
            import bootstrap

            self.baseline_bytes = _resident_bytes(statm)
            missing = bootstrap.preload()
        else:
            os.close(statm)
        gc.collect()
        gc.freeze()
        gc.disable()
        return missing

    def _enter_namespaces(self):
        config = self.config
        if config["rootless"]:
            self._enter_user_namespace()
        self.own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        linux.unshare(linux.CLONE_NEWNS)
        uids = range(config["uid_base"], config["uid_base"] + config["slots"])
        rootfs.build(
            config["root"], config["prefixes"], config["packages"], config["links"], config["code_store"], uids,
            config["rootless"],
        )  # fmt: skip

    def _enter_user_namespace(self):
        """Without root: a user namespace gives the right to make the others. Only a process whose own pid namespace
        belongs to that user namespace may come back from unshare(pid), so the zygote moves into a new one first."""
        uid, gid, inside = os.getuid(), os.getgid(), self.config["uid_base"]
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWPID)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", "{} {} 1".format(inside, uid))
        _write("/proc/self/gid_map", "{} {} 1".format(inside, gid))
        pid = os.fork()
        if pid:
            self.server.close()
            os.waitpid(pid, 0)
            os._exit(0)
        linux.die_with_parent(0)

    def serve(self):
        """Fork environments until the server's end closes."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        while True:
            readable, _, _ = select.select([self.server, wake_read], [], [], 1.0 if self.leftover else None)
            if wake_read in readable:
                os.read(wake_read, 4096)
                self._reap()
            elif self.leftover:
                self._remove_leftover()
            if self.server in readable:
                message, descriptors, _, _ = socket.recv_fds(self.server, _MESSAGE_MAX_BYTES, 4)
                if not message:
                    return
                self._fork(json.loads(message), descriptors[0], (wake_read, wake_write))

    def _fork(self, order, control, wake):
        if self.own_pid_namespace is not None:
            linux.unshare(linux.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in wake:
                    os.close(descriptor)
                self.server.close()
                environment.run(self, order, control)
            except BaseException as error:  # the child must never return into the zygote's loop
                os.write(2, "environment {}: {!r}\n".format(order.get("name"), error).encode())
            finally:
                os._exit(1)
        if self.own_pid_namespace is not None:
            linux.setns(self.own_pid_namespace, linux.CLONE_NEWPID)
        os.close(control)
        self.names[pid] = order["name"]

    def _reap(self):
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            name = self.names.pop(pid)
            self.leftover += [name, name + keeper.KEEPER_SUFFIX]
            self._remove_leftover()

    def _remove_leftover(self):
        self.leftover = [name for name in self.leftover if not self.parents.remove(name)]


def _write(path, text):
    with open(path, "w") as file:
        file.write(text)


def _open_statm():
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return -1


def _resident_bytes(statm):
    """What the interpreter and the runtime client occupy: shared by all environments, and charged to none."""
    if statm < 0:
        return 0
    pages = int(os.pread(statm, 256, 0).split()[1])
    os.close(statm)
    return pages * os.sysconf("SC_PAGE_SIZE")


def main():
    server = socket.socket(fileno=int(sys.argv[1]))
    if sys.platform == "linux":
        linux.die_with_parent(0)
    message = server.recv(_MESSAGE_MAX_BYTES)
    if not message:
        return
    zygote = Zygote(server, json.loads(message))
    try:
        missing = zygote.prepare()
    except Exception as error:
        server.send(json.dumps({"op": "failed", "error": "{}: {}".format(type(error).__name__, error)}).encode())
        return
    ready = {
        "op": "ready",
        "baseline_bytes": zygote.baseline_bytes,
        "missing": missing,
        "version": "{}.{}.{}".format(*sys.version_info[:3]),
    }
    server.send(json.dumps(ready).encode())
    zygote.serve()


if __name__ == "__main__":
    main()
