"""All 230 groups, two structures each: do they come out with exactly their group?

    python tests/bench/sweep_groups.py [--weights W] [--n 2] [--groups 1-230] [--each]

Generates in one run (``--each``: in one run for each group) into a temporary folder, reads every
CIF back with pymatgen, and asks spglib for its group at 0.01 and 0.001 Å: it must be the one asked
for. A supergroup at 0.1 Å is counted: it says that a structure is near to one. Prints what differs,
what was set aside, and the time; CPU seconds can be compared on a busy machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from crystalctl import generate
from crystalctl.analysis.exact import found_group

warnings.filterwarnings("ignore")
STRICT, LOOSE = (0.01, 0.001), 0.1


def drawn(groups: list[int], options: argparse.Namespace, out: Path) -> Any:
    """The result of one run over ``groups``."""
    return generate(
        spacegroup=groups,
        n=options.n * len(groups),
        steps=options.steps,
        weights=options.weights,
        out=out,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights")
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--groups", default="1-230")
    parser.add_argument("--each", action="store_true")
    options = parser.parse_args()
    first, _, last = options.groups.partition("-")
    groups = list(range(int(first), int(last or first) + 1))
    runs = [[group] for group in groups] if options.each else [groups]
    aside: Counter[str] = Counter()
    reached: Counter[int] = Counter()
    wrong, near, checking = [], 0, 0.0
    wall, cpu = time.monotonic(), time.process_time()
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            result = drawn(run, options, Path(folder) / "run")
            aside.update(result.set_aside)
            start = time.process_time()
            for candidate, row in zip(result.candidates, result.rows, strict=True):
                wanted = candidate.sample.template.group
                structure = Structure.from_file(result.folder / row["file"])
                found = [found_group(structure, symprec) for symprec in STRICT]
                reached[wanted] += 1
                near += found_group(structure, LOOSE) != wanted
                if found != [wanted] * len(STRICT):
                    wrong.append((wanted, row["file"], found))
            checking += time.process_time() - start
    cpu = time.process_time() - cpu
    print(
        f"{reached.total()} structures, {time.monotonic() - wall:.0f} s; "
        f"{cpu:.0f} s of CPU, of which {checking:.0f} s for reading and checking"
    )
    print(f"set aside: {dict(aside)}")
    print(f"groups without a structure: {[g for g in groups if not reached[g]]}")
    print(f"written with another group: {wrong}; of another group at {LOOSE} Å: {near}")


if __name__ == "__main__":
    main()
