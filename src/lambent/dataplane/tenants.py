"""Tenants of functions with tenant isolation: which requests need one, and how many environments they may have.

The scheduler knows a tenant by a number. A number is given when a tenant of a version has its first request, forgotten
when it has neither requests nor environments left, and never given again: so what is remembered here is bounded by
what runs, and an environment can not come to serve another tenant by way of its number.
"""

from __future__ import annotations

import itertools

from lambent.dataplane.routing import VersionEntry
from lambent.model.errors import InvalidParameterValue
from lambent.model.function import VersionSpec
from lambent.model.limits import ACCOUNT_CONCURRENCY_DEFAULT

#: Environments with a tenant, busy or idle, that a function may have for each request that it may run at one time (the
#: Developer Guide: 2,500 for every 1,000 concurrent executions).
_ENVIRONMENTS_PER_1000 = 2_500


def require_tenant(spec: VersionSpec, tenant_id: str) -> None:
    """Raise InvalidParameterValue unless a tenant is named exactly where the function is isolated per tenant. Of the
    second text the Developer Guide has only the meaning."""
    if spec.tenancy and not tenant_id:
        raise InvalidParameterValue(
            "The invoked function is enabled with tenancy configuration. Add a valid tenant ID in your request and try "
            "again."
        )
    if tenant_id and not spec.tenancy:
        raise InvalidParameterValue(
            "The invoked function is not enabled with tenancy configuration. Remove the tenant ID from your request "
            "and try again."
        )


class Tenant:
    """One tenant of one version."""

    __slots__ = ("environments", "function", "key", "leaving", "number", "requests")

    def __init__(self, number: int, version: VersionEntry, tenant_id: str) -> None:
        self.number = number
        self.function = version.function.id
        self.key = version.id, tenant_id
        self.requests = 0
        #: Those that serve or will, and those that have been told to stop.
        self.environments = self.leaving = 0


class Tenants:
    """The tenants that have requests or environments now."""

    def __init__(self) -> None:
        self.account_concurrency = ACCOUNT_CONCURRENCY_DEFAULT
        self._next = itertools.count(1)
        self._tenants: dict[tuple[int, str], Tenant] = {}
        self._by_number: dict[int, Tenant] = {}
        self._environments: dict[int, Tenant] = {}
        self._leaving: set[int] = set()
        #: Environments of each function that has some, without those that have been told to stop.
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._tenants)

    def enter(self, version: VersionEntry, tenant_id: str) -> Tenant | None:
        """A request begins; None where it would need one environment more than its function may have."""
        tenant = self._tenants.get((version.id, tenant_id))
        if tenant is None or tenant.requests >= tenant.environments:
            reserved = version.function.reserved
            concurrency = self.account_concurrency if reserved is None else reserved
            if self._counts.get(version.function.id, 0) >= concurrency * _ENVIRONMENTS_PER_1000 // 1_000:
                return None
        if tenant is None:
            tenant = Tenant(next(self._next), version, tenant_id)
            self._tenants[tenant.key] = self._by_number[tenant.number] = tenant
        tenant.requests += 1
        return tenant

    def leave(self, tenant: Tenant) -> None:
        """The request has been answered or refused."""
        tenant.requests -= 1
        self._forget(tenant)

    def started(self, environment: int, number: int) -> None:
        """An environment is being made for a tenant, which has a request."""
        tenant = self._environments[environment] = self._by_number[number]
        tenant.environments += 1
        self._counts[tenant.function] = self._counts.get(tenant.function, 0) + 1

    def stopping(self, environment: int) -> None:
        """It takes no more requests. Nothing happens for environments without a tenant."""
        tenant = self._environments.get(environment)
        if tenant is not None and environment not in self._leaving:
            self._leaving.add(environment)
            tenant.leaving += 1
            self._lose(tenant)

    def died(self, environment: int) -> None:
        """It is gone. Nothing happens for environments without a tenant."""
        tenant = self._environments.pop(environment, None)
        if tenant is None:
            return
        if environment in self._leaving:
            self._leaving.discard(environment)
            tenant.leaving -= 1
        else:
            self._lose(tenant)
        self._forget(tenant)

    def _lose(self, tenant: Tenant) -> None:
        tenant.environments -= 1
        self._counts[tenant.function] -= 1
        if not self._counts[tenant.function]:
            del self._counts[tenant.function]

    def of(self, environment: int) -> str | None:
        """The tenant that an environment serves, as requests name it."""
        tenant = self._environments.get(environment)
        return tenant.key[1] if tenant is not None else None

    def _forget(self, tenant: Tenant) -> None:
        if not tenant.requests and not tenant.environments and not tenant.leaving:
            del self._tenants[tenant.key], self._by_number[tenant.number]
