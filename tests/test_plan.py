"""Plans and worker threads: the model, its calibration and its memory, and that work is neither lost nor done twice."""

import json
import threading

import pytest
import torch

from synthnet.engine.plan import CACHE_BYTES, Job, Plan, choose, modelled, set_memory_budget
from synthnet.errors import InputError
from synthnet.workers import spread

CPU = torch.device("cpu")
LONG, SHORT = 1e12, 1.0


def job(n_nets=100, n_bytes=CACHE_BYTES // 8, flops=LONG, backends=("batched", "loop"), device=CPU):
    return Job("work", n_nets, n_bytes, flops, backends, device)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "synthnet" / "plans.json"


@pytest.fixture
def _budget():
    yield
    set_memory_budget(1.0)


@pytest.mark.parametrize("n_nets", [1, 7, 64, 100])
@pytest.mark.parametrize(("chunk", "workers"), [(1, 1), (5, 2), (64, 2), (1000, 3)])
def test_parts_hold_every_net_once_and_none_is_too_large(n_nets, chunk, workers):
    parts = Plan("batched", chunk, workers).parts(n_nets)
    assert [net for part in parts for net in range(part.start, part.stop)] == list(range(n_nets))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= chunk
    assert len(parts) >= min(workers, n_nets) // 2, "workers would idle"


def test_the_model_fills_the_cache_and_keeps_within_memory(_budget):
    assert modelled(job()).chunk == 8
    assert modelled(job(n_bytes=100 * CACHE_BYTES)).chunk == 1
    set_memory_budget(CACHE_BYTES / 2 / (1 << 30))
    assert modelled(job()).chunk == 4
    with pytest.raises(InputError, match="positive number of GiB"):
        set_memory_budget(0)


def test_a_long_job_is_calibrated_once_and_remembered(cache):
    """Probed candidates lie within the memory budget; the faster one wins, whatever the model says."""
    seen = []

    def probe(plan, nets):
        seen.append(plan)
        assert nets == slice(0, min(100, plan.chunk * plan.workers))
        if plan.backend != "loop":
            threading.Event().wait(0.01 * (nets.stop - nets.start))

    assert choose(job(), probe) == Plan("loop", 2, 1)
    assert {plan.backend for plan in seen} == {"batched", "loop"}
    calls = len(seen)
    assert choose(job(), probe) == Plan("loop", 2, 1)
    assert len(seen) == calls
    assert json.loads(cache.read_text())


def test_what_a_small_population_was_given_is_not_given_to_a_large_one(cache):
    """Four nets can be no more than four at a time; a thousand nets must not inherit that."""
    calls = []
    for n_nets in (4, 1000, 900, 1000):
        choose(job(n_nets=n_nets), lambda plan, nets: calls.append(plan))
        calls.append(n_nets)
    assert calls.index(1000) > calls.index(4) + 1
    assert calls[-2:] == [900, 1000], "the same size again is remembered"


def test_a_short_job_is_never_probed(cache):
    assert choose(job(flops=SHORT), lambda *_: pytest.fail("probed")) == modelled(job())
    assert not cache.exists()


def test_a_backend_that_fails_is_not_chosen(cache):
    def probe(plan, nets):
        if plan.backend == "batched":
            raise RuntimeError("out of memory")

    assert choose(job(), probe).backend == "loop"


def test_a_damaged_book_is_measured_again_and_an_unwritable_one_leaves_the_model(cache, monkeypatch):
    cache.parent.mkdir()
    cache.write_text('{"half')
    assert choose(job(n_nets=1), lambda *_: None).chunk == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert choose(job(), lambda plan, nets: threading.Event().wait(0.01 * (plan.chunk != 2))) == modelled(job())


def test_spread_keeps_order_and_gives_each_job_one_core():
    threads = torch.get_num_threads()
    found = spread(lambda part: (part, torch.get_num_threads()), range(7), workers=3)
    assert found == [(part, 1) for part in range(7)]
    assert torch.get_num_threads() == threads
    assert spread(lambda part: part, range(3), workers=1) == [0, 1, 2]


def test_spread_raises_the_error_of_a_part_and_works_afterwards():
    release = threading.Event()

    def work(part):
        if part == 0:
            release.wait(5)
            raise ValueError("part 0")
        release.set()
        return part

    with pytest.raises(ValueError, match="part 0"):
        spread(work, range(200), workers=2)
    assert spread(lambda part: part, range(3), workers=2) == [0, 1, 2]
