"""Annealing of the confidence threshold: the bar that a candidate must pass in iteration k = 0, 1, ...

A schedule is a pure function of k. All but the list start high and never rise; the run ends when there is no next
threshold (or earlier, by the other rules of termination).
"""

import math
from dataclasses import dataclass
from typing import TypeAlias

# Computed thresholds are rounded to this many decimals: 0.5 - 2 * 0.1 is 0.3 and not 0.30000000000000004, and the last
# bit of a platform's cos or pow cannot change a content key.
_DECIMALS = 12


@dataclass(frozen=True)
class ListSchedule:
    """The thresholds as listed, one an iteration, at least one. They may rise: TAO's own notebook does so."""

    thresholds: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """The lowest threshold of any iteration."""
        return min(self.thresholds)

    def threshold(self, iteration: int) -> float:
        """The threshold of `iteration`, which must be below the length of the list."""
        return self.thresholds[iteration]

    def ends_after(self, iteration: int) -> bool:
        """Whether the list is exhausted after `iteration`."""
        return iteration + 1 >= len(self.thresholds)


@dataclass(frozen=True)
class StepSchedule:
    """`drop` (> 0) less after `every` (>= 1) iterations, down to `floor` (<= `start`)."""

    start: float
    drop: float
    every: int
    floor: float

    @property
    def lowest(self) -> float:
        """The lowest threshold of any iteration: the floor."""
        return self.floor

    def threshold(self, iteration: int) -> float:
        """`max(floor, start - drop * (iteration // every))`."""
        return _between(self.floor, self.start - self.drop * (iteration // self.every), self.start)

    def ends_after(self, iteration: int) -> bool:
        """Whether `iteration` is at the floor."""
        return self.threshold(iteration) <= self.lowest


@dataclass(frozen=True)
class ExponentialSchedule:
    """The threshold of the iteration before times `gamma` (in (0, 1)), down to `floor` (<= `start`)."""

    start: float
    gamma: float
    floor: float

    @property
    def lowest(self) -> float:
        """The lowest threshold of any iteration: the floor."""
        return self.floor

    def threshold(self, iteration: int) -> float:
        """`max(floor, start * gamma ** iteration)`."""
        return _between(self.floor, self.start * self.gamma**iteration, self.start)

    def ends_after(self, iteration: int) -> bool:
        """Whether `iteration` is at the floor."""
        return self.threshold(iteration) <= self.lowest


@dataclass(frozen=True)
class CosineSchedule:
    """Half a cosine from `start` to `floor` (<= `start`): slow, fast, slow, and at the floor in the last iteration.

    The shape is that of SGDR's learning rate (Loshchilov and Hutter, ICLR 2017, equation 5). One iteration (of
    `iterations` >= 1) is `start` alone and never sees the floor.
    """

    start: float
    floor: float
    iterations: int

    @property
    def lowest(self) -> float:
        """The lowest threshold of any iteration: the floor, or `start` where there is one iteration."""
        return self.floor if self.iterations > 1 else self.start

    def threshold(self, iteration: int) -> float:
        """`floor + (start - floor) * (1 + cos(pi * iteration / (iterations - 1))) / 2`, and the lowest ever after."""
        if iteration + 1 >= self.iterations:
            return self.lowest
        share = (1 + math.cos(math.pi * iteration / (self.iterations - 1))) / 2
        return _between(self.floor, self.floor + (self.start - self.floor) * share, self.start)

    def ends_after(self, iteration: int) -> bool:
        """Whether `iteration` is the last, or at the floor already."""
        return self.threshold(iteration) <= self.lowest


Schedule: TypeAlias = ListSchedule | StepSchedule | ExponentialSchedule | CosineSchedule


def _between(floor: float, value: float, start: float) -> float:
    return min(start, max(floor, round(value, _DECIMALS)))
