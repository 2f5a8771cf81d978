"""Times of several ways to do the same, measured side by side."""

import statistics
from collections.abc import Callable, Mapping

from ml.cost import interleaved


def medians(
    ways: Mapping[str, Callable[[], object]], repetitions: int, warm_up: bool = True
) -> dict[str, float]:
    """The median time in seconds of each way. Repetitions interleave, so that a busy machine slows all alike."""
    times = interleaved(ways, repetitions, uncounted=int(warm_up))
    return {name: statistics.median(of_way) for name, of_way in times.items()}
