"""The structures of prepared datasets, as the file of which ones are known.

    python tests/bench/known_file.py mp20.safetensors mp52.safetensors -o known-mp.safetensors

The shipped weights/known-*.safetensors are made like this.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from crystalctl.data.datasets import Dataset
from crystalctl.known import Known
from crystalctl.models.proposer import sequences_of


def templates(files: list[Path]) -> Iterator[tuple[list[int], list[int], dict[int, int]]]:
    for file in files:
        standard = Dataset.load(file).standard
        if standard is None:
            raise SystemExit(f"{file} has no orbits: prepare it again")
        for one in sequences_of(standard.crystals):
            yield list(one.rows), [one.elements[k][0] for k in one.kinds], dict(one.elements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    known = Known.of(templates(options.files))
    known.save(options.out)
    print(f"{len(known.structures)} structures, {len(known.formulas)} formulas: {options.out}")


if __name__ == "__main__":
    main()
