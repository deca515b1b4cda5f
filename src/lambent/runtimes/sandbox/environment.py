"""The first process of one sandbox: makes it, parks, then starts the processes of a function in it.

It is forked by the zygote, is process 1 of its pid namespace, and keeps what the others give up: the right to mount, to
set the user id and to kill. It never runs user code and holds no connection but its control channel.

What can be started ahead is started while the sandbox is parked: a fork of the zygote (Python) or a program that waits
for its function (Node.js); on a cold start it only has to be told. After a reset it is started anew when the next
request needs it.

Control channel, JSON messages on SOCK_SEQPACKET; descriptors beside them are named by "fds":

    out  {"op": "parked"}      + log pipe, Runtime API listener, control files, link of a forked runtime
    in   {"op": "run", "generation": n, "assign": {...} | null, "runtime": {...}, "extensions": {...}}
    out  {"op": "extensions", "generation", "names", "failed"}      there are some: they run, the runtime waits for
    in   {"op": "runtime"}
    out  {"op": "started", "generation"}                            + link, when a forked runtime is a new one
    out  {"op": "exited", "generation", "status", "out_of_memory", "error_type", "error"}       the runtime process
    out  {"op": "extension_exited", "generation", "name", "status"}
    in   {"op": "terminate"}      SIGTERM to the runtime process;   {"op": "kill_runtime"}  SIGKILL to it alone
    in   {"op": "kill"}           everything but this process;      out {"op": "killed", "generation"} when all are gone
    in   {"op": "freeze"}, {"op": "thaw"}        where there is no control group that can
    out  {"op": "failed", "error": text}

When the runtime process ends and there are no extensions, everything else in the sandbox is killed at once. When the
channel closes this process ends, and the kernel kills all that is left in the namespace.
"""

import json
import os
import select
import signal
import socket

import cgroups
import process

_MESSAGE_MAX_BYTES = 262_144
_API_BACKLOG = 64
_EXTENSIONS = "/opt/extensions"
_EXTENSIONS_MAX = 32


class Sandbox:
    def __init__(self, zygote, order, control):
        self.config = zygote.config
        self.order = order
        self.control = socket.socket(fileno=control)
        self.isolated = bool(self.config["namespaces"])
        self.parents = zygote.parents
        self.runtime_pid = 0
        self.runtime_channel = None  # to a runtime process that has no function yet
        self.runtime_order = None  # while extensions register
        self.extensions = {}  # pid -> name
        self.generation = 0
        self.killing = False
        self.dying = False  # killed, and perhaps not gone yet
        self.group = None
        self.watch = None  # of memory, where the kernel's limit is not the function's
        self.out_of_memory = False
        self.log_write = -1
        self.extension_log = None  # (read, write), the first until it is sent

    # --- making -----------------------------------------------------------------------------------------

    def make(self):
        """Everything that does not depend on the function: done ahead for a parked sandbox."""
        self._isolate()
        api = _listen(self.order["api"])
        self._join_group()
        log_read, self.log_write = self._log_pipe()
        sent = {"log": log_read, "api": api.fileno(), **self._control_files()}
        link = {}
        park = self.config["park"]
        if self.order.get("template"):
            pass  # nothing is known of its runtime process yet
        elif park["kind"] == "fork":
            link = self._fork_runtime((log_read, api.fileno()))
        elif park["kind"] == "exec":
            self._park_program(park)
        self._send({"op": "parked"}, {**sent, **link})
        for descriptor in (*link.values(), log_read):
            os.close(descriptor)
        api.close()

    def _isolate(self):
        if self.isolated:
            import linux
            import rootfs

            linux.die_with_parent(0)
            os.setsid()  # groups and sessions reach across pid namespaces
            linux.scope()
            linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
            linux.sethostname("169-254-100-1")
            rootfs.mount_private(self.order["tmp_mib"], self.order["api"][0])

    def _join_group(self):
        self.group = self.parents.create(self.order["name"])
        self.parents.close()
        self.group.close_members()
        if self.isolated and self.group.files:
            import linux

            linux.unshare(linux.CLONE_NEWCGROUP)

    def _control_files(self):
        """What the server reads and writes of the group itself."""
        names = ("memory.peak", "memory.events", "freezer.state")
        return {name: self.group.files[name] for name in names if name in self.group.files}

    def _log_pipe(self):
        read, write = os.pipe()
        if self.order["uid"] is not None and not self.config["rootless"]:
            owner = self.order.get("owner", self.order["uid"])
            os.fchown(write, owner, owner)
        return read, write

    def _assign(self, wanted):
        """Make this sandbox that of one function version."""
        if self.isolated:
            self._mount(wanted)
            if self.extension_log is None and _executables(_EXTENSIONS):
                self.extension_log = self._log_pipe()  # while its owner can still be set
            self._shed_capabilities()
        self.group.limit(
            wanted["memory_bytes"],
            wanted["tmp_mib"] * 1_048_576,
            wanted["vcpus"],
            wanted["hard_cpu"],
            wanted["processes_max"],
        )

    def _mount(self, wanted):
        import rootfs

        if wanted["tmp_mib"] != self.order["tmp_mib"]:
            rootfs.resize_tmp(wanted["tmp_mib"])
        if wanted["image"]:
            rootfs.enter_image(wanted["image"])
        else:
            rootfs.mount_code(wanted["code"], wanted["layers"])

    def _shed_capabilities(self):
        import linux

        linux.set_capabilities((linux.CAP_KILL, linux.CAP_SETGID, linux.CAP_SETUID, linux.CAP_SETPCAP))

    # --- living -----------------------------------------------------------------------------------------

    def serve(self):
        wake_read, wake_write = os.pipe()
        for descriptor in (wake_read, wake_write):
            os.set_blocking(descriptor, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._reap()  # who ended before there was a wake-up
        while True:
            sources, pause_s = [self.control, wake_read, *self._more_sources()], self._pause_s()
            if self.watch is not None:
                sources.append(self.watch.descriptor)
                pause_s = self.watch.PAUSE_S if self.watch.close_look else pause_s
            readable = _wait(sources, pause_s)
            if self.watch is not None:
                self._look_at_memory()
            self._look_at_more(readable)
            if wake_read in readable:
                os.read(wake_read, 4096)
                self._reap()
            if self.control in readable:
                message, descriptors, _, _ = socket.recv_fds(self.control, _MESSAGE_MAX_BYTES, 1)
                if not message:
                    self._end()
                    return
                self._obey(json.loads(message), descriptors)

    def _more_sources(self):
        return ()

    def _pause_s(self):
        return None

    def _look_at_more(self, readable):
        pass

    def _end(self):
        """The server has closed the channel."""
        self._kill_all()

    def _look_at_memory(self):
        self.watch.acknowledge()
        if self.runtime_pid and self.watch.over():
            self.out_of_memory = True
            self._kill_all()

    def _obey(self, message, descriptors):
        op = message["op"]
        if op == "run":
            self._try(self._run, message)
        elif op == "runtime":
            self._try(self._start_runtime, self.runtime_order)
        elif op == "terminate":
            _signal(self.runtime_pid, signal.SIGTERM)
        elif op == "kill_runtime":
            _signal(self.runtime_pid, signal.SIGKILL)
        elif op == "kill":
            self.killing = True
            self._kill_all()
            self._reap()
        elif op in ("freeze", "thaw"):
            self._signal_all(signal.SIGSTOP if op == "freeze" else signal.SIGCONT)

    def _try(self, step, message):
        try:
            step(message)
        except Exception as error:
            self._send({"op": "failed", "error": "{}: {}".format(type(error).__name__, error)})

    def _run(self, message):
        self._bury()
        self.generation = message["generation"]
        if message.get("assign"):
            self._assign(message["assign"])
        self.runtime_order = message["runtime"]
        extensions = message.get("extensions")
        names = _executables(extensions["folder"]) if extensions else []
        if names:
            self._start_extensions(names, extensions)
        else:
            self._start_runtime(self.runtime_order)
        if message.get("assign") and self.isolated and self.group.can_watch:
            # Last, because registering waits for the kernel (some 5 ms), and the runtime need not.
            self.watch = cgroups.MemoryWatch(self.group, message["assign"]["memory_bytes"])

    def _start_extensions(self, names, extensions):
        sent, failed = {}, {}
        read, write = self.extension_log or self._log_pipe()
        if read >= 0:
            sent["extension_log"] = read
        self.extension_log = (-1, write)
        for name in names:
            path = os.path.join(extensions["folder"], name)
            pid, error = process.spawn(
                self.config, self.order, [path], extensions["environ"], "/", self.config["rlimits"],
                write,
            )  # fmt: skip
            if error:
                failed[name] = error
            else:
                self.extensions[pid] = name
        self._send({"op": "extensions", "generation": self.generation, "names": names, "failed": failed}, sent)
        for descriptor in sent.values():
            os.close(descriptor)

    def _start_runtime(self, order):
        """Tell the parked process its function, or start a process."""
        self.runtime_order = None
        link = {}
        if order["program"] is None:
            if not self.runtime_pid:
                link = self._fork_runtime(())
            self._tell_parked(order)
        elif not (order["parked"] and self.runtime_pid and self._tell_parked(order)):
            self._execute(order)
            if not self.runtime_pid:
                return
        self._send({"op": "started", "generation": self.generation}, link)
        for descriptor in link.values():
            os.close(descriptor)

    def _tell_parked(self, order):
        channel, self.runtime_channel = self.runtime_channel, None
        try:
            channel.sendall(json.dumps(order).encode())
        except OSError:  # it ended while it was parked
            return False
        finally:
            channel.close()
        return True

    def _execute(self, order):
        if self.runtime_pid:  # parked, and of no use for this function
            unwanted, self.runtime_pid = self.runtime_pid, 0
            _signal(unwanted, signal.SIGKILL)
        argv = next((argv for argv in order["program"] if len(order["program"]) == 1 or _is_executable(argv[0])), None)
        if argv is None:
            error = "Couldn't find valid bootstrap(s): [{}]".format(" ".join(argv[0] for argv in order["program"]))
        else:
            self.runtime_pid, error = process.spawn(
                self.config, self.order, argv, order["environ"], order["cwd"], order["rlimits"], self.log_write
            )
        if error:
            kind = "Runtime.InvalidWorkingDir" if error.startswith("chdir ") else "Runtime.InvalidEntrypoint"
            self._send_exited(127 << 8, kind, error)

    def _template_channels(self):
        """What the runtime process of a template has besides; None for all others."""
        return

    def _park_program(self, park):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.runtime_pid, _ = process.spawn(
            self.config, self.order, park["argv"], park["environ"], "/", self.config["rlimits"], self.log_write,
            theirs.fileno(),
        )  # fmt: skip
        theirs.close()
        self.runtime_channel = ours

    def _fork_runtime(self, unwanted):
        """A process that has given up its privileges and waits on a channel for its function.

        Returns the server's ends of its frame link: what it writes can be read from the first, the second is what it
        reads. Pipes, because their buffers stay with them: on a socket every message would be charged to and taken off
        the environment's memory group, which costs more than the message (docs/performance.md).
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        answers_read, answers_write = os.pipe()
        requests_read, requests_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                import bootstrap

                for descriptor in (*unwanted, answers_read, requests_write, ours.fileno()):
                    os.close(descriptor)
                link = (requests_read, answers_write)
                code = bootstrap.run(
                    self.config, self.order, theirs.detach(), link, self.log_write, self._template_channels()
                )
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
        return {"link_in": answers_read, "link_out": requests_write}

    # --- ending -----------------------------------------------------------------------------------------

    def _reap(self):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.dying = False
                self._all_reaped()
                return
            if pid == 0:
                return
            self._reaped(pid, status)

    def _all_reaped(self):
        if self.killing:
            self.killing = False
            self._send({"op": "killed", "generation": self.generation})

    def _reaped(self, pid, status):
        if pid == self.runtime_pid:
            self._runtime_ended(status)
        elif pid in self.extensions:
            name = self.extensions.pop(pid)
            self._send({"op": "extension_exited", "generation": self.generation, "name": name, "status": status})

    def _runtime_ended(self, status):
        if not self.extensions:
            self._kill_all()
        self.runtime_pid = 0
        self.group.forget_peak()
        self._send_exited(status)
        self.out_of_memory = False

    def _send_exited(self, status, error_type="", error=""):
        self._send(
            {
                "op": "exited",
                "generation": self.generation,
                "status": status,
                "out_of_memory": self.out_of_memory,
                "error_type": error_type,
                "error": error,
            }
        )

    def _kill_all(self):
        """Kill every process of the sandbox but this one."""
        self.dying = self.isolated
        self._signal_all(signal.SIGKILL)

    def _bury(self):
        """Wait for those that were killed: the memory that they still have would be held against the next process."""
        while self.dying:
            try:
                self._reaped(*os.waitpid(-1, 0))
            except ChildProcessError:
                self.dying = False

    def _signal_all(self, number):
        if self.isolated:
            _signal(-1, number)  # process 1 of a pid namespace is not itself a target
            return
        # Without a pid namespace: each child's process group, then whatever was orphaned to this subreaper.
        for pid in (self.runtime_pid, *self.extensions):
            if pid:
                _signal(-pid, number)
        for pid in _children(os.getpid()):
            _signal(pid, number)

    def _send(self, message, descriptors=None):
        descriptors = descriptors or {}
        if descriptors:
            message["fds"] = list(descriptors)
        try:
            socket.send_fds(self.control, [json.dumps(message).encode()], list(descriptors.values()))
        except OSError:  # the server is gone: end with it
            os._exit(0)


def _listen(address):
    """The Runtime API's socket: served by the server, reached by this environment alone."""
    api = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    api.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        api.bind(tuple(address))
    except OSError:  # another server on this host has it
        api.bind((address[0], 0))
    api.listen(_API_BACKLOG)
    api.setblocking(False)
    return api


def _wait(sources, pause_s):
    """Those of which can be read, or that have ended. (select() stops at descriptor 1,024.)"""
    poll = select.poll()
    by_number = {}
    for source in sources:
        number = source if isinstance(source, int) else source.fileno()
        by_number[number] = source
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(None if pause_s is None else pause_s * 1e3)]


def _is_executable(path):
    return os.path.isfile(path) and bool(os.stat(path).st_mode & 0o111)


def _executables(folder):
    """External extensions: executable files right in the folder, by name."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [name for name in names if _is_executable(os.path.join(folder, name))][:_EXTENSIONS_MAX]


def _signal(pid, number):
    if not pid:
        return
    try:
        os.kill(pid, number)
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
    if order.get("template"):
        import keeper

        sandbox = keeper.Keeper(zygote, order, control)
    else:
        sandbox = Sandbox(zygote, order, control)
    live(sandbox)


def live(sandbox):
    """Make the sandbox and serve its channel until it closes; never returns."""
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
