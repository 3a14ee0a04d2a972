"""The reverse-time loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from crystalctl.crystal.batch import Layout
from crystalctl.diffusion.noise import NoiseSource
from crystalctl.diffusion.process import Denoiser, Process, State

OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


def predictor_corrector(
    denoise: Denoiser,
    processes: Mapping[str, Process],
    state: State,
    steps: Sequence[int],
    layout: Layout,
    noise: NoiseSource,
    *,
    n_correct: int = 1,
    on_step: OnStep | None = None,
) -> State:
    """Sample from t = ``steps[0]`` down to ``steps[-1]`` = 0.

    Fields without a process stay as they are. At each t the corrector comes first, as in the
    published codes: 1 + ``n_correct`` network calls. Where the next step is higher, noise is added.
    Ref: Alg. 2, arXiv:2309.04475; arXiv:2011.13456, Alg. 1; arXiv:2306.14878, Alg. 1.
    """
    total, done = sum(s < t for t, s in pairwise(steps)), 0
    for t, s in pairwise(steps):
        if s > t:
            risen = {
                name: process.noised(state[name], t, s, layout, noise)
                for name, process in processes.items()
            }
            state = {**state, **risen}
            continue
        for _ in range(n_correct):
            out = denoise(state, t)
            moved = {
                name: process.langevin(state[name], out[name], t, layout, noise)
                for name, process in processes.items()
            }
            state = {**state, **moved}
        out = denoise(state, t)
        moved = {
            name: process.ancestral(state[name], out[name], t, s, layout, noise)
            for name, process in processes.items()
        }
        state = {**state, **moved}
        done += 1
        if on_step is not None:
            on_step(done, total)
    return state
