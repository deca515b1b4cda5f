"""CloudWatch Logs' API (JSON 1.1, `Logs_20140328.*`) on telemetry's LogStore.

Reads flush first, so that a client sees what was logged before it asked. Not here: metric and subscription filters,
Insights queries, exports, live tail; they are answered as not implemented.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from lambent.services.base import CallContext, Handler, ModelService
from lambent.services.logs.errors import (
    InvalidParameter,
    OperationRefused,
    ResourceAlreadyExists,
    ResourceNotFound,
    TooManyTags,
)
from lambent.telemetry.filter_pattern import BadFilterPattern, Predicate, compile_pattern
from lambent.telemetry.log_catalog import (
    GroupExists,
    GroupInfo,
    GroupMissing,
    GroupSelection,
    StreamExists,
    StreamInfo,
    StreamMissing,
    StreamSelection,
)
from lambent.telemetry.log_store import BadToken, LogGroupKey, LogStore
from lambent.wire.json_rpc import JsonRpcCodec
from lambent.wire.service_model import load

Params = dict[str, Any]

_DAY_MS: Final = 24 * 60 * 60 * 1000
_FOREVER_MS: Final = 10**13
_BATCH_BYTES_MAX: Final = 1_048_576
_EVENT_OVERHEAD_BYTES: Final = 26
_TOO_OLD_MS: Final = 14 * _DAY_MS
_TOO_NEW_MS: Final = 2 * 60 * 60 * 1000
_TAGS_MAX: Final = 50
_RETENTION_DAYS: Final = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545),
    *(731, 1096, 1827, 2192, 2557, 2922, 3288, 3653),
)
#: Long out of use at AWS, but clients still pass it around.
_SEQUENCE_TOKEN: Final = "49039859604918209800000000000000000000000000000000000000"
_GROUP_ARN = re.compile(r"arn:aws[\w-]*:logs:([\w-]+):(\d{12}):log-group:([^:]+)(?::\*)?")
_GROUP_NAME = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}")


def make_logs_service(store: LogStore) -> ModelService:
    """The service, ready to be asked."""
    api = _LogsApi(store)
    handlers: dict[str, Handler] = {
        "CreateLogGroup": api.create_log_group,
        "DeleteLogGroup": api.delete_log_group,
        "DescribeLogGroups": api.describe_log_groups,
        "CreateLogStream": api.create_log_stream,
        "DeleteLogStream": api.delete_log_stream,
        "DescribeLogStreams": api.describe_log_streams,
        "PutLogEvents": api.put_log_events,
        "GetLogEvents": api.get_log_events,
        "FilterLogEvents": api.filter_log_events,
        "PutRetentionPolicy": api.put_retention_policy,
        "DeleteRetentionPolicy": api.delete_retention_policy,
        "PutLogGroupDeletionProtection": api.put_log_group_deletion_protection,
        "ListTagsForResource": api.list_tags_for_resource,
        "TagResource": api.tag_resource,
        "UntagResource": api.untag_resource,
        "ListTagsLogGroup": api.list_tags_log_group,
        "TagLogGroup": api.tag_log_group,
        "UntagLogGroup": api.untag_log_group,
    }
    return ModelService(JsonRpcCodec(load("logs")), handlers, invalid=InvalidParameter)


@contextmanager
def _aws_errors() -> Iterator[None]:
    """What the store refuses, in AWS's words."""
    try:
        yield
    except GroupMissing:
        raise ResourceNotFound("The specified log group does not exist.") from None
    except StreamMissing:
        raise ResourceNotFound("The specified log stream does not exist.") from None
    except GroupExists:
        raise ResourceAlreadyExists("The specified log group already exists") from None
    except StreamExists:
        raise ResourceAlreadyExists("The specified log stream already exists") from None
    except BadToken:
        raise InvalidParameter("The specified nextToken is invalid.") from None


class _LogsApi:
    """The handlers, one for each operation."""

    def __init__(self, store: LogStore) -> None:
        self._store = store

    # -- groups

    async def create_log_group(self, context: CallContext, params: Params) -> Params:
        name = params["logGroupName"]
        if name.lower().startswith("aws/"):
            raise InvalidParameter("Log groups starting with AWS/ are reserved for AWS.")
        with _aws_errors():
            await self._store.create_group(
                _key(context, name),
                params.get("tags"),
                log_class=params.get("logGroupClass", "STANDARD"),
                kms_key=params.get("kmsKeyId"),
                protected=params.get("deletionProtectionEnabled", False),
            )
        return {}

    async def delete_log_group(self, context: CallContext, params: Params) -> Params:
        key = _key(context, params["logGroupName"])
        with _aws_errors():
            if self._store.group(key).protected:
                raise OperationRefused(
                    f"Log group {key.group} has deletion protection enabled. Disable it to delete the log group."
                )
            await self._store.delete_group(key)
        return {}

    async def put_log_group_deletion_protection(self, context: CallContext, params: Params) -> Params:
        key = _identified(context, params["logGroupIdentifier"])
        with _aws_errors():
            await self._store.set_protection(key, params["deletionProtectionEnabled"])
        return {}

    async def describe_log_groups(self, context: CallContext, params: Params) -> Params:
        prefix, pattern = params.get("logGroupNamePrefix", ""), params.get("logGroupNamePattern", "")
        if prefix and pattern:
            raise InvalidParameter("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
        wanted = params.get("logGroupIdentifiers")
        names = None if wanted is None else frozenset(_identified(context, one).group for one in wanted)
        await self._store.flush()
        groups, token = self._store.describe_groups(
            context.account,
            context.region,
            GroupSelection(
                prefix,
                pattern,
                names,
                params.get("logGroupClass"),
                params.get("limit", 50),
                params.get("nextToken"),
            ),
        )
        return {"logGroups": [_group_document(group) for group in groups], "nextToken": token}

    async def put_retention_policy(self, context: CallContext, params: Params) -> Params:
        days = params["retentionInDays"]
        if days not in _RETENTION_DAYS:
            raise InvalidParameter(
                f"1 validation error detected: Value '{days}' at 'retentionInDays' failed to satisfy constraint: "
                f"Member must satisfy enum value set: [{', '.join(map(str, _RETENTION_DAYS))}]"
            )
        with _aws_errors():
            await self._store.set_retention(_key(context, params["logGroupName"]), days)
        return {}

    async def delete_retention_policy(self, context: CallContext, params: Params) -> Params:
        with _aws_errors():
            await self._store.set_retention(_key(context, params["logGroupName"]), None)
        return {}

    # -- streams

    async def create_log_stream(self, context: CallContext, params: Params) -> Params:
        with _aws_errors():
            await self._store.create_stream(_key(context, params["logGroupName"]), params["logStreamName"])
        return {}

    async def delete_log_stream(self, context: CallContext, params: Params) -> Params:
        with _aws_errors():
            await self._store.delete_stream(_key(context, params["logGroupName"]), params["logStreamName"])
        return {}

    async def describe_log_streams(self, context: CallContext, params: Params) -> Params:
        key = _named(context, params)
        by_last_event = params.get("orderBy") == "LastEventTime"
        if by_last_event and "logStreamNamePrefix" in params:
            raise InvalidParameter("Cannot order by LastEventTime with a logStreamNamePrefix.")
        selection = StreamSelection(
            params.get("logStreamNamePrefix", ""),
            by_last_event,
            params.get("descending", False),
            params.get("limit", 50),
            params.get("nextToken"),
        )
        await self._store.flush()
        with _aws_errors():
            streams, token = self._store.describe_streams(key, selection)
        return {"logStreams": [_stream_document(key, stream) for stream in streams], "nextToken": token}

    # -- events

    async def put_log_events(self, context: CallContext, params: Params) -> Params:
        key, name = _key(context, params["logGroupName"]), params["logStreamName"]
        events = [(event["timestamp"], event["message"]) for event in params["logEvents"]]
        size = sum(len(message.encode("utf-8", "replace")) + _EVENT_OVERHEAD_BYTES for _, message in events)
        if size > _BATCH_BYTES_MAX:
            raise InvalidParameter(f"Upload too large: {size} bytes exceeds limit of {_BATCH_BYTES_MAX}")
        if any(later[0] < earlier[0] for earlier, later in itertools.pairwise(events)):
            raise InvalidParameter("Log events in a single PutLogEvents request must be in chronological order.")
        with _aws_errors():
            group = self._store.group(key)
            if not self._store.has_stream(key, name):
                raise StreamMissing(name)
        now_ms = time.time_ns() // 1_000_000
        retention_ms = (group.retention_days or 36500) * _DAY_MS
        expired = sum(1 for at_ms, _ in events if at_ms < now_ms - retention_ms)
        too_old = sum(1 for at_ms, _ in events if at_ms < now_ms - _TOO_OLD_MS)
        too_new = sum(1 for at_ms, _ in events if at_ms <= now_ms + _TOO_NEW_MS)
        accepted = events[max(expired, too_old) : too_new]
        if accepted and accepted[-1][0] - accepted[0][0] > _DAY_MS:
            raise InvalidParameter(
                "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
            )
        self._store.stream(key, name).write_many(accepted)
        await self._store.flush()
        rejected = {
            "tooNewLogEventStartIndex": too_new if too_new < len(events) else None,
            "tooOldLogEventEndIndex": too_old or None,
            "expiredLogEventEndIndex": expired or None,
        }
        any_rejected = len(accepted) < len(events)
        return {
            "nextSequenceToken": _SEQUENCE_TOKEN,
            "rejectedLogEventsInfo": rejected if any_rejected else None,
        }

    async def get_log_events(self, context: CallContext, params: Params) -> Params:
        key = _named(context, params)
        await self._store.flush()
        with _aws_errors():
            page = await self._store.get_events(
                key,
                params["logStreamName"],
                start_ms=params.get("startTime", 0),
                end_ms=params.get("endTime", _FOREVER_MS),
                start_from_head=params.get("startFromHead", False),
                limit=params.get("limit", 10_000),
                token=params.get("nextToken"),
            )
        return {
            "events": [
                {"timestamp": event.timestamp_ms, "message": event.message, "ingestionTime": event.ingestion_ms}
                for event in page.events
            ],
            "nextForwardToken": page.forward,
            "nextBackwardToken": page.backward,
        }

    async def filter_log_events(self, context: CallContext, params: Params) -> Params:
        key = _named(context, params)
        names, prefix = params.get("logStreamNames"), params.get("logStreamNamePrefix")
        if names is not None and prefix is not None:
            raise InvalidParameter("logStreamNames and logStreamNamePrefix are mutually exclusive parameters.")
        matches = _compiled(params.get("filterPattern", ""))
        await self._store.flush()
        with _aws_errors():
            for name in names or ():
                if not self._store.has_stream(key, name):
                    raise StreamMissing(name)
            events, token = await self._store.filter_events(
                key,
                streams=names,
                prefix=prefix or "",
                start_ms=params.get("startTime", 0),
                # FilterLogEvents includes events at endTime, GetLogEvents does not.
                end_ms=params.get("endTime", _FOREVER_MS) + 1,
                matches=matches,
                limit=params.get("limit", 10_000),
                newest_first=not params.get("startFromHead", True),
                token=params.get("nextToken"),
            )
        return {
            "events": [
                {
                    "logStreamName": event.stream,
                    "timestamp": event.timestamp_ms,
                    "message": event.message,
                    "ingestionTime": event.ingestion_ms,
                    "eventId": event.event_id,
                }
                for event in events
            ],
            "searchedLogStreams": [],
            "nextToken": token,
        }

    # -- tags

    async def list_tags_for_resource(self, context: CallContext, params: Params) -> Params:
        return self._tags(_by_arn(context, params["resourceArn"]))

    async def tag_resource(self, context: CallContext, params: Params) -> Params:
        return await self._change_tags(_by_arn(context, params["resourceArn"]), params["tags"], [])

    async def untag_resource(self, context: CallContext, params: Params) -> Params:
        return await self._change_tags(_by_arn(context, params["resourceArn"]), {}, params["tagKeys"])

    async def list_tags_log_group(self, context: CallContext, params: Params) -> Params:
        return self._tags(_key(context, params["logGroupName"]))

    async def tag_log_group(self, context: CallContext, params: Params) -> Params:
        return await self._change_tags(_key(context, params["logGroupName"]), params["tags"], [])

    async def untag_log_group(self, context: CallContext, params: Params) -> Params:
        return await self._change_tags(_key(context, params["logGroupName"]), {}, params["tags"])

    def _tags(self, key: LogGroupKey) -> Params:
        with _aws_errors():
            return {"tags": self._store.group(key).tags}

    async def _change_tags(self, key: LogGroupKey, added: dict[str, str], removed: list[str]) -> Params:
        with _aws_errors():
            tags = {**self._store.group(key).tags, **added}
            tags = {name: value for name, value in tags.items() if name not in removed}
            if len(tags) > _TAGS_MAX:
                raise TooManyTags(f"A log group may have at most {_TAGS_MAX} tags, not {len(tags)}.")
            await self._store.set_tags(key, tags)
        return {}


# -- names


def _key(context: CallContext, name: str) -> LogGroupKey:
    return LogGroupKey(context.account, context.region, name)


def _identified(context: CallContext, identifier: str) -> LogGroupKey:
    """The group that a name or an ARN means."""
    if identifier.startswith("arn:"):
        return _by_arn(context, identifier)
    if not _GROUP_NAME.fullmatch(identifier):
        raise InvalidParameter(f"'{identifier[:200]}' is neither a log group's name nor its ARN.")
    return _key(context, identifier)


def _named(context: CallContext, params: Params) -> LogGroupKey:
    """The group of a call that takes either `logGroupName` or `logGroupIdentifier`."""
    name, identifier = params.get("logGroupName"), params.get("logGroupIdentifier")
    if (name is None) == (identifier is None):
        raise InvalidParameter("Exactly one of logGroupName and logGroupIdentifier must be given.")
    return _key(context, name) if name is not None else _identified(context, str(identifier))


def _by_arn(context: CallContext, arn: str) -> LogGroupKey:
    match = _GROUP_ARN.fullmatch(arn)
    if match is None:
        raise InvalidParameter(f"'{arn[:200]}' is not the ARN of a log group.")
    if (match[2], match[1]) != (context.account, context.region):
        # As if it did not exist: one account must not learn what another one has.
        raise ResourceNotFound("The specified log group does not exist.")
    return LogGroupKey(match[2], match[1], match[3])


def _arn(key: LogGroupKey) -> str:
    return f"arn:aws:logs:{key.region}:{key.account}:log-group:{key.group}"


def _compiled(pattern: str) -> Predicate | None:
    try:
        return compile_pattern(pattern)
    except BadFilterPattern as problem:
        raise InvalidParameter(f"Invalid filter pattern: {problem}") from None


# -- documents


def _group_document(group: GroupInfo) -> Params:
    arn = _arn(group.key)
    return {
        "logGroupName": group.key.group,
        "creationTime": group.created_ms,
        "retentionInDays": group.retention_days,
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "storedBytes": group.stored_bytes,
        "kmsKeyId": group.kms_key,
        "logGroupClass": group.log_class,
        "logGroupArn": arn,
        "deletionProtectionEnabled": group.protected,
    }


def _stream_document(key: LogGroupKey, stream: StreamInfo) -> Params:
    return {
        "logStreamName": stream.name,
        "creationTime": stream.created_ms,
        "firstEventTimestamp": stream.first_event_ms,
        "lastEventTimestamp": stream.last_event_ms,
        "lastIngestionTime": stream.last_ingestion_ms,
        "uploadSequenceToken": _SEQUENCE_TOKEN,
        "arn": f"{_arn(key)}:log-stream:{stream.name}",
        "storedBytes": 0,  # AWS has given 0 since 2019
    }
