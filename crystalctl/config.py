"""Settings: frozen dataclasses, read from and written to TOML, changed with ``--set a.b=value``."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from crystalctl.errors import InputError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of dataclass ``cls`` with some fields set.

    Raises ``InputError`` naming the nearest valid key, or the type a value must have.
    """
    hints = get_type_hints(cls)
    checked = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f"did you mean {where}.{near[0]}?" if near else f"keys: {', '.join(hints)}"
            raise InputError(f"unknown setting {where}.{key}", hint)
        checked[key] = _cast(value, hints[key], f"{where}.{key}")
    return cls(**checked)


def _cast(value: Any, kind: Any, name: str) -> Any:
    if isinstance(kind, type) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[str(value).lower()]
        if kind is int and float(value) != int(float(value)):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (ValueError, KeyError, TypeError, OverflowError):
        raise InputError(f"{name} = {value!r} is not of type {kind.__name__}") from None


def parse_assignments(items: Iterable[str]) -> dict[str, dict[str, str]]:
    """``["model.hidden=256", ...]`` -> {"model": {"hidden": "256"}}."""
    found: dict[str, dict[str, str]] = {}
    for item in items:
        path, equals, value = item.partition("=")
        section, dot, key = path.strip().partition(".")
        if not (equals and dot and section and key):
            raise InputError(f"cannot read --set {item!r}", "write --set section.key=value")
        found.setdefault(section, {})[key] = value.strip()
    return found


def to_toml(sections: Mapping[str, Any]) -> str:
    """Sections of flat dataclasses as TOML text."""
    lines: list[str] = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        for key, value in dataclasses.asdict(section).items():
            lines.append(f"{key} = {json.dumps(value)}")
        lines.append("")
    return "\n".join(lines)
