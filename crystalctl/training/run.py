"""From files and settings to a finished run: what ``crystalctl train`` calls."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crystalctl.checkpoint import read_file, resolve
from crystalctl.config import from_mapping, to_toml
from crystalctl.crystal.batch import Crystals
from crystalctl.data.datasets import SPLITS, Dataset
from crystalctl.data.statistics import Statistics
from crystalctl.errors import DataError, InputError
from crystalctl.models import TRAINABLE
from crystalctl.models.device import pick_device
from crystalctl.training.logbook import Logbook, Progress
from crystalctl.training.loop import Trainer
from crystalctl.training.parallel import begun_again, processes
from crystalctl.training.settings import RECIPES, TrainConfig, check
from crystalctl.training.store import BEST, LATEST, STATE

EMBEDDING = "network.embedding"


@dataclass(frozen=True)
class TrainResult:
    """``outcome`` is "finished", "time" or "interrupted"; ``weights`` the file to use."""

    outcome: str
    weights: Path
    step: int
    best_loss: float


def train(
    family: str,
    *,
    data: Path,
    out: Path,
    val: Path | None = None,
    recipe: str = "fast",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    max_seconds: float | None = None,
    resume: bool = False,
    init: str | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train ``family`` on a prepared dataset and write weights, state and metrics to ``out``.

    ``settings`` has the sections "train" and "model" (see ``TrainConfig`` and the family's config).
    ``init`` names weights to start from; their model settings hold unless ``settings`` says else.
    Without ``val`` the rows the dataset marks as validation are used, if any. Raises
    ``InputError`` for a request that cannot work, ``TrainingError`` when the loss is not finite.
    """
    given, tensors = ({}, None) if init is None else _start(init, family)
    config, model_config = _settings(family, recipe, settings or {}, given)
    with processes(pick_device(device)) as (group, place):
        symmetric = TRAINABLE[family].symmetric
        trained, held = _datasets(data, val, config.max_atoms)
        train_part = _form(trained, symmetric, data)
        val_part = None if held is None else _form(held, symmetric, val or data)
        if name := getattr(model_config, "property", ""):
            train_part, model_config = _labelled(trained, name, model_config)
            val_part = None if held is None else held.labelled(name)
        resume |= group.any(begun_again(), place) and (out / STATE).is_file()
        _claim(out, resume=resume, first=group.rank == 0)
        torch.manual_seed(config.seed)
        model = TRAINABLE[family].load()(
            model_config, Statistics.of(trained.crystals, train_part.layout)
        )
        if tensors is not None:
            _continue_from(model, tensors, str(init))
        logbook = Logbook(out / "metrics.jsonl", active=group.rank == 0, progress=progress)
        trainer = Trainer(
            model,
            family,
            config,
            train=train_part,
            val=val_part,
            out=out,
            device=place,
            processes=group,
            logbook=logbook,
        )
        if resume:
            trainer.resume()
        else:
            trainer.store.save(trainer.count)
        if group.rank == 0:
            _note_settings(out, family, {"train": config, "model": model_config})
        outcome = trainer.run(max_seconds)
    weights = out / (BEST if (out / BEST).is_file() else LATEST)
    return TrainResult(outcome, weights, trainer.count.step, trainer.count.best)


def _start(init: str, family: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Model settings and tensors of the weights to start from."""
    path = resolve(init)
    header, tensors = read_file(path)
    if header["family"] != family:
        raise InputError(
            f"{init} are {header['family']} weights, not {family}",
            f"use --model {header['family']}, or other weights",
        )
    if header["kind"] != "weights":
        raise InputError(f"{path} is a training state, not weights", f"use {path.parent / BEST}")
    return header["config"], tensors


def _continue_from(model: nn.Module, tensors: Mapping[str, Tensor], init: str) -> None:
    """Copy the weights over; parameters they lack keep their fresh values.

    An embedding of atomic numbers (``predict``) becomes the matrix that means the same for one-hot
    vectors (``generate``), which has a bias too.
    """
    state = model.state_dict()
    bias = f"{EMBEDDING}.bias"
    turned = f"{EMBEDDING}.weight" if bias in state and bias not in tensors else None
    for name, tensor in tensors.items():
        if name == turned:
            tensor = tensor.T
        if name not in state or state[name].shape != tensor.shape:
            raise InputError(
                f"the weights {init} do not fit these settings (at {name})",
                "leave out the --set model.* that differ from theirs",
            )
        state[name] = tensor.float()
    model.load_state_dict(state)


def _settings(
    family: str,
    recipe: str,
    sections: Mapping[str, Mapping[str, Any]],
    model: Mapping[str, Any],
) -> tuple[TrainConfig, Any]:
    """Checked settings of the run and of the model; ``model`` are settings to begin with."""
    if family not in TRAINABLE:
        raise InputError(f"unknown model {family!r}", f"choose from: {', '.join(TRAINABLE)}")
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}", f"choose from: {', '.join(RECIPES)}")
    for name in sections.keys() - {"train", "model"}:
        raise InputError(f"unknown settings section {name!r}", "use train.KEY or model.KEY")
    merged = {**RECIPES[recipe], **sections.get("train", {})}
    config = from_mapping(TrainConfig, merged, where="train")
    check(config)
    config_class = TRAINABLE[family].load().Config
    wanted = {**model, **sections.get("model", {})}
    model_config = from_mapping(config_class, wanted, where="model")
    tasks = TRAINABLE[family].tasks
    if model_config.task not in tasks:
        raise InputError(
            f"{family} has no task {model_config.task!r}", f"choose from: {', '.join(tasks)}"
        )
    return config, model_config


def _datasets(data: Path, val: Path | None, max_atoms: int) -> tuple[Dataset, Dataset | None]:
    """Training and validation structures: two files, or the split of one.

    Rows marked val or test are trained on only where a file holds nothing else. What is larger than
    all that is trained on, and so refused by the weights, is no validation structure.
    """
    dataset = _capped(Dataset.load(data), max_atoms, data)
    is_val = dataset.split == SPLITS.index("val")
    is_train = ~(is_val | (dataset.split == SPLITS.index("test")))
    trained = dataset.select(is_train) if is_train.any() else dataset
    if val is not None:
        other = _capped(Dataset.load(val), max_atoms, val)
        marked = other.split == SPLITS.index("val")
        held = other.select(marked) if marked.any() else other
    elif is_train.any() and is_val.any():
        held = dataset.select(is_val)
    else:
        return trained, None
    largest = int(trained.crystals.layout.n_atoms.max())
    able = _capped(held, largest, val or data)
    if len(able) < len(held):
        warnings.warn(
            f"{len(held) - len(able)} of {len(held)} validation structures have more than the "
            f"{largest} atoms of the largest to train on, and are left out",
            RuntimeWarning,
            stacklevel=2,
        )
    return trained, able


def _form(dataset: Dataset, symmetric: bool, path: Path) -> Crystals:
    """The crystals a family trains on: Niggli cells, or conventional ones with their orbits."""
    if not symmetric:
        return dataset.crystals
    if dataset.standard is None or len(dataset.standard.source) == 0:
        raise DataError(
            f"{path} holds no orbits, which this family needs",
            "make it again with: crystalctl data prepare SRC -o FILE.safetensors",
        )
    return dataset.standard.crystals


def _labelled(dataset: Dataset, name: str, config: Any) -> tuple[Crystals, Any]:
    """The crystals with their labels, and the config with mean and spread of the property."""
    crystals = dataset.labelled(name)
    assert crystals.labels is not None
    known = crystals.labels[crystals.labels.isfinite()].double()
    if len(known) < 2 or not known.std() > 0:
        raise DataError(
            f"{len(known)} structures have a {name!r} to learn from",
            f"columns there are: {', '.join(sorted(dataset.properties)) or 'none'}",
        )
    mean, std = float(known.mean()), float(known.std())
    return crystals, dataclasses.replace(config, property_mean=mean, property_std=std)


def _capped(dataset: Dataset, max_atoms: int, path: Path) -> Dataset:
    if max_atoms:
        dataset = dataset.select(dataset.crystals.layout.n_atoms <= max_atoms)
    if len(dataset) == 0:
        raise DataError(f"{path} has no structure to use", "see: crystalctl data info FILE")
    return dataset


def _note_settings(out: Path, family: str, sections: Mapping[str, Any]) -> None:
    (out / "config.toml").write_text(f'family = "{family}"\n\n{to_toml(sections)}')


def _claim(out: Path, *, resume: bool, first: bool) -> None:
    """Make ``out`` ours: new or empty, or holding a run to resume."""
    if resume:
        if not (out / STATE).is_file():
            raise InputError(f"nothing to resume in {out}", "run without --resume first")
        return
    if not first:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out} ({error.strerror})") from error
    torn = set(out.glob(".*.part"))  # what a run killed while writing left behind
    if set(out.iterdir()) - torn:
        raise InputError(f"{out} is not empty", "choose another --out, or add --resume")
    if not os.access(out, os.W_OK):
        raise InputError(f"cannot write to {out}")
    for file in torn:
        file.unlink(missing_ok=True)
