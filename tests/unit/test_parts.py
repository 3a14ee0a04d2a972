"""Samples shared out to a symmetric model and a free one: how many, which, whose votes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from crystalctl import parts
from crystalctl.analysis.ranking import counted, counts_of, differing
from crystalctl.chosen import Chosen
from crystalctl.crystal.elements import parse_formula
from crystalctl.data.statistics import Statistics
from crystalctl.execution import Options
from crystalctl.parts import FREE_VOTES, Part, numbered, plan_formulas
from crystalctl.planning import Sample
from crystalctl.sampling import REDRAWS, most_tiles
from crystalctl.symmetry.wyckoff import parse_wyckoff
from crystalctl.templating import parse_symmetry
from crystalctl.tiles import tiles

SALT = tuple(sorted(parse_wyckoff(225, "4a,4b")))
VOTES = 3.0


class Source:
    """One template for two atoms, voted for; larger cells are listed."""

    def propose(self, composition, n, *, groups=None, rows=None):
        if sorted(composition.values()) != [1, 1]:
            return []
        return [(Chosen(225, SALT, tuple(sorted(composition)), source="retrieval"), VOTES)]

    def evidence(self, composition, *, groups=None, rows=None):
        return VOTES if sorted(composition.values()) == [1, 1] else 0.0


def loaded(family: str, *, templates: dict[str, int], max_atoms: int = 20, unknown: int = 0):
    elements = tuple(z for z in range(1, 90) if z != unknown)
    known = Statistics(max_atoms=max_atoms, elements=elements, templates=templates)
    return SimpleNamespace(meta={"family": family, "statistics": known.to_dict()}, model=None)


@pytest.fixture
def plan(monkeypatch):
    """``plan_formulas`` with such a source; weights are loaded from what the test gives."""
    monkeypatch.setattr(parts, "_template_source", lambda model, templates: Source())
    monkeypatch.setattr(parts, "choose_beside", lambda: "free")
    key = f"225:{SALT[0]},{SALT[1]}"
    main = loaded("diffcsp_pp", templates={key: 5})

    def run(*formulas: str, n: int = 20, n_free: int = 2, free=None, main=main, **options):
        asked: list[str] = []

        def load(name: str):
            asked.append(name)
            return free or loaded("diffcsp", templates={})

        options = {"symmetry": None, "templates": None, "units": [1], "num_atoms": None} | options
        wanted = [parse_formula(f) for f in formulas]
        found = plan_formulas(main, load, formulas=wanted, n=n, n_free=n_free, **options)
        return numbered(found), asked

    return run


def test_a_share_of_each_formula_is_free(plan) -> None:
    (main, free), asked = plan("NaCl", "MgO")
    assert asked == ["free"]
    for name in ("NaCl", "MgO"):
        assert sum(s.label == name for s in main.samples) == 18
        assert sum(s.label == name for s in free.samples) == 2
    assert [s.number for s in (*main.samples, *free.samples)] == list(range(1, 41))
    assert len({s.stream for s in (*main.samples, *free.samples)}) == 40
    assert {s.source for s in main.samples} == {"diffcsp_pp:retrieval", "diffcsp_pp:listed"}
    assert {s.source for s in free.samples} == {"diffcsp"}
    assert all(s.template is None for s in free.samples)


def test_free_samples_have_a_fixed_part_of_the_votes(plan) -> None:
    (main, free), _ = plan("NaCl", "MgO")
    for name in ("NaCl", "MgO"):
        total = sum(s.votes for s in main.samples if s.label == name)
        assert total == pytest.approx(VOTES)
        votes = [s.votes for s in free.samples if s.label == name]
        assert votes == pytest.approx([FREE_VOTES * VOTES / 2] * 2)


@pytest.mark.parametrize("limits", [{"unknown": 12}, {"max_atoms": 1}], ids=["element", "size"])
def test_formulas_the_free_weights_do_not_know(limits: dict[str, int], plan) -> None:
    few = loaded("diffcsp", templates={}, **limits)
    found, _ = plan("MgO", free=few)
    assert [p.family for p in found] == ["diffcsp_pp"]
    assert len(found[0].samples) == 20
    if "unknown" in limits:
        (main, free), _ = plan("NaCl", "MgO", free=few)
        assert [s.label for s in main.samples] == ["NaCl"] * 18 + ["MgO"] * 20
        assert [s.label for s in free.samples] == ["NaCl"] * 2


def test_a_second_model_is_only_loaded_where_it_draws(plan, monkeypatch) -> None:
    found, asked = plan("NaCl", n_free=0)
    assert (len(found), asked) == (1, [])
    free = loaded("diffcsp", templates={})
    found, asked = plan("NaCl", main=free)  # needs no template, so none beside it
    assert (len(found), asked) == (1, [])
    assert {s.source for s in found[0].samples} == {"diffcsp"}
    monkeypatch.setattr(parts, "choose_beside", lambda: None)
    found, asked = plan("NaCl")
    assert (len(found), asked) == (1, [])


def test_listed_templates_say_so(plan) -> None:
    symmetry = parse_symmetry(["221"], None)
    (main,), _ = plan("SrTiO3", n_free=0, symmetry=symmetry)
    assert {s.source for s in main.samples} == {"diffcsp_pp:listed"}
    assert {s.votes for s in main.samples} == {0.0}


def test_automatic() -> None:
    assert Options().automatic
    assert Options(model="auto").automatic
    assert Options(model="auto").family is None
    assert not Options(model="auto", weights="x").automatic
    assert not Options(model="diffcsp_pp").automatic


def test_parts_have_tile_numbers_of_their_own() -> None:
    """However many samples of the first part are drawn again."""
    import torch

    device = torch.device("cpu")
    one = Part(None, [Sample(k, "a", "a", 2 + k % 19, k) for k in range(1, 200)])  # type: ignore[arg-type]
    whole = len(tiles(one.samples, "cpu"))
    assert most_tiles(one.samples, device) == (1 + REDRAWS) * whole
    for step in (1, 2, 3, 7):
        assert len(tiles(one.samples[::step], "cpu")) <= whole


def test_sources_as_text() -> None:
    text = counted({"diffcsp": 1, "diffcsp_pp:retrieval": 7})
    assert text == "diffcsp_pp:retrieval x7, diffcsp x1"
    assert counts_of(text) == {"diffcsp_pp:retrieval": 7, "diffcsp": 1}
    assert (counted({"": 4}), counts_of(""), counts_of("by hand")) == ("", {}, {})
    assert differing([text])
    assert differing(["diffcsp x1", "equicsp x2"])
    assert not differing(["diffcsp x1", "diffcsp x3", ""])
    assert not differing([])
