"""The run folder: manifest, finished tiles while sampling, ranked structures and summaries.

``manifest.json`` is there from the first moment and names the request, so that a killed run can be
continued and one with another request is refused. All files appear whole or not at all.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from crystalctl.errors import InputError
from crystalctl.io.structures import write_atomic

MANIFEST = "manifest.json"
PARTIAL = "partial"
SUMMARY = "summary.json"
RAW = "structures.extxyz"
RANKING = "settings.json"
"""In the folder of ``relax`` and ``rank`` instead: what was asked of it."""
REPORT = "report.html"
_CELL = ("a", "b", "c", "alpha", "beta", "gamma", "density", "n_atoms")
COLUMNS = (
    *("rank", "formula", "space_group", "space_group_number"),
    *_CELL,
    *("z", "count", "source", "sample", "symprec", "file"),
)
"""Columns of summary.csv: lengths in Å, angles in degrees, density in g/cm³. Scores by which the
candidates were ranked stand before the last one."""
_PACKAGES = ("crystalctl", "torch", "numpy", "pymatgen", "spglib", "ase", "safetensors")


def default_folder(name: str, request: Mapping[str, Any] | None = None) -> Path:
    """``runs/<name>``, or the next free ``runs/<name>-2``...

    With ``request`` (a run to be resumed) the newest such folder that holds the same request.
    """
    base = Path("runs")
    taken = [base / name] if (base / name).exists() else []
    number = 2
    while taken and (base / f"{name}-{number}").exists():
        taken.append(base / f"{name}-{number}")
        number += 1
    if request is not None:
        for folder in reversed(taken):
            manifest = _read_manifest(folder)
            if manifest is not None and manifest.get("request") == _plain(request):
                return folder
    return base / f"{name}-{number}" if taken else base / name


def check_folder(folder: Path, *, resume: bool) -> None:
    """Refuse, before any work, a folder that cannot be written or holds something else.

    Raises ``InputError``. Nothing is created.
    """
    try:
        existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder ({error.strerror})") from error
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, not a folder", "choose another --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {existing}", "choose another --out")
    if not folder.exists() or set(folder.iterdir()) == set(_torn(folder)):
        return
    if not resume:
        hint = (
            "add --resume to continue it, or choose another --out"
            if (folder / MANIFEST).is_file()
            else "choose an empty or new folder"
        )
        raise InputError(f"{folder} is not empty", hint)
    if _read_manifest(folder) is None:
        raise InputError(f"{folder} is not a run of crystalctl", "choose another --out")


class RunFolder:
    """One run on disk. ``RunFolder.open`` creates or continues it."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._started = time.monotonic()

    @staticmethod
    def open(
        path: Path, request: Mapping[str, Any], *, facts: Mapping[str, Any], resume: bool
    ) -> RunFolder:
        """Create the folder, or continue one with the same request.

        ``facts`` (the command, the name of the weights) are noted, not compared.
        Raises ``InputError`` when it is taken, cannot be written, or holds another request.
        """
        check_folder(path, resume=resume)
        old = _read_manifest(path) if resume else None
        if old is not None:
            _refuse_difference(path, old.get("request", {}), _plain(request))
            run = RunFolder(path, old)
        else:
            run = RunFolder(path, _new_manifest(request, facts))
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not run.finished:
                run.manifest["sessions"] = run.manifest.get("sessions", 0) + 1
                run._save()
                run.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot write to {path} ({error.strerror})", "choose another --out"
            ) from error
        return run

    @property
    def partial(self) -> Path:
        return self.path / PARTIAL

    @property
    def finished(self) -> bool:
        """Whether the run is complete: nothing is left to do."""
        return self.manifest.get("status") == "finished"

    def save_tile(self, index: int, tensors: Mapping[str, Any]) -> None:
        """Keep the structures of one finished tile (tensors by name)."""
        from safetensors.torch import save

        write_atomic(self.partial / f"tile-{index:05d}.safetensors", save(dict(tensors)))

    def load_tile(self, index: int) -> dict[str, Any] | None:
        """Tensors of a finished tile, or None when it has still to be drawn."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load((self.partial / f"tile-{index:05d}.safetensors").read_bytes()))
        except (FileNotFoundError, SafetensorError):
            return None

    def write(self, name: str, content: str | Iterable[str]) -> None:
        """Write one file of the run, whole or not at all."""
        write_atomic(self.path / name, content)

    def write_summary(self, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Write summary.csv (one row per ranked structure) and summary.json (rows and counts)."""
        table = io.StringIO()
        known = {*COLUMNS, "members"}
        scores = list(dict.fromkeys(key for row in rows for key in row if key not in known))
        columns = [*COLUMNS[:-1], *scores, COLUMNS[-1]]
        writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("summary.csv", table.getvalue())
        self.write(SUMMARY, json.dumps({**facts, "structures": list(rows)}, indent=1) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json of a finished run."""
        try:
            found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path} is marked finished but its {SUMMARY} cannot be read",
                "remove the folder, or choose another --out",
            ) from error
        return found

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Mark the run complete and remove the tiles."""
        self.manifest["status"] = "finished"
        self.manifest["counts"] = dict(counts)
        self._stop_clock()
        self.manifest["finished"] = _now()
        self._save()
        shutil.rmtree(self.partial, ignore_errors=True)
        for file in _torn(self.path):
            file.unlink(missing_ok=True)

    def interrupted(self) -> None:
        """Note the time spent by a session that was stopped."""
        self._stop_clock()
        self._save()

    def _stop_clock(self) -> None:
        spent = self.manifest.get("seconds", 0.0) + time.monotonic() - self._started
        self.manifest["seconds"] = round(spent, 3)
        self._started = time.monotonic()

    def _save(self) -> None:
        self.write(MANIFEST, json.dumps(self.manifest, indent=1) + "\n")


def versions() -> dict[str, str]:
    """Versions of python, this package and what its results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def file_safe(text: str) -> str:
    """The text with everything but letters, digits and ``-_+.`` replaced by ``-``."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_+.") else "-" for c in text)


def _torn(folder: Path) -> list[Path]:
    """What a process killed in the middle of ``write_atomic`` left behind."""
    return list(folder.glob(".*.part"))


def _new_manifest(request: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "status": "running",
        **facts,
        "request": _plain(request),
        "versions": versions(),
        "started": _now(),
        "seconds": 0.0,
        "sessions": 0,
    }


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        found: Any = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return dict(found) if isinstance(found, dict) and "request" in found else None


def _refuse_difference(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    different = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if different:
        changes = "; ".join(
            f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}" for key in different
        )
        raise InputError(
            f"{path} was started with another request: {changes}",
            "repeat the old command with --resume, or choose another --out",
        )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _plain(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as JSON gives it back, so that it compares equal to one read from a file."""
    plain: dict[str, Any] = json.loads(json.dumps(request))
    return plain


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
