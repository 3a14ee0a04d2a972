"""What a generated crystal should be good at. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Goal:
    """A property and what it should be: ``direction`` minimize, maximize, or target ``value``.

    ``strength``: how hard to pull there, in units of what the weights advise; 0 does not.
    """

    property: str
    direction: str
    value: float | None = None
    strength: float = 1.0

    def distance(self, found: float) -> float:
        """How far a value is from the goal; the smaller the better."""
        if self.value is not None:
            return abs(found - self.value)
        return found if self.direction == "minimize" else -found

    def scaled(self, mean: float, std: float) -> Goal:
        """The same goal for the property in units of ``std`` around ``mean``."""
        if self.value is None:
            return self
        return replace(self, value=(self.value - mean) / std)
