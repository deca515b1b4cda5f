"""SnapStart: the first process of a template's sandbox, and of the sandboxes whose runtime process is a fork of it.

A template is a runtime process that has run a version's Init and the before-snapshot hooks. Forks of it are restored
environments. User code has run in it, so it is trusted with nothing: it makes no sandbox, it only gives the memory.

    zygote --fork--> Keeper (root) --fork--> template: user namespace of its own, no other right than to enter ...
                       |  ^ who has ended                                 |
                       |  |                                               | fork, setns, fork: the runtime process
                       +--+-fork--> Member: process 1 of a restored environment, its namespaces, its control group

The Keeper is process 1 of a pid namespace in which all of these live. It gives the template a user namespace that maps
user ids of its own, and makes each environment on order of the server: control group, mounts, log pipe and API socket
with the rights of root, the namespaces as children of the template's user namespace. A Member asks the template for a
runtime process by sending it descriptors of these namespaces; the process enters them, and its exit status comes by way
of the Keeper, whose child it is (the kernel gives orphans to process 1 of their parent's pid namespace).

Channel of the Keeper: as in environment.py, and
    in   {"op": "forks"}    Init is done, there will be environments
    in   {"op": "fork", "name", "uid", "owner", "tmp_mib", "api"} + the environment's control channel
"""

import array
import json
import os
import resource
import signal
import socket
import struct
import time

import environment
from environment import Sandbox

_MESSAGE_MAX_BYTES = 65_536
_CREDENTIALS = struct.Struct("3i")
_PATIENCE_S = 30.0  # in a burst the template forks one after the other
_REMOVE_S = 30.0
_FORKS_BYTES = 64 << 20
#: To the name of a template's control group: that of its keeper.
KEEPER_SUFFIX = "k"
#: Namespaces of a Member that its runtime process enters, in this order: the last may forbid what comes after it.
NAMESPACES = ("ipc", "uts", "cgroup", "pid", "mnt")


class Keeper(Sandbox):
    def __init__(self, zygote, order, control):
        super().__init__(zygote, order, control)
        self.members = {}  # name -> our end of a socket to its first process
        self.runtimes = {}  # pid of a restored runtime process -> name
        self.leftover = []  # names of control groups that are to be removed
        self.user_namespace = -1
        self.assigned = None
        self.orders, self.template_orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.hello, self.runtime_hello = _credential_pair()
        self.hello.setblocking(False)
        self.sync = self.template_sync = None
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor for each environment

    # --- the template -----------------------------------------------------------------------------------

    def _join_group(self):
        """One for the template, with the version's limits, and one for what we do ourselves."""
        self.group = self.parents.create(self.order["name"])
        self.parents.create(self.order["name"] + KEEPER_SUFFIX).close()

    def _shed_capabilities(self):
        """Nothing of the function ever runs here, and sandboxes are still to be made."""

    def _template_channels(self):
        return {"orders": self.template_orders.fileno(), "sync": self.template_sync.fileno()}

    def _fork_runtime(self, unwanted):
        self.sync, self.template_sync = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        link = super()._fork_runtime(unwanted)
        self.template_sync.close()
        self.sync.settimeout(_PATIENCE_S)
        self.group.add(self.runtime_pid)
        if not self.sync.recv(1):
            raise RuntimeError("this host gives no user namespace")
        users = self.order["template"]
        for name in ("uid_map", "gid_map"):
            with open("/proc/{}/{}".format(self.runtime_pid, name), "w") as file:
                file.write("{} {} {}".format(users["inside"], users["outside"], users["count"]))
        self.user_namespace = os.open("/proc/{}/ns/user".format(self.runtime_pid), os.O_RDONLY)
        self.sync.send(b"+")
        self.sync.close()
        return link

    # --- members ----------------------------------------------------------------------------------------

    def _obey(self, message, descriptors):
        if message["op"] == "fork":
            self._fork_member(message, descriptors[0])
        elif message["op"] == "forks":
            self._make_room()
        else:
            super()._obey(message, descriptors)

    def _assign(self, wanted):
        self.assigned = wanted
        super()._assign(wanted)

    def _make_room(self):
        """Init is done. Its forks begin in its group: they take memory there, and are not to wait for a share."""
        self.watch = None
        wanted = self.assigned
        self.group.limit(
            wanted["memory_bytes"] + _FORKS_BYTES, wanted["tmp_mib"] * 1_048_576, 1.0, False, wanted["processes_max"],
            raising=True,
        )  # fmt: skip

    def _fork_member(self, order, control):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                ours.close()
                self.control.close()
                environment.live(Member(self, order, control, theirs))
            except BaseException as error:  # never return into the keeper's loop
                os.write(2, "environment {}: {!r}\n".format(order.get("name"), error).encode())
            finally:
                os._exit(1)
        os.close(control)
        theirs.close()
        self.members[order["name"]] = ours

    def _more_sources(self):
        return (self.hello, *self.members.values())

    def _pause_s(self):
        return 0.1 if self.leftover else None

    def _look_at_more(self, readable):
        if self.hello in readable:
            self._read_hellos()
        for name, member in list(self.members.items()):
            if member in readable:  # they never say anything: it has ended
                member.close()
                del self.members[name]
                self.leftover.append(name)
        if self.leftover:
            self.leftover = [name for name in self.leftover if not self.parents.remove(name)]

    def _read_hellos(self):
        while True:
            try:
                raw, pid = _receive_credentials(self.hello)
            except BlockingIOError:
                return
            self.runtimes[pid] = raw.decode("utf-8", "replace")

    def _reaped(self, pid, status):
        if pid == self.runtime_pid:
            super()._reaped(pid, status)
            return
        self._read_hellos()
        member = self.members.get(self.runtimes.pop(pid, ""))
        if member is not None:
            try:
                member.send(json.dumps({"status": status}).encode(), socket.MSG_DONTWAIT)
            except OSError:
                pass  # it ended with its runtime process

    # --- ending -----------------------------------------------------------------------------------------

    def _kill_all(self):
        if self.members:
            environment._signal(self.runtime_pid, signal.SIGKILL)  # the template; its environments live on
        else:
            super()._kill_all()

    def _end(self):
        names = [*self.leftover, *self.members]
        self._signal_all(signal.SIGKILL)
        end = time.monotonic() + _REMOVE_S
        while names and time.monotonic() < end:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
            names = [name for name in names if not self.parents.remove(name)]
            time.sleep(0.002)


class Member(Sandbox):
    """Process 1 of a restored environment. Its runtime process is not its child."""

    def __init__(self, keeper, order, control, status):
        super().__init__(keeper, order, control)
        self.keeper = keeper
        self.status = status
        self.namespaces = ()
        self.orders = keeper.orders
        self.runtime_hello = keeper.runtime_hello

    # --- making -----------------------------------------------------------------------------------------

    def make(self):
        import linux
        import rootfs

        keeper, order = self.keeper, self.order
        self.group = self.parents.create(order["name"])
        self.parents.close()
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS)
        rootfs.mount_again(order["tmp_mib"], order["api"][0], keeper.order["owner"], order["owner"])
        log_read, self.log_write = self._log_pipe()
        if environment._executables(environment._EXTENSIONS):
            self.extension_log = self._log_pipe()
        api = environment._listen(order["api"])
        linux.setns(keeper.user_namespace, linux.CLONE_NEWUSER)
        linux.unshare(linux.CLONE_NEWPID)
        if os.fork():
            os._exit(0)
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP)
        rootfs.mount_proc()
        os.close(keeper.user_namespace)
        for channel in (keeper.template_orders, keeper.hello, *keeper.members.values()):
            channel.close()
        self.namespaces = [os.open("/proc/self/ns/" + name, os.O_RDONLY) for name in NAMESPACES]
        link = self._fork_runtime(())
        self._send({"op": "parked"}, {"log": log_read, "api": api.fileno(), **self._control_files(), **link})
        for descriptor in (*link.values(), log_read):
            os.close(descriptor)
        api.close()

    def _mount(self, wanted):
        """The keeper has it mounted."""

    def _fork_runtime(self, unwanted):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        hello, runtime_hello = _credential_pair()
        answers_read, answers_write = os.pipe()
        requests_read, requests_write = os.pipe()
        given = (
            *self.namespaces, requests_read, answers_write, theirs.fileno(), self.log_write,
            runtime_hello.fileno(), self.runtime_hello.fileno(), *self.group.members,
        )  # fmt: skip
        order = {"uid": self.order["uid"], "name": self.order["name"]}
        socket.send_fds(self.orders, [json.dumps(order).encode()], given)
        for each in (theirs, runtime_hello):
            each.close()
        os.close(requests_read)
        os.close(answers_write)
        hello.settimeout(_PATIENCE_S)
        raw, pid = _receive_credentials(hello)
        hello.close()
        if not raw or pid <= 1:
            raise RuntimeError("the template is gone")
        if not _is_in_our_group(pid):  # it has gone there itself, if it is what it should be
            self.group.add(pid)
        self.runtime_pid = pid
        self.runtime_channel = ours
        return {"link_in": answers_read, "link_out": requests_write}

    # --- living -----------------------------------------------------------------------------------------

    def _more_sources(self):
        return (self.status,)

    def _look_at_more(self, readable):
        if self.status in readable:
            message = self.status.recv(_MESSAGE_MAX_BYTES)
            if not message:  # the keeper is gone, and with it this whole pid namespace
                os._exit(0)
            self._runtime_ended(json.loads(message)["status"])
            self._reap()

    def _all_reaped(self):
        if not self.runtime_pid:
            super()._all_reaped()


def _is_in_our_group(pid):
    """In every hierarchy, seen from our own control group namespace."""
    try:
        with open("/proc/{}/cgroup".format(pid)) as file:
            return all(line.endswith(":/\n") for line in file)
    except OSError:
        return False


def _credential_pair():
    """A pair of sockets; who reads from the first is told the sender's pid, in the reader's own numbers."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return reader, writer


def _receive_credentials(reader):
    raw, ancillary, _, _ = reader.recvmsg(
        _MESSAGE_MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(16 * array.array("i").itemsize)
    )
    pid = 0
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
        elif level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:  # nobody sends any
            descriptors = array.array("i")
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
            for descriptor in descriptors:
                os.close(descriptor)
    return raw, pid
