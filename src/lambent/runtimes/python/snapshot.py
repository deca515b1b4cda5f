"""SnapStart: a runtime process that has run its Init and waits to be forked, and how a fork becomes an environment.

`Template.serve` is what stands behind awslambdaric's `restore_next`: in the template it never returns, in each restored
environment it returns once, when a request wants that environment; awslambdaric then runs the after-restore hooks.
A fork is made for each environment ahead of its request (sandbox/keeper.py):

    template --fork--> enters the environment's namespaces --fork--> the runtime process: other user, no capability left

On AWS a whole machine is restored, and connections are dead. Here it is one process: whatever can not be forked
(threads, child processes, shared memory) is found by `obstacle`, and there is no template then.
"""

import gc
import json
import os
import socket
import sys
import time

import descriptors
import process

if sys.platform == "linux":
    import linux

_MESSAGE_MAX_BYTES = 65_536
_GIVEN = ("ipc", "uts", "cgroup", "pid", "mnt", "requests", "answers", "channel", "log", "hello", "keeper_hello")
_GIVEN_MAX = 32
_REAP_S = 0.1


class Template:
    def __init__(self, config, channels, standard):
        """`channels`: descriptors of the orders. `standard`: those that every environment has its own of, by name."""
        self._config = config
        self._orders = socket.socket(fileno=channels["orders"])
        self._standard = standard
        self._survey = {}

    def obstacle(self):
        """Why this process can not be forked as it is, in words; "" when it can."""
        threads = len(os.listdir("/proc/self/task"))
        if threads > 1:
            return "Init left {} threads running".format(threads - 1)
        if _has_children():
            return "Init left child processes running"
        if _shares_memory():
            return "Init left memory that is shared between processes"
        try:
            self._survey = descriptors.survey((self._orders.fileno(), *self._standard.values()))
        except OSError as error:
            return "what Init left open can not be made anew ({})".format(error)
        return ""

    def serve(self):
        """Returns in restored environments only: the nanoseconds at which the restore began."""
        gc.collect()
        gc.freeze()
        forks = 0  # that have not ended: each lives for some milliseconds, and they are not waited for
        while True:
            forks -= _reap(forks)
            self._orders.settimeout(_REAP_S if forks else None)
            try:
                message, given, _, _ = socket.recv_fds(self._orders, _MESSAGE_MAX_BYTES, _GIVEN_MAX)
            except socket.timeout:  # Python 3.9 has no other name for it
                continue
            if not message:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                try:
                    return self._restore(json.loads(message), given)
                except BaseException as error:
                    os.write(2, "lambent: an environment was not restored: {!r}\n".format(error).encode())
                    os._exit(1)
            for descriptor in given:
                os.close(descriptor)
            forks += 1

    def _restore(self, order, given):
        for descriptor in given[len(_GIVEN) :]:  # of the environment's control groups: what the next fork takes is its
            os.write(descriptor, b"0")
            os.close(descriptor)
        given = dict(zip(_GIVEN, given))  # noqa: B905  # Python 3.9
        folder = os.getcwd()
        linux.raise_capabilities(True)
        for name in ("ipc", "uts", "cgroup", "pid", "mnt"):
            linux.setns(given[name], 0)
            os.close(given[name])
        if os.fork():
            os._exit(0)
        os.chdir(folder)
        self._orders.close()
        process.give_up_privileges(self._config, order)
        process.yield_to_the_server()
        for name, at in self._standard.items():
            os.dup2(given[name], at, inheritable=name == "log")
        for number in (1, 2):
            os.dup2(given["log"], number)
        for name in ("requests", "answers", "log"):
            os.close(given[name])
        descriptors.renew(self._survey)
        _forget_randomness()
        name = order["name"].encode()
        for each in ("hello", "keeper_hello"):
            with socket.socket(fileno=given[each]) as hello:
                hello.send(name)
        with os.fdopen(given["channel"], "rb") as channel:
            message = channel.read()
        if not message:
            os._exit(0)
        began_ns = time.monotonic_ns()
        os.environ.update(json.loads(message)["restored"])
        return began_ns


def _reap(most):
    """How many of our forks have ended."""
    count = 0
    while count < most:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return count
        except ChildProcessError:  # somebody else has waited for them
            return most
        count += 1
    return count


def _has_children():
    try:
        with open("/proc/self/task/{}/children".format(os.getpid())) as file:
            return bool(file.read().split())
    except OSError:
        return False


def _shares_memory():
    with open("/proc/self/maps") as file:
        return any(line.split(" ", 2)[1] == "rw-s" for line in file)


def _forget_randomness():
    """CPython and OpenSSL seed anew in a forked process; tempfile only when its pid is another."""
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and hasattr(tempfile, "_name_sequence"):
        tempfile._name_sequence = None
