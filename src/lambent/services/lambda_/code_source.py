"""Where a function's code comes from (the request, or S3) and how it is fetched back.

Code from S3 is read through the endpoint that `--upstream` names, by botocore's client in a thread; botocore
is imported at the first such request, because that costs as much as half of the server's start.

Links of GetFunction are URLs of this very server, valid 10 minutes, for one account's one zip, signed with a
key that the database keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import importlib
import re
import threading
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

from lambent.model import limits
from lambent.model.errors import ApiError, InvalidParameterValue
from lambent.services.base import CallContext
from lambent.services.lambda_.control import LambdaSettings
from lambent.store.code import CodeRef, CodeStore
from lambent.wire.http import Request, Response

LINK_PREFIX = "/_lambent/code/"
LINK_VALID_S = 600

_LINK_PATH = re.compile(re.escape(LINK_PREFIX) + r"(?P<account>\d{12})/(?P<sha256>[0-9a-f]{64})\.zip")
_S3_CONNECT_TIMEOUT_S = 5
_S3_READ_TIMEOUT_S = 60


class CodeSource:
    """Takes code in and gives links to it out."""

    def __init__(self, code: CodeStore, settings: LambdaSettings) -> None:
        self._code = code
        self._settings = settings
        self._link_key = b""
        self._client_lock = threading.Lock()
        self._clients: dict[str, Any] = {}

    def use_link_key(self, key: bytes) -> None:
        """The key of this installation that links are signed with."""
        self._link_key = key

    # --- in ----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def taken(self, context: CallContext, code: dict[str, Any]) -> AsyncIterator[CodeRef]:
        """Check and store the code that a request brings or names; it stays for the length of the block.

        `code` is CreateFunction's FunctionCode, or an UpdateFunctionCode request, which has the same members.
        """
        data, most = code.get("ZipFile"), limits.ZIP_MAX_BYTES
        in_s3 = [name for name in ("S3Bucket", "S3Key", "S3ObjectVersion") if name in code]
        if data is not None and in_s3:
            raise InvalidParameterValue("Please do not provide other FunctionCode parameters when providing a ZipFile.")
        if data is None:
            if "S3Bucket" not in code or "S3Key" not in code:
                raise InvalidParameterValue("Please provide a source for function code.")
            # What is in S3 has no limit of its own but that of the unzipped code.
            data, most = await self._from_s3(context.region, code), limits.UNZIPPED_MAX_BYTES
        async with self._code.pinned_zip(data, zipped_max_bytes=most) as ref:
            yield ref

    async def _from_s3(self, region: str, code: dict[str, Any]) -> bytes:
        if self._settings.upstream is None:
            raise InvalidParameterValue(
                f"Lambent cannot read s3://{code['S3Bucket']}/{code['S3Key']}: it has no S3. Start it with "
                "--upstream URL, the endpoint where S3 is, or send the code as ZipFile."
            )
        return await asyncio.to_thread(self._get_object, region, code)

    def _get_object(self, region: str, code: dict[str, Any]) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        wanted = {"Bucket": code["S3Bucket"], "Key": code["S3Key"]}
        if "S3ObjectVersion" in code:
            wanted["VersionId"] = code["S3ObjectVersion"]
        try:
            found = self._s3_client(region).get_object(**wanted)
            with contextlib.closing(found["Body"]) as body:
                if found["ContentLength"] > limits.UNZIPPED_MAX_BYTES:
                    raise InvalidParameterValue(f"Unzipped size must be smaller than {limits.UNZIPPED_MAX_BYTES} bytes")
                return bytes(body.read())
        except ClientError as error:
            answer = error.response.get("Error", {})
            raise InvalidParameterValue(
                f"Error occurred while GetObject. S3 Error Code: {answer.get('Code', 'Unknown')}. "
                f"S3 Error Message: {answer.get('Message', '')}"
            ) from error
        except BotoCoreError as error:
            raise InvalidParameterValue(
                f"Error occurred while GetObject. The upstream {self._settings.upstream} did not answer: {error}"
            ) from error

    def _s3_client(self, region: str) -> Any:
        # Any: botocore has no types.
        session: Any = importlib.import_module("botocore.session")
        config: Any = importlib.import_module("botocore.config")

        credentials = self._settings.upstream_credentials
        with self._client_lock:  # clients may be shared between threads, making one may not
            client = self._clients.get(region)
            if client is None:
                client = self._clients[region] = session.get_session().create_client(
                    "s3",
                    region_name=region,
                    endpoint_url=self._settings.upstream,
                    aws_access_key_id=credentials.access_key_id,
                    aws_secret_access_key=credentials.secret_access_key,
                    aws_session_token=credentials.session_token,
                    config=config.Config(
                        s3={"addressing_style": "path"},
                        signature_version="s3v4",
                        connect_timeout=_S3_CONNECT_TIMEOUT_S,
                        read_timeout=_S3_READ_TIMEOUT_S,
                        retries={"total_max_attempts": 2},
                    ),
                )
        return client

    # --- out ---------------------------------------------------------------------------------------------

    def link(self, context: CallContext, sha256: str) -> str:
        """A URL from which the zip can be downloaded for the next 10 minutes."""
        path = f"{LINK_PREFIX}{context.account}/{sha256}.zip"
        expires = str(self._now_s() + LINK_VALID_S)
        query = urllib.parse.urlencode({"Expires": expires, "Signature": self._signature(path, expires)})
        return f"http://{context.request.headers.get('host', 'localhost')}{path}?{query}"

    async def download(self, request: Request) -> Response:
        """Answer a request to such a URL."""
        match = _LINK_PATH.fullmatch(request.path)
        if match is None:
            return _text(404, "There is nothing here.")
        if request.method != "GET":
            return _text(405, "Code can only be downloaded.")
        query = dict(urllib.parse.parse_qsl(request.query))
        expires = query.get("Expires", "")
        signature = self._signature(request.path, expires)
        if not hmac.compare_digest(signature.encode(), query.get("Signature", "").encode()):
            return _text(403, "This link is not one that Lambent has made.")
        if int(expires) < self._now_s():
            return _text(403, "This link has expired. Call GetFunction for a new one.")
        try:
            data = await self._code.read_zip(match["sha256"])
        except ApiError as error:
            return _text(error.status, error.message)
        return Response(200, data, [("Content-Type", "application/zip")])

    def _signature(self, path: str, expires: str) -> str:
        assert self._link_key, "load() first"
        return hmac.new(self._link_key, f"{path}?{expires}".encode(), hashlib.sha256).hexdigest()

    def _now_s(self) -> int:
        return self._settings.now_ns() // limits.NS_PER_S


def _text(status: int, text: str) -> Response:
    return Response(status, f"{text}\n".encode(), [("Content-Type", "text/plain; charset=utf-8")])
