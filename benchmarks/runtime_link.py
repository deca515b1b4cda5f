"""The process side of the floor: AWS's own runtime, spoken to over a Unix socket pair.

Kept apart from `floor.py` so that a zygote can import it without an event loop or an HTTP parser: what a
forked child inherits is part of what is measured.

Frames: request  = length (4 bytes, little endian) + event body;
        response = length (4 bytes, of what follows) + 1 byte (0 the function answered, 1 it failed) + body.
A socket that ends is the order to exit.
"""

import os
import struct
import sys
from socket import AF_UNIX, SOCK_STREAM, socket, socketpair
from typing import Any, NoReturn

from awslambdaric import bootstrap
from awslambdaric.lambda_runtime_client import InvocationRequest, LambdaRuntimeClient

LENGTH = struct.Struct("<I")
ANSWERED, FAILED = b"\x00", b"\x01"
FUNCTION_ARN = "arn:aws:lambda:us-east-1:000000000000:function:floor"
REQUEST_ID = "00000000-0000-0000-0000-000000000000"
DEADLINE_MS = 4102444800000  # the year 2100: the floor has no limits

RECEIVE_BYTES = 65536


class SocketRuntimeClient(LambdaRuntimeClient):
    """awslambdaric's client with its HTTP exchanged for frames; everything above it stays AWS's."""

    def __init__(self, link: socket) -> None:
        super().__init__("floor")
        self._link = link

    def wait_next_invocation(self) -> InvocationRequest:
        """Block until a whole request frame is here."""
        received = self._link.recv(RECEIVE_BYTES)
        if not received:
            os._exit(0)
        (body_bytes,) = LENGTH.unpack_from(received)
        while len(received) < body_bytes + 4:
            more = self._link.recv(RECEIVE_BYTES)
            if not more:
                os._exit(0)
            received += more
        return InvocationRequest(
            invoke_id=REQUEST_ID,
            x_amzn_trace_id=None,
            invoked_function_arn=FUNCTION_ARN,
            deadline_time_in_ms=DEADLINE_MS,
            client_context=None,
            cognito_identity=None,
            tenant_id=None,
            content_type="application/json",
            event_body=received[4:],
            invocation_id=None,
        )

    def _send(self, kind: bytes, body: str | bytes) -> None:
        encoded = body if isinstance(body, bytes) else body.encode()
        self._link.sendall(LENGTH.pack(len(encoded) + 1) + kind + encoded)

    def post_invocation_result(
        self, invoke_id: str, result_data: str | bytes, content_type: str = "", invocation_id: Any = None
    ) -> None:
        """Send what the handler returned."""
        del invoke_id, content_type, invocation_id
        self._send(ANSWERED, result_data)

    def post_invocation_error(
        self, invoke_id: str, error_response_data: str, xray_fault: str, invocation_id: Any = None
    ) -> None:
        """Send what the handler raised."""
        del invoke_id, xray_fault, invocation_id
        self._send(FAILED, error_response_data)

    def post_init_error(self, error_response_data: Any, error_type_override: Any = None) -> NoReturn:
        """A bench function that cannot be imported is a mistake of ours: say so and leave."""
        del error_type_override
        print(f"floor: the function cannot start: {error_response_data}", file=sys.stderr, flush=True)
        os._exit(1)


def start_process(handler: str, inherited: list[socket] | None = None) -> tuple[int, socket]:
    """Fork a process that serves `handler`; return its pid and our end of the link.

    `inherited` are our ends of the other links: a child must close them, or those never see an end.
    """
    ours, theirs = socketpair(AF_UNIX, SOCK_STREAM)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        for link in inherited or []:
            link.close()
        bootstrap.run(handler, SocketRuntimeClient(theirs))
    finally:
        os._exit(status)  # never return into the parent's code


def exchange(link: socket, body: bytes) -> tuple[bytes, bytes]:
    """One blocking invocation, as the cold-start floor does it: (kind, body)."""
    link.sendall(LENGTH.pack(len(body)) + body)
    received = b""
    while len(received) < 4 or len(received) < 4 + LENGTH.unpack_from(received)[0]:
        more = link.recv(RECEIVE_BYTES)
        if not more:
            raise RuntimeError("the process ended before it answered")
        received += more
    return received[4:5], received[5:]
