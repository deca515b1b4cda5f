"""What the Lambda service tells the data plane: versions to run, aliases, reserved concurrency.

Numbers functions, versions and accounts for the scheduler, and keeps the routing table. Every method but `prepare`
takes effect at once and can not fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from lambent.core.events import AccountSet, FunctionRemoved, FunctionSet, VersionRetired, VersionSet
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import AliasEntry, FunctionEntry, RoutingTable, UrlEntry, VersionEntry
from lambent.model.errors import ServiceUnavailable
from lambent.model.function import VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.limits import CLASSIC_BURST_BY_REGION, CLASSIC_BURST_SMALL, INIT_TIMEOUT_S, NS_PER_S
from lambent.model.names import FunctionKey
from lambent.worker.launcher import SandboxUnavailable


class Deployments:
    """Implements services.lambda_.ports.Deployments."""

    def __init__(self, plane: DataPlane, routing: RoutingTable, account_concurrency: int) -> None:
        self._plane = plane
        self._routing = routing
        self._account_concurrency = account_concurrency
        self._accounts: dict[tuple[str, str], int] = {}
        self._numbers = itertools.count(1)

    async def prepare(self, spec: VersionSpec) -> None:
        """Unpack the code and have a runtime ready. Raises an ApiError that says why it can not run here."""
        try:
            await self._plane.worker.prepare(spec)
        except SandboxUnavailable as error:
            raise ServiceUnavailable(str(error)) from error

    def activate(self, spec: VersionSpec) -> None:
        """New requests for this version label run this; what ran under the label before drains."""
        function = self._function(spec.key)
        entry = VersionEntry(next(self._numbers), function, spec)
        previous = function.versions.get(spec.version)
        self._plane.keep_spec(entry.id, spec)
        self._plane.tell(
            VersionSet(entry.id, function.id, spec.memory_mib, spec.timeout_s * NS_PER_S, INIT_TIMEOUT_S * NS_PER_S)
        )
        function.versions[spec.version] = entry
        if previous is not None:
            self._retire(previous)

    def _retire(self, entry: VersionEntry) -> None:
        self._plane.tell(VersionRetired(entry.id))
        self._plane.drop_spec(entry.id)

    def _function(self, key: FunctionKey) -> FunctionEntry:
        entry = self._routing.functions.get(key)
        if entry is None:
            entry = FunctionEntry(next(self._numbers), key)
            self._routing.functions[key] = entry
            self._plane.tell(FunctionSet(entry.id, self._account(key), None))
        return entry

    def _account(self, key: FunctionKey) -> int:
        scope = (key.account, key.region)
        number = self._accounts.get(scope)
        if number is None:
            number = self._accounts[scope] = next(self._numbers)
            burst = CLASSIC_BURST_BY_REGION.get(key.region, CLASSIC_BURST_SMALL)
            self._plane.tell(AccountSet(number, self._account_concurrency, burst))
        return number

    def retire_version(self, key: FunctionKey, version: str) -> None:
        entry = self._routing.functions.get(key)
        retired = entry.versions.pop(version, None) if entry is not None else None
        if retired is not None:
            self._retire(retired)

    def set_pending(self, key: FunctionKey, state: str | None) -> None:
        self._function(key).pending = state

    def remove_function(self, key: FunctionKey) -> None:
        entry = self._routing.functions.pop(key, None)
        if entry is not None:
            self._plane.tell(FunctionRemoved(entry.id))
            for version in entry.versions.values():
                self._plane.drop_spec(version.id)
        for url_id in [each for each, url in self._routing.urls.items() if url.spec.key == key]:
            self.remove_url(url_id)

    def set_alias(self, key: FunctionKey, alias: str, version: str, additional: dict[str, float]) -> None:
        self._function(key).aliases[alias] = AliasEntry(version, tuple(additional.items()))

    def remove_alias(self, key: FunctionKey, alias: str) -> None:
        entry = self._routing.functions.get(key)
        if entry is not None:
            entry.aliases.pop(alias, None)

    def set_url(self, spec: UrlSpec, permits: Callable[[str], bool]) -> None:
        self._routing.urls[spec.id] = UrlEntry(spec, permits)

    def remove_url(self, url_id: str) -> None:
        self._routing.urls.pop(url_id, None)

    def set_reserved(self, key: FunctionKey, reserved: int | None) -> None:
        entry = self._function(key)
        entry.reserved = reserved
        self._plane.tell(FunctionSet(entry.id, self._account(key), reserved))
