"""``crystalctl models``: what is shipped and what each can do."""

from __future__ import annotations

from crystalctl.cli import running, ui


def models(as_json: running.Json = False) -> None:
    """List shipped weights with their measured numbers, and what each model takes."""
    from crystalctl.checkpoint import available
    from crystalctl.models import FAMILIES

    rows = available()
    families = [
        {
            "model": name,
            "title": family.title,
            "tasks": list(family.tasks),
            "accepts": sorted(family.accepts),
            "paper": family.paper,
        }
        for name, family in FAMILIES.items()
    ]
    if as_json:
        ui.print_json({"weights": rows, "models": families})
    else:
        ui.show_models(rows, families)
