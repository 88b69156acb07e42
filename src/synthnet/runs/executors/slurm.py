"""Slurm, through submitit: a job for each command. On a machine without Slurm, submitit's own local executor."""

from pathlib import Path

from synthnet.errors import missing_extra
from synthnet.runs.executors import run_to_end

LOST = -1
MINUTES = 24 * 60


class SlurmJob:
    def __init__(self, job):
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        return LOST if self._job.exception() is not None else self._job.result()

    def stop(self) -> None:
        self._job.cancel()


class Slurm:
    def __init__(self, workers: int, threads: int):
        try:
            import submitit
        except ImportError as error:
            raise missing_extra("submitit", "slurm") from error
        self.submitit, self.workers, self.threads = submitit, workers, threads

    def submit(self, command: list[str], log: Path) -> SlurmJob:
        executor = self.submitit.AutoExecutor(folder=log.parent / "slurm")
        executor.update_parameters(timeout_min=MINUTES, cpus_per_task=self.threads, slurm_array_parallelism=self.workers)
        return SlurmJob(executor.submit(run_to_end, command, str(log), self.threads, str(Path.cwd())))

    def close(self) -> None:
        """Jobs outlive this process."""


def build(workers: int, threads: int) -> Slurm:
    return Slurm(workers, threads)
