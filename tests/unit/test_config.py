"""Settings: strict keys and types, --set, TOML and durations."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, replace

import pytest

from crystalctl.config import from_mapping, parse_assignments, to_toml
from crystalctl.errors import InputError
from crystalctl.training.settings import RECIPES, TrainConfig, learning_rate, parse_duration


@dataclass(frozen=True)
class Sample:
    width: int = 3
    rate: float = 0.5
    name: str = "x"
    flag: bool = False


def test_values_from_text_and_numbers():
    values = {"width": "12", "rate": "1e-3", "name": "y", "flag": "true"}
    assert from_mapping(Sample, values, where="s") == Sample(12, 1e-3, "y", True)
    got = from_mapping(Sample, {"width": 4.0, "rate": 2, "flag": True}, where="s")
    assert got == Sample(4, 2.0, "x", True)
    assert [type(v) for v in asdict(got).values()] == [int, float, str, bool]
    assert from_mapping(Sample, {"flag": "0"}, where="s").flag is False
    assert from_mapping(Sample, {}, where="s") == Sample()


@pytest.mark.parametrize(
    "values",
    [{"width": "1.5"}, {"width": "x"}, {"rate": "fast"}, {"flag": "yes!"}, {"width": "inf"}],
)
def test_wrong_types_name_setting_value_and_type(values):
    (key, value), *_ = values.items()
    with pytest.raises(InputError) as raised:
        from_mapping(Sample, values, where="s")
    kind = {"width": "int", "rate": "float", "flag": "bool"}[key]
    assert raised.value.what == f"s.{key} = {value!r} is not of type {kind}"


def test_unknown_keys_name_the_nearest():
    with pytest.raises(InputError, match=r"unknown setting s\.widht") as raised:
        from_mapping(Sample, {"widht": 1}, where="s")
    assert raised.value.hint == "did you mean s.width?"
    with pytest.raises(InputError) as raised:
        from_mapping(Sample, {"zzz": 1}, where="s")
    assert raised.value.hint == "keys: width, rate, name, flag"


def test_assignments():
    got = parse_assignments(["model.hidden=256", " train.lr = 1e-3 ", "model.task=a=b"])
    assert got == {"model": {"hidden": "256", "task": "a=b"}, "train": {"lr": "1e-3"}}
    for bad in ("lr=1", "train.lr", ".lr=1", "train.=1", ""):
        with pytest.raises(InputError, match="cannot read --set"):
            parse_assignments([bad])


def test_toml_comes_back():
    config = TrainConfig(lr=3e-4, schedule="plateau", ema=0.0)
    read = tomllib.loads(to_toml({"train": config, "model": Sample(name='a"b\\c é')}))
    assert from_mapping(TrainConfig, read["train"], where="train") == config
    assert from_mapping(Sample, read["model"], where="model") == Sample(name='a"b\\c é')


def test_recipes_are_valid():
    for recipe in RECIPES.values():
        from_mapping(TrainConfig, recipe, where="train")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("45", 45), ("1.5h", 5400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "1d", "h", "1..5h", "5 m x"])
def test_durations_that_cannot_be_read(text):
    with pytest.raises(InputError, match="cannot read the time"):
        parse_duration(text)


def test_learning_rates_at_the_ends():
    config = TrainConfig(lr=1.0, lr_min=0.1, warmup_steps=0, schedule="cosine")
    assert learning_rate(config, 0, 100, 1.0) == pytest.approx(1.0)
    assert learning_rate(config, 50, 100, 1.0) == pytest.approx(0.55)
    assert learning_rate(config, 100, 100, 1.0) == pytest.approx(0.1)
    plateau = replace(config, schedule="plateau")
    assert learning_rate(plateau, 7, 100, 0.36) == pytest.approx(0.36)
    assert learning_rate(plateau, 7, 100, 1e-6) == pytest.approx(0.1)
    constant = replace(config, schedule="constant", warmup_steps=4)
    assert [learning_rate(constant, k, 100, 1.0) for k in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_short_runs_warm_up_in_a_tenth_of_their_steps():
    config = TrainConfig(lr=1.0, warmup_steps=500, schedule="constant")
    assert learning_rate(config, 0, 20, 1.0) == pytest.approx(0.5)
    assert learning_rate(config, 1, 20, 1.0) == pytest.approx(1.0)
    assert learning_rate(config, 0, 10**6, 1.0) == pytest.approx(1 / 500)
