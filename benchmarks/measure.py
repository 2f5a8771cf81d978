"""Times of several ways to do the same, measured side by side."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    ways: Mapping[str, Callable[[], object]], repetitions: int, warm_up: bool = True
) -> dict[str, float]:
    """The median time in seconds of each way. Repetitions interleave, so that a busy machine slows all alike."""
    if warm_up:
        for way in ways.values():
            way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repetitions):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(of_way) for name, of_way in times.items()}
