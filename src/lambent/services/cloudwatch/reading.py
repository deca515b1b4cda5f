"""GetMetricData and GetMetricStatistics: which points, which statistic, which page.

Periods begin at StartTime, rounded down to the minute (to 5 minutes where it is more than 15 days ago, to the hour
where more than 63), as CloudWatch does; points that have become coarser than the period asked for are not returned.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import functools
import json
import math
import re
from typing import Any, Final

from lambent.services.cloudwatch import expressions, statistics
from lambent.services.cloudwatch.errors import (
    InvalidNextToken,
    InvalidParameterCombination,
    InvalidParameterValue,
    InvalidRequest,
)
from lambent.telemetry.metric_files import DAY_S, HOUR_S, SeriesKey
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import Metric, MetricStore

Params = dict[str, Any]

_QUERIES_MAX: Final = 500
_DATAPOINTS_MAX: Final = 100_800
_STATISTICS_DATAPOINTS_MAX: Final = 1_440
_ID = re.compile(r"[a-z][a-zA-Z0-9_]*")
_SHORT_PERIODS: Final = (1, 5, 10, 20, 30)


def series_key(account: str, region: str, metric: Params, unit: str = "") -> SeriesKey:
    """The series that a request names."""
    pairs = sorted((dimension["Name"], dimension["Value"]) for dimension in metric.get("Dimensions", []))
    return SeriesKey(account, region, metric.get("Namespace", ""), metric.get("MetricName", ""), tuple(pairs), unit)


def is_period(period_s: int) -> bool:
    return period_s in _SHORT_PERIODS or (period_s >= 60 and period_s % 60 == 0)


def first_start_s(start: dt.datetime, period_s: int, now_s: float) -> int:
    """Where the first period begins."""
    start_s = int(start.timestamp())
    age_s = now_s - start_s
    if period_s < 60 and age_s <= 3 * HOUR_S:
        step_s = period_s
    elif age_s <= 15 * DAY_S:
        step_s = 60
    else:
        step_s = 300 if age_s <= 63 * DAY_S else HOUR_S
    return start_s - start_s % step_s


def _last_end_s(end: dt.datetime) -> int:
    """Rounded up: what has begun before EndTime belongs to the answer."""
    return math.ceil(end.timestamp())


# -- GetMetricStatistics


async def metric_statistics(store: MetricStore, account: str, region: str, params: Params) -> Params:
    """The answer of GetMetricStatistics. `params` satisfy the model."""
    names: list[str] = params.get("Statistics", [])
    extended: list[str] = params.get("ExtendedStatistics", [])
    if not names and not extended:
        raise InvalidParameterCombination(
            "At least one of the parameters Statistics and ExtendedStatistics must be specified."
        )
    chosen: dict[str, statistics.Statistic] = {}
    for index, name in enumerate(extended, 1):
        try:
            chosen[name] = statistics.parse(name)
        except statistics.UnknownStatistic:
            raise InvalidParameterValue(
                f"The value {name} for parameter ExtendedStatistics.member.{index} is not a valid statistic."
            ) from None
    period_s = params["Period"]
    if not is_period(period_s):
        raise InvalidParameterValue("The parameter Period must be 1, 5, 10, 20, 30 or a multiple of 60.")
    start_s = first_start_s(params["StartTime"], period_s, store.clock_s())
    end_s = _last_end_s(params["EndTime"])
    if params["StartTime"] >= params["EndTime"]:
        raise InvalidParameterCombination("The parameter StartTime must be less than the parameter EndTime.")
    count = math.ceil((params["EndTime"] - params["StartTime"]).total_seconds() / period_s)
    if count > _STATISTICS_DATAPOINTS_MAX:
        raise InvalidParameterCombination(
            f"You have requested up to {count} datapoints, which exceeds the limit of {_STATISTICS_DATAPOINTS_MAX}. "
            "You may reduce the datapoints requested by increasing Period, or decreasing the time range."
        )
    wanted = Metric(series_key(account, region, params, params.get("Unit", "")), period_s)
    (by_unit,) = await store.points([wanted], start_s, end_s)
    points = [
        {"Timestamp": at_s, "Unit": unit} | _figures(point, names, chosen)
        for unit, points in by_unit.items()
        for at_s, point in points.items()
    ]  # at most 1,440 for a unit: fast enough for the event loop
    return {"Label": params["MetricName"], "Datapoints": points}


def _figures(point: Point, names: list[str], extended: dict[str, statistics.Statistic]) -> Params:
    figures: Params = {name: statistics.BASIC[name](point) for name in names}
    if extended:
        found = {name: statistic(point) for name, statistic in extended.items()}
        figures["ExtendedStatistics"] = {name: value for name, value in found.items() if value is not None}
    return figures


# -- GetMetricData


async def metric_data(store: MetricStore, account: str, region: str, params: Params) -> Params:
    """The answer of GetMetricData. `params` satisfy the model."""
    queries: list[Params] = params["MetricDataQueries"]
    _check_queries(queries, account)
    if params["StartTime"] >= params["EndTime"]:
        raise InvalidRequest("The parameter StartTime must be less than the parameter EndTime.")
    limit = params.get("MaxDatapoints", _DATAPOINTS_MAX)
    if not 1 <= limit <= _DATAPOINTS_MAX:
        raise InvalidRequest(f"The parameter MaxDatapoints must be between 1 and {_DATAPOINTS_MAX}.")
    skipped = _offset(params.get("NextToken"))
    evaluation = _Evaluation(store, account, region, params)
    found = await store.points(evaluation.wanted, evaluation.start_s, evaluation.end_s)
    # Percentiles of many points take their time: not on the event loop.
    results = await asyncio.to_thread(evaluation.results, found)
    pages, taken, more = _page(results, skipped, limit, params.get("ScanBy") != "TimestampAscending")
    return {"MetricDataResults": pages, "Messages": [], "NextToken": _token(skipped + taken) if more else None}


def _page(
    results: list[tuple[Params, expressions.Series]], skipped: int, limit: int, descending: bool
) -> tuple[list[Params], int, bool]:
    """The points that follow the first `skipped` ones, at most `limit`; how many, and whether there are more. A page
    may end inside a result; all ids are listed on each."""
    pages: list[Params] = []
    taken = 0
    more = False
    for result, series in results:
        points = sorted(series.values.items(), reverse=descending)
        page = points[skipped : skipped + limit - taken]
        skipped = max(0, skipped - len(points))
        taken += len(page)
        partial = bool(points) and taken == limit and (not page or page[-1] != points[-1])
        more = more or partial
        columns = {"Timestamps": [at_s for at_s, _ in page], "Values": [value for _, value in page]}
        pages.append(result | columns | {"StatusCode": "PartialData" if partial else "Complete"})
    return pages, taken, more


def _token(offset: int) -> str:
    return base64.urlsafe_b64encode(json.dumps(["metric-data", offset]).encode()).decode()


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    try:
        kind, offset = json.loads(base64.urlsafe_b64decode(token))
        if kind == "metric-data" and isinstance(offset, int) and offset > 0:
            return offset
    except (ValueError, TypeError):
        pass
    raise InvalidNextToken("The next token is invalid.")


def _check_queries(queries: list[Params], account: str) -> None:
    lines: list[str] = []
    if len(queries) > _QUERIES_MAX:
        raise InvalidRequest(f"The collection MetricDataQueries must not have a size greater than {_QUERIES_MAX}.")
    if not queries:
        raise InvalidRequest("The collection MetricDataQueries must not have a size less than 1.")
    for number, query in enumerate(queries, 1):
        path = f"MetricDataQueries.member.{number}"
        if not _ID.fullmatch(query["Id"]):
            lines.append(
                f"The value {query['Id']} for parameter {path}.Id is not matching the expected pattern "
                f"^[a-z][a-zA-Z0-9_]*$."
            )
        if query.get("AccountId", account) != account:
            lines.append(f"The value for parameter {path}.AccountId must be the account that asks.")
        if ("MetricStat" in query) == ("Expression" in query):
            both = "MetricStat" in query
            lines.append(
                f"The parameters {path}.MetricStat and {path}.Expression are mutually exclusive and you have specified "
                "both."
                if both
                else f"At least one of the parameters {path}.MetricStat and {path}.Expression must be specified."
            )
        period_s = query.get("MetricStat", query).get("Period", 60)
        if not is_period(period_s):
            place = f"{path}.MetricStat" if "MetricStat" in query else path
            lines.append(f"The parameter {place}.Period must be 1, 5, 10, 20, 30 or a multiple of 60.")
        if "MetricStat" in query:
            lines += _check_metric(query["MetricStat"], path)
    if lines:
        raise InvalidRequest("\n".join(lines))
    if len({query["Id"] for query in queries}) < len(queries):
        raise InvalidRequest("The values for parameter id in MetricDataQueries are not unique.")
    if not any(query.get("ReturnData", True) for query in queries):
        raise InvalidRequest("At least one of the MetricDataQueries must have ReturnData true.")


def _check_metric(stat: Params, path: str) -> list[str]:
    lines = [
        f"The parameter {path}.MetricStat.Metric.{name} is required."
        for name in ("Namespace", "MetricName")
        if name not in stat["Metric"]
    ]
    try:
        statistics.parse(stat["Stat"])
    except statistics.UnknownStatistic:
        lines.append(f"The value for parameter {path}.MetricStat.Stat is not a valid statistic.")
    return lines


class _Evaluation:
    """The queries of one call: metrics are fetched together, expressions computed from them in any order."""

    def __init__(self, store: MetricStore, account: str, region: str, params: Params) -> None:
        self._store = store
        self._place = (account, region)
        self._queries: dict[str, Params] = {query["Id"]: query for query in params["MetricDataQueries"]}
        self._metrics = {id_: query["MetricStat"] for id_, query in self._queries.items() if "MetricStat" in query}
        self._values: dict[str, expressions.Value] = {}
        self._messages: dict[str, list[Params]] = {}
        self._computing: list[str] = []
        now_s = store.clock_s()
        shortest_s = min((stat["Period"] for stat in self._metrics.values()), default=60)
        self.start_s = first_start_s(params["StartTime"], shortest_s, now_s)
        self.end_s = _last_end_s(params["EndTime"])
        self._scope = expressions.Scope(
            self._value, self._chosen_metrics, self.start_s, min(self.end_s, int(now_s) + 1)
        )
        self._trees: dict[str, expressions.Node] = {}
        for number, query in enumerate(params["MetricDataQueries"], 1):
            if "Expression" in query:
                self._trees[query["Id"]] = self._parsed(query["Expression"], number)

    def _parsed(self, text: str, number: int) -> expressions.Node:
        where = f"Error in expression of MetricDataQueries.member.{number}"
        try:
            node, ids = expressions.parse(text)
        except expressions.BadExpression as problem:
            raise InvalidRequest(f"{where}: {problem}.") from None
        unknown = sorted(ids - self._queries.keys())
        if unknown:
            raise InvalidRequest(f"{where}: no query has the id {unknown[0]}.")
        return node

    @property
    def wanted(self) -> list[Metric]:
        return [
            Metric(series_key(*self._place, stat["Metric"], stat.get("Unit", "")), stat["Period"])
            for stat in self._metrics.values()
        ]

    def _choose(self, found: list[dict[str, dict[int, Point]]]) -> None:
        """Make series of the points of the metrics; of several units, the first in the alphabet."""
        for (id_, stat), by_unit in zip(self._metrics.items(), found, strict=True):
            units = sorted(by_unit)
            points = by_unit[units[0]] if units else {}
            statistic = statistics.parse(stat["Stat"])
            values = {at: value for at, point in points.items() if (value := statistic(point)) is not None}
            self._values[id_] = expressions.Series(values, stat["Period"])
            if len(units) > 1:
                text = f"Multiple units returned: '[{', '.join(units)}]'"
                self._messages[id_] = [{"Code": "MultipleUnits", "Value": text}]

    def _value(self, id_: str) -> expressions.Value:
        if id_ in self._values:
            return self._values[id_]
        if id_ in self._computing:
            raise expressions.BadExpression(f"{id_} refers to itself")
        self._computing.append(id_)
        value = self._values[id_] = self._trees[id_](self._scope)
        self._computing.pop()
        return value

    def _chosen_metrics(self, part: str) -> list[expressions.Series]:
        values = [self._values[id_] for id_ in self._metrics if part in id_]
        return [value for value in values if isinstance(value, expressions.Series)]

    def results(self, found: list[dict[str, dict[int, Point]]]) -> list[tuple[Params, expressions.Series]]:
        """What is to be returned, without its points, and the points; `found` are those of `wanted`. Raises
        InvalidRequest."""
        self._choose(found)
        results: list[tuple[Params, expressions.Series]] = []
        for id_, query in self._queries.items():
            if not query.get("ReturnData", True):
                continue
            try:
                value = self._value(id_)
            except expressions.BadExpression as problem:
                raise InvalidRequest(f"Error in expression '{id_}': {problem}.") from None
            except (RecursionError, OverflowError):
                raise InvalidRequest(f"Error in expression '{id_}': it is too large to be computed.") from None
            if not isinstance(value, expressions.Series | list):
                raise InvalidRequest(f"Error in expression '{id_}': it must give a time series, not a number.")
            result = {"Id": id_, "Label": self._label(id_, query), "Messages": self._messages.get(id_)}
            results += [(result, series) for series in (value if isinstance(value, list) else [value])]
        return results

    def _label(self, id_: str, query: Params) -> str:
        """As asked for; or the metric's name with what tells the call's metrics apart."""
        if "Label" in query or "Expression" in query:
            return str(query.get("Label", id_))
        stat = query["MetricStat"]
        return " ".join([stat["Metric"]["MetricName"], *(str(stat[name]) for name in self._distinctions)])

    @functools.cached_property
    def _distinctions(self) -> list[str]:
        return [name for name in ("Stat", "Period") if len({stat[name] for stat in self._metrics.values()}) > 1]
