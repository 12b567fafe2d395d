"""Rows of measured claims, and how they are shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A figure and its target; `at_least` says on which side of the target it should be."""

    figure: str
    value: float
    target: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"| {self.figure} | {self.value:.3g} | {sign} {self.target:g} | {'met' if self.met else '**missed**'} |"


HEADER = "| figure | measured | target | |\n|---|---|---|---|"


def show(rows: list[Row]) -> None:
    """Print rows as a table, as they come."""
    for row in rows:
        print(row, flush=True)
