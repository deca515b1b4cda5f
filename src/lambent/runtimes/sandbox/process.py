"""How a process of a sandbox becomes the function's: descriptors, limits, user, capabilities, system-call filter, exec.

Used between fork and the function's first instruction, for runtime processes and for extensions alike.
"""

import os
import resource
import signal
import sys
import threading

if sys.platform == "linux":
    import linux

#: Descriptors that an executed program finds beside the standard three.
CHANNEL_FD, TELEMETRY_FD = 3, 4


def limit_resources(limits):
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        _, hard = resource.getrlimit(kind)
        if name == "RLIMIT_DATA":  # stacks of threads count in full, touched or not
            threading.stack_size(1_048_576)
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def give_up_privileges(config, order):
    """User id, groups, capabilities, no-new-privileges, seccomp: for good; and a process group of its own, so that
    kill(0) reaches nobody else."""
    os.setpgid(0, 0)
    if not config["namespaces"]:
        return
    if config["rootless"]:
        _own_user_namespace(config["uid_base"])
    linux.drop_bounding_set()
    if not config["rootless"]:
        os.setgroups([])
        os.setresgid(order["uid"], order["uid"], order["uid"])
        os.setresuid(order["uid"], order["uid"], order["uid"])
    linux.set_capabilities(())
    linux.set_dumpable(True)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # before the sandbox's first process, which must live to tell
    except OSError:
        pass
    linux.set_no_new_privileges()
    if config["seccomp"]:
        linux.load_seccomp(bytes.fromhex(config["seccomp"]))


def become_template(config, order, sync):
    """For a process from which environments will be restored: as give_up_privileges, but in a user namespace of its
    own, in which it may become other users and enter namespaces; nothing else, and nothing outside. These capabilities
    are not effective until they are raised. `sync`: a socket to the sandbox's first process, which writes the maps."""
    os.setpgid(0, 0)
    linux.unshare(linux.CLONE_NEWUSER)
    sync.send(b"?")
    if not sync.recv(1):
        raise RuntimeError("no user ids were given to the template")
    linux.unshare(linux.CLONE_NEWCGROUP)
    linux.drop_bounding_set()
    os.setgroups([])
    os.setresgid(order["uid"], order["uid"], order["uid"])
    os.setresuid(order["uid"], order["uid"], order["uid"])
    linux.set_capabilities(
        (linux.CAP_SETGID, linux.CAP_SETUID, linux.CAP_SETPCAP, linux.CAP_SYS_CHROOT, linux.CAP_SYS_ADMIN)
    )
    linux.raise_capabilities(False)
    linux.set_dumpable(True)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    except OSError:
        pass
    linux.set_no_new_privileges()
    if config["seccomp_template"]:
        linux.load_seccomp(bytes.fromhex(config["seccomp_template"]))


def _own_user_namespace(uid):
    """Without root all environments have one user id, and the kernel counts its processes together; in a user namespace
    of its own each environment is counted alone, and so can be limited alone."""
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        for name, text in (("setgroups", "deny"), ("uid_map", "{0} {0} 1"), ("gid_map", "{0} {0} 1")):
            with open("/proc/self/" + name, "w") as file:
                file.write(text.format(uid))
    except OSError as error:
        os.write(2, "lambent: processes are not limited: {}\n".format(error).encode())


def yield_to_the_server():
    """A request that wakes this process must not push the server off its core in the middle of its turn: in batch
    policy it runs as soon as a core is free, with the same share (docs/performance.md has the figures)."""
    if hasattr(os, "SCHED_BATCH"):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def reset_signals():
    """As a program finds them that was started by nobody in particular; Python ignores SIGPIPE, and exec keeps that."""
    for number in (signal.SIGTERM, signal.SIGPIPE, signal.SIGINT, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def spawn(config, order, argv, environ, cwd, rlimits, log_fd, channel_fd=-1):
    """Fork and execute `argv` (its program found along environ's PATH) as the function's user.

    stdin is empty, stdout and stderr are `log_fd`, descriptor 3 is `channel_fd` where there is one, 4 is `log_fd` for
    framed records. Returns (pid, error): with an error, Go's words as AWS prints them, nothing runs.
    """
    program, error = _find(argv[0], environ)
    if error:
        return 0, error
    failed_read, failed_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            _arrange(log_fd, channel_fd, failed_write)
            give_up_privileges(config, order)
            yield_to_the_server()
            limit_resources(rlimits)
            reset_signals()
            os.umask(0o022)
            try:
                os.chdir(cwd)
            except OSError as reason:
                os.write(255, "chdir {}: {}".format(cwd, _words(reason)).encode())
                os._exit(127)
            os.execve(program, argv, environ)
        except OSError as reason:
            os.write(255, "fork/exec {}: {}".format(program, _words(reason)).encode())
        except BaseException as reason:
            os.write(255, "fork/exec {}: {!r}".format(program, reason).encode())
        finally:
            os._exit(127)
    os.close(failed_write)
    error = os.read(failed_read, 4096).decode("utf-8", "replace")  # ends when exec closes the other end
    os.close(failed_read)
    return (0 if error else pid), error


def _words(error):
    text = os.strerror(error.errno)
    return text[:1].lower() + text[1:]


def _find(name, environ):
    if "/" in name:
        return name, ""
    for folder in environ.get("PATH", "/usr/bin:/bin").split(":"):
        path = os.path.join(folder or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path, ""
    return name, 'exec: "{}": executable file not found in $PATH'.format(name)


def _arrange(log_fd, channel_fd, failed_fd):
    """0 empty, 1 and 2 the log, 3 the channel, 4 the log again, 255 closed by exec; nothing else."""
    high = {}
    for name, descriptor in (("log", log_fd), ("channel", channel_fd), ("failed", failed_fd)):
        if descriptor >= 0:
            high[name] = os.dup2(descriptor, 240 + len(high))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    for number in (1, 2, TELEMETRY_FD):
        os.dup2(high["log"], number)
    if channel_fd >= 0:
        os.dup2(high["channel"], CHANNEL_FD)
    os.dup2(high["failed"], 255, inheritable=False)
    keep = {0, 1, 2, TELEMETRY_FD, 255} | ({CHANNEL_FD} if channel_fd >= 0 else set())
    for descriptor in range(3, 256):
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass
    sys.stdin = None
