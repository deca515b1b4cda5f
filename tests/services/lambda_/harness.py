"""A server of the Lambda API for tests: the real service, codec, store and SDK, and a data plane that takes notes.

The event loop runs in a thread of its own; the tests talk to it with boto3 over a socket.
"""

from __future__ import annotations

import asyncio
import io
import threading
import urllib.parse
import uuid
import zipfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from lambent.core.events import ProvisionedStatus
from lambent.model.function import VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.names import FunctionKey
from lambent.services.lambda_.code_source import LINK_PREFIX
from lambent.services.lambda_.control import LambdaSettings
from lambent.services.lambda_.service import LambdaService, make_lambda_service
from lambent.store.code import CodeStore
from lambent.store.database import Database
from lambent.wire.http import Request, Response
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load

T = TypeVar("T")
ACCOUNT, REGION = "123456789012", "eu-west-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/r"
ARN = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function"


def make_zip(text: str) -> bytes:
    """A zip with a handler; another text makes another zip."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("main.py"), f"def handler(event, context): return {text!r}\n")
    return buffer.getvalue()


ZIP = make_zip("one")
OTHER_ZIP = make_zip("two")


def request(name: str = "f", **changes: Any) -> dict[str, Any]:
    """A complete CreateFunction request; a change to None leaves the member out."""
    members = {
        "FunctionName": name,
        "Runtime": "python3.12",
        "Handler": "main.handler",
        "Role": ROLE,
        "Code": {"ZipFile": ZIP},
        **changes,
    }
    return {member: value for member, value in members.items() if value is not None}


def refusal(call: Callable[..., Any], **params: Any) -> tuple[str, str]:
    """The error code and message that a call is answered with."""
    with pytest.raises(ClientError) as caught:
        call(**params)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


class RecordingDeployments:
    """A data plane that writes down what it is told, and prepares when the test lets it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.active: dict[tuple[str, str], VersionSpec] = {}
        self.pending: dict[str, str | None] = {}
        self.aliases: dict[tuple[str, str], tuple[str, dict[str, float]]] = {}
        self.reserved: dict[str, int | None] = {}
        self.provisioned: dict[tuple[str, str], int] = {}
        #: What `provisioned_status` says of each of them.
        self.status: ProvisionedStatus | None = None
        self.urls: dict[str, tuple[UrlSpec, Callable[[str], bool]]] = {}
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def prepare(self, spec: VersionSpec) -> None:
        self.calls.append(("prepare", spec.key.name, spec.version))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    def activate(self, spec: VersionSpec) -> None:
        self.calls.append(("activate", spec.key.name, spec.version))
        self.active[spec.key.name, spec.version] = spec

    def hold(self, spec: VersionSpec, state: str | None) -> None:
        self.calls.append(("hold", spec.key.name, spec.version, state))

    def retire_version(self, key: FunctionKey, version: str) -> None:
        self.calls.append(("retire_version", key.name, version))
        del self.active[key.name, version]

    def set_pending(self, key: FunctionKey, state: str | None) -> None:
        self.calls.append(("set_pending", key.name, state))
        self.pending[key.name] = state

    def remove_function(self, key: FunctionKey) -> None:
        self.calls.append(("remove_function", key.name))
        self.active = {each: spec for each, spec in self.active.items() if each[0] != key.name}

    def set_alias(self, key: FunctionKey, alias: str, version: str, additional: dict[str, float]) -> None:
        self.calls.append(("set_alias", key.name, alias))
        self.aliases[key.name, alias] = (version, additional)

    def remove_alias(self, key: FunctionKey, alias: str) -> None:
        self.calls.append(("remove_alias", key.name, alias))
        del self.aliases[key.name, alias]

    def set_url(self, spec: UrlSpec, permits: Callable[[str], bool]) -> None:
        self.calls.append(("set_url", spec.key.name, spec.qualifier))
        self.urls[spec.id] = (spec, permits)

    def remove_url(self, url_id: str) -> None:
        self.calls.append(("remove_url", url_id))
        del self.urls[url_id]

    def set_reserved(self, key: FunctionKey, reserved: int | None) -> None:
        self.calls.append(("set_reserved", key.name, reserved))
        self.reserved[key.name] = reserved

    def set_provisioned(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        self.calls.append(("set_provisioned", key.name, qualifier, requested))
        self.provisioned[key.name, qualifier] = requested

    def remove_provisioned(self, key: FunctionKey, qualifier: str) -> None:
        self.calls.append(("remove_provisioned", key.name, qualifier))
        self.provisioned.pop((key.name, qualifier), None)

    def provisioned_status(self, key: FunctionKey, qualifier: str) -> ProvisionedStatus | None:
        return self.status


class Harness:
    """Start, stop and restart a server over one data directory."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.data = data
        self.settings = LambdaSettings(**settings)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self.deployments: RecordingDeployments
        self.service: LambdaService
        self.store: CodeStore
        self._database: Database
        self.port = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def call(self, work: Callable[[], T]) -> T:
        async def on_the_loop() -> T:
            return work()

        return self.run(on_the_loop())

    def start(self, *, hold: bool = False) -> Harness:
        self.run(self._start(hold))
        return self

    async def _start(self, hold: bool) -> None:
        self.deployments = RecordingDeployments()
        if hold:
            self.deployments.gate.clear()
        self._database = await Database.open(self.data / "state.db")
        self.store = CodeStore(self.data / "code")
        codec = RestJsonCodec(load("lambda"))
        self.service = make_lambda_service(codec, self._database, self.store, self.deployments, self.settings)
        await self.service.load()
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port, limit=1 << 27)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Leave what is being prepared unfinished, as a killed process does."""
        self.run(self._stop())

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self.service.close()
        await self.store.close()
        await self._database.close()

    def restart(self, *, hold: bool = False) -> None:
        self.stop()
        self.start(hold=hold)

    def hold(self) -> None:
        """Keep what is prepared from now on in preparation."""
        self.call(self.deployments.gate.clear)

    def release(self) -> None:
        """Let preparations end, and wait until they have been noted."""

        async def settle() -> None:
            self.deployments.gate.set()
            while self.service._lifecycle._tasks:
                await asyncio.gather(*self.service._lifecycle._tasks, return_exceptions=True)

        self.run(settle())

    def client(self, account: str = ACCOUNT, region: str = REGION) -> Any:
        return boto3.client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name=region,
            aws_access_key_id=account,
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=30),
        )

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            first, *lines = head.decode().split("\r\n")
            headers = {}
            for line in filter(None, lines):
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, target, _ = first.split(" ")
            response = await self.answer(method, target, headers, body)
            writer.write(f"HTTP/1.1 {response.status} X\r\n".encode())
            for name, value in [*response.headers, ("Content-Length", str(len(response.body)))]:
                writer.write(f"{name}: {value}\r\n".encode())
            writer.write(b"\r\n" + response.body)
            await writer.drain()
        writer.close()

    async def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Response:
        path, _, query = target.partition("?")
        credential = headers.get("authorization", "").partition("Credential=")[2].split("/")
        account, region = (credential[0], credential[2]) if len(credential) > 2 else (ACCOUNT, REGION)
        request = Request(method, path, query, headers, body, account, region, "lambda", str(uuid.uuid4()))
        if path.startswith(LINK_PREFIX):
            return await self.service.download_code(request)
        return await self.service.handle(request)

    def fetch(self, url: str, method: str = "GET") -> Response:
        """Follow a link of this server."""
        parts = urllib.parse.urlsplit(url)
        return self.run(self.answer(method, f"{parts.path}?{parts.query}", {}, b""))
