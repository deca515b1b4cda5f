"""Functions that are container images: the rules of their requests, and what an ImageUri means.

What is pulled, and how, is `store.images`; here a name becomes a digest, once for CreateFunction and once for
each UpdateFunctionCode. The layers are pulled when the version is prepared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from lambent.model.errors import InvalidParameterValue
from lambent.services.lambda_.messages import NOT_FOR_IMAGES, NOT_FOR_ZIPS
from lambent.store.code import CodeStore
from lambent.store.functions import FunctionRows
from lambent.store.records import ImageRecord, VersionRecord

#: AWS's quota "container image settings", 16 KB.
IMAGE_CONFIG_MAX_BYTES = 16_384


class TakenCode(NamedTuple):
    """The code of a version. `sha256` is the hex digest of the zip or of the image's manifest; `size` counts
    against the account's code storage, where images do not."""

    sha256: str
    size: int
    image: ImageRecord | None = None


def check_new(params: dict[str, Any]) -> None:
    """CreateFunction's rules for the two kinds of packages."""
    if params.get("PackageType") == "Image":
        _check_image(params)
        if not params["Code"].get("ImageUri") or _has_zip(params["Code"]):
            raise InvalidParameterValue("Please provide ImageUri when creating a function with packageType Image.")
        return
    if not params.get("Runtime") or not params.get("Handler"):
        raise InvalidParameterValue(
            "Runtime and Handler are mandatory parameters for functions created with deployment packages."
        )
    _check_zip(params)


def check_new_code(before: VersionRecord, params: dict[str, Any]) -> None:
    """UpdateFunctionCode: a function stays what it is."""
    if before.image is None:
        if params.get("ImageUri"):
            raise InvalidParameterValue("Please don't provide ImageUri when updating a function with packageType Zip.")
    elif not params.get("ImageUri") or _has_zip(params):
        raise InvalidParameterValue("Please provide ImageUri when updating a function with packageType Image.")


def check_new_configuration(before: VersionRecord, params: dict[str, Any]) -> None:
    """UpdateFunctionConfiguration, the same."""
    if before.image is None:
        _check_zip(params)
    else:
        _check_image(params)


def _has_zip(code: dict[str, Any]) -> bool:
    return any(name in code for name in ("ZipFile", "S3Bucket", "S3Key", "S3ObjectVersion"))


def _check_zip(params: dict[str, Any]) -> None:
    if any(params.get("ImageConfig", {}).values()):
        raise InvalidParameterValue(NOT_FOR_ZIPS)


def _check_image(params: dict[str, Any]) -> None:
    if any(params.get(name) for name in ("Runtime", "Handler", "Layers")):
        raise InvalidParameterValue(NOT_FOR_IMAGES)
    sent = json.dumps(params.get("ImageConfig", {}), separators=(",", ":"), ensure_ascii=False)
    if len(sent.encode()) > IMAGE_CONFIG_MAX_BYTES:
        raise InvalidParameterValue(f"ImageConfig must be smaller than {IMAGE_CONFIG_MAX_BYTES} bytes")
    if "\\u0000" in sent:
        raise InvalidParameterValue("ImageConfig has a zero character, which no process can be given.")


@contextlib.asynccontextmanager
async def taken(code: CodeStore, uri: str, architecture: str) -> AsyncIterator[TakenCode]:
    """What `uri` is now; its record stays for the length of the block. Raises an ImageProblem."""
    async with code.images.pinned(uri, architecture) as image:
        settings = image.settings
        record = ImageRecord(
            uri=uri,
            resolved_uri=image.uri,
            entry_point=settings.entry_point,
            command=settings.command,
            working_directory=settings.working_directory,
            environment=settings.environment,
        )
        yield TakenCode(image.sha256, 0, record)


def serving_images(rows: FunctionRows) -> set[str]:
    """Digests of the images that answer while an update is being prepared, or because one has failed."""
    serving = (record.serving for record in rows.all_versions())
    return {spec.image.digest for spec in serving if spec is not None and spec.image is not None}
