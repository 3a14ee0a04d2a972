"""Work as tasks of Ray: on a cluster, or in workers of this machine.

A worker that dies costs the task it had, which another one does again. What a task needs beside its
item (weights, a calculator) is sent once, and prepared once in each worker.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import islice
from types import TracebackType
from typing import Any, TypeVar

from crystalctl.errors import CrystalctlError, InputError

LOCAL, NEAREST = "local", "auto"
INSTALL = 'pip install "crystalctl[cluster]"'
ALLOWED = "allowed: local, auto (the cluster this machine belongs to), HOST:PORT, ray://HOST:PORT"
PRINTED = "give the address that `ray start --head` printed, or --cluster local"
JOIN = "see `ray status`; where the cluster has a token, set RAY_AUTH_MODE=token"
RETRIES = 10
"""How often a task is begun again whose worker died; one that kills each is at fault itself."""
_ANSWER_S = 10.0
_SETTINGS = 4
"""Type of the HTTP/2 frame with which either side begins."""
_LOOK_S = 0.2
"""How often progress is told and looked at."""
T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Any, Any, Callable[[int], None]], Any]
"""(what was prepared, item, ``report(units done of it)``) -> result."""


class Cluster:
    """A Ray cluster by its ``address``, or ``local``: one of this machine for the block's length.

    ``jobs``: workers of ``local`` (None: one for each core), elsewhere how many tasks run at once
    (None: what there is room for). Where the program is connected to Ray already, that is used and
    left as it is. Raises ``InputError`` where Ray is not installed or nobody answers.
    """

    def __init__(self, address: str, jobs: int | None = None) -> None:
        self.address, self.jobs = address, jobs
        self._ours = False
        self._sent: tuple[Any, Any] = (None, None)
        _check(address)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            self._ours, self._sent = False, (None, None)
            _ray().shutdown()

    def connect(self) -> Cluster:
        """Itself, connected, where that has not been done; refuses what does not answer."""
        ray = _ray()
        if ray.is_initialized():
            return self
        given: dict[str, Any] = {"address": self.address}
        if self.address == LOCAL:
            given |= {"num_cpus": self.jobs or os.cpu_count() or 1, "include_dashboard": False}
        try:
            ray.init(**given, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError, ImportError, ray.exceptions.RayError) as error:
            why = " ".join(str(error).split())[:200]
            raise InputError(f"no connection to Ray at {self.address}: {why}", JOIN) from error
        self._ours = True
        return self

    def slots(self, *, gpu: bool = False) -> int:
        """Tasks that can run at once now; raises ``InputError`` where none ever can."""
        self.connect()
        kind = "GPU" if gpu else "CPU"
        there = int(_ray().cluster_resources().get(kind, 0))
        if there == 0:
            raise InputError(
                f"the cluster at {self.address} has no {kind}",
                "use --device cpu" if gpu else "start workers that have some",
            )
        return there

    def run(
        self,
        work: Work,
        items: Iterable[T],
        *,
        prepare: Callable[[Any], Any] | None = None,
        given: Any = None,
        gpu: bool = False,
        on_units: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[T, Any]]:
        """Each item with the result of its task, as they are finished.

        ``prepare(given)`` is what each worker prepares; ``on_units`` hears the sum of what tasks
        report. Few items are taken ahead of the results. An error of a task is raised; so is
        ``CrystalctlError`` when a task's worker died again and again.
        """
        self.slots(gpu=gpu)
        ray = _ray()
        tally = None
        if on_units is not None:
            tally = ray.remote(num_cpus=0, max_restarts=-1)(_Tally).remote()
        resources = {"num_cpus": 1, "num_gpus": 1 if gpu else 0, "max_retries": RETRIES}
        # A worker keeps what it prepared; with a GPU Ray would end it after each task.
        resources["max_calls"] = 0
        task = ray.remote(**resources)(_task)
        # In a list a reference goes to the worker as such, which reads it the first time only.
        common = ([self._send(given)], prepare, work, tally)
        waiting = enumerate(items)
        pending: dict[Any, T] = {}
        most_told = 0
        try:
            while True:
                room = self._most_at_once(gpu) - len(pending)
                for number, item in islice(waiting, max(0, room)):
                    pending[task.remote(number, item, *common)] = item
                if not pending:
                    break
                ready, _ = ray.wait(list(pending), timeout=_LOOK_S)
                if on_units is not None:
                    # A task begun again tells less than it had told before.
                    most_told = max(most_told, _told(tally))
                    on_units(most_told)
                for reference in ready:
                    yield pending.pop(reference), _result(reference)
        finally:
            # After an error of whoever takes the results this may run late; asked for anything
            # when it is disconnected, Ray would start.
            if ray.is_initialized():
                for reference in pending:
                    ray.cancel(reference, force=True)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        """``work`` of each item, in order."""
        results: dict[int, R] = {}
        done = self.run(partial(_apply, work), enumerate(items))
        for number in range(len(items)):
            while number not in results:
                (found, _), result = next(done)
                results[found] = result
            yield results.pop(number)

    def _most_at_once(self, gpu: bool) -> int:
        """Tasks that run or wait; of a growing cluster, twice as many as it had."""
        if self.jobs is not None and self.address != LOCAL:
            return self.jobs
        return 2 * self.slots(gpu=gpu)

    def _send(self, given: Any) -> Any:
        """The reference to what is given; that of the last time where it is the same."""
        before, reference = self._sent
        if reference is None or before != given:
            reference = _ray().put(given)
            self._sent = (given, reference)
        return reference


@contextmanager
def cluster_of(address: str | None, jobs: int | None = None) -> Iterator[Cluster | None]:
    """The cluster with this address for the length of the block; None without one."""
    if address is None:
        yield None
    else:
        with Cluster(address, jobs) as cluster:
            yield cluster


def _check(address: str) -> None:
    """Refuse, without importing Ray, what cannot work."""
    if find_spec("ray") is None:
        raise InputError("--cluster needs Ray, which is not installed", f"install it: {INSTALL}")
    if address in (LOCAL, NEAREST):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise InputError(f"--cluster is '{address}'", ALLOWED)
    try:
        # Ray itself tries for minutes, and what is not Ray it may wait for without end.
        speaks = _speaks_http2(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(
            f"nobody answers at {address} ({error.strerror or error})", PRINTED
        ) from error
    if not speaks:
        raise InputError(f"what answers at {address} is not Ray", PRINTED)


def _speaks_http2(host: str, port: int) -> bool:
    """Whether the server greets as gRPC, which Ray uses, must: with its settings (RFC 9113, 3.4).

    Raises ``OSError`` where there is none. Behind TLS nothing is seen of it; then it is believed.
    """
    with socket.create_connection((host, port), timeout=_ANSWER_S) as server:
        if os.environ.get("RAY_USE_TLS") == "1":
            return True
        try:
            server.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS))
            with server.makefile("rb") as answer:
                head = answer.read(len(_frame(_SETTINGS)))
        except OSError:  # silence, or the line is cut
            return False
    return len(head) == len(_frame(_SETTINGS)) and head[3] == _SETTINGS


def _frame(kind: int) -> bytes:
    """An HTTP/2 frame without content: length (3 bytes), type, flags, stream (4)."""
    return bytes((0, 0, 0, kind, 0, 0, 0, 0, 0))


def _ray() -> Any:
    """Ray, silent and without reports on its use."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Whatever ``log_to_driver`` is, it prints notes on dead workers, into the middle of --json.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import ray

    # It sets its own level when it is imported.
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _result(reference: Any) -> Any:
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, CrystalctlError):
            raise cause from None
        raise CrystalctlError(
            f"a task failed on the cluster: {type(cause).__name__}: {cause}",
            "each node needs this version of crystalctl and what it uses here",
        ) from error
    except ray.exceptions.RayError as error:
        raise CrystalctlError(
            f"a worker ended unexpectedly, {RETRIES + 1} times with the same batch "
            f"({type(error).__name__})",
            "see Ray's logs on that node; it may need more memory for each worker",
        ) from error


def _told(tally: Any) -> int:
    ray = _ray()
    try:
        return int(ray.get(tally.total.remote(), timeout=1.0))
    except ray.exceptions.RayError:  # it starts, or starts again: progress is no reason to stop
        return 0


class _Tally:
    """Sums up what tasks report; lives on the cluster."""

    def __init__(self) -> None:
        self._told: dict[int, int] = {}
        self._total = 0

    def tell(self, number: int, units: int) -> None:
        self._total += units - self._told.get(number, 0)
        self._told[number] = units

    def total(self) -> int:
        return self._total


class _Held:
    """What this worker has prepared, and from which reference."""

    key: str = ""
    value: Any = None


def _task(
    number: int,
    item: Any,
    given: list[Any],
    prepare: Callable[[Any], Any] | None,
    work: Work,
    tally: Any,
) -> Any:
    key = given[0].hex()
    if prepare is not None and _Held.key != key:
        import ray

        _Held.value = prepare(ray.get(given[0]))
        _Held.key = key
    last, latest = time.monotonic(), 0

    def report(units: int) -> None:
        nonlocal last, latest
        latest = units
        if tally is not None and time.monotonic() - last > _LOOK_S:
            last = time.monotonic()
            tally.tell.remote(number, units)

    result = work(_Held.value, item, report)
    if tally is not None:
        tally.tell.remote(number, latest)
    return result


def _apply(work: Callable[[Any], Any], _held: Any, item: Any, _report: Any) -> Any:
    return work(item[1])
