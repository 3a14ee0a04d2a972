"""What a generated crystal should be good at. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Goal:
    """A property and what it should be: ``direction`` minimize, maximize, or target ``value``."""

    property: str
    direction: str
    value: float | None = None

    def scaled(self, mean: float, std: float) -> Goal:
        """The same goal for the property in units of ``std`` around ``mean``."""
        if self.value is None:
            return self
        return replace(self, value=(self.value - mean) / std)
