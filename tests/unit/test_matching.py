"""Duplicates, match rate by hand, and the composition gate of the benchmark."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.matching import group_duplicates, matches, rms_distance
from crystalctl.analysis.reduction import reduce_cell
from crystalctl.errors import InputError
from crystalctl.evaluation.metrics import match_rate, match_table, passes_gate, smact_valid


def salt(a: float = 5.64, cation: str = "Na") -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def caesium(cation: str = "Na") -> Structure:
    return Structure(Lattice.cubic(3.5), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_groups() -> None:
    doubled = salt().get_primitive_structure()
    doubled.make_supercell([1, 2, 1])
    structures = [
        caesium(),
        salt(),
        salt(5.7).get_primitive_structure(),
        salt(6.3, "K"),
        doubled,
        caesium(),
    ]
    seen: list[int] = []
    groups = group_duplicates(structures, on_step=lambda done, total: seen.append(done))
    assert groups == [[0, 5], [1, 2, 4], [3]]
    assert seen == [1, 2, 3, 4, 5, 6]
    assert group_duplicates([]) == []


def test_grouping_agrees_with_the_matcher() -> None:
    """Preparing cells once and comparing only equal sizes must not change any decision."""
    rng = np.random.default_rng(3)
    structures = []
    for i in range(14):
        base = salt() if i % 2 else caesium()
        if i % 3 == 0:
            base.make_supercell([2, 1, 1])
        steps = rng.normal(size=(len(base), 3))
        steps *= 0.05 * rng.integers(0, 12) / np.linalg.norm(steps, axis=1)[:, None]
        for site, step in enumerate(steps):
            base.translate_sites([site], step, frac_coords=False)
        structures.append(base)
    for i, one in enumerate(structures):
        for other in structures[:i]:
            prepared = group_duplicates([other, one])
            assert (len(prepared) == 1) is matches(other, one)


SHAKEN = [
    [0.99980487, 0.97060371, 0.01983184],
    [0.48724963, 0.52607238, 0.02037501],
    [0.50266906, 0.02594856, 0.52402146],
    [0.98985926, 0.53293498, 0.4916373],
    [0.51921459, 0.47036623, 0.50318146],
    [0.01500891, 0.97155962, 0.48505478],
    [0.98366934, 0.52246892, 0.97795597],
    [0.50959955, 0.03322257, 0.00784801],
]
"""Rock salt, displaced so far that half of it is its primitive cell seen from a Cl, not a Na."""


def test_translations_are_seen_from_the_atom_that_pymatgen_takes() -> None:
    shaken = Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, SHAKEN)
    assert len(shaken.get_reduced_structure().get_primitive_structure()) == 4
    numbers = [site.specie.Z for site in shaken]
    assert len(reduce_cell((shaken.lattice.matrix, shaken.frac_coords, numbers)).numbers) == 4
    assert len(group_duplicates([salt(), shaken])) == 1 + (not matches(salt(), shaken))


def test_rms() -> None:
    assert rms_distance(salt(), salt(5.0)) == pytest.approx(0, abs=1e-6)
    assert rms_distance(salt(), caesium()) is None


RMS = [[0.1, None, 0.02], [None, 0.3, None], [None, None, None], [0.2, 0.1, 0.4]]
VALID = [[True, True, False], [True, False, True], [True] * 3, [True] * 3]
TRUTH = [True, True, True, False]


def test_match_rate_by_hand() -> None:
    one = match_rate(RMS)
    assert (one.n_matched, one.n_total, one.match_rate) == (2, 4, 0.5)
    assert one.rmse == pytest.approx((0.1 + 0.2) / 2)
    three = match_rate(RMS, k=3)
    assert three.match_rate == 0.75
    assert three.rmse == pytest.approx((0.02 + 0.3 + 0.1) / 3)


def test_gates_by_hand() -> None:
    both = match_rate(RMS, gate="both", prediction_valid=VALID, reference_valid=TRUTH)
    assert (both.match_rate, both.rmse) == (0.25, pytest.approx(0.1))
    many = match_rate(RMS, k=3, gate="prediction", prediction_valid=VALID)
    assert many.match_rate == 0.5
    assert many.rmse == pytest.approx((0.1 + 0.1) / 2)


def test_no_match_and_wrong_use() -> None:
    assert match_rate([[None]]).rmse is None
    assert match_rate([]).match_rate == 0.0
    with pytest.raises(InputError, match="needs the validity"):
        match_rate(RMS, gate="prediction")
    with pytest.raises(InputError, match="each reference"):
        match_rate(RMS, gate="both", prediction_valid=VALID)
    with pytest.raises(InputError, match="k is 0"):
        match_rate(RMS, k=0)


def test_table_keeps_broken_predictions() -> None:
    table = match_table([[None, salt()], [caesium()]], [salt(), salt()])
    assert table == [[None, pytest.approx(0, abs=1e-6)], [None]]
    assert match_rate(table, k=2).match_rate == 0.5


GATE = {
    ("Na", 1, "Cl", 1): True,
    ("Na", 1, "Cl", 2): False,
    ("Na", 2, "Cl", 2): True,
    ("Fe", 1, "Ni", 3): True,  # alloys pass
    ("Si", 8): True,  # elements pass
    ("Ca", 1, "O", 5): False,
    ("He", 1, "O", 1): False,  # helium has no oxidation state
    ("Pm", 2, "O", 3): True,  # no electronegativity: passes
    ("Pm", 1, "Cu", 2, "Sn", 1): False,  # the same, but copper and tin are tested first
    ("Pm", 1, "Y", 1, "Ir", 2): False,  # the same, after two cations of which one is unknown
    ("Zr", 1, "O", 2): True,
    # Only as Zr(4+) Na(-)3 H(-), which needs zirconium (0.33, not 1.33) below sodium (0.93).
    ("Zr", 1, "Na", 3, "H", 1): True,
}


@pytest.mark.parametrize("composition", GATE)
def test_smact_gate(composition: tuple) -> None:
    pytest.importorskip("smact")
    counts = dict(zip(composition[::2], composition[1::2], strict=True))
    assert smact_valid(counts) is GATE[composition]


def test_pauling_order_decides() -> None:
    """Both are neutral, but only fluorine is more electronegative than oxygen."""
    from crystalctl.analysis import charges

    assert charges._neutral([(1, 3.44, [2]), (2, 3.98, [-1])], 0, ())
    assert not charges._neutral([(1, 3.44, [-2]), (2, 3.98, [1])], 0, ())
    assert charges._neutral([(1, None, [-2]), (2, 3.98, [1])], 0, ())


def test_search_agrees_with_all_combinations() -> None:
    """The pruned search against the plain product the benchmark runs over."""
    pytest.importorskip("smact")
    import itertools

    from crystalctl.analysis import charges

    def plain(counts: dict[str, int]) -> bool:
        facts = [charges._element_facts(s) for s in counts]
        amounts = list(counts.values())
        for states in itertools.product(*(f[0] for f in facts)):
            if sum(s * n for s, n in zip(states, amounts, strict=True)):
                continue
            ions = [(s, f[1]) for s, f in zip(states, facts, strict=True)]
            if all(charges._pauling(a, b) for a, b in itertools.combinations(ions, 2)):
                return True
        return False

    rng = np.random.default_rng(0)
    symbols = ["O", "S", "F", "N", "C", "Si", "P", "H", "Zr", "Fe", "Ti", "Ir", "Cl", "Mn"]
    answers = []
    for _ in range(150):
        chosen = ["O", *rng.choice(symbols[1:], 2, replace=False)]
        counts = {str(s): int(n) for s, n in zip(chosen, rng.integers(1, 5, 3), strict=True)}
        if np.gcd.reduce(list(counts.values())) > 1:
            continue
        answers.append(plain(counts))
        assert smact_valid(counts) is answers[-1], counts
    assert 10 < sum(answers) < len(answers) - 10


def test_gate_on_structures() -> None:
    pytest.importorskip("smact")
    assert passes_gate(salt())
    squeezed = salt()
    squeezed.scale_lattice(0.5)
    assert not passes_gate(squeezed)


def test_without_smact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smact", None)
    with pytest.raises(InputError, match="smact") as caught:
        smact_valid({"Kr": 3, "Xe": 7})
    assert "crystalctl[evaluate]" in caught.value.hint
