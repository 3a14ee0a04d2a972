"""The operations that map a Wyckoff position onto itself, in its own free coordinates.

A position is a point, line, plane or all of space; its points are x = R u + t with R, t its first
operation and u the free ones of the three coordinates (the others are 0). A group operation that
maps this set onto itself acts on u as u -> A u + b; those that differ by a whole translation, or by
an operation that leaves every point of the set alone, act alike and count once. In these
coordinates points that differ by whole numbers are the same, and the points that a crystal cannot
tell apart are the images of one under the operations here.

Only numpy is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from crystalctl.errors import CrystalctlError
from crystalctl.symmetry.groups import operations
from crystalctl.symmetry.tables import TRANSLATION_DENOMINATOR, Floats, Ints, tables

PATH = Path(__file__).with_name("stabilisers.safetensors")
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Action:
    """How the group acts on one position: u -> A u + b, the identity first.

    ``matrix`` A (K, 3, 3) whole numbers, ``shift`` b (K, 3) in [0, 1); 0 where u is not free.
    """

    matrix: Ints
    shift: Floats

    def key(self) -> bytes:
        """Equal for positions on which the group acts alike."""
        return self.matrix.astype(np.int8).tobytes() + _whole(self.shift).tobytes()


@dataclass(frozen=True)
class Stabilisers:
    """The actions on all positions and the strength of the scores they give.

    ``kind`` (P,): number of the action of each position, of which there are Q. ``first`` (Q + 1,):
    rows of its operations in ``matrix`` (N, 3, 3) and ``shift`` (N, 3). ``metric`` (M, Q, 3, 3):
    lengths in u, the invariant one and the fractional one; 1 on the diagonal where u is not free.
    ``width`` (S,): of noise. ``strength`` (M, Q, S): mean square of the score of a wrapped normal
    of that width, times its square, for each free coordinate: 1 where nothing overlaps.
    """

    kind: Ints
    first: Ints
    matrix: Ints
    shift: Floats
    metric: Floats
    width: Floats
    strength: Floats


@cache
def stabilisers() -> Stabilisers:
    """The shipped table, which ``models/build_stabilisers.py`` makes."""
    hint = "reinstall crystalctl"
    try:
        with safe_open(PATH, framework="np") as handle:
            version = (handle.metadata() or {}).get("version")
            names = list(handle.keys())
            raw = {name: np.asarray(handle.get_tensor(name)) for name in names}
    except (SafetensorError, OSError) as error:
        raise CrystalctlError(f"the symmetry tables cannot be read ({error})", hint) from error
    if version != FORMAT_VERSION:
        raise CrystalctlError(f"{PATH} does not hold tables of this version", hint)
    return Stabilisers(
        raw["kind"].astype(np.int64),
        raw["first"].astype(np.int64),
        raw["matrix"].astype(np.int64),
        raw["shift"] / float(TRANSLATION_DENOMINATOR),
        raw["metric"].astype(np.float64),
        raw["width"].astype(np.float64),
        raw["strength"].astype(np.float64),
    )


def embedding(row: int) -> tuple[Floats, Floats, np.ndarray]:
    """R (3, 3) and t (3,) with x = R u + t for position ``row``, and which u are free (3,) bool."""
    table = tables()
    first = int(table.first_operation[row])
    rotation = table.rotation[first].astype(float)
    return rotation, table.translation[first], (rotation != 0).any(0)


def metrics(row: int) -> Floats:
    """Lengths in u of position ``row``: by the group's metric, and by fractional coordinates."""
    rotation, _, free = embedding(row)
    pad = np.diag((~free).astype(float))
    own = tables().metric[tables().group[row] - 1]
    return np.stack([rotation.T @ h @ rotation + pad for h in (own, np.eye(3))])


def action(row: int) -> Action:
    """Find how the group acts on position ``row``."""
    table = tables()
    rotation, translation, free = embedding(row)
    project = table.pull[int(table.first_operation[row])]
    off = np.eye(3) - project
    r, t = operations(int(table.group[row]))
    image = r @ rotation
    parallel = np.abs(off @ image).max((1, 2)) < 1e-9
    r, t, image = r[parallel], t[parallel], image[parallel]
    moved = r @ translation + t - translation
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    # Onto itself: what is left beside the position is a whole translation.
    beside = np.abs((moved[:, None] + steps) @ off.T).max(2)
    number = beside.argmin(1)
    onto = beside[np.arange(len(r)), number] < 1e-9
    shift = (moved + translation + steps[number])[onto]
    keep = np.diag(free.astype(float))
    matrix = np.rint(keep @ image[onto]).astype(np.int64)
    shift = np.where(free, shift, 0.0)
    whole = _whole(shift)
    every = np.concatenate([matrix.reshape(-1, 9), whole], 1)
    unique = np.sort(np.unique(every, axis=0, return_index=True)[1])
    return Action(matrix[unique], whole[unique] / float(TRANSLATION_DENOMINATOR))


def _whole(shift: Floats) -> Ints:
    """Translations in 24ths, within one cell."""
    found: Ints = np.rint(shift * TRANSLATION_DENOMINATOR).astype(np.int64)
    return found % TRANSLATION_DENOMINATOR
