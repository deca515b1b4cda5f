"""Metric math: `100 * errors / invocations`, `FILL(m1, 0)`, `SUM(METRICS())`, `IF(m1 > 5, m1, 0)`.

A text is parsed once, into functions that compute it from what the other queries of the call have given. There are
three kinds of values: a number, a time series, a list of time series. An operator on two series takes the timestamps
that both have; on a list it works on each series.

Not here: SEARCH, Metrics Insights (SELECT), anomaly detection, dates, sorting.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>\"[^\"]*\"|'[^']*')|(?P<sign>==|!=|<=|>=|&&|\|\||[-+*/^()\[\],<>]))"
)
_DEPTH_MAX: Final = 50
_FILL_MAX: Final = 200_000


class BadExpression(ValueError):
    """The text is not an expression, or can not be computed; the message says why."""


class Series(NamedTuple):
    """Values by the start of their period, in ascending order."""

    values: Mapping[int, float]
    period_s: int


Value = float | Series | list[Series]


class Scope(NamedTuple):
    """What an expression sees: results of the other queries, which of them are metrics, and the times asked for."""

    results: Callable[[str], Value]
    metrics: Callable[[str], list[Series]]
    start_s: int
    end_s: int


Node = Callable[[Scope], Value]
Work = Callable[[float, float], float]


def parse(text: str) -> tuple[Node, set[str]]:
    """What computes the expression, and the ids that it refers to. Raises BadExpression."""
    parser = _Parser(text)
    node = parser.whole()
    return node, parser.ids


class _Parser:
    def __init__(self, text: str) -> None:
        self.ids: set[str] = set()
        self._tokens: list[tuple[str, str]] = []
        self._next = 0
        self._depth = 0
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise BadExpression(f"unexpected character {text[position:].lstrip()[:1]!r}")
            self._tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()

    def whole(self) -> Node:
        node = self._binary(0)
        if self._next < len(self._tokens):
            raise BadExpression(f"unexpected {self._tokens[self._next][1]!r}")
        return node

    def _peek(self) -> str:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._peek()
        if wanted and token not in wanted:
            raise BadExpression(f"{' or '.join(wanted)!r} expected, not {token or 'the end'!r}")
        self._next += 1
        return token

    def _binary(self, level: int) -> Node:
        """Operators by precedence, the weakest first."""
        self._depth += 1
        if self._depth > _DEPTH_MAX * (len(_LEVELS) + 2):
            raise BadExpression("nested too deeply")
        if level == len(_LEVELS):
            node = self._unary()
        else:
            node = self._binary(level + 1)
            rest: list[tuple[Work, Node]] = []
            is_power = level == len(_LEVELS) - 1  # right-associative, the others left
            while self._peek().upper() in _LEVELS[level]:
                work = _LEVELS[level][self._take().upper()]
                rest.append((work, self._binary(level if is_power else level + 1)))
            if rest:
                node = _chain(node, rest)
        self._depth -= 1
        return node

    def _unary(self) -> Node:
        if self._peek() == "-":
            self._take()
            inner = self._binary(len(_LEVELS) - 1)
            return lambda scope: _each(inner(scope), operator.neg)
        if self._peek() == "+":
            self._take()
            return self._binary(len(_LEVELS) - 1)
        return self._primary()

    def _primary(self) -> Node:
        if self._next >= len(self._tokens):
            raise BadExpression("it ends too early")
        kind, token = self._tokens[self._next]
        self._next += 1
        if kind == "number":
            number = float(token)
            return lambda _: number
        if token == "(":
            node = self._binary(0)
            self._take(")")
            return node
        if token == "[":
            return _array(self._arguments("]"))
        if kind == "name" and self._peek() == "(":
            return self._call(token)
        if kind == "name" and token[0].islower():
            self.ids.add(token)
            return lambda scope: scope.results(token)
        raise BadExpression(f"unexpected {token!r}")

    def _arguments(self, end: str) -> list[Node]:
        nodes: list[Node] = []
        while self._peek() != end:
            nodes.append(self._binary(0))
            if self._peek() != end:
                self._take(",")
        self._take(end)
        return nodes

    def _call(self, name: str) -> Node:
        self._take("(")
        upper = name.upper()
        if upper == "METRICS":
            pattern = ""
            if self._peek() != ")":
                kind, pattern = self._tokens[self._next]
                if kind != "text":
                    raise BadExpression("METRICS takes a text in quotes")
                self._take()
            self._take(")")
            return lambda scope: scope.metrics(pattern[1:-1])
        if upper == "FILL":
            return self._fill()
        function = _FUNCTIONS.get(upper)
        if function is None:
            raise BadExpression(f"{name} is not a function that Lambent knows")
        work, least, most = function
        arguments = self._arguments(")")
        if not least <= len(arguments) <= most:
            raise BadExpression(f"{upper} takes {least if least == most else f'{least} to {most}'} arguments")
        return lambda scope: work(*(argument(scope) for argument in arguments))

    def _fill(self) -> Node:
        node = self._binary(0)
        self._take(",")
        if self._peek().upper() in ("REPEAT", "LINEAR"):
            how = self._take().upper()
            self._take(")")
            return lambda scope: _fill(node(scope), how, scope)
        filler = self._binary(0)
        self._take(")")
        return lambda scope: _fill(node(scope), filler(scope), scope)


# -- operators


def _divide(left: float, right: float) -> float:
    return left / right if right else math.nan


def _power(left: float, right: float) -> float:
    try:
        result = left**right
    except (OverflowError, ZeroDivisionError):
        return math.nan
    return result if isinstance(result, float) else math.nan


def _compared(compare: Callable[[float, float], bool]) -> Work:
    return lambda left, right: float(compare(left, right))


_EQUALITY: Final = {"==": _compared(operator.eq), "!=": _compared(operator.ne)}
_ORDER: Final = {
    "<": _compared(operator.lt),
    "<=": _compared(operator.le),
    ">": _compared(operator.gt),
    ">=": _compared(operator.ge),
}
_OR: Final = _compared(lambda left, right: bool(left) or bool(right))
_AND: Final = _compared(lambda left, right: bool(left) and bool(right))
_LEVELS: Final[tuple[dict[str, Work], ...]] = (
    {"||": _OR, "OR": _OR},
    {"&&": _AND, "AND": _AND},
    {**_EQUALITY, **_ORDER},
    {"+": operator.add, "-": operator.sub},
    {"*": operator.mul, "/": _divide},
    {"^": _power},
)


def _chain(first: Node, rest: list[tuple[Work, Node]]) -> Node:
    def compute(scope: Scope) -> Value:
        value = first(scope)
        for work, node in rest:
            value = _combine(work, value, node(scope))
        return value

    return compute


def _combine(work: Work, left: Value, right: Value) -> Value:
    if isinstance(left, list) and isinstance(right, list):
        if len(left) != len(right):
            raise BadExpression("two lists of series must have the same length")
        return [_combined(work, one, other) for one, other in zip(left, right, strict=True)]
    if isinstance(left, list):
        return [_combined(work, one, right) for one in left]
    if isinstance(right, list):
        return [_combined(work, left, other) for other in right]
    if isinstance(left, Series) or isinstance(right, Series):
        return _combined(work, left, right)
    return work(left, right)


def _combined(work: Work, left: Value, right: Value) -> Series:
    """Of two values, at least one of which is a series and none a list."""
    if isinstance(left, Series) and isinstance(right, Series):
        pairs = {at: work(value, right.values[at]) for at, value in left.values.items() if at in right.values}
        return _series(pairs, max(left.period_s, right.period_s))
    if isinstance(left, Series):
        return _series({at: work(value, _number(right)) for at, value in left.values.items()}, left.period_s)
    assert isinstance(right, Series)
    return _series({at: work(_number(left), value) for at, value in right.values.items()}, right.period_s)


def _series(values: dict[int, float], period_s: int) -> Series:
    """A point that can not be computed (a division by zero) is no point."""
    return Series({at: value for at, value in sorted(values.items()) if math.isfinite(value)}, period_s)


def _each(value: Value, work: Callable[[float], float]) -> Value:
    if isinstance(value, list):
        return [_series({at: work(item) for at, item in one.values.items()}, one.period_s) for one in value]
    if isinstance(value, Series):
        return _series({at: work(item) for at, item in value.values.items()}, value.period_s)
    return work(value)


def _number(value: Value) -> float:
    if isinstance(value, Series | list):
        raise BadExpression("a number is needed where a time series stands")
    return value


def _one(value: Value) -> Series:
    if not isinstance(value, Series):
        raise BadExpression("a time series is needed")
    return value


def _array(nodes: list[Node]) -> Node:
    def collect(scope: Scope) -> Value:
        found: list[Series] = []
        for node in nodes:
            value = node(scope)
            if isinstance(value, list):
                found += value
            else:
                found.append(_one(value))
        return found

    return collect


# -- functions


def _aggregate(work: Callable[[list[float]], float]) -> Callable[..., Value]:
    """Of a list of series at each of their timestamps; of one series over all of its values."""

    def aggregate(value: Value) -> Value:
        if isinstance(value, list):
            columns: dict[int, list[float]] = {}
            for series in value:
                for at, item in series.values.items():
                    columns.setdefault(at, []).append(item)
            period_s = max((series.period_s for series in value), default=60)
            return _series({at: work(items) for at, items in columns.items()}, period_s)
        if isinstance(value, Series):
            return work(list(value.values.values())) if value.values else math.nan
        return value

    return aggregate


def _on_each(work: Callable[[float], float]) -> Callable[..., Value]:
    return lambda value: _each(value, work)


def _on_series(work: Callable[[Series], dict[int, float]]) -> Callable[..., Value]:
    def apply(value: Value) -> Value:
        if isinstance(value, list):
            return [_series(work(series), series.period_s) for series in value]
        return _series(work(_one(value)), _one(value).period_s)

    return apply


def _pairs(series: Series) -> Iterable[tuple[tuple[int, float], tuple[int, float]]]:
    return itertools.pairwise(series.values.items())


def _running_sum(series: Series) -> dict[int, float]:
    total = 0.0
    return {at: (total := total + value) for at, value in series.values.items()}


def _logarithm(work: Callable[[float], float]) -> Callable[[float], float]:
    return lambda value: work(value) if value > 0 else math.nan


def _if(condition: Value, then: Value, otherwise: Value | None = None) -> Value:
    """Without the third argument, what does not satisfy the condition has no point."""
    if not isinstance(condition, Series):
        chosen = then if _number(condition) else otherwise
        if chosen is None:
            raise BadExpression("IF with a number as condition takes three arguments")
        return chosen
    values: dict[int, float] = {}
    for at, flag in condition.values.items():
        chosen = then if flag else otherwise
        if chosen is None:
            continue
        if isinstance(chosen, Series):
            if at in chosen.values:
                values[at] = chosen.values[at]
        else:
            values[at] = _number(chosen)
    return _series(values, condition.period_s)


def _period(value: Value) -> Value:
    series = _one(value)
    return _series({at: float(series.period_s) for at in series.values}, series.period_s)


def _fill(value: Value, how: Value | str, scope: Scope) -> Value:
    if isinstance(value, list):
        return [_filled(series, how, scope) for series in value]
    return _filled(_one(value), how, scope)


def _filled(series: Series, how: Value | str, scope: Scope) -> Series:
    """A value for each period that was asked for. REPEAT and LINEAR have none before the first value, and LINEAR none
    after the last."""
    times = range(scope.start_s, scope.end_s, series.period_s)
    if len(times) > _FILL_MAX:
        raise BadExpression("FILL would make too many points; choose a longer period")
    known = list(series.values.items())
    values: dict[int, float] = {}
    following = 0  # index of the first known point behind `at`
    for at in times:
        while following < len(known) and known[following][0] <= at:
            following += 1
        if at in series.values:
            values[at] = series.values[at]
        elif isinstance(how, Series):
            if at in how.values:
                values[at] = how.values[at]
        elif not isinstance(how, str):
            values[at] = _number(how)
        elif following and how == "REPEAT":
            values[at] = known[following - 1][1]
        elif following and following < len(known):
            (before, low), (after, high) = known[following - 1], known[following]
            values[at] = low + (high - low) * (at - before) / (after - before)
    return _series(values, series.period_s)


def _count_metrics(value: Value) -> Value:
    return float(len(value)) if isinstance(value, list) else 1.0


def _deviation(values: list[float]) -> float:
    return statistics.pstdev(values)


_FUNCTIONS: Final[dict[str, tuple[Callable[..., Value], int, int]]] = {
    "SUM": (_aggregate(math.fsum), 1, 1),
    "AVG": (_aggregate(statistics.fmean), 1, 1),
    "MIN": (_aggregate(min), 1, 1),
    "MAX": (_aggregate(max), 1, 1),
    "STDDEV": (_aggregate(_deviation), 1, 1),
    "METRIC_COUNT": (_count_metrics, 1, 1),
    "ABS": (_on_each(abs), 1, 1),
    "CEIL": (_on_each(lambda value: float(math.ceil(value))), 1, 1),
    "FLOOR": (_on_each(lambda value: float(math.floor(value))), 1, 1),
    "LOG": (_on_each(_logarithm(math.log)), 1, 1),
    "LOG10": (_on_each(_logarithm(math.log10)), 1, 1),
    "RATE": (_on_series(lambda series: {b: (y - x) / (b - a) for (a, x), (b, y) in _pairs(series)}), 1, 1),
    "DIFF": (_on_series(lambda series: {b: y - x for (_, x), (b, y) in _pairs(series)}), 1, 1),
    "DIFF_TIME": (_on_series(lambda series: {b: float(b - a) for (a, _), (b, _) in _pairs(series)}), 1, 1),
    "RUNNING_SUM": (_on_series(_running_sum), 1, 1),
    "PERIOD": (_period, 1, 1),
    "IF": (_if, 2, 3),
}
