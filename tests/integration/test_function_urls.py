"""Function URLs of a real server: made with boto3, called with http.client as any web client would."""

from __future__ import annotations

import hashlib
import http.client
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from integration.harness import PATIENCE_S, Function, Server, serving

Deploy = Callable[..., Function]
ROOT = Path(__file__).resolve().parent.parent.parent
ECHO = """
import json

def handler(event, context):
    if event["rawPath"] == "/raise":
        raise ValueError("no")
    if event["rawPath"] == "/malformed":
        return {"statusCode": "many"}
    if event["rawPath"] == "/text":
        return "plain"
    return {
        "statusCode": 201,
        "headers": {"X-Request": context.aws_request_id, "Content-Type": "application/json"},
        "cookies": ["a=1", "b=2"],
        "body": json.dumps({"event": event, "version": context.function_version}),
    }
"""


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def fetch(
    server: Server, url: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Not every resolver knows names below .localhost, so the address is the server's and the name is the Host."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    connection.request(method, target, body, {"Host": parts.netloc, **(headers or {})})
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    return found


def open_to_all(function: Function, **qualifier: str) -> None:
    """The two statements that the console and SAM write."""
    common = {"FunctionName": function.name, "Principal": "*", **qualifier}
    client = function.server.lambda_
    client.add_permission(**common, StatementId="url", Action="lambda:InvokeFunctionUrl", FunctionUrlAuthType="NONE")
    client.add_permission(**common, StatementId="invoke", Action="lambda:InvokeFunction", InvokedViaFunctionUrl=True)


def public_url(function: Function, **arguments: Any) -> str:
    made = function.server.lambda_.create_function_url_config(
        FunctionName=function.name, **{"AuthType": "NONE", **arguments}
    )
    open_to_all(function, **({"Qualifier": arguments["Qualifier"]} if "Qualifier" in arguments else {}))
    url: str = made["FunctionUrl"]
    return url


def test_the_life_of_a_url(server: Server, deploy: Deploy) -> None:
    function = deploy(ECHO, "url")
    url = server.lambda_.create_function_url_config(FunctionName=function.name, AuthType="NONE")["FunctionUrl"]
    host = urlsplit(url).hostname
    assert url == f"http://{host}:{server.port}/"
    denied = fetch(server, url)
    assert (denied.status, denied.headers["x-amzn-ErrorType"]) == (403, "AccessDeniedException")
    assert denied.json["Message"].startswith("Forbidden. For troubleshooting Function URL authorization issues")

    open_to_all(function)
    answer = fetch(server, url + "a/b?x=1&x=2", "POST", b"k=v", {"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 201
    assert answer.headers["X-Request"] == answer.headers["x-amzn-RequestId"]
    assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
    event = answer.json["event"]
    assert (event["version"], event["rawPath"], event["rawQueryString"]) == ("2.0", "/a/b", "x=1&x=2")
    assert (event["body"], event["isBase64Encoded"]) == ("k=v", False)
    assert event["requestContext"]["domainName"] == host
    assert event["requestContext"]["requestId"] == answer.headers["X-Request"]
    assert answer.json["version"] == "$LATEST"

    assert fetch(server, url + "text").body == b"plain"
    for broken in ("raise", "malformed"):
        found = fetch(server, url + broken)
        assert (found.status, found.body) == (502, b"Internal Server Error")

    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=0)
    throttled = fetch(server, url)
    assert throttled.status == 429
    assert throttled.json["Reason"] == "ReservedFunctionConcurrentInvocationLimitExceeded"

    server.lambda_.delete_function_url_config(FunctionName=function.name)
    gone = fetch(server, url)
    assert (gone.status, gone.body) == (403, b'{"Message":null}')


def test_the_url_of_an_alias(server: Server, deploy: Deploy) -> None:
    function = deploy(ECHO, "url")
    server.lambda_.publish_version(FunctionName=function.name)
    server.lambda_.create_alias(FunctionName=function.name, Name="live", FunctionVersion="1")
    url = public_url(function, Qualifier="live", Cors={"AllowOrigins": ["https://a.example"], "AllowMethods": ["*"]})
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "DELETE"}
    preflight = fetch(server, url, "OPTIONS", headers=asks)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Methods"]) == (200, "*")
    answer = fetch(server, url, headers={"Origin": "https://a.example"})
    assert answer.json["version"] == "1"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
    server.lambda_.delete_alias(FunctionName=function.name, Name="live")
    assert fetch(server, url).status == 403
    server.lambda_.delete_function(FunctionName=function.name)
    assert fetch(server, url).body == b'{"Message":null}'


def test_aws_iam(server: Server, deploy: Deploy) -> None:
    function = deploy(ECHO, "url")
    made = server.lambda_.create_function_url_config(FunctionName=function.name, AuthType="AWS_IAM")
    url = made["FunctionUrl"]
    assert fetch(server, url).status == 403
    request: Any = AWSRequest("POST", f"{url}p?a=1", data=b"body", headers={"Content-Type": "text/plain"})
    botocore.auth.SigV4Auth(Credentials("000000000000", "any"), "lambda", "us-east-1").add_auth(request)
    answer = fetch(server, f"{url}p?a=1", "POST", b"body", dict(request.headers.items()))
    assert answer.status == 201
    assert answer.json["event"]["requestContext"]["authorizer"]["iam"]["accountId"] == "000000000000"


def _installed(*names: str) -> dict[str, bytes | str]:
    """The files of these distributions and of all that they require, from where this test runs."""
    files: dict[str, bytes | str] = {}
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for requirement in distribution.requires or ():
            spec, _, marker = requirement.partition(";")
            if "extra" not in marker and "python_version <" not in marker:
                waiting.append("".join(spec.partition("[")[0]).split(" ")[0].split("<")[0].split(">")[0].split("=")[0])
        for file in distribution.files or ():
            wanted = file.suffix in (".py", ".so", ".typed") or file.name in ("METADATA", "entry_points.txt")
            if wanted and not file.as_posix().startswith(".."):
                files[file.as_posix()] = Path(str(file.locate())).read_bytes()
    return files


def test_a_fastapi_application(server: Server, deploy: Deploy) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("mangum")
    source = {"app.py": (ROOT / "examples" / "fastapi_app" / "app.py").read_bytes(), **_installed("fastapi", "mangum")}
    function = deploy(source, "fastapi", Handler="app.handler", MemorySize=512, Timeout=30)
    url = public_url(function)
    index = fetch(server, url)
    assert (index.status, index.json) == (200, {"message": "hello", "client": "127.0.0.1"})
    body = json.dumps({"text": "milk"}).encode()
    added = fetch(server, f"{url}notes", "POST", body, {"Content-Type": "application/json"})
    assert (added.status, added.headers["Location"], added.json) == (201, "/notes/1", {"id": 1, "text": "milk"})
    assert added.headers["Set-Cookie"].startswith("last=1")
    assert fetch(server, f"{url}notes/1?upper=true").json["text"] == "MILK"
    assert fetch(server, f"{url}notes/7").status == 404
    assert fetch(server, f"{url}notes", "POST", b"{}", {"Content-Type": "application/json"}).status == 422
    assert fetch(server, f"{url}sha256", "POST", b"\xff\x00").body == hashlib.sha256(b"\xff\x00").digest()
    assert "swagger" in fetch(server, f"{url}docs").body.decode()
    head = fetch(server, url, "HEAD")
    assert (head.status, head.body) == (405, b"")


def test_urls_survive_a_restart_and_lie_where_they_are_told_to(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        function = server.deploy(ECHO, "kept")
        before = urlsplit(public_url(function)).hostname
    with serving(data, "--url-domain", "https://fn.example") as server:
        found = server.lambda_.get_function_url_config(FunctionName=function.name)
        after = urlsplit(found["FunctionUrl"])
        assert found["FunctionUrl"] == f"https://{str(before).partition('.')[0]}.lambda-url.us-east-1.fn.example/"
        assert fetch(server, after.geturl(), headers={"X-Forwarded-Proto": "https"}).status == 201


def test_a_domain_that_is_none_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lambent", "up", "--port", "0", "--data", str(tmp_path), "--url-domain", "a b"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 2
    assert "--url-domain a b: not a domain" in ended.stderr
