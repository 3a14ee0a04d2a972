"""crystalctl models and the global flags."""

from __future__ import annotations

import json
import os
import re

import pytest


@pytest.mark.usefixtures("fake_model")
def test_models(run_cli) -> None:
    done = run_cli("models")
    assert done.code == 0
    for text in ("fake-predict *", "1.23 M", "DiffCSP", "arXiv:2309.04475"):
        assert text in done.out
    assert re.search(r"^fake-predict +mp_20 match_rate_k1 +0\.5 *$", done.out, re.MULTILINE)


@pytest.mark.usefixtures("fake_model")
def test_models_json(run_cli) -> None:
    found = json.loads(run_cli("models", "--json").out)
    assert found["weights"][0]["name"] == "fake-predict"
    assert "composition" in found["models"][0]["accepts"]


def test_version(run_cli) -> None:
    import crystalctl

    assert run_cli("--version").out.strip() == f"crystalctl {crystalctl.__version__}"


def test_unknown_command(run_cli) -> None:
    done = run_cli("predcit")
    assert done.code == 2
    assert "predcit" in done.err


def test_public_names() -> None:
    import crystalctl

    assert {getattr(crystalctl, name) is not None for name in crystalctl.__all__} == {True}
    with pytest.raises(AttributeError):
        crystalctl.nothing  # noqa: B018


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_threads_do_not_wait_busily_unless_told_to(run_cli, monkeypatch, policy) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    run_cli("--version")
    assert os.environ.get("GOMP_SPINCOUNT") == (None if policy else "10000")
