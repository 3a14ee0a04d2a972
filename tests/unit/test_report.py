"""The page of a report: whole, closed to the network, safe against what it shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystalctl.analysis.diffraction import profile, similarity, simulate
from crystalctl.analysis.powder import Pattern
from crystalctl.evaluation.page import charts, markup, scene
from crystalctl.evaluation.report import Entry, Metric, Report, Run, page_html, write_report

HOSTILE = '</script><script>alert(1)</script> "&<img src=x onerror=alert(2)> {{data}}'
VOID = {"meta", "input", "br", "img", "link", "hr"}


def perovskite(a: float = 3.905) -> Structure:
    sites = [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(a), ["Sr", "Ti", "O", "O", "O"], sites)


def entries(n: int) -> list[Entry]:
    return [
        Entry(
            rank=k + 1,
            structure=perovskite(3.8 + 0.02 * k),
            formula="SrTiO3",
            space_group="Pm-3m",
            space_group_number=221,
            file=f"{k + 1:03d}_SrTiO3_Pm-3m.cif",
            count=n - k,
        )
        for k in range(n)
    ]


class Page(HTMLParser):
    """Tags with attributes, the texts of scripts, and every tag closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if self._open and self._open[-1] == "script":
            self.scripts.append((self.tags[-1][1], text))
        elif self._open and self._open[-1] != "style":
            self.words.append(text)

    @property
    def ids(self) -> list[str]:
        return [str(attrs["id"]) for _, attrs in self.tags if "id" in attrs]

    def count(self, tag: str, **wanted: str) -> int:
        keys = {name.rstrip("_"): value for name, value in wanted.items()}
        return sum(
            t == tag and all(value in str(a.get(name, "")).split() for name, value in keys.items())
            for t, a in self.tags
        )

    def title(self) -> str:
        return next(word for word in self.words if word.startswith('{"errors"'))

    def data(self) -> dict:
        return json.loads(next(t for a, t in self.scripts if a.get("id") == "data"))


def full_report() -> Report:
    angles = np.arange(15, 80, 0.05)
    counts = 500 * profile(simulate(perovskite(), 1.54184), angles) + 40
    measured = Pattern(angles, counts, 1.54184, "scan.xy")
    likeness = similarity(measured, perovskite())
    rows = [
        replace(
            entry,
            energy_ev=-7.0 + 0.01 * entry.rank,
            e_hull_ev=0.01 * entry.rank,
            group_before="P1",
            moved_ang=0.02,
            xrd_similarity=likeness.similarity,
            xrd_scale=likeness.scale,
            extra={"rms": 0.1, "note": "x"},
        )
        for entry in entries(6)
    ]
    rows.append(Entry(rank=7, structure=None, formula="NaCl", reason="atoms closer than 0.5 Å"))
    return Report(
        title="A report",
        entries=rows,
        command="crystalctl predict",
        order="energy",
        set_aside={"not finite": 3},
        n_samples=20,
        measured=measured,
        metrics=[Metric("match rate", "higher"), Metric("RMSE", "lower")],
        runs=[Run("one", {"match rate": 0.5, "RMSE": 0.1}), Run("two", {"match rate": 0.75})],
    )


def test_every_section_is_there() -> None:
    page = Page(page_html(full_report()))
    wanted = ("comparison", "structure", "structures", "overview", "pictures", "aside")
    assert set(wanted) <= set(page.ids)
    assert sum(t == "tr" and "data-rank" in a for t, a in page.tags) == 7
    assert page.count("article", class_="card") == 6
    assert page.count("svg", class_="pattern") == 6
    text = " ".join(page.words)
    for word in ("match rate", "E hull", "XRD", "atoms closer than 0.5 Å", "rms", "20 samples"):
        assert word in text, word
    assert "0.75" in text
    assert "scan.xy" in text


def test_nothing_is_fetched_from_outside() -> None:
    html = page_html(full_report())
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base"}
        assert "src" not in attrs
        for name in ("href", "xlink:href"):
            assert re.match(r"#|\./", attrs.get(name) or "#"), attrs
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert not re.search(r"url\((?!#)", html)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", html)
    assert "default-src 'none'" in html
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_references_within_the_page_resolve() -> None:
    html = page_html(full_report())
    ids = Page(html).ids
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used <= set(ids)
    assert {"angles", "measured", "p1"} <= used


def test_the_data_are_those_of_the_structures() -> None:
    data = Page(page_html(Report("t", entries(3)))).data()
    assert [one["rank"] for one in data["scenes"]] == [1, 2, 3]
    assert set(data["elements"]) == {"8", "22", "38"}
    first = data["scenes"][0]
    # Eight corners of Sr, one Ti, and O on six faces.
    assert sorted(first["z"]) == [8] * 6 + [22] + [38] * 8
    points = np.array(first["p"]).reshape(-1, 3) / 100
    ti = points[first["z"].index(22)]
    np.testing.assert_allclose(ti, 0, atol=0.01)
    bonds = np.array(first["b"]).reshape(-1, 2)
    to_ti = [pair for pair in bonds if first["z"].index(22) in pair]
    assert len(to_ti) == 6
    edges = np.array(first["c"]).reshape(8, 3) / 100
    np.testing.assert_allclose(np.linalg.norm(edges[1] - edges[0]), 3.8, atol=0.02)


def test_text_from_outside_is_escaped() -> None:
    hostile = replace(
        entries(1)[0],
        formula=HOSTILE,
        space_group=HOSTILE,
        file="javascript:alert(1)",
        group_before=HOSTILE,
        extra={HOSTILE: HOSTILE},
    )
    broken = Entry(rank=2, structure=None, formula=HOSTILE, reason=HOSTILE)
    report = Report(
        title=HOSTILE,
        entries=[hostile, broken],
        command=HOSTILE,
        notes=[HOSTILE],
        order=HOSTILE,
        set_aside={HOSTILE: 1},
        metrics=[Metric(HOSTILE, "higher", HOSTILE)],
        runs=[Run(HOSTILE, {HOSTILE: 1.0}), Run("b", {HOSTILE: 2.0})],
    )
    page = Page(page_html(report))
    assert len(page.scripts) == 2
    assert page.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in " ".join(page.words)
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert set(links) == {"./javascript%3Aalert%281%29"}


def test_size_and_limits() -> None:
    assert len(page_html(Report("t", entries(20))).encode()) < 300_000
    page = Page(page_html(Report("t", entries(60), pictures=5)))
    assert page.count("article", class_="card") == 5
    assert sum(t == "tr" and "data-rank" in a for t, a in page.tags) == 60


def test_rows_beyond_the_limit_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crystalctl.evaluation.report.MAX_ROWS", 4)
    page = Page(page_html(Report("t", entries(10), pictures=1, files="facts.csv")))
    assert "6 more in facts.csv" in " ".join(page.words)


def test_empty_report_and_one_run() -> None:
    page = Page(page_html(Report("nothing", set_aside={"not finite": 2})))
    assert "No possible structure." in page.words
    assert page.data()["scenes"] == []
    only = Page(page_html(Report("t", metrics=[Metric("x")], runs=[Run("a", {"x": None})])))
    assert "Metrics" in only.words
    assert only.count("svg", class_="bars") == 0


def test_strange_structures_are_drawn_or_said_not_to_be() -> None:
    big = perovskite()
    big.make_supercell([5, 5, 5])
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0] * 3])
    thin = Structure(Lattice.from_parameters(3, 4, 90, 60, 110, 100), ["H"], [[0.2, 0.9999999, 0]])
    rows = [Entry(k, s, "X") for k, s in enumerate((big, mixed, thin), start=1)]
    page = Page(page_html(Report("t", rows)))
    assert [one["rank"] for one in page.data()["scenes"]] == [2, 3]
    assert "625 atoms: not drawn." in page.words


def test_metals_are_bonded_to_metals_only_among_themselves() -> None:
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.61), ["Cu"], [[0] * 3])
    drawn = scene.scene_of(copper)
    assert drawn is not None
    assert drawn.bonds
    oxide = scene.scene_of(perovskite())
    assert oxide is not None
    assert all(8 in (oxide.species[i], oxide.species[j]) for i, j in oxide.bonds)


def test_writing_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, Report("ä", entries(1)))
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_words() -> None:
    assert markup.formula("Tb1Er3O12") == "TbEr<sub>3</sub>O<sub>12</sub>"
    assert markup.formula("Ca(OH)2") == "Ca(OH)<sub>2</sub>"
    assert markup.space_group("P42/mnm", 136) == 'P4<sub>2</sub>/mnm <span class="dim">136</span>'
    assert markup.space_group("P321", 150).startswith("P321 ")
    assert markup.number(-0.0001, 2) == "0.00"
    assert markup.number(float("nan"), 2) == markup.DASH
    assert charts.ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_script_parses() -> None:
    script = Path(charts.__file__).with_name("page.js")
    subprocess.run([str(shutil.which("node")), "--check", str(script)], check=True, timeout=60)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
CLICKS = """<script>
// Without a window no frames are asked for.
window.requestAnimationFrame = (paint) => setTimeout(paint, 0);
const errors = []; window.addEventListener("error", (e) => errors.push(e.message));
window.addEventListener("securitypolicyviolation", (e) => errors.push(e.violatedDirective));
window.addEventListener("load", () => setTimeout(() => {
  const q = (x) => document.querySelector(x);
  const ranks = () => [...document.querySelectorAll("#ranked tbody tr")]
    .filter((r) => !r.hidden).map((r) => r.dataset.rank).join(" ");
  const count = () => { const c = q("#view");
    const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let n = 0; for (let i = 3; i < d.length; i += 4) if (d[i]) n++; return n; };
  const before = count(), first = ranks();
  const heads = [...document.querySelectorAll("#ranked th button")];
  const merged = heads.find((b) => b.textContent === "merged");
  merged.click(); const up = ranks(); merged.click(); const down = ranks();
  q('#ranked tr[data-rank="3"]').click(); const chosen = q("#chosen .title").textContent;
  q("[data-do=out]").click(); q("[data-do=c]").click(); q("[data-show=labels]").click();
  const filter = q("#filter"); filter.value = "004_"; filter.dispatchEvent(new Event("input"));
  setTimeout(() => { document.title = JSON.stringify(
    { errors, first, up, down, chosen, before, after: count(), left: ranks() }); }, 300);
}, 300));
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_in_a_browser(tmp_path: Path) -> None:
    html = page_html(Report("t", entries(11), pictures=4))
    page = tmp_path / "report.html"
    page.write_text(html.replace("</head>", f"{CLICKS}</head>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    shown = subprocess.run(
        [str(BROWSER), *options, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = json.loads(Page(shown).title())
    assert found["errors"] == []
    order = [str(k) for k in range(1, 12)]
    assert found["first"].split() == order
    assert found["up"].split() == order[::-1]
    assert found["down"].split() == order
    assert found["chosen"].startswith("#3 ")
    assert found["left"] == "4"
    assert found["before"] > 5000
    assert 1000 < found["after"] != found["before"]
