"""Measured powder patterns: what can be read, and which prototype they find."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.diffraction.xrd import XRDCalculator
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.diffraction import profile, similarity, simulate
from crystalctl.analysis.powder import Pattern, above_background, parse_wavelength, read_pattern
from crystalctl.errors import InputError

CU = 1.54184


def prototypes() -> dict[str, Structure]:
    make = Structure.from_spacegroup
    tetragonal, hexagonal = Lattice.tetragonal, Lattice.hexagonal
    return {
        "rutile": make(
            "P4_2/mnm", tetragonal(4.594, 2.959), ["Ti", "O"], [[0] * 3, [0.305, 0.305, 0]]
        ),
        "anatase": make(
            "I4_1/amd", tetragonal(3.785, 9.514), ["Ti", "O"], [[0] * 3, [0, 0, 0.208]]
        ),
        "zinc blende": make("F-43m", Lattice.cubic(5.409), ["Zn", "S"], [[0] * 3, [0.25] * 3]),
        "wurtzite": make(
            "P6_3mc", hexagonal(3.82, 6.26), ["Zn", "S"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]]
        ),
        "rock salt": make("Fm-3m", Lattice.cubic(5.0), ["Zn", "S"], [[0] * 3, [0.5] * 3]),
    }


def measured(structure: Structure, *, noise: float = 0.01, background: bool = True) -> Pattern:
    """A diffractometer's scan of a structure: broad peaks on a falling background with a hump."""
    angles = np.arange(10, 90, 0.02)
    counts = 1000 * profile(simulate(structure, CU, upto_deg=90), angles, fwhm_deg=0.2)
    if background:
        counts += 300 * np.exp(-angles / 25) + 100 + 60 * np.exp(-(((angles - 22) / 8) ** 2))
    counts += np.random.default_rng(0).normal(0, 1000 * noise, len(angles))
    return Pattern(angles, counts, CU)


@pytest.mark.parametrize("wavelength", [CU, 0.7093])
@pytest.mark.parametrize("name", prototypes())
def test_peaks_are_those_of_pymatgen(name: str, wavelength: float) -> None:
    structure = prototypes()[name]
    ours = simulate(structure, wavelength, upto_deg=80)
    theirs = XRDCalculator(wavelength).get_pattern(structure, two_theta_range=(0, 80))
    np.testing.assert_allclose(ours.two_theta, theirs.x, atol=1e-9)
    np.testing.assert_allclose(ours.intensity, theirs.y, atol=1e-9)


def test_peaks_of_a_triclinic_disordered_cell() -> None:
    lattice = Lattice.from_parameters(4, 5, 6, 80, 95, 105)
    sites = [[0.1, 0.2, 0.3], [0.6, 0.7, 0.75]]
    structure = Structure(lattice, [{"Na": 0.7, "K": 0.2}, "Cl"], sites)
    ours = simulate(structure, CU, upto_deg=90)
    theirs = XRDCalculator(CU).get_pattern(structure, two_theta_range=(0, 90))
    np.testing.assert_allclose(ours.intensity, theirs.y, atol=1e-9)


def test_no_scattering_factors_no_peaks() -> None:
    assert not len(simulate(Structure(Lattice.cubic(4), ["Rf"], [[0] * 3]), CU).two_theta)
    assert (
        similarity(
            measured(prototypes()["rutile"]), Structure(Lattice.cubic(4), ["Rf"], [[0] * 3])
        ).similarity
        == 0.0
    )


@pytest.mark.parametrize("strain", [(0, 0, 0), (0.02,) * 3, (-0.015,) * 3, (0.02, 0.02, -0.005)])
@pytest.mark.parametrize("name", prototypes())
def test_the_right_prototype_is_most_similar(name: str, strain: tuple[float, ...]) -> None:
    every = prototypes()
    truth = every[name]
    pattern = measured(truth)
    found = {}
    for other, structure in every.items():
        if structure.composition.reduced_formula == truth.composition.reduced_formula:
            strained = structure.copy()
            strained.apply_strain(list(strain))
            found[other] = similarity(pattern, strained)
    assert max(found, key=lambda other: found[other].similarity) == name
    if len(set(strain)) == 1:
        assert found[name].scale == pytest.approx(1 / (1 + strain[0]), abs=0.003)
        others = [x.similarity for other, x in found.items() if other != name]
        assert found[name].similarity > max(others) + 0.15


def test_equal_patterns_have_similarity_one_and_none_has_more() -> None:
    every = prototypes()
    clean = measured(every["anatase"], noise=0, background=False)
    assert similarity(clean, every["anatase"]).similarity > 0.99
    assert all(0 <= similarity(clean, s).similarity <= 1 for s in every.values())


def test_a_cell_far_from_the_measured_size_is_not_accepted() -> None:
    swollen = prototypes()["rutile"]
    pattern = measured(swollen)
    swollen.apply_strain(0.12)
    assert similarity(pattern, swollen).similarity < 0.6


def test_background_is_removed_and_peaks_stay() -> None:
    pattern = measured(prototypes()["rutile"], noise=0.005)
    grid, peaks = above_background(pattern.two_theta, pattern.counts)
    clean = measured(prototypes()["rutile"], noise=0, background=False).counts / 1000
    assert peaks.max() == 1.0
    assert abs(float(np.median(peaks))) < 0.01
    high = np.interp(pattern.two_theta, grid, peaks)[clean > 0.2]
    np.testing.assert_allclose(high, clean[clean > 0.2], atol=0.08)


class TestReading:
    points = tuple((10 + 0.1 * k, 100 + 50 * (k == 20)) for k in range(60))

    @pytest.mark.parametrize(
        ("head", "form"),
        [
            ("# a comment\n", "{:.2f} {:.1f}"),
            ("Angle, Counts\n\n", "{:.2f},{:.1f}"),
            ("2theta;I\n", "{:.2f}; {:.1f}; 3.0"),
            ("! sample A\n'MoKa\n", "  {:.2f}\t{:.1f}\t1.5"),
            ("1.5406\n", "{:.3e}  {:.6E} # note"),
        ],
    )
    def test_separators_and_headers(self, tmp_path, head: str, form: str) -> None:
        path = tmp_path / "scan.dat"
        path.write_text(head + "\n".join(form.format(*p) for p in self.points) + "\n")
        self.check(read_pattern(path))

    @pytest.mark.parametrize("separator", [";", "\t", " "])
    def test_decimal_commas(self, tmp_path, separator: str) -> None:
        path = tmp_path / "scan.csv"
        rows = [f"{a:.2f}{separator}{c:.1f}".replace(".", ",") for a, c in self.points]
        path.write_text("\n".join(rows))
        self.check(read_pattern(path))

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
    def test_encodings_and_line_ends(self, tmp_path, encoding: str) -> None:
        path = tmp_path / "scan.xy"
        rows = "\r\n".join(f"{a:.2f} {c:.1f}" for a, c in self.points)
        path.write_bytes(f"Winkel in °\r\n{rows}".encode(encoding))
        self.check(read_pattern(path))

    def test_points_in_any_order_and_twice(self, tmp_path) -> None:
        path = tmp_path / "scan.xy"
        shuffled = [*reversed(self.points), *self.points]
        path.write_text("\n".join(f"{a:.2f} {c:.1f}" for a, c in shuffled))
        self.check(read_pattern(path))

    def check(self, pattern: Pattern) -> None:
        np.testing.assert_allclose(pattern.two_theta, [a for a, _ in self.points], atol=1e-9)
        np.testing.assert_allclose(pattern.counts, [c for _, c in self.points], atol=1e-9)
        assert pattern.wavelength == CU

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "holds no numbers"),
            (b"no numbers\nat all\n", "holds no numbers"),
            (b"1\n2\n3\n", "one column"),
            (b"10 1\n11 2\n12 3\n", "3 points, at least 10"),
            (b"10 1\n10.1 2\nthe end\n", "line 3 is not two numbers: 'the end'"),
            (b"10 1\n10.1\n", "line 2 has one number"),
            ("\n".join(f"{k} 5" for k in range(5, 100)).encode(), "every 1°"),
            ("\n".join(f"{k / 10} 5" for k in range(100)).encode(), "same counts"),
            ("\n".join(f"{k / 10} {-k % 7 - 9}" for k in range(100)).encode(), "no positive"),
            ("\n".join(f"{170 + k} 5" for k in range(20)).encode(), "0 to 180"),
            ("\n".join(f"{170 + k / 10} nan" for k in range(20)).encode(), "0 points"),
            (b"RAW1.01\0\0\0", "binary"),
        ],
    )
    def test_refusals(self, tmp_path, content: bytes, says: str) -> None:
        path = tmp_path / "scan.xy"
        path.write_bytes(content)
        with pytest.raises(InputError) as refused:
            read_pattern(path)
        assert says in f"{refused.value.what} {refused.value.hint}"
        assert refused.value.hint

    def test_missing_file(self, tmp_path) -> None:
        with pytest.raises(InputError, match="cannot read"):
            read_pattern(tmp_path / "none.xy")


def test_wavelengths() -> None:
    assert parse_wavelength("cuka") == CU
    assert parse_wavelength("MoKa1") == 0.7093
    assert parse_wavelength("1.2") == 1.2
    for wrong in ("Copper", "15406", "0", "nan"):
        with pytest.raises(InputError, match=r"wavelength") as refused:
            parse_wavelength(wrong)
        assert "CuKa" in refused.value.hint
