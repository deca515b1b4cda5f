"""How fast the planner simulates: one function's warm path, on one core."""

import random
import statistics
import time
from collections.abc import Callable

from figures import Figure, Promise
from lambent.plan.simulator import Simulation
from lambent.plan.workload import PlannedFunction, constant, generated, steady
from measures import Bench

NS = 1_000_000_000
RATE, SECONDS, ROUNDS = 500, 400, 5


def simulator(bench: Bench) -> list[Figure]:
    """Invocations a second of processor time, the making of random arrivals left out."""
    found = []
    for number in range(ROUNDS):
        bench.step(f"round {number + 1} of {ROUNDS}")
        stream = generated(steady(RATE), SECONDS, constant(0.1), 0, poisson=True, rng=random.Random(number))
        arrivals = list(stream)
        simulation = Simulation([PlannedFunction("f")])
        begun_s = time.process_time()
        simulation.run(iter(arrivals), SECONDS * NS)
        found.append(simulation.invocations / (time.process_time() - begun_s))
    promise = Promise("value", "higher", 150_000, 500_000)
    return [Figure("simulated invocations", "1/s", statistics.median(found), promise=promise)]


SIMULATED: dict[str, Callable[[Bench], list[Figure]]] = {"simulator": simulator}
