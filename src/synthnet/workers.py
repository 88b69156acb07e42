"""Worker threads: independent parts of a population side by side, one core each.

Torch releases the interpreter lock inside its operations, so threads scale where operations are long; and an operation that
runs on one core gives the same bits whatever the number of workers.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

import torch

Part, Result = TypeVar("Part"), TypeVar("Result")


def spread(job: Callable[[Part], Result], parts: Iterable[Part], workers: int) -> list[Result]:
    """[job(part) for part in parts], on `workers` threads with one core each; with 1 worker, in this thread with all its cores.

    Grad mode belongs to a thread: a job that needs no gradients says so itself. The first error is raised; parts that have
    not begun are dropped.
    """
    parts = list(parts)
    if workers <= 1 or len(parts) <= 1:
        return [job(part) for part in parts]
    threads = torch.get_num_threads()

    def on_one_core(part):
        torch.set_num_threads(1)  # MKL's setting is global and OpenMP's is per thread, hence in every job
        return job(part)

    futures = [_pool(workers).submit(on_one_core, part) for part in parts]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    """Kept for the life of the process: a new thread would prepare every convolution again."""
    return ThreadPoolExecutor(workers)
