"""The first process of one sandbox: makes it, parks, then gives the runtime process its function.

It is forked by the zygote, is process 1 of its pid namespace, and keeps what the runtime process gives up: the right to
mount, to set the user id and to kill. It never runs user code and holds no connection but its control channel.

The runtime process is forked while the sandbox is parked, so that on a cold start it only has to be told its function;
after a reset it is forked anew when the next request needs it.

Control channel, JSON messages on SOCK_SEQPACKET, descriptors beside them:

    out  {"op": "parked"}  + link in, link out, log pipe, memory peak, memory events     the sandbox stands, empty
    in   {"op": "run", "assign": {...} | null, "runtime": {...}, "generation": n}
    out  {"op": "started", "generation": n}  + link in, link out, when the runtime process is a new one
    in   {"op": "kill"}                                             everything but this process
    out  {"op": "exited", "generation": n, "status": wait status, "out_of_memory": bool}
    out  {"op": "failed", "error": text}

When the channel closes this process ends, and the kernel kills all that is left in the namespace.
"""

import json
import os
import select
import signal
import socket

import cgroups

_MESSAGE_MAX_BYTES = 262_144


class Sandbox:
    def __init__(self, zygote, order, control):
        self.config = zygote.config
        self.order = order
        self.control = socket.socket(fileno=control)
        self.isolated = bool(self.config["namespaces"])
        self.parents = zygote.parents
        self.runtime_pid = 0
        self.runtime_channel = None  # to a runtime process that has no function yet
        self.generation = 0
        self.group = None
        self.watch = None  # of memory, where the kernel's limit is not the function's
        self.out_of_memory = False
        self.log_write = -1

    # --- making -----------------------------------------------------------------------------------------

    def make(self):
        """Everything that does not depend on the function: done ahead for a parked sandbox."""
        order = self.order
        if self.isolated:
            import linux
            import rootfs

            linux.die_with_parent(0)
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
            linux.sethostname("169-254-100-1")
            rootfs.mount_private(order["tmp_mib"])
        self.group = self.parents.create(order["name"])
        self.parents.close()
        if self.isolated and self.group.files:
            linux.unshare(linux.CLONE_NEWCGROUP)
        log_read, self.log_write = os.pipe()
        if order["uid"] is not None and not self.config["rootless"]:
            os.fchown(self.log_write, order["uid"], order["uid"])
        link = self._fork_runtime((log_read,))
        files = [self.group.files[name] for name in ("memory.peak", "memory.events") if name in self.group.files]
        self._send({"op": "parked"}, [*link, log_read, *files])
        for descriptor in (*link, log_read):
            os.close(descriptor)

    def _assign(self, wanted):
        """Make this sandbox that of one function version."""
        if self.isolated:
            import linux
            import rootfs

            if wanted["tmp_mib"] != self.order["tmp_mib"]:
                rootfs.resize_tmp(wanted["tmp_mib"])
            rootfs.mount_code(wanted["code"])
            linux.set_capabilities((linux.CAP_KILL, linux.CAP_SETGID, linux.CAP_SETUID, linux.CAP_SETPCAP))
        self.group.limit(
            wanted["memory_bytes"],
            wanted["tmp_mib"] * 1_048_576,
            wanted["vcpus"],
            wanted["hard_cpu"],
            wanted["processes_max"],
        )

    # --- living -----------------------------------------------------------------------------------------

    def serve(self):
        wake_read, wake_write = os.pipe()
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        while True:
            sources, pause_s = [self.control, wake_read], None
            if self.watch is not None:
                sources.append(self.watch.descriptor)
                pause_s = self.watch.PAUSE_S if self.watch.close_look else None
            readable, _, _ = select.select(sources, [], [], pause_s)
            if self.watch is not None:
                self._look_at_memory()
            if wake_read in readable:
                os.read(wake_read, 4096)
                self._reap()
            if self.control in readable:
                message = self.control.recv(_MESSAGE_MAX_BYTES)
                if not message:
                    self._kill_all()
                    return
                self._obey(json.loads(message))

    def _look_at_memory(self):
        self.watch.acknowledge()
        if self.runtime_pid and self.watch.over():
            self.out_of_memory = True
            self._kill_all()

    def _obey(self, message):
        if message["op"] == "kill":
            if self.runtime_pid:
                self._kill_all()
            return
        try:
            if message.get("assign"):
                self._assign(message["assign"])
            link = () if self.runtime_pid else self._fork_runtime(())
            self.generation = message["generation"]
            self.runtime_channel.send(json.dumps(message["runtime"]).encode())
            self.runtime_channel.close()
            self.runtime_channel = None
            self._send({"op": "started", "generation": self.generation}, link)
            for descriptor in link:
                os.close(descriptor)
            if message.get("assign") and self.isolated and self.group.can_watch:
                # Last, because registering waits for the kernel (some 5 ms), and the runtime need not.
                self.watch = cgroups.MemoryWatch(self.group, message["assign"]["memory_bytes"])
        except Exception as error:
            self._send({"op": "failed", "error": "{}: {}".format(type(error).__name__, error)})

    def _fork_runtime(self, unwanted):
        """A process that has given up its privileges and waits on a channel for its function.

        Returns the server's ends of its frame link: what it writes can be read from the first, the second is what it
        reads. Pipes, because their buffers stay with them: on a socket every message would be charged to and taken off
        the environment's memory group, which costs more than the message (docs/performance.md).
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers_read, answers_write = os.pipe()
        requests_read, requests_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                import bootstrap

                for descriptor in (*unwanted, answers_read, requests_write):
                    os.close(descriptor)
                link = (requests_read, answers_write)
                code = bootstrap.run(self.config, self.order, theirs.detach(), link, self.log_write)
            except BaseException as error:  # never return into the first process's loop
                os.write(
                    2, "lambent: the runtime of {} did not start: {!r}\n".format(self.order["name"], error).encode()
                )
            finally:
                os._exit(code)
        theirs.close()
        os.close(requests_read)
        os.close(answers_write)
        self.runtime_channel = ours
        self.runtime_pid = pid
        return answers_read, requests_write

    def _reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.runtime_pid:
                self._kill_all()
                self.runtime_pid = 0
                self.group.forget_peak()
                self._send(
                    {
                        "op": "exited",
                        "generation": self.generation,
                        "status": status,
                        "out_of_memory": self.out_of_memory,
                    }
                )
                self.out_of_memory = False

    def _kill_all(self):
        """Kill every process of the sandbox but this one, and wait until no child is left."""
        if self.isolated:
            _kill(-1)  # process 1 of a pid namespace is not itself a target
            return
        # Without a pid namespace: the runtime's group, then whatever was orphaned to this subreaper.
        if self.runtime_pid:
            _kill(-self.runtime_pid)
        for pid in _children(os.getpid()):
            _kill(pid)

    def _send(self, message, descriptors=()):
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], list(descriptors))
        except OSError:  # the server is gone: end with it
            os._exit(0)


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _children(parent):
    """Direct children, from /proc where there is one."""
    try:
        with open("/proc/{0}/task/{0}/children".format(parent)) as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []


def run(zygote, order, control):
    """Body of the forked child; never returns to the zygote's loop."""
    sandbox = Sandbox(zygote, order, control)
    if not sandbox.isolated:
        import sys

        if sys.platform == "linux":
            import linux

            linux.die_with_parent(0)
            linux.become_subreaper()
    try:
        sandbox.make()
    except Exception as error:
        sandbox._send({"op": "failed", "error": "{}: {}".format(type(error).__name__, error)})
        os._exit(1)
    sandbox.serve()
    os._exit(0)
