"""The HTML report: one file, no scripts, nothing loaded from anywhere.

For: `--html`. It must not compute anything but positions on paper. Outcomes: a page with the answer, the table with
formulas, and plots as inline SVG. Everything that comes from the user is escaped.
"""

from __future__ import annotations

import math
from html import escape

from lambent.plan.planner import Request
from lambent.plan.plots import Chart, Series, charts, visible_top
from lambent.plan.recommend import Recommendation, Trial
from lambent.plan.summary import Summary
from lambent.plan.words import lines, notes, opening, option_words

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 560, 210, 56, 24, 8

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1rem;margin:0 0 .3rem}
.answer{font-size:1.1rem;background:#eff6ff;border-left:4px solid #2563eb;padding:.7rem 1rem;white-space:pre-line}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:1.2rem;margin:1.5rem 0}
table{border-collapse:collapse;width:100%}td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #e5e7eb}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.w{color:#6b7280}
svg{width:100%;height:auto}text{font-size:11px;fill:#4b5563}.key{font-size:.8rem;color:#4b5563}
.key i{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em;border-radius:2px}
"""


def page(request: Request, summary: Summary, found: Recommendation | None = None) -> str:
    drawn = "\n".join(_chart(chart, summary) for chart in charts(request, summary))
    rows = "\n".join(
        f'<tr><td>{escape(line.name)}</td><td class="n">{escape(line.simulated)}</td>'
        f'<td class="n">{escape(line.formula)}</td><td class="w">{escape(line.words)}</td></tr>'
        for line in lines(request, summary)
    )
    remarks = "".join(f"<p>{escape(note)}</p>" for note in notes(request, summary))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Lambent plan</title><style>{_STYLE}</style></head><body>
<h1>Lambent plan</h1>
<p class="answer">{escape(opening(request, summary))}</p>
<p class="w">{escape(_setting(request, summary))}</p>
<div class="charts">
{drawn}
</div>
<table><tr><th></th><th class="n">simulated</th><th class="n">formula</th><th>in words</th></tr>
{rows}
</table>
{remarks}
{_functions(summary)}
{"" if found is None else _tried(found)}
</body></html>
"""


def _setting(request: Request, summary: Summary) -> str:
    reserved = f", reserved {' '.join(request.reserved)}" if request.reserved else ""
    provisioned = f", provisioned {' '.join(request.provisioned)}" if request.provisioned else ""
    idle_s = request.rules().idle_ns / 1e9
    return (
        f"{summary.invocations:,} requests in {summary.simulated_s:,.0f} s simulated; profile {summary.profile}; "
        f"idle environments end after {idle_s:g} s; account limit {summary.account_concurrency:,}"
        f"{reserved}{provisioned}; "
        f"{summary.prices}"
    )


def _tried(found: Recommendation) -> str:
    """What each setting costs and gives: the trade-off, as two curves over the settings and a table."""
    trials = found.trials
    bars = [
        _bars("Cold starts of each setting", [trial.summary.cold_start_rate * 100 for trial in trials], found, "%"),
        _bars("Throttles of each setting", [trial.summary.throttle_rate * 100 for trial in trials], found, "%"),
        _bars("30 days of each setting", [trial.summary.cost.month_usd for trial in trials], found, "USD"),
    ]
    rows = "\n".join(
        f'<tr><td class="n">{number}</td><td>{escape(option_words(trial))}</td>'
        f'<td class="n">{trial.summary.throttle_rate:.3%}</td><td class="n">{trial.summary.cold_start_rate:.3%}</td>'
        f'<td class="n">{trial.summary.latency_ms["p99"]:,.4g}</td>'
        f'<td class="n">{trial.summary.cost.month_usd:,.2f}</td><td>{_mark(trial, found)}</td></tr>'
        for number, trial in enumerate(trials, 1)
    )
    return f"""<h2>What was tried</h2><p>{escape(found.why)}</p>
<div class="charts">{"".join(bars)}</div>
<table><tr><th></th><th>setting</th><th class="n">throttles</th><th class="n">cold starts</th><th class="n">p99, ms</th>
<th class="n">USD in 30 days</th><th></th></tr>
{rows}
</table>"""


def _mark(trial: Trial, found: Recommendation) -> str:
    if trial is found.best:
        return "<b>recommended</b>"
    return "<b>or this</b>" if trial is found.alternative else "met" if trial.met else "missed"


def _bars(title: str, values: list[float], found: Recommendation, unit: str) -> str:
    """One bar for each trial, in the order of the table; those that meet the goals are green."""
    top = _round_up(max([*values, 1e-9]))
    width = (_WIDTH - _LEFT) / max(1, len(values))
    parts = []
    for step in range(5):
        y = _y(top * step / 4, top)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{top * step / 4:,.4g}</text>')
    for number, (value, trial) in enumerate(zip(values, found.trials, strict=True)):
        colour = "#2563eb" if trial is found.best else "#059669" if trial.met else "#9ca3af"
        x, y = _LEFT + number * width, _y(value, top)
        parts.append(
            f'<rect x="{x + width * 0.1:.1f}" y="{y}" width="{width * 0.8:.1f}" height="{_y(0, top) - y:.1f}" '
            f'fill="{colour}"/><text x="{x + width / 2:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{number + 1}</text>'
        )
    return (
        f'<div><h2>{escape(title)}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg><div class="key">({escape(unit)}; blue: recommended, '
        "green: meets the goals, grey: misses them)</div></div>"
    )


def _functions(summary: Summary) -> str:
    if summary.functions_count < 2:
        return ""
    rows = "\n".join(
        f'<tr><td>{escape(line.name)}</td><td class="n">{line.memory_mib:,}</td>'
        f'<td class="n">{"" if line.reserved is None else f"{line.reserved:,}"}</td>'
        f'<td class="n">{f"{line.provisioned:,.4g}" if line.provisioned else ""}</td>'
        f'<td class="n">{line.invocations:,}</td><td class="n">{line.cold_starts:,}</td>'
        f'<td class="n">{line.spillovers:,}</td>'
        f'<td class="n">{line.throttles:,}</td><td class="n">{line.gb_s:,.1f}</td></tr>'
        for line in summary.functions
    )
    return f"""<h2>The {len(summary.functions)} most expensive of {summary.functions_count:,} functions</h2>
<table><tr><th>function</th><th class="n">MB</th><th class="n">reserved</th><th class="n">provisioned</th>
<th class="n">requests</th><th class="n">cold starts</th><th class="n">spillovers</th>
<th class="n">throttles</th><th class="n">GB-s</th></tr>
{rows}
</table>"""


def _chart(chart: Chart, summary: Summary) -> str:
    top = _round_up(visible_top(chart))
    end_s = max(summary.simulated_s, 1e-9)
    points = summary.timeline
    ends_s = [(point["start_s"], point["end_s"]) for point in points]
    body = [_grid(top, end_s)]
    body += [_series(series, ends_s, end_s, top) for series in chart.series]
    for limit in chart.limits:
        if limit.value <= top:
            y = _y(limit.value, top)
            body.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y}" y2="{y}" stroke="#dc2626" stroke-dasharray="5 4"/>')
            body.append(f'<text x="{_WIDTH - 4}" y="{y - 4}" text-anchor="end">{escape(limit.name)} limit</text>')
    key = "".join(f'<i style="background:{series.colour}"></i>{escape(series.name)}' for series in chart.series)
    beyond = [
        f"{escape(limit.name)} limit {limit.value:,.0f}, far above" for limit in chart.limits if limit.value > top
    ]
    label = f"{key} <span>({'; '.join([escape(chart.unit), *beyond])})</span>"
    return (
        f'<div><h2>{escape(chart.title)}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">{"".join(body)}</svg><div class="key">{label}</div></div>'
    )


def _series(series: Series, spans_s: list[tuple[float, float]], end_s: float, top: float) -> str:
    """Steps: each value holds for its stretch of time."""
    corners = []
    for (start_s, stop_s), value in zip(spans_s, series.values, strict=True):
        y = _y(value, top)
        corners.append(f"{_x(start_s, end_s)},{y} {_x(stop_s, end_s)},{y}")
    if not corners:
        return ""
    if series.filled:
        floor = _y(0, top)
        outline = f"{_LEFT},{floor} {' '.join(corners)} {_x(spans_s[-1][1], end_s)},{floor}"
        return f'<polygon points="{outline}" fill="{series.colour}" fill-opacity=".75"/>'
    return f'<polyline points="{" ".join(corners)}" fill="none" stroke="{series.colour}" stroke-width="1.4"/>'


def _grid(top: float, end_s: float) -> str:
    parts = []
    for step in range(5):
        y = _y(top * step / 4, top)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{top * step / 4:,.4g}</text>')
    unit, size_s = next(
        (unit, size_s) for unit, size_s in (("h", 3_600), ("min", 60), ("s", 1)) if end_s >= 3 * size_s or size_s == 1
    )
    for step in range(5):
        seconds = end_s * step / 4
        anchor = "start" if step == 0 else "end" if step == 4 else "middle"
        x, words = _x(seconds, end_s), f"{seconds / size_s:,.4g} {unit}"
        parts.append(f'<text x="{x}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{words}</text>')
    return "".join(parts)


def _x(seconds: float, end_s: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT) * seconds / end_s, 1)


def _y(value: float, top: float) -> float:
    return round(_HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top, 1)


def _round_up(value: float) -> float:
    """To 1, 2, 4, 5 or 8 times a power of ten: round figures on the axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 5, 8, 10) if power * step >= value * 0.9999)
