"""Programs that the function brings or starts are under the same law: C, shell, Node.js, wrappers, extensions."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from integration.harness import Function, Server, make_zip

Deploy = Callable[..., Function]

#: A runtime whose event is a path to open, or anything else for a round of system calls, each in a child of its own.
ATTACKER = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char buffer[1 << 20], said[1 << 16];

static void call(const char *head, const char *body) {
    char api[64], *port;
    strncpy(api, getenv("AWS_LAMBDA_RUNTIME_API"), sizeof api - 1);
    port = strchr(api, ':');
    *port++ = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, api, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0), got = 0, n;
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) exit(3);
    dprintf(fd, "%s HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
            head, strlen(body), body);
    while ((n = read(fd, buffer + got, sizeof buffer - 1 - got)) > 0) got += n;
    buffer[got] = 0;
    close(fd);
}

/* In a child, so that what ends the caller ends no more: the error's number, 0 when allowed, or -signal. */
static int tried(long number, long a, long b, long c, long d, long e) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        long result = syscall(number, a, b, c, d, e, 0);
        _exit(result == -1 ? errno : 0);
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

#ifdef __x86_64__
static int interrupt_80(long number) {
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        long result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0) : "memory");
        _exit(result < 0 ? (int)-result : 0);
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
#endif

static void add(const char *name, int told) {
    sprintf(said + strlen(said), "%s\"%s\":%d", said[1] ? "," : "", name, told);
}

static void attack(void) {
    strcpy(said, "{");
    long deep = 1L << 32;
#define TRY(name, ...) add(name, tried(__VA_ARGS__))
    TRY("mount", SYS_mount, (long)"none", (long)"/tmp", (long)"tmpfs", 0, 0);
    TRY("remount", SYS_mount, (long)"none", (long)"/", 0, MS_REMOUNT | MS_BIND, 0);
    TRY("umount", SYS_umount2, (long)"/proc", MNT_DETACH, 0, 0, 0);
    TRY("pivot_root", SYS_pivot_root, (long)"/tmp", (long)"/tmp", 0, 0, 0);
    TRY("chroot", SYS_chroot, (long)"/tmp", 0, 0, 0, 0);
    TRY("fsopen", SYS_fsopen, (long)"tmpfs", 0, 0, 0, 0);
    TRY("open_tree", SYS_open_tree, AT_FDCWD, (long)"/", 1, 0, 0);
    TRY("unshare user", SYS_unshare, CLONE_NEWUSER, 0, 0, 0, 0);
    TRY("unshare mount", SYS_unshare, CLONE_NEWNS, 0, 0, 0, 0);
    TRY("clone user", SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    TRY("clone user deep", SYS_clone, deep | CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    TRY("clone pid", SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
    TRY("clone3", 435, 0, 0, 0, 0, 0);
    TRY("setns", SYS_setns, open("/proc/self/ns/mnt", O_RDONLY), 0, 0, 0, 0);
    TRY("ptrace", SYS_ptrace, 16, 1, 0, 0, 0);
    TRY("traceme", SYS_ptrace, 0, 0, 0, 0, 0);
    TRY("process_vm_readv", SYS_process_vm_readv, 1, 0, 0, 0, 0);
    TRY("keyctl", SYS_keyctl, 0, 0, 0, 0, 0);
    TRY("add_key", SYS_add_key, (long)"user", (long)"a", (long)"b", 1, -4);
    TRY("bpf", SYS_bpf, 0, 0, 0, 0, 0);
    TRY("perf", SYS_perf_event_open, 0, 0, 0, 0, 0);
    TRY("io_uring", 425, 1, 0, 0, 0, 0);
    TRY("userfaultfd", SYS_userfaultfd, 0, 0, 0, 0, 0);
    TRY("kexec", SYS_kexec_load, 0, 0, 0, 0, 0);
    TRY("module", SYS_init_module, 0, 0, (long)"", 0, 0);
    TRY("finit_module", SYS_finit_module, 0, (long)"", 0, 0, 0);
    TRY("handle", SYS_open_by_handle_at, 0, 0, 0, 0, 0);
    TRY("clock", SYS_clock_settime, 0, (long)said, 0, 0, 0);
    TRY("hostname", SYS_sethostname, (long)"x", 1, 0, 0, 0);
    TRY("reboot", SYS_reboot, 0xfee1dead, 0x28121969, 0, 0, 0);
    TRY("swapon", SYS_swapon, (long)"/tmp/x", 0, 0, 0, 0);
    TRY("setuid", SYS_setuid, 0, 0, 0, 0, 0);
    TRY("vsock", SYS_socket, 40, SOCK_STREAM, 0, 0, 0);
    TRY("vsock deep", SYS_socket, deep + 40, SOCK_STREAM, 0, 0, 0);
    TRY("packet", SYS_socket, 17, SOCK_RAW, 0, 0, 0);
    TRY("alg", SYS_socket, 38, SOCK_SEQPACKET, 0, 0, 0);
    TRY("raw", SYS_socket, 2, SOCK_RAW, 1, 0, 0);
    TRY("audit", SYS_socket, 16, SOCK_RAW, 9, 0, 0);
    TRY("securebits", SYS_prctl, PR_SET_SECUREBITS, 1, 0, 0, 0);
    TRY("ambient", SYS_prctl, 47, 2, 21, 0, 0);
    TRY("kill 1", SYS_kill, 1, SIGKILL, 0, 0, 0);
    TRY("allowed", SYS_getpid, 0, 0, 0, 0, 0);
#ifdef __x86_64__
    TRY("x32", 0x40000000 + 39, 0, 0, 0, 0, 0);
    add("int 0x80", interrupt_80(20));
    TRY("iopl", SYS_iopl, 3, 0, 0, 0, 0);
#endif
    int fds = 0;
    DIR *folder = opendir("/proc/self/fd");
    for (struct dirent *each; (each = readdir(folder));) {
        char link[300], to[300] = "";
        snprintf(link, sizeof link, "/proc/self/fd/%s", each->d_name);
        if (readlink(link, to, sizeof to - 1) > 0 && atoi(each->d_name) != dirfd(folder)) {
            fds++;
            if (strncmp(to, "pipe:", 5) && strcmp(to, "/dev/null") && strncmp(to, "mnt:", 4)) fds += 1000;
        }
    }
    closedir(folder);
    add("descriptors", fds);
    strcat(said, "}");
}

int main(void) {
    for (;;) {
        call("GET /2018-06-01/runtime/invocation/next", "");
        char id[37] = "", head[256];
        memcpy(id, strcasestr(buffer, "lambda-runtime-aws-request-id: ") + 31, 36);
        char *body = strstr(buffer, "\r\n\r\n") + 4;
        if (body[1] == '/') {
            body[strlen(body) - 1] = 0;
            int fd = open(body + 1, O_RDONLY), n = fd < 0 ? -1 : read(fd, buffer, 16);
            sprintf(said, "[%d,%d]", fd < 0 ? errno : 0, n);
            if (fd >= 0) close(fd);
        } else if (body[1] == 's') {
            int fd = open("/proc/self/status", O_RDONLY), n = read(fd, buffer, sizeof buffer - 1), at = 1;
            close(fd);
            said[0] = '"';
            for (int i = 0; i < n; i++) at += sprintf(said + at, buffer[i] < ' ' ? "\\u%04x" : "%c", buffer[i]);
            strcpy(said + at, "\"");
        } else {
            attack();
        }
        snprintf(head, sizeof head, "POST /2018-06-01/runtime/invocation/%s/response", id);
        call(head, said);
    }
}
"""
EPERM, ENOSYS, SIGSYS = 1, 38, 31


def assert_unprivileged(status: str) -> None:
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"
    assert "0" not in fields["Uid"].split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder: Path = tmp_path_factory.mktemp("attacker")
    (folder / "bootstrap.c").write_text(ATTACKER)
    subprocess.run([compiler, "-O1", "-w", "-o", folder / "bootstrap", folder / "bootstrap.c"], check=True)
    return (folder / "bootstrap").read_bytes()


@pytest.fixture
def native(sandboxed: Server, program: bytes) -> Function:
    return sandboxed.deploy({"bootstrap": program}, "native", Runtime="provided.al2023", Handler="any")


def test_system_calls_in_c(sandboxed: Server, native: Function) -> None:
    told: dict[str, int] = native.call("attack")
    rootless = sandboxed.page("health")["rootless"]
    assert told.pop("allowed") == 0
    assert told.pop("clone3") == ENOSYS
    assert told.pop("setuid") == (22 if rootless else EPERM)  # no user 0 there to become
    # Process 1 does not hear its own sandbox, also where it has the same user id.
    assert told.pop("kill 1") == (0 if rootless else EPERM)
    assert told.pop("descriptors") <= 5
    for name in ("x32", "int 0x80"):
        assert told.pop(name, -SIGSYS) == -SIGSYS, name
    assert {name: answer for name, answer in told.items() if answer != EPERM} == {}
    assert_unprivileged(native.call("status"))
    for path in ("/etc/shadow", str(sandboxed.data / "state.db"), "/proc/1/environ", "/proc/1/mem", "/.code/x"):
        assert native.call(path)[0] in (1, 2, 13), path
    assert native.call("/proc/self/exe") == [0, 16]
    sandboxed.lambda_.delete_function(FunctionName=native.name)


NODE = """
    const fs = require('fs'), child = require('child_process'), net = require('net');
    const tried = f => { try { f(); return 'allowed'; } catch (error) { return error.code || String(error); } };
    exports.handler = async (event) => ({
        status: fs.readFileSync('/proc/self/status', 'utf8'),
        child: child.execFileSync('/bin/sh', ['-c', 'cat /proc/self/status'], {encoding: 'utf8'}),
        links: fs.readdirSync('/proc/self/fd').map(fd => tried(() => 0) && (() => {
            try { return [fd, fs.readlinkSync('/proc/self/fd/' + fd)]; } catch { return null; } })()).filter(Boolean),
        files: Object.fromEntries(event.map(path => [path, tried(() => fs.readFileSync(path))])),
        root: tried(() => process.setuid(0)),
        init: tried(() => process.kill(1, 'SIGKILL')),
        group: process.pid !== 0 && fs.readFileSync('/proc/self/stat', 'utf8').split(') ')[1].split(' ').slice(2, 4),
        pid: process.pid,
        environ: Object.keys(process.env),
    });
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_node(sandboxed: Server) -> None:
    function = sandboxed.deploy({"m.js": NODE}, "node", Runtime="nodejs20.x", MemorySize=512)
    files = [
        "/etc/shadow",
        "/proc/1/environ",
        "/proc/1/mem",
        "/.code",
        str(sandboxed.data / "state.db"),
        "/root/.bashrc",
    ]
    told = function.call(files)
    assert_unprivileged(told["status"])
    assert_unprivileged(told["child"])
    assert set(told["files"].values()) <= {"ENOENT", "EACCES", "EPERM", "EISDIR"}
    assert told["files"]["/etc/shadow"] == "ENOENT"
    assert told["root"] in {"EPERM", "EINVAL"}
    assert told["init"] in {"EPERM", "allowed"}
    assert told["group"][0] == str(told["pid"])
    assert told["group"][1] == "1"
    own = ("pipe:", "socket:", "anon_inode:", "/dev/null", "/proc/", "/var/task", "/var/runtime", "/dev/urandom")
    assert [link for link in told["links"] if not link[1].startswith(own)] == []
    assert len([link for link in told["links"] if link[1].startswith("socket:")]) <= 3
    assert [name for name in told["environ"] if name.startswith(("LAMBENT", "PYTEST"))] == []
    assert function.call(files)["pid"] == told["pid"]  # nothing of it hurt anybody
    sandboxed.lambda_.delete_function(FunctionName=function.name)


WRAPPER = """
    #!/bin/sh
    cat /proc/self/status > /tmp/wrapper
    ls -l /proc/self/fd > /tmp/descriptors
    exec "$@"
"""
READ_BACK = """
    import os, subprocess
    def handler(event, context):
        return [open(path).read() for path in event]
"""


def test_a_wrapper(sandboxed: Server) -> None:
    function = sandboxed.deploy(
        {"m.py": READ_BACK, "wrapper": WRAPPER},
        Environment={"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrapper"}},
    )
    status, descriptors, mine = function.call(["/tmp/wrapper", "/tmp/descriptors", "/proc/self/status"])
    assert_unprivileged(status)
    assert_unprivileged(mine)
    assert "socket:" not in descriptors
    sandboxed.lambda_.delete_function(FunctionName=function.name)


EXTENSION = """
    #!/bin/bash
    cat /proc/self/status > /tmp/extension
    ls -l /proc/self/fd > /tmp/descriptors
    IFS=: read -r host port <<<"$AWS_LAMBDA_RUNTIME_API"
    ask() {
      exec 3<>"/dev/tcp/$host/$port"
      printf '%s\\r\\nHost: x\\r\\n%s\\r\\n\\r\\n%s' "$1" "$2" "$3" >&3
      id=$(sed -n 's/\\r$//; s/^[Ll]ambda-[Ee]xtension-[Ii]dentifier: //p; /^$/q' <&3)
      exec 3>&-
    }
    path=/2020-01-01/extension
    ask "POST $path/register HTTP/1.1" $'Lambda-Extension-Name: e\\r\\nContent-Length: 13' '{"events":[]}'
    echo "$id" > /tmp/id
    exec 3<>"/dev/tcp/$host/$port"
    format='GET %s/event/next HTTP/1.1\\r\\nHost: x\\r\\nLambda-Extension-Identifier: %s\\r\\n\\r\\n'
    printf "$format" "$path" "$id" >&3
    cat <&3 >/dev/null
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_an_extension(sandboxed: Server) -> None:
    layer = sandboxed.lambda_.publish_layer_version(
        LayerName="spy", Content={"ZipFile": make_zip({"extensions/e": EXTENSION})}
    )
    function = sandboxed.deploy(READ_BACK, Layers=[layer["LayerVersionArn"]])
    status, descriptors, identifier = function.call(["/tmp/extension", "/tmp/descriptors", "/tmp/id"])
    assert_unprivileged(status)
    assert "socket:" not in descriptors
    assert len(identifier.strip()) == 36
    sandboxed.lambda_.delete_function(FunctionName=function.name)


#: Modules that the platform's own code imports, and those that Python imports by itself.
SHADOW = """
    import os
    with open("/proc/self/status") as status, open("/tmp/" + __name__.replace(".", "_"), "w") as told:
        told.write(status.read())
"""
NAMES = (
    *(
        "environment",
        "process",
        "cgroups",
        "linux",
        "rootfs",
        "zygote",
        "bootstrap",
        "json",
        "socket",
        "select",
        "signal",
    ),
    *(
        "sitecustomize",
        "usercustomize",
        "awslambdaric",
        "boto3",
        "encodings",
        "ctypes",
        "importlib",
        "site",
        "warnings",
    ),
)


@pytest.mark.parametrize("wrapped", [False, True])
def test_modules_that_take_the_place_of_others(sandboxed: Server, wrapped: bool) -> None:
    """Whatever of the function's is imported, it is imported without privileges."""
    variables = {"PYTHONPATH": "/var/task", "PYTHONSTARTUP": "/var/task/json.py", "PYTHONINSPECT": "1"}
    variables |= {"LD_PRELOAD": "/var/task/evil.so", "PYTHONHOME": ""}
    files: dict[str, bytes | str] = {f"{name}.py": SHADOW for name in NAMES}
    files["m.py"] = """
        import json, environment, process, sitecustomize, boto3
        import os
        def handler(event, context):
            return {name: open("/tmp/" + name).read() for name in os.listdir("/tmp")}
    """
    if wrapped:
        files["wrapper"] = WRAPPER
        variables["AWS_LAMBDA_EXEC_WRAPPER"] = "/var/task/wrapper"
    function = sandboxed.deploy(files, "shadow", Environment={"Variables": variables})
    reply = function.invoke({}, LogType="None")
    if reply.error is None:  # with a wrapper the runtime may well be broken by such names
        told: dict[str, Any] = reply.value
        told.pop("descriptors", None)
        assert len(told) >= 3
        for status in told.values():
            assert_unprivileged(status)
    else:
        assert wrapped, reply.raw
    sandboxed.lambda_.delete_function(FunctionName=function.name)
    other = sandboxed.deploy("import json\ndef handler(event, context):\n    return json.__file__")
    assert "/var/task" not in other.call()
    sandboxed.lambda_.delete_function(FunctionName=other.name)


@pytest.mark.parametrize(
    "name", ["AWS_LAMBDA_RUNTIME_API", "_HANDLER", "LAMBDA_TASK_ROOT", "AWS_ACCESS_KEY_ID", "AWS_LAMBDA_FUNCTION_NAME"]
)
def test_reserved_variables(sandboxed: Server, name: str) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match=r"InvalidParameterValue|ValidationException"):
        sandboxed.deploy("def handler(event, context): pass", Environment={"Variables": {name: "mine"}})


def test_bytes_in_variables(sandboxed: Server) -> None:
    """What execve could take for the end of a variable, or for another one."""
    values = {"AA": "1\nLD_PRELOAD=/tmp/x", "BB": "x=y=z", "CC": "\x1b[2J", "DD": "\ufffd\U0001f600"}
    function = sandboxed.deploy(
        "import os\ndef handler(event, context):\n    return dict(os.environ)", Environment={"Variables": values}
    )
    seen = function.call()
    assert {name: seen[name] for name in values} == values
    assert "LD_PRELOAD" not in seen
    sandboxed.lambda_.delete_function(FunctionName=function.name)
