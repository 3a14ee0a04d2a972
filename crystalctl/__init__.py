"""Crystal structure prediction and generation with diffusion models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalctl.api import generate, load_model, predict
    from crystalctl.crystal.batch import Crystals, Target
    from crystalctl.errors import CrystalctlError
    from crystalctl.evaluating import Evaluation, evaluate
    from crystalctl.execution import Result
    from crystalctl.training.run import train

__version__: str

__all__ = [
    "CrystalctlError",
    "Crystals",
    "Evaluation",
    "Result",
    "Target",
    "__version__",
    "evaluate",
    "generate",
    "load_model",
    "predict",
    "train",
]

_HOME = {
    "predict": "crystalctl.api",
    "generate": "crystalctl.api",
    "load_model": "crystalctl.api",
    "Result": "crystalctl.execution",
    "Crystals": "crystalctl.crystal.batch",
    "Target": "crystalctl.crystal.batch",
    "CrystalctlError": "crystalctl.errors",
    "train": "crystalctl.training.run",
    "evaluate": "crystalctl.evaluating",
    "Evaluation": "crystalctl.evaluating",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import crystalctl`` stays fast."""
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'crystalctl' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("crystalctl")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
