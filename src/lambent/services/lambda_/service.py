"""The Lambda API's control plane put together: what the composition root makes, loads and routes requests to.

service = make_lambda_service(codec, database, code_store, deployments, settings)
await service.load()                       # before the listener opens
response = await service.handle(request)   # everything of the Lambda API but Invoke
response = await service.download_code(request)   # below /_lambent/code/
await service.close()
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from lambent.services.base import ModelService
from lambent.services.lambda_.account import Account
from lambent.services.lambda_.aliases import Aliases
from lambent.services.lambda_.capacity import CapacityProviders
from lambent.services.lambda_.code_source import CodeSource
from lambent.services.lambda_.concurrency import Concurrency
from lambent.services.lambda_.control import Control, LambdaSettings
from lambent.services.lambda_.functions import Functions
from lambent.services.lambda_.images import serving_images
from lambent.services.lambda_.layer_permissions import LayerPermissions
from lambent.services.lambda_.layers import Layers
from lambent.services.lambda_.lifecycle import Lifecycle
from lambent.services.lambda_.permissions import Permissions
from lambent.services.lambda_.ports import Deployments
from lambent.services.lambda_.provisioned import ProvisionedConcurrency
from lambent.services.lambda_.tags import Tags
from lambent.services.lambda_.urls import Urls
from lambent.services.lambda_.validation import check_runtime
from lambent.services.lambda_.versions import Versions
from lambent.store.code import CodeStore
from lambent.store.database import Database
from lambent.wire.codec import Codec
from lambent.wire.http import Request, Response

_LINK_KEY_SETTING = "code-link-key"
_LINK_KEY_BYTES = 32


class LambdaService(ModelService):
    """Answers the Lambda API from the store, and keeps the data plane told."""

    def __init__(self, codec: Codec, control: Control) -> None:
        self._control = control
        self._lifecycle = Lifecycle(control)
        self._source = CodeSource(control.code, control.settings)
        self._runtimes = codec.model.shape("Runtime").enum or ()
        self._requests: set[asyncio.Task[Response]] = set()
        self._urls = Urls(control)
        #: Also what Application Auto Scaling drives.
        self.provisioned = ProvisionedConcurrency(control)
        rooms = (
            Functions(control, self._lifecycle, self._source, self._runtimes),
            Versions(control, self._lifecycle),
            Aliases(control),
            Concurrency(control),
            self.provisioned,
            CapacityProviders(control),
            Account(control),
            Tags(control),
            Layers(control, self._source),
            LayerPermissions(control),
            Permissions(control),
            self._urls,
        )
        handlers = {name: each for room in rooms for name, each in room.handlers().items()}
        for name in ("AddPermission", "RemovePermission", "DeleteAlias"):
            handlers[name] = self._urls.retelling(handlers[name])
        super().__init__(codec, handlers)

    async def load(self) -> None:
        """Read the state, tell the data plane, take up what the last process left unfinished, drop old
        code."""
        key = await self._control.rows(lambda rows: rows.setting(_LINK_KEY_SETTING, os.urandom(_LINK_KEY_BYTES)))
        self._source.use_link_key(key)
        await self._lifecycle.load()
        await self._urls.load()
        await self.provisioned.load()
        # Only now: while the server runs, environments may still have the code of deleted versions mounted.
        code, layers, images = await self._control.rows(
            lambda rows: (rows.referenced_code(), rows.referenced_layers(), serving_images(rows))
        )
        await self._control.code.delete_unused(code | images, layers)

    async def close(self) -> None:
        """Let the requests in progress end, and stop preparing."""
        await asyncio.gather(*self._requests, return_exceptions=True)
        await self._lifecycle.close()

    async def handle(self, request: Request) -> Response:
        # A client that hangs up must not stop a change between its commit and the data plane's hearing of it.
        task = asyncio.create_task(super().handle(request))
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        return await asyncio.shield(task)

    async def download_code(self, request: Request) -> Response:
        """Answer a request below `/_lambent/code/`."""
        return await self._source.download(request)

    def _check(self, operation: str, params: dict[str, Any]) -> None:
        # For runtimes Lambda has words of its own, not those of its front end for the model's other enums.
        if operation in ("CreateFunction", "UpdateFunctionConfiguration") and "Runtime" in params:
            check_runtime(params["Runtime"], self._runtimes)
        super()._check(operation, params)


def make_lambda_service(
    codec: Codec,
    database: Database,
    code_store: CodeStore,
    deployments: Deployments,
    settings: LambdaSettings,
) -> LambdaService:
    """The control plane of the Lambda API over these parts. Call `load` before the first request."""
    return LambdaService(codec, Control(database, code_store, deployments, settings))
