"""CHGNet as a ``Potential``: several crystals in one network call, one backward pass for all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np

from crystalctl.analysis.energy import Evaluated, failure

BATCH = {"cpu": 8}
"""Crystals in one call by kind of device: a CPU is busy with a few, an accelerator needs many."""
BATCH_ACCELERATOR = 128


class Chgnet:
    """The pretrained CHGNet, whose weights are inside its package.

    Forces and stress come from one backward pass to the fractional coordinates and the cell. The
    package's own calculator makes two, and keeps the graph for a third: it takes twice as long.
    """

    def __init__(self, device: str) -> None:
        import torch

        # It prints a greeting, which would land in the middle of --json.
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            from chgnet.model.model import CHGNet

            model = CHGNet.load(use_device=device, verbose=False)
        model.graph_converter.set_isolated_atom_response("error")
        self._model = model.eval().requires_grad_(False)
        self._device = torch.device(device)
        self.name = f"chgnet {model.version}"
        self.batch = BATCH.get(self._device.type, BATCH_ACCELERATOR)

    def evaluate(self, frames: Sequence[Any], *, gradients: bool) -> list[Evaluated | str]:
        graphs = [self._graph(frame) for frame in frames]
        usable = [i for i, graph in enumerate(graphs) if not isinstance(graph, str)]
        found: list[Evaluated | str] = list(graphs)
        try:
            answers = self._call([graphs[i] for i in usable], gradients)
        except Exception as error:
            if len(frames) == 1:
                return [failure(error)]
            # Somebody in the batch is at fault: apart, only that one fails.
            return [self.evaluate([frame], gradients=gradients)[0] for frame in frames]
        for i, answer in zip(usable, answers, strict=True):
            found[i] = answer
        return found

    def _graph(self, frame: Any) -> Any:
        """The neighbour graph of one ``ase.Atoms``, or why there is none."""
        from pymatgen.core import Lattice, Structure

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                cell = Lattice(np.array(frame.cell))
                frac = frame.get_scaled_positions(wrap=True)
                graph = self._model.graph_converter(Structure(cell, frame.numbers, frac))
            except Exception as error:
                if "isolated atom" in str(error):
                    return "atoms without neighbours within 6 Å: the cell has come apart"
                return failure(error)
        return graph.to(self._device)

    def _call(self, graphs: Sequence[Any], gradients: bool) -> list[Evaluated]:
        import torch

        if not graphs:
            return []
        counts = [len(graph.atomic_number) for graph in graphs]
        frac = [graph.atom_frac_coord for graph in graphs]
        cells = [graph.lattice for graph in graphs]
        with torch.set_grad_enabled(gradients), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer torch finds fault with the package
            energy = self._model(graphs, task="e")["e"]
            energy = energy * torch.tensor(counts, device=self._device)
        if not gradients:
            return [Evaluated(value) for value in energy.double().tolist()]
        slopes = torch.autograd.grad(energy.sum(), [*frac, *cells])
        # float64 from here on: the rest is small, and steps near the minimum are smaller still.
        return [
            _evaluated(value, *(x.detach().double().cpu().numpy() for x in parts))
            for value, *parts in zip(
                energy.double().tolist(),
                slopes[: len(cells)],
                slopes[len(cells) :],
                cells,
                strict=True,
            )
        ]


def _evaluated(energy: float, by_frac: Any, by_cell: Any, cell: Any) -> Evaluated:
    """From dE/dfrac (n, 3) and dE/dcell (3, 3) at fixed fractional coordinates, to Cartesian.

    With r = f L: dE/dr = dE/df L^-T. With L' = L (1 + e): dE/de = L^T dE/dL.
    """
    forces = -by_frac @ np.linalg.inv(cell).T
    virial = cell.T @ by_cell
    stress = (virial + virial.T) / 2 / abs(np.linalg.det(cell))
    return Evaluated(energy, forces - forces.mean(axis=0), stress)
