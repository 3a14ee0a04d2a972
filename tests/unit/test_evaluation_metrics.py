"""Metrics of prediction, generation and stability against hand-made numbers and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import wasserstein_distance

from crystalctl.analysis.fingerprints import SITE_LENGTH
from crystalctl.errors import InputError
from crystalctl.evaluation.benchmarks import BENCHMARKS, scaled
from crystalctl.evaluation.generation import (
    coverage,
    jensen_shannon,
    novelty,
    share,
    templates,
    wasserstein,
)
from crystalctl.evaluation.pairing import Side, pair
from crystalctl.evaluation.prediction import corrected_rmse, metre
from crystalctl.evaluation.stability import stable_rate, sun_rate


def test_metre_by_hand() -> None:
    found = metre([0.1, None, 0.3, None])
    assert (found.metre, found.n_matched, found.n_total) == (0.5, 2, 4)
    assert found.crmse == pytest.approx((0.1 + 0.3 + 2 * 0.5) / 4)
    assert found.rmse == pytest.approx(0.2)
    assert metre([]).metre == 0
    assert metre([None]).rmse is None


def test_corrected_rmse_takes_the_best_of_k() -> None:
    table = [[0.4, 0.1], [None, 0.2], [None, None]]
    assert corrected_rmse(table, 1) == pytest.approx((0.4 + 0.5 + 0.5) / 3)
    assert corrected_rmse(table, 2) == pytest.approx((0.1 + 0.2 + 0.5) / 3)


def test_wasserstein_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for n, m in [(1, 1), (5, 3), (40, 70)]:
        a, b = rng.normal(size=n), rng.integers(0, 4, m).astype(float)
        assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b), abs=1e-12)
    assert wasserstein([], [1.0]) is None


def test_jensen_shannon_agrees_with_scipy() -> None:
    ours, theirs = [1, 1, 2, 225], [225, 225, 1, 62, 62]
    p = np.array([2, 1, 1, 0]) / 4
    q = np.array([1, 0, 2, 2]) / 5
    assert jensen_shannon(ours, theirs) == pytest.approx(float(jensenshannon(p, q)), abs=1e-12)
    assert jensen_shannon([1], [2]) == pytest.approx(math.sqrt(math.log(2)))
    assert jensen_shannon([3, 3], [3]) == 0
    assert jensen_shannon([], [1]) is None


def test_coverage_is_the_published_formula() -> None:
    """Many random fingerprints, more than one block, against the formula written out."""
    rng = np.random.default_rng(1)
    ours = [(rng.random(SITE_LENGTH) * 0.1, rng.random(132) * 60) for _ in range(700)]
    theirs = [(rng.random(SITE_LENGTH) * 0.1, rng.random(132) * 60) for _ in range(40)]
    cut = BENCHMARKS["perov_5"]
    site = cdist([s for s, _ in ours], [s for s, _ in theirs])
    comp = cdist(scaled(np.array([c for _, c in ours])), scaled(np.array([c for _, c in theirs])))
    found = coverage(ours + [(None, np.zeros(132))] * 50, theirs, cutoffs=cut)
    near = (site.min(1) <= cut.site_cutoff) & (comp.min(1) <= cut.composition_cutoff)
    assert found.precision == pytest.approx(near.sum() / 750)
    near = (site.min(0) <= cut.site_cutoff) & (comp.min(0) <= cut.composition_cutoff)
    assert found.recall == pytest.approx(near.mean())
    assert found.amsd_precision == pytest.approx(site.min(1).mean())
    assert found.amcd_recall == pytest.approx(comp.min(0).mean())
    assert (found.n_generated, found.n_without_fingerprint) == (750, 50)


def test_coverage_takes_both_distances_and_both_sides() -> None:
    site, comp = np.zeros(SITE_LENGTH), np.zeros(132)
    far = site + 1
    cut = BENCHMARKS["mp_20"]
    # The near site and the near composition may belong to different structures.
    found = coverage([(site, comp + 1e5), (far, comp)], [(site, comp)], cutoffs=cut)
    assert (found.recall, found.precision) == (1, 0)
    assert coverage([], [(site, comp)], cutoffs=cut) is None
    assert coverage([(None, comp)], [(site, comp)], cutoffs=cut) is None


def test_novelty_and_templates() -> None:
    found = novelty({0: 0, 2: 0, 3: 3, 7: 7}, {3: 11})
    assert (found.unique, found.novel, found.unique_novel) == (0.75, 0.75, 0.5)
    assert novelty({0: 0}, None).novel is None
    assert novelty({}, {}).unique_novel == 0
    some = [(225, "ab"), (225, "ab"), (1, "a")]
    made = templates(some, [(1, "a")])
    assert (made.n_unique, made.n_new) == (2, 1)
    assert made.unique_novel == pytest.approx(1 / 3)
    assert templates(some, None).n_new is None


def test_shares() -> None:
    assert share([True, False, False, True]) == 0.5
    assert share([]) == 0


def test_sun_counts_unknown_energies_as_not_stable() -> None:
    energies = [-0.01, 0.05, None, math.nan, 0.0, 0.3]
    assert stable_rate(energies) == pytest.approx(2 / 6)
    assert stable_rate(energies, 0.1) == pytest.approx(3 / 6)
    unique, novel = [True] * 6, [True, True, True, True, False, True]
    assert sun_rate(energies, unique, novel) == pytest.approx(1 / 6)
    assert sun_rate(energies, unique, novel, within_ev=0.1) == pytest.approx(2 / 6)
    with pytest.raises(InputError, match="6 energies, 1 unique"):
        sun_rate(energies, [True], novel)


def test_pairing_by_ids_shared_by_several_predictions() -> None:
    found = pair(Side(["b", "a", "b"], ["NaCl"] * 3), Side(["a", "b"], ["NaCl", "KCl"]))
    assert (found.how, found.drawn) == ("ids", [[1], [0, 2]])


def test_pairing_by_rows_needs_formulas_that_agree() -> None:
    theirs = Side(["x", "y"], ["NaCl", "KCl"])
    assert pair(Side(["1", "2"], ["NaCl", ""]), theirs).how == "rows"
    other = pair(Side(["1", "2"], ["KCl", "NaCl"]), theirs)
    assert (other.how, other.drawn) == ("formula", [[1], [0]])


def test_pairing_by_formula_follows_the_ranks() -> None:
    ours = Side(["1", "2", "3"], ["NaCl", "NaCl", "NaCl"], [0, 2, 1])
    found = pair(ours, Side(["x", "y"], ["NaCl", "MgO"]))
    assert found.drawn == [[0, 1, 2], []]
    assert found.ranked == [[2, 1, 0], []]
    assert found.has_ranks
    assert found.overlap == 1


def test_unreadable_rows_pair_with_nothing_by_formula() -> None:
    found = pair(Side(["1"], [""]), Side(["x", "y"], ["", "NaCl"]))
    assert found.drawn == [[], []]
    assert found.overlap == 0
