"""A Ray cluster: the one at RAY_ADDRESS (`ray start --head`, `ray start --address=…` on further machines), else one on this
machine."""

import contextlib
import os
from pathlib import Path

from synthnet.errors import InputError, missing_extra
from synthnet.runs.executors import run_to_end

STORE_BYTES = 100 << 20  # results travel through files, not through Ray's store
LOST = -1


class RayTask:
    def __init__(self, reference):
        self._reference = reference

    def poll(self) -> int | None:
        import ray

        done, _ = ray.wait([self._reference], timeout=0)
        if not done:
            return None
        try:
            return ray.get(self._reference)
        except ray.exceptions.RayError:  # the worker or its machine is gone, or the task was cancelled
            return LOST

    def stop(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError):
            ray.cancel(self._reference, force=True)


class RayCluster:
    def __init__(self, workers: int, threads: int):
        try:
            import ray
        except ImportError as error:
            raise missing_extra("ray", "ray") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 starves its tasks on a machine that does anything else
        self.ray, self.threads, self._mine = ray, threads, not ray.is_initialized()
        if self._mine:
            local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers * threads, "object_store_memory": STORE_BYTES}
            try:
                ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **local)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(f"cannot reach a Ray cluster: {' '.join(str(error).split())[:200]}") from error
        self._run = ray.remote(num_cpus=threads, max_retries=0)(run_to_end)

    def submit(self, command: list[str], log: Path) -> RayTask:
        return RayTask(self._run.remote(command, str(log), self.threads, str(Path.cwd())))

    def close(self) -> None:
        if self._mine:
            self.ray.shutdown()


def build(workers: int, threads: int) -> RayCluster:
    return RayCluster(workers, threads)
