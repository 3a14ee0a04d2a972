"""Fingerprints: published definitions, exact numbers, and the cache."""

from __future__ import annotations

import numpy as np
import pytest
from prototypes import diamond, lonely, rock_salt
from pymatgen.analysis.local_env import CN_OPT_PARAMS, LocalStructOrderParams
from pymatgen.core import Lattice, Structure

from crystalctl.analysis import fingerprints
from crystalctl.analysis.fingerprints import (
    SITE_LENGTH,
    cached_site_fingerprint,
    composition_fingerprint,
    site_fingerprint,
    structure_key,
)
from crystalctl.evaluation.benchmarks import BENCHMARKS, benchmark, scaled


def weight(fingerprint, coordination: int) -> float:
    """The weight of a coordination number: each is followed by its order parameters."""
    start = sum(1 + len(fingerprints._MOTIFS.get(n, ())) for n in range(1, coordination))
    return float(fingerprint[start])


def test_coordination_of_textbook_structures() -> None:
    assert SITE_LENGTH == 61
    salt, carbon = site_fingerprint(rock_salt()), site_fingerprint(diamond())
    assert weight(salt, 6) == pytest.approx(1, abs=1e-3)
    assert weight(carbon, 4) == pytest.approx(1, abs=1e-3)
    octahedral = fingerprints._MOTIFS[6].index("octahedral")
    start = sum(1 + len(fingerprints._MOTIFS.get(n, ())) for n in range(1, 6))
    assert salt[start + 1 + octahedral] == pytest.approx(1, abs=1e-3)


def test_order_parameters_that_share_an_object_are_those_alone() -> None:
    """pymatgen looks at the south pole for the last order parameter of an object only."""
    rng = np.random.default_rng(3)
    for number, groups in fingerprints._crystal_nn()[1].items():
        corners = rng.normal(size=(number, 3)) + 0.05
        sites = Structure(Lattice.cubic(30), ["Na"] * (number + 1), [[0, 0, 0], *(corners / 30)])
        around = list(range(1, number + 1))
        for names, together in groups:
            found = together.get_order_parameters(list(sites), 0, indices_neighs=around)
            for name, value in zip(names, found, strict=True):
                kind, *rest = CN_OPT_PARAMS.get(number, {}).get(name, [name])
                alone = LocalStructOrderParams([kind], parameters=[rest[0] if rest else None])
                assert alone.get_order_parameters(list(sites), 0, indices_neighs=around) == [value]


def test_sparse_cells_have_one_and_dense_ones_none() -> None:
    assert not site_fingerprint(lonely()).any()
    assert site_fingerprint(Structure(Lattice.cubic(0.4), ["Na"], [[0, 0, 0]])) is None


def test_an_error_of_the_neighbour_search_is_no_fingerprint(monkeypatch) -> None:
    def fail(structure, index):
        raise ValueError("no neighbours")

    monkeypatch.setattr(fingerprints, "_site", fail)
    assert site_fingerprint(rock_salt()) is None


def test_magpie_statistics_by_hand() -> None:
    """TiO2: numbers 22 and 8, shares 1/3 and 2/3; the most frequent element is O."""
    found = composition_fingerprint({"Ti": 2, "O": 4})
    mean = (22 + 2 * 8) / 3
    deviation = ((22 - mean) + 2 * (mean - 8)) / 3
    assert found[:6] == pytest.approx([8, 22, 14, mean, deviation, 8])
    assert found.shape == (132,)
    assert composition_fingerprint({"Na": 1, "Cl": 1})[5] == 11, "the smallest of equal shares"


def test_unknown_properties_become_zero_after_scaling() -> None:
    raw = composition_fingerprint({"He": 1, "Kr": 1})
    assert np.isnan(raw).any()
    values = scaled(raw[None])
    assert np.isfinite(values).all()
    assert (values[0][np.isnan(raw)] == 0).all()
    assert composition_fingerprint({"Fm": 1}).shape == (132,)


def test_the_cache_gives_the_same_numbers_without_computing(tmp_path, monkeypatch) -> None:
    structure = rock_salt()
    key = structure_key(structure.lattice.matrix, structure.frac_coords, [11, 17])
    made = cached_site_fingerprint(structure, key, tmp_path)
    none = cached_site_fingerprint(
        Structure(Lattice.cubic(0.4), ["Na"], [[0, 0, 0]]), "ab" * 16, tmp_path
    )
    assert none is None
    monkeypatch.setattr(fingerprints, "site_fingerprint", lambda _: pytest.fail("computed again"))
    assert (cached_site_fingerprint(structure, key, tmp_path) == made).all()
    assert cached_site_fingerprint(structure, "ab" * 16, tmp_path) is None


def test_a_torn_file_is_made_again_and_a_locked_cache_costs_nothing(tmp_path) -> None:
    structure, key = rock_salt(), "cd" * 16
    made = cached_site_fingerprint(structure, key, tmp_path)
    (file,) = tmp_path.rglob("*.v*")
    file.write_bytes(b"1234")
    assert (cached_site_fingerprint(structure, key, tmp_path) == made).all()
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert (cached_site_fingerprint(structure, key, blocked) == made).all()


def test_keys_tell_structures_apart() -> None:
    one = rock_salt()
    key = structure_key(one.lattice.matrix, one.frac_coords, [11, 17])
    assert key == structure_key(one.lattice.matrix.copy(), one.frac_coords, np.array([11, 17]))
    assert key != structure_key(one.lattice.matrix, one.frac_coords, [17, 11])
    assert key != structure_key(one.lattice.matrix * (1 + 1e-9), one.frac_coords, [11, 17])


def test_benchmarks_by_any_spelling() -> None:
    assert benchmark("MP-20") is BENCHMARKS["mp_20"]
    assert (benchmark("perov_5").site_cutoff, benchmark("carbon24").composition_cutoff) == (0.2, 4)
    assert "MP-20" in benchmark("mpts_52").note
