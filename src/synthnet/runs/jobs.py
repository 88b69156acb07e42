"""The parts of one job on an executor: each is a synthnet command that writes one file, whole or not at all.

What a part made is its file, so nothing is counted twice and a job that is given again does what is left. A part whose worker
was killed or whose machine is gone is given again, to whoever is there then.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from synthnet.errors import InputError
from synthnet.progress import StopRequest
from synthnet.runs.executors import build_executor
from synthnet.runs.lab import WorkersConfig

POLL_S = 0.1
TRIES = 4  # of a part that ends without its file
BAD_INPUT, INTERRUPTED = 2, 130


def run_parts(parts: Mapping[Path, list[str]], workers: WorkersConfig, done: Callable[[Path], None]) -> None:
    """Run the command of each file that is not there yet; `done` is told of every file. What a worker prints goes to FILE.log,
    deleted once the file is there.

    Raises: InputError for what no part can run with, in the part's words, and for a part that ended TRIES times without its
    file; KeyboardInterrupt where this process is asked to stop, after it has stopped its workers.
    """
    left, active, tries = [], {}, Counter()
    for path in parts:
        done(path) if path.exists() else left.append(path)
    if not left:
        return
    pool = build_executor(workers.executor, workers.workers, workers.threads)
    try:
        with StopRequest() as stop:
            while (left or active) and not stop.asked:
                while left and len(active) < workers.workers:
                    path = left.pop(0)
                    _log(path).unlink(missing_ok=True)  # of an earlier try, whose end was another one's
                    active[path] = pool.submit(parts[path], _log(path))
                    tries[path] += 1
                over = {path: code for path, handle in active.items() if (code := handle.poll()) is not None}
                for path, code in over.items():
                    del active[path]
                    if path.exists():
                        _log(path).unlink(missing_ok=True)
                        done(path)
                    else:
                        _check_lost(path, code, tries[path])
                        left.append(path)
                if not over:
                    time.sleep(POLL_S)
            if stop.asked:
                raise KeyboardInterrupt
    finally:
        for handle in active.values():
            handle.stop()
        pool.close()


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}.log")


def _check_lost(path: Path, code: int, tries: int) -> None:
    """Whether a part that ended without its file may be given again."""
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code == BAD_INPUT or tries >= TRIES:
        log = _log(path)
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        said = [line.removeprefix("synthnet: ") for line in lines if line.startswith("synthnet: ")] or lines
        raise InputError(f"the worker of {path} ended with exit code {code} ({tries} of {TRIES} tries): {' '.join(said[-1:])}")
