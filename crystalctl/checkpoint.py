"""Weights files: one .safetensors with the weights and, as JSON, all it takes to rebuild the model.

Nothing is ever unpickled. Reading the index of shipped weights loads no network library.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crystalctl.errors import WeightsError
from crystalctl.models import TRAINABLE, serves

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to sample, and what its file says of it."""

    model: Any
    meta: dict[str, Any]
    sha256: str
    name: str


def weights_dir() -> Path:
    """Where the shipped weights are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_weights"
    return installed if installed.is_dir() else package.parent / "weights"


def shipped_templates() -> Path:
    """The file of known templates that predictions draw on by default."""
    return weights_dir() / "templates-mp.safetensors"


def load_proposer() -> Any:
    """The shipped template proposer, on the CPU: its search has many small steps."""
    return load_model(default_weights("propose", "proposer"), task="propose").model


@lru_cache(maxsize=1)
def _index() -> dict[str, list[dict[str, Any]]]:
    index = weights_dir() / "index.toml"
    return tomllib.loads(index.read_text()) if index.is_file() else {}


def available() -> list[dict[str, Any]]:
    """Rows of the index of shipped weights, in its order."""
    return _index().get("weights", [])


def hull_file(wish: str | Path | None, calculator: str) -> Path | None:
    """The file of reference energies that a ``wish`` names: a shipped one, or its path.

    Without a wish the shipped one that is of the ``calculator``, if there is one.
    """
    for row in _index().get("hulls", []):
        same = row["calculator"].split()[0] == calculator.split()[0]
        if same if wish is None else str(wish) == row["name"]:
            return weights_dir() / str(row["file"])
    return None if wish is None else Path(wish)


def known_file() -> Path | None:
    """The shipped file of what databases hold, see ``known.py``."""
    return next((weights_dir() / str(row["file"]) for row in _index().get("known", [])), None)


def default_weights(task: str, family: str) -> str:
    """Name of the shipped weights a family uses for ``task``; those marked default come first."""
    rows = [
        row for row in available() if row["family"] == family and serves(family, row["task"], task)
    ]
    if not rows:
        others = [r["name"] for r in available() if r["task"] == task]
        hint = f"shipped for this task: {', '.join(others)}" if others else ""
        raise WeightsError(
            f"no weights are shipped for {family} to {task}",
            hint or "train some and name them with --weights FILE",
        )
    chosen = next((row for row in rows if row.get("default")), rows[0])
    return str(chosen["name"])


def resolve(name_or_path: str) -> Path:
    """The file behind a shipped name or a path; raises ``WeightsError`` when there is none."""
    for row in available():
        if row["name"] == name_or_path:
            return weights_dir() / str(row["file"])
    path = Path(name_or_path)
    with suppress(OSError):  # a name too long to be one of a file
        if path.is_dir() and (path / "best.safetensors").is_file():
            return path / "best.safetensors"
        if path.is_file():
            return path
    names = ", ".join(row["name"] for row in available()) or "none"
    raise WeightsError(
        f"no weights called {name_or_path}: no such file and no such name", f"shipped: {names}"
    )


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of ours; raises ``WeightsError`` when it is not one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            header = json.loads((handle.metadata() or {}).get("crystalctl", "{}"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({error})",
            "weights are .safetensors files written by crystalctl train",
        ) from error
    if not isinstance(header, dict) or header.get("kind") not in {"weights", "training state"}:
        raise WeightsError(
            f"{path} holds no crystalctl weights",
            "weights are .safetensors files written by crystalctl train",
        )
    if header.get("version") != FORMAT_VERSION:
        raise WeightsError(
            f"{path} has weights format {header.get('version')}, this version reads "
            f"{FORMAT_VERSION}"
        )
    if missing := {"family", "task", "config", "statistics"} - header.keys():
        raise WeightsError(f"{path} is damaged: its description lacks {', '.join(sorted(missing))}")
    return header, tensors


def write_file(path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write in one step: whoever reads sees the old file or the whole new one."""
    from safetensors.torch import save

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps({"version": FORMAT_VERSION, **header})
    content = save({k: v.contiguous() for k, v in tensors.items()}, {"crystalctl": text})
    try:
        # Not save_file: it makes files that only their owner may read.
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def export(source: Path, target: Path, *, config: Mapping[str, Any], data: str) -> str:
    """Write weights for shipping: bf16, with a note on the ``data``; returns the sha256.

    ``config`` replaces settings that only sampling uses (``sample_steps``, ``gamma``). Tables are
    float64 and stay so.
    """
    import torch

    header, tensors = read_file(source)
    header = {**header, "config": {**header["config"], **config}, "data": data}
    compact = {
        name: tensor if tensor.dtype == torch.float64 else tensor.to(torch.bfloat16)
        for name, tensor in tensors.items()
    }
    write_file(target, header, compact)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def build(meta: Mapping[str, Any]) -> nn.Module:
    """An untrained model from the ``family``, ``config`` and ``statistics`` of a header."""
    from crystalctl.config import from_mapping
    from crystalctl.data.statistics import Statistics

    model_class = TRAINABLE[meta["family"]].load()
    config = from_mapping(model_class.Config, meta["config"], where="model")
    model: nn.Module = model_class(config, Statistics.from_dict(meta["statistics"]))
    return model


def describe(model: Any, family: str) -> dict[str, Any]:
    """The part of a header that ``build`` needs."""
    return {
        "family": family,
        "task": model.config.task,
        "config": asdict(model.config),
        "statistics": model.statistics.to_dict(),
    }


def load_model(
    name_or_path: str, *, task: str, family: str | None = None, device: Any = "cpu"
) -> LoadedModel:
    """Weights by shipped name or path, ready to sample.

    Raises ``WeightsError`` when they are missing, damaged, not ours, of another family than
    ``family`` or made for another task than ``task``.
    """
    path = resolve(name_or_path)
    meta, tensors = read_file(path)
    if meta["kind"] != "weights":
        raise WeightsError(
            f"{path} is a training state, not weights", f"use {path.parent / 'best.safetensors'}"
        )
    if meta["family"] not in TRAINABLE:
        raise WeightsError(f"{path} is of the unknown family {meta['family']}")
    if family is not None and meta["family"] != family:
        raise WeightsError(
            f"{name_or_path} are {meta['family']} weights, not {family}",
            f"use --model {meta['family']}, or other weights",
        )
    if not serves(meta["family"], meta["task"], task):
        raise WeightsError(
            f"{name_or_path} are weights to {meta['task']}, not to {task}",
            "see crystalctl models"
            if meta["task"] == "propose"
            else f"use crystalctl {meta['task']}, or other weights",
        )
    model = build(meta)
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its own description", str(error)[:200]) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LoadedModel(model.to(device).eval(), meta, digest, name_or_path)
