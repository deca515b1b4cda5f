"""The Python runtime as a program of its own, on the HTTP Runtime API.

A function with AWS_LAMBDA_EXEC_WRAPPER chooses what starts the interpreter, so it can not be a fork of the zygote: the
wrapper is executed with this program and its interpreter as arguments, as on AWS. With AWS_LAMBDA_MAX_CONCURRENCY it
is as many processes (workers.py).
"""

import http.client
import json
import logging
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if "_LAMBENT_DEBUG" in os.environ:
    import debugger
if "AWS_LAMBDA_MAX_CONCURRENCY" in os.environ:
    import workers
sys.path[:] = [entry for entry in sys.path if entry != _HERE]
if os.path.dirname(_HERE) not in sys.path:  # /var/runtime, where there is no such mount
    sys.path.append(os.path.dirname(_HERE))

import awslambdaric.bootstrap  # noqa: E402
from awslambdaric.lambda_runtime_client import (  # noqa: E402
    ERROR_TYPE_HEADER,
    InvocationRequest,
    LambdaRuntimeClient,
    LambdaRuntimeClientError,
)

_INVOCATION = "/2018-06-01/runtime/invocation/"


class HttpClient(LambdaRuntimeClient):
    """awslambdaric's runtime client without its compiled part: one connection, kept."""

    def __init__(self, address):
        super().__init__(address)
        self._connection = http.client.HTTPConnection(address)

    def _call(self, method, path, expected, body=None, headers=None):
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        payload = response.read()
        if response.status not in expected:
            raise LambdaRuntimeClientError(path, response.status, payload)
        return response, payload

    def wait_next_invocation(self):
        response, payload = self._call("GET", _INVOCATION + "next", (200,))
        header = response.getheader
        return InvocationRequest(
            invoke_id=header("Lambda-Runtime-Aws-Request-Id"),
            x_amzn_trace_id=header("Lambda-Runtime-Trace-Id"),
            invoked_function_arn=header("Lambda-Runtime-Invoked-Function-Arn"),
            deadline_time_in_ms=int(header("Lambda-Runtime-Deadline-Ms")),
            client_context=header("Lambda-Runtime-Client-Context"),
            cognito_identity=header("Lambda-Runtime-Cognito-Identity"),
            tenant_id=header("Lambda-Runtime-Aws-Tenant-Id"),
            content_type=header("Content-Type"),
            event_body=payload,
            invocation_id=header("Lambda-Runtime-Invocation-Id"),
        )

    def post_invocation_result(self, invoke_id, result_data, content_type="application/json", invocation_id=None):
        body = result_data if isinstance(result_data, bytes) else result_data.encode("utf-8")
        headers = {"Content-Type": content_type, **_nonce(invocation_id)}
        self._call("POST", _INVOCATION + invoke_id + "/response", (202, 410, 413), body, headers)

    def post_invocation_error(self, invoke_id, error_response_data, xray_fault, invocation_id=None):
        headers = {"Content-Type": "application/json", ERROR_TYPE_HEADER: "Unhandled", **_nonce(invocation_id)}
        self._call("POST", _INVOCATION + invoke_id + "/error", (202, 410), error_response_data.encode("utf-8"), headers)


class WorkerClient(HttpClient):
    """Of one worker of several: an answer that is refused does not end it, as with AWS's own client."""

    def post_invocation_result(self, *args, **kwargs):
        self._post(super().post_invocation_result, args, kwargs)

    def post_invocation_error(self, *args, **kwargs):
        self._post(super().post_invocation_error, args, kwargs)

    def _post(self, post, args, kwargs):
        workers.end_line()
        try:
            post(*args, **kwargs)
        except LambdaRuntimeClientError as error:
            logging.warning("%s: This won't kill the Runtime loop", error)

    def handle_init_error(self, exc):
        if not isinstance(exc, LambdaRuntimeClientError) or exc.response_code != 403:
            raise exc  # 403: another worker was first


def _work():
    awslambdaric.bootstrap.Unbuffered = lambda stream: stream  # streams that write whole lines are there already
    awslambdaric.bootstrap.run(os.environ["_HANDLER"], WorkerClient(os.environ["AWS_LAMBDA_RUNTIME_API"]))


def _nonce(invocation_id):
    return {"Lambda-Runtime-Invocation-Id": invocation_id} if invocation_id else {}


def main():
    task_root, layers_root = sys.argv[1], sys.argv[2]
    version = "python{}.{}".format(*sys.version_info[:2])
    sys.path[:0] = [task_root, "{}/python/lib/{}/site-packages".format(layers_root, version), layers_root + "/python"]
    sys.argv[1:] = []
    debug = os.environ.pop("_LAMBENT_DEBUG", None)
    if debug:
        debugger.listen(json.loads(debug))
        del sys.modules["debugger"]
    count = os.environ.get("AWS_LAMBDA_MAX_CONCURRENCY", "")
    if count.isdecimal() and int(count) > 1:
        workers.run(int(count), _work)
    awslambdaric.bootstrap.run(os.environ["_HANDLER"], HttpClient(os.environ["AWS_LAMBDA_RUNTIME_API"]))


if __name__ == "__main__":
    main()
