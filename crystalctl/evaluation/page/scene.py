"""A structure -> atoms, bonds and cell edges in the orientation of the picture, and the picture.

The same numbers feed the drawn picture and the 3-D view, which starts where the picture stands.
x points right, y up, z to the reader; Å, from the centre of the cell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_ATOMS = 300
"""Structures with more atoms in the cell are not drawn."""
_MAX_BONDED = 240
WIDTH, HEIGHT = 400, 300
_TURN_DEG, _TILT_DEG = -24.0, 14.0
_EDGE_FRAC = 0.02
_BOND_FACTOR = 1.15
_LEVELS = 3
_EDGES = [(i, j) for i in range(8) for j in range(i + 1, 8) if (i ^ j) in (1, 2, 4)]


@dataclass(frozen=True)
class Scene:
    """``species`` (n,) Z, ``points`` (n, 3), ``bonds`` (m, 2) atom numbers, ``corners`` (8, 3).

    Corner k is the origin plus a, b, c where bits 0, 1, 2 of k are set.
    """

    species: list[int]
    points: Array
    bonds: list[tuple[int, int]]
    corners: Array

    def plain(self) -> dict[str, Any]:
        """For the 3-D view, in hundredths of Å."""
        return {
            "z": self.species,
            "p": [round(x * 100) for x in self.points.ravel().tolist()],
            "b": [atom for bond in self.bonds for atom in bond],
            "c": [round(x * 100) for x in self.corners.ravel().tolist()],
        }


def scene_of(structure: Any) -> Scene | None:
    """Atoms of one cell with their images on its faces; None where there is too much to draw."""
    if len(structure) > MAX_ATOMS:
        return None
    matrix = np.asarray(structure.lattice.matrix, dtype=float)
    frac = np.asarray(structure.frac_coords, dtype=float) % 1.0
    frac = np.where(frac > 1 - 1e-4, 0.0, frac)
    numbers = [_number(site) for site in structure]
    species: list[int] = []
    points: list[Array] = []
    for z, point in zip(numbers, frac, strict=True):
        ranges = [_shifts(float(x)) for x in point]
        for shift in product(*ranges):
            species.append(z)
            points.append(point + shift)
    if len(points) > 2 * MAX_ATOMS:
        species, points = numbers, list(frac)
    turn = _orientation(matrix)
    centre = matrix.sum(axis=0) / 2
    placed = (np.array(points) @ matrix - centre) @ turn.T
    bits = np.array([[k & 1, k >> 1 & 1, k >> 2 & 1] for k in range(8)], dtype=float)
    corners = (bits @ matrix - centre) @ turn.T
    bonds = _bonds(species, placed) if len(species) <= _MAX_BONDED else []
    return Scene(species, placed, bonds, corners)


def _number(site: Any) -> int:
    """Z of a site, of its most abundant species where it is disordered."""
    best = max(site.species.items(), key=lambda item: item[1])[0]
    return int(getattr(best, "Z", 0) or 0)


def _shifts(x: float) -> tuple[int, ...]:
    if x < _EDGE_FRAC:
        return (0, 1)
    return (0, -1) if x > 1 - _EDGE_FRAC else (0,)


def _orientation(matrix: Array) -> Array:
    """Rotation (3, 3): c upwards, a to the right, then turned and tilted so that b is seen."""
    up = matrix[2] / np.linalg.norm(matrix[2])
    right = matrix[0] - (matrix[0] @ up) * up
    right /= np.linalg.norm(right)
    frame = np.stack([right, up, np.cross(right, up)])
    turn, tilt = np.radians(_TURN_DEG), np.radians(_TILT_DEG)
    around_y = np.array(
        [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
    )
    around_x = np.array(
        [[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]
    )
    return np.asarray(around_x @ around_y @ frame, dtype=float)


def _bonds(species: list[int], points: Array) -> list[tuple[int, int]]:
    """Pairs closer than 1.15 sums of covalent radii; between metals only where all are."""
    from ase.data import covalent_radii

    radii = np.array([covalent_radii[z] for z in species])
    metal = np.array([_is_metal(z) for z in species])
    distance = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    close = distance < _BOND_FACTOR * (radii[:, None] + radii[None, :])
    if not metal.all():
        close &= ~(metal[:, None] & metal[None, :])
    first, second = np.nonzero(np.triu(close, k=1))
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _is_metal(z: int) -> bool:
    from pymatgen.core import Element

    return z > 0 and bool(Element.from_Z(z).is_metal)


def radius(z: int) -> float:
    """Drawn radius in Å, between that of a ball-and-stick model and a covalent radius."""
    from ase.data import covalent_radii

    return 0.2 + 0.25 * float(covalent_radii[z])


def colour(z: int) -> str:
    """Jmol's colour of an element as #rrggbb."""
    from ase.data.colors import jmol_colors

    red, green, blue = (round(255 * float(x)) for x in jmol_colors[z])
    return f"#{red:02x}{green:02x}{blue:02x}"


def gradients(elements: Iterable[int]) -> str:
    """Shaded balls for the pictures: per element a gradient at each of three depths."""
    found = []
    for z in sorted(set(elements)):
        base = colour(z)
        light, dark = _mix(base, "#ffffff", 0.55), _mix(base, "#000000", 0.45)
        for level in range(_LEVELS):
            share = 100 - 22 * level
            stops = "".join(
                f'<stop offset="{offset}" stop-color="{shade}" '
                f'style="stop-color:color-mix(in srgb,{shade} {share}%,var(--surface))"/>'
                for offset, shade in (("0", light), (".45", base), ("1", dark))
            )
            found.append(f'<radialGradient id="e{z}-{level}" fx=".35" fy=".3">{stops}')
            found.append("</radialGradient>")
    inner = "".join(found)
    return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{inner}</defs></svg>'


def bond_styles(elements: Iterable[int]) -> str:
    """CSS for the halves of bonds, in the colours of their atoms."""
    return "".join(
        f".pic .b{z}{{stroke:{_mix(colour(z), '#000000', 0.18)}}}" for z in sorted(set(elements))
    )


def _mix(one: str, other: str, share: float) -> str:
    pairs = [(int(one[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def picture(scene: Scene, name: str) -> str:
    """The group of drawn shapes for one structure, with ``name`` as its id, 400 x 300."""
    radii = np.array([radius(z) for z in scene.species])
    low = np.minimum((scene.points - radii[:, None]).min(axis=0), scene.corners.min(axis=0))
    high = np.maximum((scene.points + radii[:, None]).max(axis=0), scene.corners.max(axis=0))
    scale = 0.94 * min(WIDTH / (high[0] - low[0]), HEIGHT / (high[1] - low[1]))
    middle = (low + high) / 2
    depth = max(float(np.ptp(scene.points[:, 2])), 1e-6)
    front = float(scene.points[:, 2].max())

    def place(point: Array) -> str:
        x, y = (point[:2] - middle[:2]) * scale
        return f"{WIDTH / 2 + x:.0f} {HEIGHT / 2 - y:.0f}"

    shapes: list[tuple[float, str]] = []
    for i, j in _EDGES:
        # In pieces, so that atoms hide what is behind them and only that.
        for start, end in pairwise(np.linspace(scene.corners[i], scene.corners[j], 4)):
            line = f'<path class="cell" d="M{place(start)}L{place(end)}"/>'
            shapes.append((float(start[2] + end[2]) / 2, line))
    for i, j in scene.bonds:
        half = (scene.points[i] + scene.points[j]) / 2
        length = 2 * float(np.linalg.norm(scene.points[i] - half))
        for atom in (i, j):
            # From within the surface: a bond to the reader must not start at the middle.
            inside = min(0.9, 1.7 * radii[atom] / max(length, 1e-6))
            end = scene.points[atom] + inside * (half - scene.points[atom])
            line = f'<path class="b{scene.species[atom]}" d="M{place(end)}L{place(half)}"/>'
            shapes.append((float(end[2] + half[2]) / 2 - 0.05, line))
    for z, point, size in zip(scene.species, scene.points, radii, strict=True):
        level = min(_LEVELS - 1, int(_LEVELS * (front - point[2]) / depth * 0.999))
        x, y = place(point).split()
        fill = f'fill="url(#e{z}-{level})"'
        shapes.append(
            (float(point[2]), f'<circle cx="{x}" cy="{y}" r="{size * scale:.1f}" {fill}/>')
        )
    shapes.sort(key=lambda item: item[0])
    width = max(1.5, 0.17 * scale)
    drawn = "".join(shape for _, shape in shapes)
    return f'<g id="{name}" class="pic" stroke-width="{width:.1f}">{drawn}</g>'
