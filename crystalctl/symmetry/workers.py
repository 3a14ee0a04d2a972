"""Worker processes: started afresh, without torch, deaf to Ctrl-C, gone when their parent is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from crystalctl.errors import CrystalctlError


@contextmanager
def worker_pool(
    jobs: int, start: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """A pool of ``jobs`` processes for the length of the block; unfinished work is dropped.

    Each begins with ``start(*arguments)``, which has to call ``start_worker``, by default it alone.
    Raises ``CrystalctlError`` when a process ends unexpectedly.
    """
    # Forking a process that holds torch's threads can hang, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=start or start_worker, initargs=arguments
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise CrystalctlError(
            "a worker process ended unexpectedly (out of memory, or killed)",
            "run again with fewer processes: --jobs 1",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """What each worker does first; a worker imports this module, and so no torch."""
    # Ctrl-C is the parent's to handle; otherwise every worker prints its own traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that was killed cannot tell its workers, and they would wait for work forever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
