"""PutMetricData: what a client may publish, and the points that follow from it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from lambent.services.cloudwatch.errors import InvalidParameterCombination, InvalidParameterValue, MissingParameter
from lambent.telemetry.metric_files import SeriesKey
from lambent.telemetry.metric_point import Point

Params = dict[str, Any]

_DATA_MAX: Final = 1_000
_VALUES_MAX: Final = 150
_MAGNITUDE_MAX: Final = 2.0**360
_PAST_S: Final = 14 * 24 * 3600
_FUTURE_S: Final = 2 * 3600


class Publication(NamedTuple):
    series: SeriesKey
    moment_s: float
    resolution_s: int
    point: Point


def publications(account: str, region: str, params: Params, now_s: float) -> list[Publication]:
    """Everything that a call publishes, or the error that refuses all of it. `params` satisfy the model."""
    namespace = params["Namespace"]
    if namespace.startswith("AWS/"):
        raise InvalidParameterValue(f"The value {namespace} for parameter Namespace is invalid.")
    lists = [("MetricData", params["MetricData"])] if "MetricData" in params else []
    for number, entity in enumerate(params.get("EntityMetricData", []), 1):
        lists.append((f"EntityMetricData.member.{number}.MetricData", entity.get("MetricData", [])))
    if not lists:
        raise MissingParameter("The parameter MetricData is required.")
    if sum(len(data) for _, data in lists) > _DATA_MAX:
        raise InvalidParameterValue(f"The collection MetricData must not have a size greater than {_DATA_MAX}.")
    return [
        Publication(
            SeriesKey(account, region, namespace, datum["MetricName"], _dimensions(datum, path), _unit(datum)),
            _moment_s(datum, path, now_s),
            _resolution_s(datum, path),
            _point(datum, path),
        )
        for name, data in lists
        for datum, path in _numbered(data, name)
    ]


def _numbered(data: list[Params], name: str) -> Iterator[tuple[Params, str]]:
    for number, datum in enumerate(data, 1):
        yield datum, f"{name}.member.{number}"


def _unit(datum: Params) -> str:
    return str(datum.get("Unit", "None"))


def _dimensions(datum: Params, path: str) -> tuple[tuple[str, str], ...]:
    pairs = sorted((dimension["Name"], dimension["Value"]) for dimension in datum.get("Dimensions", []))
    if len({name for name, _ in pairs}) < len(pairs):
        raise InvalidParameterValue(f"The parameter {path}.Dimensions must not name a dimension twice.")
    return tuple(pairs)


def _moment_s(datum: Params, path: str, now_s: float) -> float:
    moment: dt.datetime | None = datum.get("Timestamp")
    if moment is None:
        return now_s
    moment_s = moment.timestamp()
    if moment_s < now_s - _PAST_S:
        raise InvalidParameterValue(f"The parameter {path}.Timestamp must specify a time within the past two weeks.")
    if moment_s > now_s + _FUTURE_S:
        raise InvalidParameterValue(
            f"The parameter {path}.Timestamp must specify a time no more than two hours in the future."
        )
    return moment_s


def _resolution_s(datum: Params, path: str) -> int:
    resolution_s = datum.get("StorageResolution", 60)
    if resolution_s not in (1, 60):
        raise InvalidParameterValue(f"The parameter {path}.StorageResolution must be a value in the set [ 1, 60 ].")
    return int(resolution_s)


def _point(datum: Params, path: str) -> Point:
    given = [name for name in ("Value", "Values", "StatisticValues") if datum.get(name) is not None]
    if len(given) > 1:
        raise InvalidParameterCombination(
            f"The parameters {path}.{given[0]} and {path}.{given[1]} are mutually exclusive and you have specified "
            "both."
        )
    if not given:
        raise MissingParameter(
            f"At least one of the parameters {path}.Value, {path}.Values or {path}.StatisticValues must be specified."
        )
    if "Counts" in datum and "Values" not in given:
        raise InvalidParameterCombination(f"The parameter {path}.Counts must be used with {path}.Values.")
    if given[0] == "StatisticValues":
        return _summary(datum["StatisticValues"], f"{path}.StatisticValues")
    values = [datum["Value"]] if given[0] == "Value" else datum["Values"]
    counts = datum.get("Counts") or [1.0] * len(values)
    for name, items in (("Values", values), ("Counts", counts)):
        if len(items) > _VALUES_MAX:
            raise InvalidParameterValue(
                f"The collection {path}.{name} must not have a size greater than {_VALUES_MAX}."
            )
    if not values:
        raise InvalidParameterValue(f"The collection {path}.Values must not have a size less than 1.")
    if len(values) != len(counts):
        raise InvalidParameterValue(f"The parameters {path}.Values and {path}.Counts must be lists of the same length.")
    point = Point()
    for index, (value, count) in enumerate(zip(values, counts, strict=True), 1):
        where = f"{path}.Value" if given[0] == "Value" else f"{path}.Values.member.{index}"
        _check_number(value, where)
        _check_number(count, f"{path}.Counts.member.{index}")
        if count < 0:
            raise InvalidParameterValue(f"The value {count} for parameter {path}.Counts.member.{index} is invalid.")
        if count:
            point.add(value, count)
    return point


def _summary(values: Params, path: str) -> Point:
    for name in ("SampleCount", "Sum", "Minimum", "Maximum"):
        _check_number(values[name], f"{path}.{name}")
    if values["SampleCount"] < 0:
        raise InvalidParameterValue(f"The parameter {path}.SampleCount must be greater than or equal to 0.")
    if values["Maximum"] < values["Minimum"]:
        raise InvalidParameterValue(f"The parameter {path}.Maximum must be greater than {path}.Minimum.")
    return Point(values["SampleCount"], values["Sum"], values["Minimum"], values["Maximum"])


def _check_number(value: float, path: str) -> None:
    if not math.isfinite(value) or abs(value) > _MAGNITUDE_MAX:
        text = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))
        raise InvalidParameterValue(f"The value {text} for parameter {path} is invalid.")
