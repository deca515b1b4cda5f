"""The runtime process: gives up every privilege, becomes Lambda's Python runtime, serves requests on the frame link.

AWS's own `awslambdaric` imports the handler, makes the context object, the error payloads and the log records; only its
HTTP client is replaced, by one that speaks frames on a pair of pipes:

    u32 length of what follows (little endian) | u8 kind | u16 length of the header | header | payload

The header is UTF-8 fields separated by NUL. Kinds are in wire/frames.py, which is the other end; both are tested
against each other.
"""

import atexit
import gc
import importlib
import importlib.util
import io
import json
import os
import resource
import signal
import socket
import struct
import sys
import time

import awslambdaric.bootstrap
import process
import snapshot
from awslambdaric.lambda_runtime_client import BaseLambdaRuntimeClient, InvocationRequest
from awslambdaric.lambda_runtime_marshaller import LambdaMarshaller, to_json

_HEAD = struct.Struct("<IBH")
_LENGTH_BYTES = 4
_INVOKE, _READY, _RESULT, _ERROR, _INIT_ERROR, _TOO_LARGE = 1, 2, 3, 4, 5, 6
_RESPONSE_MAX_BYTES = 6_291_556
_READ_BYTES = 262_144
_OUT_OF_MEMORY_EXIT = 137
#: Folders of sys.path that are the platform's own (see worker/launcher.py), out of sight for functions.
_PLATFORM_FOLDERS = ("/_lambent", "/_python")
#: Imported ahead so that environments share them; a missing one costs only its speed.
_PRELOAD = (
    "boto3",
    "botocore.session",
    "botocore.httpsession",
    "s3transfer",
    "urllib3",
    "asyncio",
    "concurrent.futures",
)
#: Modules imported by the zygote, by their top-level name, so that a package's own copy can win over ours.
_preloaded = {}


def preload():
    """Once, in the zygote: import what functions commonly use. Returns the names that can not be imported."""
    missing = [name for name in _PRELOAD if not _try_import(name)]
    _remember_preloaded()
    return missing


def _try_import(name):
    try:
        __import__(name)
    except Exception:
        return False
    return True


def _remember_preloaded():
    """Note which imported modules came from /var/runtime."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if "/site-packages/" in path or "/var/runtime/" in path or "var-runtime" in path:
            _preloaded.setdefault(name.partition(".")[0], []).append(name)


class FrameClient(BaseLambdaRuntimeClient):
    """awslambdaric's runtime client on the frame link. `next` after a response needs no message of its own."""

    def __init__(self, requests_fd, answers_fd, measures_itself, template=None):
        super().__init__("")
        #: Without a control group: the peak resident size goes with each answer, and MemoryError ends the process.
        self._measures_itself = measures_itself
        self.marshaller = LambdaMarshaller()  # reads AWS_EXECUTION_ENV, which the zygote did not have
        self._requests_fd = requests_fd
        self._answers_fd = answers_fd
        self._ready_sent = False
        #: Where this process is one from which environments are restored.
        self._template = template
        self._restore_began_ns = 0

    def restore_next(self):
        """In a template: say that it is one, and be forked; returns in each restored environment."""
        self._send(_READY, self._template.obstacle(), b"")
        self._restore_began_ns = self._template.serve()

    def report_restore_error(self, restore_error_data):
        self._send(_INIT_ERROR, "Runtime.AfterRestoreError", to_json(restore_error_data).encode("utf-8"))

    def wait_next_invocation(self):
        if not self._ready_sent:
            self._ready_sent = True
            took_ns = time.monotonic_ns() - self._restore_began_ns if self._restore_began_ns else ""
            self._send(_READY, str(took_ns), b"")
        header, payload = self._receive()
        fields = header.split("\0")
        return InvocationRequest(
            invoke_id=fields[0],
            deadline_time_in_ms=int(fields[1]),
            invoked_function_arn=fields[2],
            x_amzn_trace_id=fields[3] or None,
            client_context=fields[4] or None,
            cognito_identity=fields[5] or None,
            tenant_id=fields[6] or None,
            content_type="application/json",
            event_body=payload,
            invocation_id=None,
        )

    def post_invocation_result(self, invoke_id, result_data, content_type="application/json", invocation_id=None):
        payload = result_data if isinstance(result_data, bytes) else result_data.encode("utf-8")
        if len(payload) > _RESPONSE_MAX_BYTES:
            self._send(_TOO_LARGE, invoke_id, b"")
        else:
            self._send(_RESULT, invoke_id + "\0" + content_type + self._peak(), payload)

    def post_invocation_error(self, invoke_id, error_response_data, xray_fault, invocation_id=None):
        if self._measures_itself and '"errorType": "MemoryError"' in error_response_data:
            os._exit(_OUT_OF_MEMORY_EXIT)
        self._send(_ERROR, invoke_id + "\0application/json" + self._peak(), error_response_data.encode("utf-8"))

    def _peak(self):
        if not self._measures_itself:
            return ""
        return "\0" + str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def post_init_error(self, error_response_data, error_type_override=None):
        if self._measures_itself and error_response_data["errorType"] == "MemoryError":
            os._exit(_OUT_OF_MEMORY_EXIT)
        kind = error_type_override or error_response_data["errorType"]
        self._send(_INIT_ERROR, kind, to_json(error_response_data).encode("utf-8"))

    def _send(self, kind, header, payload):
        raw = header.encode("utf-8")
        frame = _HEAD.pack(3 + len(raw) + len(payload), kind, len(raw)) + raw + payload
        sent = os.write(self._answers_fd, frame)
        while sent < len(frame):
            sent += os.write(self._answers_fd, memoryview(frame)[sent:])

    def _receive(self):
        buffer = os.read(self._requests_fd, _READ_BYTES)
        while len(buffer) < _HEAD.size:
            buffer += self._more(_READ_BYTES, buffer)
        length, _, header_length = _HEAD.unpack_from(buffer)
        wanted = _LENGTH_BYTES + length
        if len(buffer) < wanted:
            pieces, have = [buffer], len(buffer)
            while have < wanted:
                pieces.append(self._more(wanted - have, buffer))
                have += len(pieces[-1])
            buffer = b"".join(pieces)
        start = _HEAD.size + header_length
        return buffer[_HEAD.size : start].decode("utf-8"), buffer[start:wanted]

    def _more(self, count, so_far):
        piece = os.read(self._requests_fd, count) if so_far else b""
        if not piece:
            raise SystemExit(0)  # the platform is gone
        return piece


def run(config, order, channel_fd, link, log_fd, template=None):
    """Become a runtime, wait on the channel for the function, and serve it; returns the process's exit code.
    `template`: channels of a process from which environments are to be restored.

    Everything that does not depend on the function comes first: it is off the path of a parked sandbox's cold start.
    """
    more = list(template.values()) if template else []
    channel_fd, requests_fd, answers_fd, *more, telemetry_fd = _arrange_descriptors((channel_fd, *link, *more), log_fd)
    if template:
        channels = dict(zip(template, more))  # noqa: B905  # Python 3.9
        with socket.socket(fileno=channels["sync"]) as sync:
            process.become_template(config, order, sync)
        standard = {"requests": requests_fd, "answers": answers_fd, "log": telemetry_fd}
        template = snapshot.Template(config, channels, standard)
    else:
        process.give_up_privileges(config, order)
    process.yield_to_the_server()
    _rehearse()
    with os.fdopen(channel_fd, "rb") as channel:
        message = channel.read()
    if not message:
        return 0
    runtime = json.loads(message)
    process.limit_resources(runtime["rlimits"])
    debugger = importlib.import_module("debugger") if "debug" in runtime else None
    _become_function(runtime)
    os.environ["_LAMBDA_TELEMETRY_LOG_FD"] = str(telemetry_fd)
    client = FrameClient(requests_fd, answers_fd, runtime["measures_itself"], template)
    if "AWS_LAMBDA_LOG_FORMAT" in os.environ or "AWS_LAMBDA_LOG_LEVEL" in os.environ:
        importlib.reload(awslambdaric.bootstrap)  # it chose its log format when the zygote imported it
    gc.enable()
    if debugger:
        debugger.listen(runtime["debug"])
    try:
        awslambdaric.bootstrap.run(runtime["handler"], client)
        return 0
    except SystemExit as leaving:
        return _exit_code(leaving)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        atexit._run_exitfuncs()


def _rehearse():
    """Touch what a start will touch, so that the copy-on-write faults of a fork are taken while parked."""
    to_json(json.loads('{"a": [1, 2.5, "b", null]}'))
    importlib.util.find_spec("lambent_no_such_module")
    os.environ["LAMBENT_REHEARSAL"] = "1"
    del os.environ["LAMBENT_REHEARSAL"]
    create = awslambdaric.bootstrap.create_lambda_context
    create(None, None, 0, "", "", None)


def _exit_code(leaving):
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    sys.stderr.write("{}\n".format(leaving.code))
    return 1


def _arrange_descriptors(wanted, log_fd):
    """stdin is empty, stdout and stderr are the log pipe. Returns `wanted` and a telemetry descriptor, renumbered;
    nothing else of the platform stays open."""
    null = os.open("/dev/null", os.O_RDWR)
    keep = [os.dup(descriptor) for descriptor in (*wanted, log_fd)]
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for descriptor in range(3, 256):
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                pass
    sys.stdin = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(
        io.FileIO(1, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True
    )
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        io.FileIO(2, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True
    )
    return keep


def _become_function(runtime):
    for number in (signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.umask(0o022)
    os.environ.clear()
    os.environ.update(runtime["environ"])
    time.tzset()
    task_root = runtime["task_root"]
    os.chdir(task_root)
    version = "python{}.{}".format(*sys.version_info[:2])
    layers = runtime["layers_root"]
    sys.path[:] = [
        task_root,
        "{}/python/lib/{}/site-packages".format(layers, version),
        layers + "/python",
    ] + [entry for entry in sys.path if not entry.endswith(_PLATFORM_FOLDERS)]
    sys.argv[:] = ["/var/runtime/bootstrap.py"]
    # By name: walking sys.modules would touch, and so copy, a page for every few of its hundreds of names.
    for name in ("environment", "keeper", "process", "rootfs", "cgroups", "linux", "snapshot", "descriptors"):
        sys.modules.pop(name, None)
    sys.modules.pop("debugger", None)
    _prefer_own_copies(task_root)
    if os.path.isdir(layers + "/python"):
        for folder in sys.path[1:3]:
            _prefer_own_copies(folder)


def _prefer_own_copies(folder):
    """A package or layer that brings its own boto3 (or urllib3, ...) gets it, although ours is imported already."""
    try:
        brought = {entry.partition(".")[0] for entry in os.listdir(folder)}
    except OSError:
        return
    for top in brought & _preloaded.keys():
        if top != "awslambdaric":
            for name in _preloaded[top]:
                sys.modules.pop(name, None)
