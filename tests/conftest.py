"""One thread: the tensors are tiny, and results then do not depend on the machine's cores."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, settings
from pymatgen.symmetry.groups import SpaceGroup

# Before anything imports triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "crystalctl",
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("crystalctl")


@pytest.fixture(scope="session", autouse=True)
def _groups_are_kept():
    """pymatgen forgets a group with its last user, and making Fm-3m again takes it a second."""
    make, kept = SpaceGroup.__new__, {}

    def keep(cls, *args, **kwargs):
        found = make(cls, *args, **kwargs)
        kept[id(found)] = found
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpaceGroup, "__new__", keep)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    os.environ["OMP_NUM_THREADS"] = "1"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
