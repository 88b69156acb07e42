"""Plans: which backend, how many nets at a time, on how many worker threads, within a memory budget.

A model of the machine gives a plan at once: the fastest backend in general, and as many nets as keep the working set in cache.
Where a job is long, the model is calibrated on the real thing: candidates around it are timed once, and the winner is kept in
`~/.cache/synthnet/plans.json` (or $XDG_CACHE_HOME), so that the same machine computes in the same way from then on.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from synthnet.errors import InputError
from synthnet.files import cache_folder, write_atomic

CACHE_BYTES = 8 << 20  # a working set that a core's share of the cache holds; measured best on three architectures
CALIBRATE_FLOPS = 2e9  # jobs below it run by the model alone
FACTORS = {"batched": (0.25, 0.5, 1, 2, 4), "vmap": (0.5, 2), "loop": (0.25,)}  # chunks tried, in units of the modelled one
_memory = {"bytes": 1 << 30}


@dataclass(frozen=True)
class Plan:
    """How a population is computed: `chunk` nets at a time on each of `workers` threads."""

    backend: str
    chunk: int
    workers: int

    def parts(self, n_nets: int) -> list[slice]:
        """The nets in parts of equal size, no larger than `chunk`, that keep all workers busy."""
        rounds = max(1, math.ceil(n_nets / (self.chunk * self.workers)))
        size = max(1, math.ceil(n_nets / (rounds * self.workers)))
        return [slice(first, min(first + size, n_nets)) for first in range(0, n_nets, size)]


@dataclass(frozen=True)
class Job:
    """What is to be planned: a name that means the same work per net, its size, and the backends that can do it."""

    name: str
    n_nets: int
    bytes_per_net: int
    flops_per_net: float
    backends: tuple[str, ...]
    device: torch.device


def set_memory_budget(gibibytes: float) -> None:
    """How much memory one computation over a population may take, in GiB. Raises: InputError unless positive."""
    if not 0 < gibibytes < math.inf:
        raise InputError(f"memory must be a positive number of GiB, got {gibibytes}")
    _memory["bytes"] = int(gibibytes * (1 << 30))


def choose(job: Job, probe: Callable[[Plan, slice], Tensor | None] | None = None) -> Plan:
    """The plan of a job. `probe(plan, nets)` does a short piece of it, and is only called where the job is long."""
    plan = modelled(job)
    if probe is None or job.n_nets * job.flops_per_net < CALIBRATE_FLOPS:
        return plan
    share = 1 << math.ceil(math.log2(min(math.ceil(job.n_nets / plan.workers), max(FACTORS["batched"]) * plan.chunk)))
    limits = f"{job.device.type}, {torch.get_num_threads()} threads, {_memory['bytes'] >> 20} MiB, {share} nets each"
    key = f"{job.name} on {limits}, {_machine()}"
    book = _read_book()
    if key in book:
        return Plan(**book[key])
    best = min(_candidates(job, plan), key=lambda candidate: _seconds_per_net(candidate, job, probe))
    # a choice that cannot be kept would be another one next time, and with it the last bits of every result
    return best if _write_book({**_read_book(), key: asdict(best)}) else plan


def modelled(job: Job) -> Plan:
    """The plan that the model of the machine gives, without measuring anything."""
    on_cpu = job.device.type == "cpu"
    workers = torch.get_num_threads() if on_cpu else 1
    budget = min(CACHE_BYTES, _memory["bytes"] // workers) if on_cpu else _memory["bytes"]
    return Plan(job.backends[0], max(1, budget // job.bytes_per_net), workers)


def _candidates(job: Job, plan: Plan) -> list[Plan]:
    """Plans around the modelled one, within memory and no larger than a worker's share."""
    most = max(1, min(_memory["bytes"] // (plan.workers * job.bytes_per_net), math.ceil(job.n_nets / plan.workers)))
    return [
        replace(plan, backend=backend, chunk=chunk)
        for backend in job.backends
        for chunk in sorted({min(most, max(1, round(plan.chunk * factor))) for factor in FACTORS[backend]})
    ]


def _seconds_per_net(plan: Plan, job: Job, probe: Callable[[Plan, slice], Tensor | None]) -> float:
    nets = slice(0, min(job.n_nets, plan.chunk * plan.workers))
    try:
        probe(plan, nets)  # the first call pays for what later ones do not
        times = []
        for _ in range(3):
            began = time.perf_counter()
            probe(plan, nets)
            times.append(time.perf_counter() - began)
    except RuntimeError:  # out of memory, or an operation that the backend lacks
        return math.inf
    return sorted(times)[1] / (nets.stop - nets.start)


@lru_cache(maxsize=1)
def _machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model} x {os.cpu_count()}, torch {torch.__version__}"


def _book_path() -> Path:
    return cache_folder() / "plans.json"


def _read_book() -> dict:
    try:
        book = json.loads(_book_path().read_text())
        return {key: value for key, value in book.items() if Plan(**value).chunk >= 1}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # missing or damaged: measured again


def _write_book(book: dict) -> bool:
    try:
        _book_path().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_book_path(), json.dumps(book, indent=1) + "\n")
    except (OSError, InputError):
        return False
    return True
