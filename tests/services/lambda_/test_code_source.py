"""Code from S3 (a real moto server), and the links under which it is fetched back."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from .harness import ACCOUNT, OTHER_ZIP, ZIP, Harness, refusal, request

INVALID = "InvalidParameterValueException"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a moto server of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)
    log.close()


@pytest.fixture(scope="module")
def s3(upstream: str) -> Any:
    client = boto3.client(
        "s3",
        endpoint_url=upstream,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    client.create_bucket(Bucket="code")
    client.put_bucket_versioning(Bucket="code", VersioningConfiguration={"Status": "Enabled"})
    return client


def test_code_from_s3(tmp_path: Path, upstream: str, s3: Any) -> None:
    first = s3.put_object(Bucket="code", Key="dir/f.zip", Body=ZIP)["VersionId"]
    s3.put_object(Bucket="code", Key="dir/f.zip", Body=OTHER_ZIP)
    s3.put_object(Bucket="code", Key="text", Body=b"no zip")
    server = Harness(tmp_path, upstream=upstream).start()
    client = server.client()
    try:
        place = {"S3Bucket": "code", "S3Key": "dir/f.zip"}
        made = client.create_function(**request(Code={**place, "S3ObjectVersion": first}))
        assert made["CodeSize"] == len(ZIP)
        server.release()
        assert client.update_function_code(FunctionName="f", **place)["CodeSize"] == len(OTHER_ZIP)
        for wrong, message in (
            (
                {"S3Bucket": "code", "S3Key": "none"},
                "Error occurred while GetObject. S3 Error Code: NoSuchKey. "
                "S3 Error Message: The specified key does not exist.",
            ),
            (
                {"S3Bucket": "nowhere", "S3Key": "none"},
                "Error occurred while GetObject. S3 Error Code: NoSuchBucket. "
                "S3 Error Message: The specified bucket does not exist",
            ),
            (
                {"S3Bucket": "code", "S3Key": "text"},
                "Could not unzip uploaded file. Please check your file, then try to upload again.",
            ),
        ):
            assert refusal(client.create_function, **request("g", Code=wrong)) == (INVALID, message)
    finally:
        server.stop()


def test_an_upstream_that_is_not_there(tmp_path: Path) -> None:
    server = Harness(tmp_path, upstream="http://127.0.0.1:1").start()
    place = {"S3Bucket": "code", "S3Key": "x"}
    code, text = refusal(server.client().create_function, **request(Code=place))
    server.stop()
    assert code == INVALID
    assert text.startswith("Error occurred while GetObject. The upstream http://127.0.0.1:1 did not answer: ")


def test_no_upstream(client: Any) -> None:
    code, text = refusal(client.create_function, **request(Code={"S3Bucket": "code", "S3Key": "x"}))
    assert code == INVALID
    assert "s3://code/x" in text
    assert "--upstream" in text


class Clock:
    now_ns = 1_700_000_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[Harness]:
    harness = Harness(tmp_path, now_ns=clock).start()
    yield harness
    harness.stop()


def test_links(server: Harness, clock: Clock, client: Any, create: Callable[..., Any]) -> None:
    create()
    code = client.get_function(FunctionName="f")["Code"]
    assert code["RepositoryType"] == "S3"
    url = code["Location"]
    assert url.startswith(f"http://127.0.0.1:{server.port}/_lambent/code/{ACCOUNT}/")
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == ZIP
        assert answer.headers["Content-Type"] == "application/zip"
    server.restart()
    assert server.fetch(url).body == ZIP
    assert server.fetch(url, "DELETE").status == 405
    clock.now_ns += 600 * 10**9
    assert server.fetch(url).status == 200
    clock.now_ns += 10**9
    late = server.fetch(url)
    assert (late.status, b"expired" in late.body) == (403, True)


def test_links_that_we_never_made(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    url = client.get_function(FunctionName="f")["Code"]["Location"]
    expires = url.partition("Expires=")[2].partition("&")[0]
    for wrong in (
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.replace(expires, str(int(expires) + 1)),
        url.replace(ACCOUNT, "000000000000"),
        url.partition("?")[0],
        url.replace(expires, "x"),
        url.replace("Signature=", "Signature=%C3%A9"),
    ):
        assert server.fetch(wrong).status == 403
    for wrong in (url.replace(ACCOUNT, "1"), url.replace(".zip", ".zap"), url.replace("/code/", "/code/../")):
        assert server.fetch(wrong).status == 404
    client.delete_function(FunctionName="f")
    assert server.fetch(url).status == 200
    server.restart()
    assert server.fetch(url).status == 404


def test_last_modified_is_in_utc(create: Callable[..., Any]) -> None:
    assert create()["LastModified"] == "2023-11-14T22:13:20.000+0000"
