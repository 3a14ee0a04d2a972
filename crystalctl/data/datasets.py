"""The prepared dataset: one .safetensors file with everything training needs, packed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from crystalctl.crystal.batch import Crystals, Layout, atom_rows
from crystalctl.data.standard import Standard
from crystalctl.errors import DataError

FORMAT_VERSION = 1
SPLITS = ("", "train", "val", "test")
"""Names of the split codes 0..3; 0 means the source named none."""


@dataclass(frozen=True)
class Dataset:
    """N crystals in Niggli cells with ids, splits, cached symmetry and property columns.

    ``crystals``: packed, float32. ``ids``: N strings. ``split``: (N,) uint8, see ``SPLITS``.
    ``space_group``: (N,) uint8 group number, 0 = not found. ``wyckoff``: (A,) uint8 letter of each
    atom, 0 = a ... 25 = z, 26 = A. ``orbit``: (A,) int16 number, within its crystal, of the first
    symmetry-equivalent atom. ``properties``: name -> (N,) float32, NaN where missing. ``meta``:
    JSON-able facts (source, symprec, rows read, rejected rows with reasons).
    """

    crystals: Crystals
    ids: list[str]
    split: Tensor
    space_group: Tensor
    wyckoff: Tensor
    orbit: Tensor
    properties: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    standard: Standard | None = None
    """Conventional cells with their orbits; None in files made before they were kept."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, which: Tensor) -> Dataset:
        """Rows ``which``: (K,) int64 row numbers or an (N,) bool mask."""
        if which.dtype == torch.bool:
            which = which.nonzero().flatten()
        atoms = atom_rows(self.crystals.layout, which)
        return Dataset(
            self.crystals.index(which),
            [self.ids[i] for i in which.tolist()],
            self.split[which],
            self.space_group[which],
            self.wyckoff[atoms],
            self.orbit[atoms],
            {name: values[which] for name, values in self.properties.items()},
            self.meta,
            None if self.standard is None else self.standard.select(which, len(self)),
        )

    def labelled(self, name: str) -> Crystals:
        """The crystals with property ``name`` as labels, NaN where unknown, also if all are."""
        unknown = torch.full((len(self),), torch.nan)
        return replace(self.crystals, labels=self.properties.get(name, unknown).float())

    def save(self, path: Path | str) -> None:
        """Write the file in one step: a reader sees the old file or the new one, never half."""
        blob = [text.encode(errors="replace") for text in self.ids]
        tensors = {
            "n_atoms": self.crystals.layout.n_atoms.to(torch.int32),
            "lattice": self.crystals.lattice.float(),
            "frac": self.crystals.frac.float(),
            "species": self.crystals.species.to(torch.uint8),
            "split": self.split.to(torch.uint8),
            "space_group": self.space_group.to(torch.uint8),
            "wyckoff": self.wyckoff.to(torch.uint8),
            "orbit": self.orbit.to(torch.int16),
            "id_bytes": torch.tensor(list(b"".join(blob)), dtype=torch.uint8),
            "id_length": torch.tensor([len(b) for b in blob], dtype=torch.int32),
        }
        tensors |= {f"property.{name}": v.float() for name, v in self.properties.items()}
        tensors |= {} if self.standard is None else self.standard.tensors()
        header = {"kind": "dataset", "version": FORMAT_VERSION, **self.meta}
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        content = save(
            {k: v.contiguous() for k, v in tensors.items()}, {"crystalctl": json.dumps(header)}
        )
        try:
            # Not save_file: it makes files that only their owner may read.
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path | str) -> Dataset:
        """Read a prepared file.

        Raises ``DataError`` when it is missing, truncated, or not a prepared dataset.
        """
        path = Path(path)
        hint = "make one with: crystalctl data prepare SRC -o FILE.safetensors"
        if not path.is_file():
            raise DataError(f"no dataset file at {path}", hint)
        try:
            with safe_open(path, framework="pt") as handle:
                header = json.loads((handle.metadata() or {}).get("crystalctl", "{}"))
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, OSError) as error:
            raise DataError(f"{path} is not a prepared dataset ({error})", hint) from error
        if header.get("kind") != "dataset":
            raise DataError(f"{path} is not a prepared dataset", hint)
        if header.get("version") != FORMAT_VERSION:
            raise DataError(
                f"{path} has dataset format {header.get('version')}, this version reads "
                f"{FORMAT_VERSION}",
                "prepare it again from its source",
            )
        blob, ids, start = bytes(tensors["id_bytes"].tolist()), [], 0
        for length in tensors["id_length"].tolist():
            ids.append(blob[start : start + length].decode())
            start += length
        crystals = Crystals(
            Layout(tensors["n_atoms"].long()),
            tensors["lattice"],
            tensors["frac"],
            tensors["species"].long(),
        )
        prefix = "property."
        return Dataset(
            crystals,
            ids,
            tensors["split"],
            tensors["space_group"],
            tensors["wyckoff"],
            tensors["orbit"],
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)},
            {k: v for k, v in header.items() if k not in {"kind", "version"}},
            Standard.from_tensors(tensors),
        )
