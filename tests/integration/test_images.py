"""Container images through a real server: pulled from a registry, unpacked, run.

The program in them is C, linked statically, so that an image needs nothing else: it speaks the Runtime API and tells
what it sees.
"""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store.image_builder import Image, Registry, file, folder, registry, tar_of, whiteout, write_layout

from .harness import ROLE, Function, Server, serving

PROGRAM = r"""
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 16];

static void call(const char *head, const char *body) {
    char api[64] = "", request[8192], *port;
    strncpy(api, getenv("AWS_LAMBDA_RUNTIME_API"), sizeof api - 1);
    port = strchr(api, ':');
    *port++ = 0;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, api, &to.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0), got = 0, n;
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) exit(3);
    n = snprintf(request, sizeof request,
                 "%s HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                 head, strlen(body), body);
    if (write(fd, request, n) != n) exit(4);
    while ((n = read(fd, buffer + got, sizeof buffer - 1 - got)) > 0) got += n;
    buffer[got] = 0;
    close(fd);
}

static const char *slurp(const char *path) {
    static char text[4][256];
    static int next;
    char *into = text[next++ % 4];
    int fd = open(path, O_RDONLY), n = fd < 0 ? -1 : read(fd, into, 255);
    if (fd >= 0) close(fd);
    if (n < 0) return "-";
    into[n] = 0;
    return into;
}

static int can_write(const char *path) {
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

int main(int argc, char **argv) {
    char arguments[512] = "", here[256], id[64], head[256], answer[4096];
    for (int i = 0; i < argc; i++) strcat(strcat(arguments, i ? " " : ""), argv[i]);
    for (;;) {
        call("GET /2018-06-01/runtime/invocation/next", "");
        strncpy(id, strcasestr(buffer, "lambda-runtime-aws-request-id: ") + 31, 36);
        id[36] = 0;
        char event[256] = "";
        strncpy(event, strstr(buffer, "\r\n\r\n") + 4, 255);
        printf("C got %s\n", event);
        fflush(stdout);
        snprintf(head, sizeof head, "POST /2018-06-01/runtime/invocation/%s/response", id);
        snprintf(answer, sizeof answer,
                 "{\"event\":%s,\"argv\":\"%s\",\"cwd\":\"%s\",\"color\":\"%s\",\"name\":\"%s\",\"motd\":\"%s\","
                 "\"gone\":\"%s\",\"closed\":\"%s\",\"uid0\":%d,\"root\":%d,\"tmp\":%d,\"null\":%d}",
                 event, arguments, getcwd(here, sizeof here), getenv("COLOR") ? getenv("COLOR") : "",
                 getenv("AWS_LAMBDA_FUNCTION_NAME"), slurp("/etc/motd"), slurp("/etc/gone"), slurp("/etc/closed"),
                 getuid() == 0, can_write("/etc/new"), can_write("/tmp/new"), can_write("/dev/null"));
        call(head, answer);
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    where: Path = tmp_path_factory.mktemp("c")
    (where / "main.c").write_text(PROGRAM)
    command = [compiler, "-static", "-D_GNU_SOURCE", "-O1", "-w", "-o", where / "main", where / "main.c"]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no static C library on this machine")
    return (where / "main").read_bytes()


@pytest.fixture(scope="module")
def image(program: bytes) -> Image:
    lower = tar_of(
        folder("app"),
        file("app/main", program, 0o755),
        file("etc/motd", "old"),
        file("etc/gone", "still here"),
        file("etc/closed", "secret", 0o600),
    )
    upper = tar_of(file("etc/motd", "new"), whiteout("etc/gone"), folder("work"))
    return Image(
        lower,
        upper,
        Entrypoint=["/app/main", "--fast"],
        Cmd=["handler"],
        WorkingDir="/work",
        Env=["COLOR=red", "PATH=/app"],
    )


@pytest.fixture(scope="module")
def remote() -> Iterator[Registry]:
    with registry() as made:
        yield made


@pytest.fixture
def deploy_image(server: Server) -> Iterator[Callable[..., Function]]:
    if server.page("health")["sandbox"] != "namespace":
        pytest.skip("container images need the namespace sandbox")
    made: list[Function] = []

    def make(uri: str, **configuration: Any) -> Function:
        made.append(create(server, uri, **configuration))
        return made[-1]

    yield make
    for function in made:
        server.lambda_.delete_function(FunctionName=function.name)


def create(server: Server, uri: str, **configuration: Any) -> Function:
    name = f"image-{uuid.uuid4().hex[:8]}"
    server.lambda_.create_function(
        FunctionName=name,
        PackageType="Image",
        Code={"ImageUri": uri},
        Role=ROLE,
        **{"Timeout": 10, **configuration},
    )
    function = Function(server, name)
    settled = function.wait_active()
    assert settled["State"] == "Active", settled
    return function


def test_pulled_and_run(server: Server, deploy_image: Callable[..., Function], remote: Registry, image: Image) -> None:
    function = deploy_image(remote.push("team/app:v1", image))
    reply = function.invoke({"n": 1})
    assert reply.error is None, reply.raw
    assert reply.value == {
        "event": {"n": 1},
        "argv": "/app/main --fast handler",
        "cwd": "/work",
        "color": "red",
        "name": function.name,
        "motd": "new",
        "gone": "-",
        # The function is neither the owner of the image's files nor of their group; without root it is.
        "closed": "secret" if server.page("health")["rootless"] else "-",
        "uid0": 0,
        "root": 0,
        "tmp": 1,
        "null": 1,
    }
    assert 'C got {"n": 1}' in reply.log
    assert "Init Duration" in reply.report
    assert function.call({"n": 2})["event"] == {"n": 2}


def test_image_config_and_environment(deploy_image: Callable[..., Function], remote: Registry, image: Image) -> None:
    function = deploy_image(
        remote.push("team/app:v1", image),
        ImageConfig={"Command": ["other", "thing"], "WorkingDirectory": "/etc"},
        Environment={"Variables": {"COLOR": "blue"}},
    )
    seen = function.call(None)
    assert (seen["argv"], seen["cwd"], seen["color"]) == ("/app/main --fast other thing", "/etc", "blue")
    function.configure(ImageConfig={})
    seen = function.call(None)
    assert (seen["argv"], seen["cwd"]) == ("/app/main --fast handler", "/work")


def test_update(
    server: Server, deploy_image: Callable[..., Function], remote: Registry, image: Image, program: bytes
) -> None:
    function = deploy_image(remote.push("team/app:latest", image), Publish=True)
    other = Image(tar_of(file("app/main", program, 0o755), file("etc/motd", "second")), Cmd=["/app/main"])
    uri = remote.push("team/app:latest", other)
    assert function.call(None)["motd"] == "new"
    server.lambda_.update_function_code(FunctionName=function.name, ImageUri=uri)
    assert function.wait_active()["LastUpdateStatus"] == "Successful"
    seen = function.call(None)
    assert (seen["motd"], seen["argv"], seen["cwd"]) == ("second", "/app/main", "/")
    assert function.call(None, Qualifier="1")["motd"] == "new"


def test_a_layout_on_this_machine(tmp_path: Path, image: Image) -> None:
    """Needs `--image-dir`; and what has been unpacked outlives its source and the server."""
    images = tmp_path / "images"
    layout = write_layout(images / "app", v1=image)
    with serving(tmp_path / "data", "--image-dir", str(images)) as server:
        if server.page("health")["sandbox"] != "namespace":
            pytest.skip("container images need the namespace sandbox")
        function = create(server, f"oci:{layout}:v1")
        assert function.call(1)["motd"] == "new"
    shutil.rmtree(images)
    with serving(tmp_path / "data") as server:
        assert Function(server, function.name).call(2)["event"] == 2
