"""Commands that take turns, and what is shown of two that were measured in pairs."""

import statistics
from collections.abc import Iterator, Sequence


def in_turns(labels: Sequence[str], rounds: int) -> Iterator[str]:
    """Every label once a round, and every other round in the opposite order."""
    for number in range(rounds):
        yield from labels if number % 2 == 0 else reversed(labels)


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """The quartiles of the ratio of each pair, rounded."""
    return [round(value, 3) for value in quartiles([a / b for a, b in zip(ours, theirs, strict=True)])]
