"""Weights files that cannot be used are refused with the reason; nothing is ever unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from strategies import random_crystals, tiny_model, write_dataset

from crystalctl import checkpoint
from crystalctl.checkpoint import describe, load_model, read_file, resolve, write_file
from crystalctl.errors import DataError, WeightsError
from crystalctl.training.run import _datasets


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "good.safetensors")


def write_weights(path: Path, **changes: Any) -> Path:
    model = tiny_model("diffcsp", "predict", random_crystals())
    header = {"kind": "weights", **describe(model, "diffcsp"), **changes}
    write_file(path, header, {name: p.detach() for name, p in model.named_parameters()})
    return path


def test_what_was_written_is_read(good):
    header, tensors = read_file(good)
    assert header["kind"] == "weights"
    assert header["version"] == checkpoint.FORMAT_VERSION
    loaded = load_model(str(good), task="predict", family="diffcsp")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, tensors[name])
    assert len(loaded.sha256) == 64
    assert not [p for p in good.parent.iterdir() if p.suffix == ".part"]


def test_export_ships_bf16_with_its_own_sampling_settings(good, tmp_path):
    target = tmp_path / "shipped.safetensors"
    digest = checkpoint.export(good, target, config={"sample_steps": 3}, data="ten crystals")
    loaded = load_model(str(target), task="predict")
    assert (loaded.sha256, loaded.meta["data"]) == (digest, "ten crystals")
    assert loaded.model.config.sample_steps == 3
    kept, exported = read_file(good)[1], read_file(target)[1]
    for name, tensor in exported.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), kept[name], rtol=2**-8, atol=0)


def test_half_precision_weights_load_as_single(tmp_path):
    model = tiny_model("diffcsp", "predict", random_crystals())
    path = tmp_path / "half.safetensors"
    header = {"kind": "weights", **describe(model, "diffcsp")}
    write_file(path, header, {n: p.detach().half() for n, p in model.named_parameters()})
    loaded = load_model(str(path), task="predict").model
    for mine, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert theirs.dtype == torch.float32
        assert torch.allclose(mine, theirs, atol=1e-3)


def foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def foreign_with_text(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"crystalctl": "not json"})


def foreign_with_list(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path, {"crystalctl": "[1]"})


def pickled(path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (path.with_name("exploded"),))

    path.write_bytes(pickle.dumps(Bomb()))


def torch_saved(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def truncated(path: Path) -> None:
    write_weights(path)
    path.write_bytes(path.read_bytes()[:-100])


def header_cut(path: Path) -> None:
    write_weights(path)
    path.write_bytes(path.read_bytes()[:50])


def without_config(path: Path) -> None:
    text = json.dumps({"kind": "weights", "version": checkpoint.FORMAT_VERSION})
    save_file({"weight": torch.zeros(3)}, path, {"crystalctl": text})


def other_shapes(path: Path) -> None:
    model = tiny_model("diffcsp", "predict", random_crystals())
    header = {"kind": "weights", **describe(model, "diffcsp")}
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    tensors["input.weight"] = torch.zeros(2, 2)
    write_file(path, header, tensors)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign, "no crystalctl weights"),
        (foreign_with_text, "cannot be read as weights"),
        (foreign_with_list, "no crystalctl weights"),
        (pickled, "cannot be read as weights"),
        (torch_saved, "cannot be read as weights"),
        (truncated, "cannot be read as weights"),
        (header_cut, "cannot be read as weights"),
        (lambda path: path.write_bytes(b""), "cannot be read as weights"),
        (lambda path: path.write_text("hello"), "cannot be read as weights"),
        (lambda path: write_dataset(path), "no crystalctl weights"),
        (without_config, "damaged: its description lacks config, family"),
        (other_shapes, "does not fit its own description"),
        (lambda path: write_weights(path, version=99), "weights format 99"),
        (lambda path: write_weights(path, family="magic"), "unknown family magic"),
        (lambda path: write_weights(path, kind="training state"), "training state, not weights"),
    ],
)
def test_files_that_are_not_weights_are_refused(tmp_path, make, message):
    path = tmp_path / "file.safetensors"
    make(path)
    with pytest.raises(WeightsError, match=message) as raised:
        load_model(str(path), task="predict")
    assert str(path) in raised.value.what
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_task_or_family(good, monkeypatch):
    with pytest.raises(WeightsError, match="weights to predict, not to generate") as raised:
        load_model(str(good), task="generate")
    assert "crystalctl predict" in raised.value.hint
    with pytest.raises(WeightsError, match="diffcsp weights, not symat") as raised:
        load_model(str(good), task="predict", family="symat")
    assert "--model diffcsp" in raised.value.hint


def test_missing_weights_name_what_is_shipped(tmp_path, monkeypatch):
    rows = [{"name": "shipped-one", "file": "one.safetensors"}]
    monkeypatch.setattr(checkpoint, "available", lambda: rows)
    with pytest.raises(WeightsError, match="no weights called") as raised:
        resolve(str(tmp_path / "none.safetensors"))
    assert "shipped-one" in raised.value.hint
    assert resolve("shipped-one").name == "one.safetensors"
    with pytest.raises(WeightsError):
        resolve(str(tmp_path))  # a folder without best.safetensors


def test_weights_are_no_dataset(good):
    with pytest.raises(DataError, match="not a prepared dataset"):
        _datasets(good, None, 0)


def test_an_interrupted_write_leaves_the_old_file(good, monkeypatch):
    before = good.read_bytes()

    def fails(path: Path, content: bytes) -> None:
        with path.open("wb") as handle:
            handle.write(content[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OSError, match="disk full"):
        write_file(good, {"kind": "weights"}, {"a": torch.zeros(1)})
    assert good.read_bytes() == before
    assert [p.name for p in good.parent.iterdir()] == [good.name]


def test_a_name_too_long_for_a_file_is_no_weights():
    with pytest.raises(WeightsError, match="no such file and no such name"):
        resolve("a" * 300)
