"""Functions that really try: `SOURCE` is deployed as Python and does what its event says; `Attacker` asks it."""

from __future__ import annotations

import textwrap
from typing import Any

from integration.harness import Function, Server

#: An event is an expression, or statements that leave their answer in `result`.
SOURCE = r'''
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, stat, struct, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
calls = 0

def handler(event, context):
    global calls
    calls += 1
    if "\n" not in event:
        return eval(event, globals())
    exec(compile(event, "event", "exec"), globals())
    return globals().pop("result", None)

def name_of(number):
    return errno.errorcode[number]

def tried(call, *arguments, **keywords):
    """The error's name, or "allowed"."""
    try:
        call(*arguments, **keywords)
    except OSError as error:
        return name_of(error.errno)
    return "allowed"

def refused(call, *arguments):
    """The same for a function of libc."""
    result = getattr(libc, call)(*arguments)
    return name_of(ctypes.get_errno()) if result == -1 else "allowed"

def system_call(number, *arguments):
    long = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    return refused("syscall", ctypes.c_long(number), *long)

def opened(path, mode="r"):
    try:
        with open(path, mode) as file:
            return file.read(200) if mode == "r" else "written"
    except OSError as error:
        return name_of(error.errno)

def wrote(path, text):
    """For files that can not be created or cut, as those of /proc."""
    try:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        return name_of(error.errno)
    return "written"

def status(pid="self"):
    with open("/proc/%s/status" % pid) as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

def family(number, kind=socket.SOCK_STREAM, protocol=0):
    return tried(lambda: socket.socket(number, kind, protocol).close())

def descriptors():
    paths = ["/proc/self/fd/" + fd for fd in os.listdir("/proc/self/fd")]
    return {path[14:]: os.readlink(path) for path in paths if os.path.exists(path)}

def pids():
    return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())

def uid_after(seconds):
    time.sleep(seconds)
    return os.getuid()

def mounts():
    """(root in its file system, mount point, options) of each."""
    with open("/proc/self/mountinfo") as file:
        return [(f[3], f[4], f[5].split(",")) for f in map(str.split, file)]
'''


class Attacker:
    """The deployed attacker on one server."""

    def __init__(self, server: Server, **configuration: Any) -> None:
        self.server = server
        arguments: dict[str, Any] = {"MemorySize": 256, "Timeout": 10, **configuration}
        self.function: Function = server.deploy(SOURCE, "attacker", **arguments)

    def __call__(self, code: str) -> Any:
        """What `code` comes to in the sandbox: an expression, or indented statements that set `result`."""
        if "\n" in code:
            code = textwrap.dedent(code).strip("\n") + "\n"
        reply = self.function.invoke(code, LogType="None")
        assert reply.error is None, reply.raw
        return reply.value

    def attempt(self, code: str) -> Any:
        """The same for code that is expected to end its own invocation. The error type, or None."""
        reply = self.function.invoke(textwrap.dedent(code).strip("\n") + "\n", LogType="None")
        return reply.value["errorType"] if reply.error is not None else None

    def delete(self) -> None:
        self.server.lambda_.delete_function(FunctionName=self.function.name)
