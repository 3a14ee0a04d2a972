"""Numbers over generated structures, alone and beside a reference: pure functions of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crystalctl.analysis.fingerprints import Array
from crystalctl.evaluation.benchmarks import Benchmark, scaled

_BLOCK = 512


@dataclass(frozen=True)
class Coverage:
    """COV-R and COV-P, and the mean smallest distances of sites (amsd) and compositions (amcd)."""

    recall: float
    precision: float
    amsd_recall: float
    amsd_precision: float
    amcd_recall: float
    amcd_precision: float
    n_generated: int
    n_reference: int
    n_without_fingerprint: int


def coverage(
    generated: Sequence[tuple[Array | None, Array | None]],
    reference: Sequence[tuple[Array | None, Array | None]],
    *,
    cutoffs: Benchmark,
) -> Coverage | None:
    """COV-R: share of references near a generated structure; COV-P: the other way round.

    Items are (site fingerprint, composition fingerprint, unscaled). Near: the smallest distance of
    site fingerprints *and* the smallest one of scaled composition fingerprints, each within its
    cut-off (they may belong to different structures). Failure policy: a generated structure without
    fingerprint is not near and stays in the denominator; a reference without one is left out. None
    when a side has no fingerprints. Ref: Sec. 5.2, arXiv:2110.06197.
    """
    ours = [(s, c) for s, c in generated if s is not None and c is not None]
    theirs = [(s, c) for s, c in reference if s is not None and c is not None]
    if not ours or not theirs:
        return None
    site_p, site_r = _nearest(np.array([s for s, _ in ours]), np.array([s for s, _ in theirs]))
    comp_p, comp_r = _nearest(
        scaled(np.array([c for _, c in ours])), scaled(np.array([c for _, c in theirs]))
    )
    near_r = (site_r <= cutoffs.site_cutoff) & (comp_r <= cutoffs.composition_cutoff)
    near_p = (site_p <= cutoffs.site_cutoff) & (comp_p <= cutoffs.composition_cutoff)
    return Coverage(
        float(near_r.mean()),
        float(near_p.sum() / len(generated)),
        float(site_r.mean()),
        float(site_p.mean()),
        float(comp_r.mean()),
        float(comp_p.mean()),
        len(generated),
        len(theirs),
        len(generated) - len(ours),
    )


def _nearest(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Smallest distance of each of ours (n, d) to theirs (m, d), and of each of theirs to ours."""
    from scipy.spatial.distance import cdist

    mine, other = np.empty(len(ours)), np.full(len(theirs), np.inf)
    for start in range(0, len(ours), _BLOCK):  # the whole table would not fit for large sets
        block = cdist(ours[start : start + _BLOCK], theirs)
        mine[start : start + _BLOCK] = block.min(axis=1)
        other = np.minimum(other, block.min(axis=0))
    return mine, other


def wasserstein(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Earth mover's distance of two samples of numbers; None when one is empty.

    The area between the two cumulative distributions. The published numbers use 1000 random valid
    structures; all valid ones are used here. Ref: Sec. 5.2, arXiv:2110.06197.
    """
    if not len(ours) or not len(theirs):
        return None
    a, b = np.sort(np.asarray(ours, dtype=float)), np.sort(np.asarray(theirs, dtype=float))
    points = np.sort(np.concatenate([a, b]))
    at = points[:-1]
    share_a = np.searchsorted(a, at, side="right") / len(a)
    share_b = np.searchsorted(b, at, side="right") / len(b)
    return float((np.abs(share_a - share_b) * np.diff(points)).sum())


def jensen_shannon(ours: Iterable[Hashable], theirs: Iterable[Hashable]) -> float | None:
    """Jensen-Shannon distance of the frequencies of two samples of labels; None for an empty one.

    Square root of the divergence with natural logarithms: 0 (equal) to 0.8326 (nothing in common).
    Labels: space group numbers; or the freedoms (0 to 3) of all occupied Wyckoff positions.
    Ref: Sec. 5, arXiv:2505.10994.
    """
    mine, other = Counter(ours), Counter(theirs)
    if not mine or not other:
        return None
    labels = list({**mine, **other})
    p = np.array([mine[x] for x in labels], dtype=float) / mine.total()
    q = np.array([other[x] for x in labels], dtype=float) / other.total()
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return float(np.sqrt(max(divergence, 0.0)))


def _relative_entropy(p: Array, q: Array) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def share(flags: Sequence[bool]) -> float:
    """Share of structures for which a test holds, 0 without structures (validity rates).

    Failure policy: a structure that cannot be read or built fails the test and stays in the
    denominator. Ref: Sec. 5.2, arXiv:2110.06197.
    """
    return sum(flags) / len(flags) if flags else 0.0


@dataclass(frozen=True)
class Novelty:
    """Shares of the judged structures: unique, novel, both; None = no reference to be new against.

    ``n_judged``: valid structures, the denominator.
    """

    unique: float
    novel: float | None
    unique_novel: float | None
    n_judged: int


def novelty(first: Mapping[int, int], known: Mapping[int, int] | None) -> Novelty:
    """Uniqueness and novelty of valid structures.

    ``first``: row -> first row that it equals (itself: unique), from StructureMatcher.fit
    (ltol=0.2, stol=0.3, angle_tol=5). ``known``: rows that match the reference, None = without.
    Failure policy: only valid structures are judged. Ref: Sec. 5, arXiv:2505.10994.
    """
    n = len(first)
    unique = {row for row, lead in first.items() if row == lead}
    if known is None:
        return Novelty(len(unique) / n if n else 0.0, None, None, n)
    new = {row for row in first if row not in known}
    if not n:
        return Novelty(0.0, 0.0, 0.0, 0)
    return Novelty(len(unique) / n, len(new) / n, len(unique & new) / n, n)


@dataclass(frozen=True)
class Templates:
    """Different templates, those the reference lacks, and these over the number of structures."""

    n_unique: int
    n_new: int | None
    unique_novel: float | None


def templates(ours: Sequence[Hashable], known: Iterable[Hashable] | None) -> Templates:
    """Unique and novel templates: a space group and how often each Wyckoff position is occupied.

    ``ours``: one of each valid structure; ``known``: those of the reference, None = without. The
    same structure described from another origin counts as another template, as published.
    Ref: Sec. 5, arXiv:2505.10994; Table 1, arXiv:2502.03638.
    """
    unique = set(ours)
    if known is None:
        return Templates(len(unique), None, None)
    new = unique - set(known)
    return Templates(len(unique), len(new), len(new) / len(ours) if ours else 0.0)
