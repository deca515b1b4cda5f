"""provided.al2023: any program that speaks the Runtime API, here one in shell and one in C."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import Function

Deploy = Callable[..., Function]

#: The Runtime API with nothing but bash.
SHELL = r"""
    #!/bin/bash
    IFS=: read -r host port <<<"$AWS_LAMBDA_RUNTIME_API"
    call() {
      exec 3<>"/dev/tcp/$host/$port"
      printf '%s %s HTTP/1.1\r\nHost: api\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n%s' \
        "$1" "/2018-06-01/runtime/$2" "${#3}" "${4:-}" "$3" >&3
      headers=""
      while IFS= read -r line <&3; do
        line=${line%$'\r'}
        [ -z "$line" ] && break
        headers+="$line"$'\n'
      done
      body=$(cat <&3)
      exec 3>&-
    }
    if [ "${MODE:-}" = "init-error" ]; then
      call POST init/error '{"errorMessage":"no","errorType":"Runtime.Broken"}' \
        $'Lambda-Runtime-Function-Error-Type: Runtime.Broken\r\n'
      exit 1
    fi
    while :; do
      call GET invocation/next ""
      id=$(grep -i '^lambda-runtime-aws-request-id:' <<<"$headers" | cut -d' ' -f2)
      event=$body
      case "$event" in
        '"exit"') echo going; exit 7 ;;
        '"sleep"') sleep 30 ;;
        '"error"')
          call POST "invocation/$id/error" '{"errorMessage":"bad luck","errorType":"Function.Mine"}' \
            $'Lambda-Runtime-Function-Error-Type: Function.Mine\r\n' ;;
        '"environment"') call POST "invocation/$id/response" "\"$(env | cut -d= -f1 | sort | tr '\n' ' ')\"" ;;
        '"headers"') call POST "invocation/$id/response" "$(grep -ci '^lambda-runtime' <<<"$headers")" ;;
        *) echo "shell got $event"; call POST "invocation/$id/response" "{\"shell\":$event,\"in\":\"$PWD\"}" ;;
      esac
    done
"""

PROGRAM = r"""
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 20];

static int call(const char *head, const char *body) {
    char api[64], *port;
    strncpy(api, getenv("AWS_LAMBDA_RUNTIME_API"), sizeof api - 1);
    port = strchr(api, ':');
    *port++ = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, api, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0), got = 0, n;
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) exit(3);
    char request[4096];
    n = snprintf(request, sizeof request,
                 "%s HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                 head, strlen(body), body);
    if (write(fd, request, n) != n) exit(4);
    while ((n = read(fd, buffer + got, sizeof buffer - 1 - got)) > 0) got += n;
    buffer[got] = 0;
    close(fd);
    return got;
}

int main(void) {
    for (;;) {
        call("GET /2018-06-01/runtime/invocation/next", "");
        char *id = strcasestr(buffer, "lambda-runtime-aws-request-id: ") + 31, head[256], answer[2048];
        char *body = strstr(buffer, "\r\n\r\n") + 4;
        id[36] = 0;
        if (!strcmp(body, "\"crash\"")) *(volatile int *)0 = 1;
        printf("C got %s\n", body);
        fflush(stdout);
        snprintf(head, sizeof head, "POST /2018-06-01/runtime/invocation/%s/response", id);
        snprintf(answer, sizeof answer, "{\"c\":%s}", body);
        call(head, answer);
    }
}
"""


def deploy_shell(deploy: Deploy, **configuration: object) -> Function:
    return deploy({"bootstrap": SHELL}, "shell", Runtime="provided.al2023", Handler="any", **configuration)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder: Path = tmp_path_factory.mktemp("c")
    (folder / "bootstrap.c").write_text(PROGRAM)
    subprocess.run(
        [compiler, "-D_GNU_SOURCE", "-O1", "-w", "-o", folder / "bootstrap", folder / "bootstrap.c"], check=True
    )
    return (folder / "bootstrap").read_bytes()


@pytest.mark.parametrize("runtime", ["provided.al2", "provided.al2023"])
def test_a_runtime_in_shell(deploy: Deploy, runtime: str) -> None:
    function = deploy({"bootstrap": SHELL}, "shell", Runtime=runtime, Handler="any")
    reply = function.invoke({"a": 1})
    assert reply.value == {"shell": {"a": 1}, "in": "/var/task"}
    assert "Init Duration" in reply.report
    assert 'shell got {"a": 1}' in reply.log
    again = function.invoke({"a": 2})
    assert again.value["shell"] == {"a": 2}
    assert "Init Duration" not in again.report


def test_a_runtime_in_c(deploy: Deploy, program: bytes) -> None:
    function = deploy({"bootstrap": program}, "c", Runtime="provided.al2023", Handler="any")
    for number in range(20):
        assert function.call(number) == {"c": number}
    crash = function.invoke("crash")
    assert crash.error == "Unhandled"
    assert crash.value["errorType"] == "Runtime.ExitError"
    assert crash.value["errorMessage"].endswith("Error: Runtime exited with error: signal: segmentation fault")
    assert function.call(1) == {"c": 1}


def test_errors(deploy: Deploy) -> None:
    function = deploy_shell(deploy, Timeout=1)
    error = function.invoke("error")
    assert (error.error, error.value) == ("Unhandled", {"errorMessage": "bad luck", "errorType": "Function.Mine"})
    ended = function.invoke("exit")
    assert ended.value["errorType"] == "Runtime.ExitError"
    assert ended.value["errorMessage"].endswith("Error: Runtime exited with error: exit status 7")
    assert ended.report["Status"] == "error"
    late = function.invoke("sleep")
    assert late.value["errorType"] == "Sandbox.Timedout"
    assert late.report["Status"] == "timeout"
    assert function.call(5)["shell"] == 5


def test_init_error(deploy: Deploy) -> None:
    function = deploy_shell(deploy, Environment={"Variables": {"MODE": "init-error"}})
    reply = function.invoke({})
    assert reply.error == "Unhandled"
    assert reply.value == {"errorMessage": "no", "errorType": "Runtime.Broken"}
    lines = function.log_of(reply)
    assert [line.split("\t")[1] for line in lines if line.startswith("INIT_REPORT")] == ["Phase: init", "Phase: invoke"]


def test_what_a_custom_runtime_sees(deploy: Deploy) -> None:
    function = deploy_shell(deploy)
    names = set(function.call("environment").split())
    assert {"AWS_LAMBDA_RUNTIME_API", "_HANDLER", "LAMBDA_TASK_ROOT", "AWS_REGION", "TZ", "LANG"} <= names
    assert "AWS_EXECUTION_ENV" not in names
    assert function.call("headers") >= 4


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"other": "x"},
            "Couldn't find valid bootstrap(s): [/var/runtime/bootstrap /var/task/bootstrap /opt/bootstrap]",
        ),
        ({"bootstrap": "#!/no/such/interpreter\n"}, "fork/exec /var/task/bootstrap: no such file or directory"),
        ({"bootstrap": "#!\x00broken"}, "fork/exec /var/task/bootstrap: "),
    ],
)
def test_no_program_to_run(deploy: Deploy, files: dict[str, bytes | str], words: str) -> None:
    function = deploy(files, "none", Runtime="provided.al2023", Handler="any")
    reply = function.invoke({})
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == "Runtime.InvalidEntrypoint"
    assert words in reply.value["errorMessage"]


def test_a_wrapper_script_starts_the_runtime(deploy: Deploy) -> None:
    """AWS_LAMBDA_EXEC_WRAPPER, for a managed runtime."""
    wrapper = '#!/bin/sh\nexport WRAPPED="$#"\nexec "$@"\n'
    source = (
        "import os\ndef handler(event, context):\n    return [event, os.environ['WRAPPED'], context.function_name]\n"
    )
    function = deploy(
        {"wrap.sh": wrapper, "m.py": source},
        "wrapped",
        Environment={"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/wrap.sh"}},
    )
    for number in range(3):
        assert function.call(number) == [number, "4", function.name]


def test_a_wrapper_that_is_not_there(deploy: Deploy) -> None:
    function = deploy(
        "def handler(event, context): return 1",
        "unwrapped",
        Environment={"Variables": {"AWS_LAMBDA_EXEC_WRAPPER": "/var/task/none"}},
    )
    reply = function.invoke({})
    assert reply.value["errorType"].startswith("Runtime.")
    assert "/var/task/none" in reply.value["errorMessage"] or "127" in reply.value["errorMessage"]
