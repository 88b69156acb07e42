"""Parts of a job on executors: what is lost is redone, nothing is counted twice, what cannot work is refused."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from synthnet.cli import main
from synthnet.errors import InputError
from synthnet.runs.executors import build_executor
from synthnet.runs.jobs import TRIES, run_parts
from synthnet.runs.lab import WorkersConfig
from synthnet.train.zoo import Zoo

SMALL = ["task=digits-mlp", "task.hidden=[8]", "threads=1", "zoo.runs=24", "zoo.heldout=8", "zoo.shard=4"]


class Fake:
    """An executor whose parts end as told: one outcome of `script` for each submission, in turn; a Path is made."""

    def __init__(self, script):
        self.script, self.submitted, self.stopped, self.closed = list(script), [], 0, False

    def submit(self, command, log):
        self.submitted.append(command[0])
        log.write_text("starting\nsynthnet: no such thing\n")
        outcome = self.script.pop(0)
        if isinstance(outcome, Path):
            outcome.write_text(command[0])
        return Ended(self, 0 if isinstance(outcome, Path) else outcome)

    def close(self):
        self.closed = True


class Ended:
    def __init__(self, executor, code):
        self.executor, self.code = executor, code

    def poll(self):
        return self.code

    def stop(self):
        self.executor.stopped += 1


@pytest.fixture
def fake(monkeypatch):
    def use(*script):
        made = Fake(script)
        monkeypatch.setattr("synthnet.runs.jobs.build_executor", lambda *_: made)
        return made

    return use


def test_what_is_lost_is_given_again_and_what_is_there_is_not(fake, tmp_path):
    """Killed (-9), a machine lost (-1), gone without its file (0): all are given again; the file that exists is not."""
    a, b, c = (tmp_path / name for name in "abc")
    b.write_text("old")
    executor, told = fake(-9, c, 0, -1, a), []
    run_parts({a: ["a"], b: ["b"], c: ["c"]}, WorkersConfig("inline", 1), told.append)
    assert executor.submitted == ["a", "c", "a", "a", "a"]
    assert told == [b, c, a]
    assert (a.read_text(), b.read_text(), c.read_text()) == ("a", "old", "c")
    assert executor.closed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"], "the logs of finished parts are gone"


def test_bad_input_and_parts_that_are_always_lost_end_the_job_and_stop_the_others(fake, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    executor = fake(2, None)
    with pytest.raises(InputError, match=r"exit code 2 \(1 of 4 tries\): no such thing"):
        run_parts({a: ["a"], b: ["b"]}, WorkersConfig("inline", 2), lambda path: None)
    assert executor.stopped == 1
    assert executor.closed
    executor = fake(*[-9] * 10)
    with pytest.raises(InputError, match="exit code -9"):
        run_parts({a: ["a"]}, WorkersConfig("inline", 1), lambda path: None)
    assert executor.submitted == ["a"] * TRIES


def test_an_old_log_is_no_evidence(fake, tmp_path):
    """What an earlier try, or an earlier week, wrote does not explain why the part was lost now."""
    (tmp_path / "a.log").write_text("synthnet: cannot write: No space left\n")
    executor = fake(*[-9] * TRIES)
    executor.submit = lambda command, log: Ended(executor, -9)
    with pytest.raises(InputError, match="exit code -9") as lost:
        run_parts({tmp_path / "a": ["a"]}, WorkersConfig("inline", 1), lambda path: None)
    assert "No space" not in str(lost.value)


@pytest.mark.slow
def test_a_zoo_of_worker_processes_is_the_zoo_of_one_process(tmp_path, capsys):
    assert main(["zoo", *SMALL, f"run_dir={tmp_path / 'one'}"]) == 0
    assert main(["zoo", *SMALL, "zoo.executor=inline", f"run_dir={tmp_path / 'spread'}"]) == 0
    one, spread = Zoo.open(tmp_path / "one"), Zoo.open(tmp_path / "spread")
    assert one.index == spread.index
    assert one.checksums == spread.checksums
    shard = tmp_path / "spread" / "states-00003.safetensors"
    before = shard.read_bytes()
    shard.unlink()
    assert main(["shard", str(tmp_path / "spread"), "3"]) == 0
    assert shard.read_bytes() == before
    shard.unlink()
    assert main(["zoo", *SMALL, "zoo.workers=1", f"run_dir={tmp_path / 'spread'}"]) == 0, "other workers may go on with it"
    assert shard.read_bytes() == before
    capsys.readouterr()
    for wrong in (["shard", str(tmp_path / "spread"), "8"], ["shard", str(tmp_path), "0"], ["zoo", "zoo.executor=moon"],
                  ["zoo", "zoo.executor=processes", "zoo.workers=99", f"run_dir={tmp_path / 'wide'}"]):  # fmt: skip
        assert main(wrong) == 2
        assert capsys.readouterr().err.count("synthnet: ") == 1


@pytest.mark.slow
def test_the_shards_of_a_family_are_those_of_its_members(tmp_path, monkeypatch, capsys):
    family = ["task=digits-mlp-family", "task.members=[[6],[9]]", *SMALL[2:], "zoo.runs=4", "zoo.heldout=4"]
    assert main(["zoo", *family, f"run_dir={tmp_path / 'one'}"]) == 0
    assert main(["zoo", *family, "zoo.executor=inline", f"run_dir={tmp_path / 'spread'}"]) == 0
    for member in ("mlp-64-6-10", "mlp-64-9-10"):
        states = [Zoo.open(tmp_path / name / member).states() for name in ("one", "spread")]
        assert torch.equal(*states)
    monkeypatch.chdir(tmp_path / "one" / "mlp-64-9-10")
    Path("states-00001.safetensors").unlink()
    assert main(["shard", ".", "1"]) == 0
    assert torch.equal(Zoo.open(".").states(), states[0])
    (tmp_path / "one" / "mlp-64-9-10").rename(tmp_path / "one" / "moved")
    capsys.readouterr()
    (tmp_path / "one" / "moved" / "states-00001.safetensors").unlink()
    assert main(["shard", str(tmp_path / "one" / "moved"), "1"]) == 2
    assert "the zoo of no member" in capsys.readouterr().err
    config = tmp_path / "spread" / "mlp-64-6-10" / "config.yaml"
    config.write_text(config.read_text().replace("shard: 4", "shard: 0"))
    assert main(["shard", str(config.parent), "7"]) == 2
    assert "zoo.shard must lie in 1 to" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_is_replaced(tmp_path):
    """kill -9 on the first worker that is seen; the zoo ends whole."""
    killed = []
    over = threading.Event()

    def kill_one():
        while not killed and not over.wait(0.01):
            workers = [p for p in Path("/proc").glob("[0-9]*") if _command(p)[-2:-1] == [str(tmp_path / "zoo")]]
            with suppress(ProcessLookupError):
                for worker in workers[:1]:
                    os.kill(int(worker.name), signal.SIGKILL)
                    killed.append(worker)

    watch = threading.Thread(target=kill_one)
    watch.start()
    try:
        assert main(["zoo", *SMALL, "zoo.executor=processes", "zoo.workers=2", f"run_dir={tmp_path / 'zoo'}"]) == 0
    finally:
        over.set()
        watch.join()
    assert killed
    assert main(["zoo", *SMALL, f"run_dir={tmp_path / 'one'}"]) == 0
    assert Zoo.open(tmp_path / "zoo").checksums == Zoo.open(tmp_path / "one").checksums


def _command(process):
    try:
        return (process / "cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


@pytest.mark.slow
def test_a_machine_that_leaves_a_ray_cluster_costs_nothing_but_time(tmp_path, monkeypatch):
    """Two nodes of one core each; one is removed while both train shards. Its shard is redone on the other, none is lost or
    counted twice."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_DISABLE_MEMORY_MONITOR", "1")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    try:
        second = cluster.add_node(**size)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        lost = []

        def lose(handles):
            if not lost and len(handles) == 2 and all(handle.poll() is None for handle in handles):
                time.sleep(2.0)  # both are at work
                cluster.remove_node(second, allow_graceful=False)
                lost.append(second)

        class Watched:
            def __init__(self, pool):
                self.pool, self.handles = pool, []

            def submit(self, command, log):
                self.handles.append(self.pool.submit(command, log))
                lose(self.handles)
                return self.handles[-1]

            def close(self):
                self.pool.close()

        monkeypatch.setattr("synthnet.runs.jobs.build_executor", lambda *where: Watched(build_executor(*where)))
        assert main(["zoo", *SMALL, "zoo.shard=8", "zoo.executor=ray", "zoo.workers=2", f"run_dir={tmp_path / 'zoo'}"]) == 0
        assert lost
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert main(["zoo", *SMALL, "zoo.shard=8", f"run_dir={tmp_path / 'one'}"]) == 0
    assert Zoo.open(tmp_path / "zoo").checksums == Zoo.open(tmp_path / "one").checksums
