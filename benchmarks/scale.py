"""What sampling a large workload costs in truth: the numbers of docs/scale.md.

Three ways to plan less than everything, each against the whole: a function's requests thinned, some of the functions
only, and windows of time only. Takes some minutes.

    python benchmarks/scale.py
"""

import math
import random
import statistics
import sys
import time

from lambent.plan.planner import Request, Source, run
from lambent.plan.summary import Summary
from lambent.plan.workload import Arrival, PlannedFunction, generated, lognormal, steady

RATE, DURATION_S, INIT_S, SECONDS = 10_000, 0.1, 0.3, 1_200
ACCOUNT = 1_000_000
NS = 1_000_000_000


def planned(**options: object) -> Summary:
    request = Request(account_concurrency=ACCOUNT, **options)  # type: ignore[arg-type]
    request.check()
    from lambent.plan.planner import simulate

    return simulate(request)


def tell(*words: object) -> None:
    print(*words, flush=True)


def thinned() -> None:
    tell(f"\n# one function, a wave up to {RATE:,} a second of {DURATION_S} s (lognormal, 1), {SECONDS} s")
    options = {"duration_s": DURATION_S, "variation": 1, "init_s": INIT_S, "seconds": SECONDS, "shape": "day"}
    whole = planned(rate=RATE / 10, rate_to=RATE, **options)
    figures(whole, 1, [whole])
    for part in (10, 100, 1_000):
        runs = [planned(rate=RATE / part / 10, rate_to=RATE / part, seed=seed, **options) for seed in range(1, 6)]
        figures(whole, part, runs)


def figures(whole: Summary, part: int, runs: list[Summary]) -> None:
    """Means over the runs: scaled up plainly, and with what is above the mean scaled by the root."""

    def error(found: float, true: float) -> str:
        return f"{found:,.0f} ({(found - true) / true:+.1%})"

    def load(run: Summary) -> float:
        """In flight on average in the busiest stretch of time: peaks stand above that."""
        return max(point["concurrency_mean"] for point in run.timeline)

    def remembered(run: Summary) -> float:
        """The same over the last ten minutes (idle environments live so long), on average over time."""
        points = run.timeline
        width_s = points[0]["end_s"] - points[0]["start_s"]
        back = max(1, round(600 / width_s))
        return statistics.mean(
            max(point["concurrency_mean"] for point in points[max(0, number - back) : number + 1])
            for number in range(len(points))
        )

    def root(name: str) -> float:
        base = remembered if name == "mean_environments" else load
        return statistics.mean(part * base(run) + math.sqrt(part) * (getattr(run, name) - base(run)) for run in runs)

    for name in ("mean_concurrency", "peak_concurrency", "mean_environments", "cold_starts"):
        true = getattr(whole, name)
        plain = part * statistics.mean(getattr(run, name) for run in runs)
        if name == "mean_concurrency":
            tell(f"1/{part:<5} {name:20} plain {error(plain, true)}")
            continue
        # Environments and cold starts follow the highest peak, so they stand above the load as peaks do.
        tell(f"1/{part:<5} {name:20} plain {error(plain, true):22} root {error(root(name), true)}")


def account(functions: int, seed: int) -> list[float]:
    """Rates of an account's functions: most are rare, a few are most of the load."""
    rng = random.Random(seed)
    return [rng.lognormvariate(-4, 2.5) for _ in range(functions)]


def some_functions() -> None:
    """Cold starts come from rare functions: they are sampled by function, not by request."""
    seconds, rates = 1_800, account(2_000, 1)
    tell(f"\n# {len(rates):,} functions, {sum(rates):,.0f} requests a second together, {seconds} s")

    def play(chosen: list[float], seed: int) -> Summary:
        merged: list[Arrival] = []
        for index, rate in enumerate(chosen):
            rng = random.Random(f"{seed}/{index}/{rate}")
            durations = lognormal(0.2, 1, rng)
            merged += generated(steady(rate), seconds, durations, NS // 4, poisson=True, rng=rng, index=index)
        merged.sort()
        functions = [PlannedFunction(str(index)) for index in range(len(chosen))]
        request = Request(rate=1, duration_s=1, account_concurrency=ACCOUNT)
        return run(request, Source(functions, merged, seconds * NS))

    whole = play(rates, 0)
    for part in (1, 10, 100):
        cold, environments, load, strata = [], [], [], []
        for seed in range(5 if part > 1 else 1):
            chosen = random.Random(seed).sample(rates, len(rates) // part)
            found = play(chosen, 0)
            cold.append(part * found.cold_starts)
            environments.append(part * found.mean_environments)
            load.append(part * found.mean_concurrency)
            # By size: sorted by rate, each part-th, from a random one on; the largest hundredth all.
            ordered = sorted(rates, reverse=True)
            top = max(1, len(ordered) // 100)
            rest = ordered[top:][random.Random(seed).randrange(part) :: part]
            big, small = play(ordered[:top], 0), play(rest, 0)
            strata.append(
                (
                    big.cold_starts + part * small.cold_starts,
                    big.mean_environments + part * small.mean_environments,
                    big.mean_concurrency + part * small.mean_concurrency,
                )
            )
        for number, (name, values) in enumerate(
            (("cold_starts", cold), ("mean_environments", environments), ("mean_concurrency", load))
        ):
            true = getattr(whole, name)
            worst = max(abs(value - true) / true for value in values)
            worst_strata = max(abs(each[number] - true) / true for each in strata)
            tell(f"1/{part:<4} {name:20} whole {true:12,.1f}  worst of runs {worst:.1%}, by size {worst_strata:.1%}")


def windows() -> None:
    """A day's wave, simulated in windows that begin with time to fill."""
    seconds, low, high = 86_400, 2, 40
    tell(f"\n# one function, a wave from {low} to {high} a second over a day")
    whole = planned(rate=low, rate_to=high, shape="day", duration_s=0.5, init_s=0.3, seconds=seconds)
    cold = environments = 0.0
    peak = 0
    for hour in range(24):
        middle = (hour + 0.5) * 3_600
        rate = low + (high - low) / 2 * (1 - math.cos(2 * math.pi * middle / seconds))
        found = planned(rate=rate, duration_s=0.5, init_s=0.3, seconds=1_500, seed=hour)
        late = [point for point in found.timeline if point["start_s"] >= 900]
        span = sum(point["end_s"] - point["start_s"] for point in late)
        cold += sum(point["cold_starts"] for point in late) * 3_600 / span
        environments += sum(point["environments_mean"] for point in late) / len(late) / 24
        peak = max([peak, *(int(point["concurrency_peak"]) for point in late)])
    for name, value in (("cold_starts", cold), ("mean_environments", environments), ("peak_concurrency", peak)):
        true = getattr(whole, name)
        tell(f"10 of 60 minutes, {name:20} whole {true:10,.1f} windows {value:10,.1f} ({(value - true) / true:+.1%})")


if __name__ == "__main__":
    begun_s = time.monotonic()
    for chosen in sys.argv[1:] or ("thinned", "some_functions", "windows"):
        globals()[chosen]()
    tell(f"\n{time.monotonic() - begun_s:.0f} s")
