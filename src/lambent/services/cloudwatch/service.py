"""CloudWatch's metrics API (`monitoring`), in the three protocols that its clients speak.

    JSON 1.0    X-Amz-Target: GraniteServiceVersion20100801.ListMetrics     boto3 and the AWS CLI of today
    CBOR        /service/GraniteServiceVersion20100801/operation/ListMetrics  the other newer SDKs
    query       Action=ListMetrics in a form, XML back                        everything older

Metrics only: alarms, dashboards, streams, insights and anomaly detection are answered as not implemented.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from typing import Any, Final

from lambent.model.errors import ApiError
from lambent.services.base import CallContext, Handler, ModelService
from lambent.services.cloudwatch import constraints, publishing, reading
from lambent.services.cloudwatch.errors import InvalidParameterValue, InvalidRequest, RequestTooLarge, Throttling
from lambent.telemetry.metric_files import DAY_S, HOUR_S, MetricName, MetricSelection
from lambent.telemetry.metric_store import MetricStore, StoreFull
from lambent.wire.http import Request, Response
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.query import QueryCodec, with_request_id
from lambent.wire.rpc_v2_cbor import RpcV2CborCodec
from lambent.wire.service_model import load

Params = dict[str, Any]

#: PutMetricData takes 1 MB; the others have no use for more.
_BODY_MAX_BYTES: Final = 1_048_576
_PAGE_MAX: Final = 500
_LISTED_S: Final = 14 * DAY_S
_RECENTLY_S: Final = 3 * HOUR_S


def make_cloudwatch_service(store: MetricStore) -> CloudWatchService:
    """The service, ready to be asked."""
    return CloudWatchService(store)


class _Operations(ModelService):
    """One protocol's way to the handlers. Constraints are checked in CloudWatch's own words."""

    def _check(self, operation: str, params: dict[str, Any]) -> None:
        shape = self.codec.model.operation(operation).input
        if shape is not None:
            constraints.check(operation, params, shape)


class CloudWatchService:
    """Answers each request in the protocol in which it came."""

    def __init__(self, store: MetricStore) -> None:
        api = _CloudWatchApi(store)
        handlers: dict[str, Handler] = {
            "GetMetricData": api.get_metric_data,
            "GetMetricStatistics": api.get_metric_statistics,
            "ListMetrics": api.list_metrics,
            "PutMetricData": api.put_metric_data,
        }
        model = load("cloudwatch")
        self._json = _Operations(JsonRpcCodec(model), handlers, invalid=InvalidRequest)
        self._cbor = _Operations(RpcV2CborCodec(model), handlers, invalid=InvalidRequest)
        self._query = _Operations(QueryCodec(model), handlers, invalid=InvalidRequest)

    async def handle(self, request: Request) -> Response:
        service = self._of(request)
        try:
            request = _unpacked(request)
        except ApiError as error:
            return with_request_id(service.codec.error(error), request.request_id)
        response = await service.handle(request)
        return with_request_id(response, request.request_id) if service is self._query else response

    def _of(self, request: Request) -> _Operations:
        if request.headers.get("smithy-protocol") == "rpc-v2-cbor":
            return self._cbor
        return self._json if "x-amz-target" in request.headers else self._query


def _unpacked(request: Request) -> Request:
    """The request with its body as it was before the client compressed it (SDKs do from 10 KB on)."""
    body = request.body
    if request.headers.get("content-encoding", "").strip().lower() == "gzip":
        try:
            body = zlib.decompressobj(wbits=31).decompress(body, _BODY_MAX_BYTES + 1)
        except zlib.error:
            raise InvalidRequest("The request body is not in the encoding that Content-Encoding names.") from None
    if len(body) > _BODY_MAX_BYTES:
        raise RequestTooLarge(f"Request must be smaller than {_BODY_MAX_BYTES} bytes.")
    return request if body is request.body else dataclasses.replace(request, body=body)


class _CloudWatchApi:
    """The handlers, one for each operation."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store

    async def get_metric_data(self, context: CallContext, params: Params) -> Params:
        return await reading.metric_data(self._store, context.account, context.region, params)

    async def get_metric_statistics(self, context: CallContext, params: Params) -> Params:
        return await reading.metric_statistics(self._store, context.account, context.region, params)

    async def put_metric_data(self, context: CallContext, params: Params) -> Params:
        published = publishing.publications(context.account, context.region, params, self._store.clock_s())
        if self._store.crowded:
            await self._store.flush()
        for publication in published:
            try:
                self._store.add(publication.series, publication.moment_s, publication.point, publication.resolution_s)
            except StoreFull:
                raise Throttling("Metrics arrive faster than they can be written; try again.") from None
        return {}

    async def list_metrics(self, context: CallContext, params: Params) -> Params:
        if params.get("OwningAccount", context.account) != context.account:
            raise InvalidParameterValue("The parameter OwningAccount must be the account that asks.")
        filters = tuple((wanted["Name"], wanted.get("Value")) for wanted in params.get("Dimensions", []))
        age_s = _RECENTLY_S if "RecentlyActive" in params else _LISTED_S
        selection = MetricSelection(
            context.account,
            context.region,
            params.get("Namespace"),
            params.get("MetricName"),
            filters,
            int(self._store.clock_s()) - age_s,
            _read_token(params.get("NextToken")),
        )
        found = await self._store.metrics(selection, _PAGE_MAX + 1)
        page = found[:_PAGE_MAX]
        owners = [context.account] * len(page) if params.get("IncludeLinkedAccounts") else None
        return {
            "Metrics": [_metric_document(metric) for metric in page],
            "NextToken": _token(page[-1]) if len(found) > len(page) else None,
            "OwningAccounts": owners,
        }


def _metric_document(metric: MetricName) -> Params:
    dimensions = [{"Name": name, "Value": value} for name, value in metric.dimensions]
    return {"Namespace": metric.namespace, "MetricName": metric.name, "Dimensions": dimensions}


def _token(last: MetricName) -> str:
    return base64.urlsafe_b64encode(json.dumps(last).encode()).decode()


def _read_token(token: str | None) -> MetricName | None:
    if token is None:
        return None
    try:
        namespace, name, dimensions = json.loads(base64.urlsafe_b64decode(token))
        pairs = tuple((str(key), str(value)) for key, value in dimensions)
    except (ValueError, TypeError):
        raise InvalidParameterValue("Request parameter NextToken is invalid.") from None
    return MetricName(str(namespace), str(name), pairs)
