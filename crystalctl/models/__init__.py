"""The registry of model families and template proposers. Importing it loads no network library."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Family:
    """One published method: where its class is, what a request may fix, and where it comes from.

    ``target`` is "module:Class"; ``accepts`` names the fields of a ``Target`` it honours.
    """

    target: str
    title: str
    accepts: frozenset[str]
    tasks: tuple[str, ...]
    paper: str
    symmetric: bool = False
    """Trains on conventional cells with their orbits."""
    versatile: bool = False
    """Weights trained for one of its tasks serve all of them."""

    def load(self) -> Any:
        """The model class."""
        module, name = self.target.split(":")
        return getattr(import_module(module), name)


FAMILIES: dict[str, Family] = {
    "diffcsp": Family(
        target="crystalctl.models.diffcsp:DiffCSP",
        title="DiffCSP",
        accepts=frozenset({"composition", "n_atoms", "elements", "property"}),
        tasks=("predict", "generate"),
        paper="arXiv:2309.04475",
    ),
    "diffcsp_pp": Family(
        target="crystalctl.models.diffcsp_pp:DiffCSPPlus",
        title="DiffCSP++",
        accepts=frozenset({"composition", "n_atoms", "elements", "space_group"}),
        tasks=("predict", "generate"),
        paper="arXiv:2402.03992",
        symmetric=True,
    ),
    "equicsp": Family(
        target="crystalctl.models.equicsp:EquiCSP",
        title="EquiCSP",
        accepts=frozenset({"composition", "n_atoms", "elements"}),
        tasks=("predict", "generate"),
        paper="arXiv:2512.07289",
    ),
    "symat": Family(
        target="crystalctl.models.symat:SyMat",
        title="SyMat",
        accepts=frozenset({"n_atoms", "elements", "property"}),
        tasks=("generate",),
        paper="arXiv:2307.02707",
    ),
    "sgequidiff": Family(
        target="crystalctl.models.sgequidiff:SGEquiDiff",
        title="SGEquiDiff",
        accepts=frozenset(
            {"composition", "n_atoms", "elements", "space_group", "temperature", "likeness"}
        ),
        tasks=("predict", "generate"),
        paper="arXiv:2505.10994",
        symmetric=True,
        versatile=True,
    ),
}

PROPOSERS: dict[str, Family] = {
    "proposer": Family(
        target="crystalctl.models.proposer:Proposer",
        title="Template proposer",
        accepts=frozenset({"composition", "space_group"}),
        tasks=("propose",),
        paper="",
        symmetric=True,
    ),
}
"""They propose templates for a composition; trained and stored like the families."""

TRAINABLE = FAMILIES | PROPOSERS


def serves(family: str, trained: str, task: str) -> bool:
    """Whether weights of a family, ``trained`` for one task, can do another."""
    row = TRAINABLE[family]
    return trained == task or (row.versatile and task in row.tasks)
