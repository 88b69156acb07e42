"""The GPU path beside the CPU's: the same results within a tolerance, and how fast each is.

    python benchmarks/gpu.py -o benchmarks/results/gpu.json                # five minutes at most, one card; float32, no compile
    python benchmarks/gpu.py --device cpu --nets 8 --updates 3 -o FILE     # the same code where there is no card

digits-mlp and digits-vit, in turn on the CPU and on the device: synthesis, the population engine (training twins), and a few
updates of pairs, distil and GRPO by example from the policies that ship. Draws come from CPU generators, so that the first
update's gradient is the same on both, to TOLERANCE; later ones drift by rounding. `copies`: transfers between host and
device in an update of GRPO, by torch's profiler.
"""

import argparse
import json
import statistics
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from synthnet.bundled import load_policy
from synthnet.console import table
from synthnet.device import choose_device
from synthnet.engine import Recipe, Training, score, train_population
from synthnet.files import write_atomic
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.example import Examples
from synthnet.lab.fork import run_command
from synthnet.policy import synthesize_flat
from synthnet.runs import records
from synthnet.tasks import build_task

TASKS, STEPS, EPOCHS, REPEATS = ("digits-mlp", "digits-vit"), 2, 2, 3
TOLERANCE = 2e-3  # of the larger of both, for weights, losses and accuracies: float32 sums in another order
ZOO = ["zoo.runs=8", "zoo.heldout=2"]
STAGES = {
    "pairs": [],
    "distil": ["distil.labels=hard", "distil.nets=16", "distil.apart=1", "distil.val_seeds=4"],
    "grpo": [
        "grpo.rollout=example",
        "grpo.sigma=0.05",
        "grpo.apart=1",
        "grpo.signal_every=0",
        "grpo.val_seeds=4",
        "reward.accuracy=0",
        "reward.bounded_loss=1",
    ],  # right or wrong would jump where a sum is rounded otherwise
}
TRANSFERS = ("Memcpy HtoD", "Memcpy DtoH")  # what torch's profiler calls them


def settle(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize()


def timed(place: torch.device, work) -> tuple[float, torch.Tensor]:
    """Median seconds of the work, after once to warm up, and what it made, on the CPU."""
    made, seconds = work(), []
    for _ in range(REPEATS):
        settle(place)
        began = time.perf_counter()
        made = work()
        settle(place)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), made.detach().cpu()


def synthesis(name: str, place: torch.device, n_nets: int) -> dict:
    task, policy = build_task(name), load_policy(name).to(place)
    start = task.draw_start("val", list(range(n_nets))).to(place)
    seconds, nets = timed(place, lambda: synthesize_flat(policy, start, STEPS, task.network)[:, -1])
    return {"seconds": seconds, "value": nets}


def engine(name: str, place: torch.device, n_nets: int) -> dict:
    """Epochs of twins, and what they then have on val."""
    task = build_task(name)
    start = task.draw_start("val", list(range(n_nets))).to(place)
    inputs, labels = (each.to(place) for each in task.examples("train"))
    training = Training(Recipe(2e-3, 64, EPOCHS))
    seconds, nets = timed(place, lambda: train_population(task.network, start, inputs, labels, training, [EPOCHS])[:, -1])
    inputs, labels = (each.to(place) for each in task.examples("val"))
    accuracy, _ = score(task.network, nets.to(place), inputs, labels)
    return {"seconds": seconds, "value": accuracy.mean().cpu()}


def stage(kind: str, name: str, place: torch.device, updates: int, folder: Path) -> dict:
    """The length of the first update's gradient, and median seconds of an update."""
    zoo = folder / f"zoo-{name}"
    if kind == "pairs" and not (zoo / "zoo.json").exists():
        run_command("zoo", [f"task={name}", *ZOO, "device=cpu", "lab.tensorboard=false", f"run_dir={zoo}"])
    run = folder / f"{kind}-{name}-{len(list(folder.iterdir()))}"
    loop = [f"{kind}.loop.{name}={updates}" for name in ("updates", "validate_every", "checkpoint_every")]
    from_zoo = [f"zoo_dir={zoo}"] if kind == "pairs" else []
    told = [f"task={name}", f"device={place.type}", f"policy_from={name}", "lab.tensorboard=false", f"run_dir={run}", *loop]
    run_command(kind, [*told, *STAGES[kind], *from_zoo])
    rows = [row for row in records(run / "metrics.jsonl") if "loss" in row]
    times = [row["elapsed_s"] for row in rows]
    seconds = statistics.median(after - before for before, after in pairwise(times))
    return {"seconds": seconds, "value": torch.tensor(rows[0]["grad_norm"])}


def copies(name: str, place: torch.device) -> int:
    """Transfers between host and device in one update of GRPO by example."""
    task, policy = build_task(name), load_policy(name).to(place).train()
    config, reward = GrpoConfig(prompts=8), RewardConfig(batch=256)

    def update(number: int) -> None:
        Examples(policy, [task], [1.0], config, reward, (), 0, number).loss()[0].backward()

    update(0)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.type == "cuda" else [])]
    with profile(activities=kinds) as seen:
        update(1)
        settle(place)
    return sum(row.count for row in seen.key_averages() if row.key.startswith(TRANSFERS))


def compare(work, places: list[torch.device]) -> dict:
    """The same work on both places: seconds of each, and how far what they made lies apart, as a share of the larger."""
    here, there = (work(place) for place in places)
    scale = max(here["value"].abs().max().item(), there["value"].abs().max().item(), 1e-12)
    apart = (here["value"] - there["value"]).abs().max().item() / scale
    found = {"cpu_seconds": here["seconds"], "device_seconds": there["seconds"], "apart": apart}
    return {**found, "times_as_fast": here["seconds"] / there["seconds"], "same": apart <= TOLERANCE}


def measured(place: torch.device, tasks: list[str], n_nets: int, updates: int) -> dict:
    places, found = [torch.device("cpu"), place], {}
    with TemporaryDirectory() as folder:
        for name in tasks:
            works = {"synthesis": lambda place, name=name: synthesis(name, place, n_nets),
                     "engine": lambda place, name=name: engine(name, place, n_nets)}  # fmt: skip
            for kind in STAGES:
                works[kind] = lambda place, kind=kind, name=name: stage(kind, name, place, updates, Path(folder))
            for kind, work in works.items():
                found.setdefault(name, {})[kind] = compare(work, places)
            found[name]["copies"] = copies(name, place)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--nets", type=int, default=256)
    parser.add_argument("--updates", type=int, default=20, help="of each stage, at least 2")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    place, torch.backends.cudnn.allow_tf32 = choose_device(options.device), False
    found = measured(place, options.tasks, options.nets, options.updates)
    card = torch.cuda.get_device_name() if place.type == "cuda" else "cpu"
    write_atomic(options.out, json.dumps({"device": card, "torch": torch.__version__, "tasks": found}, indent=1) + "\n")
    rows = [
        [name, kind, f"{1e3 * row['cpu_seconds']:.1f}", f"{1e3 * row['device_seconds']:.1f}", f"{row['times_as_fast']:.2f}",
         f"{row['apart']:.1e}", "yes" if row["same"] else "NO"]
        for name, kinds in found.items() for kind, row in kinds.items() if kind != "copies"
    ]  # fmt: skip
    columns = ["task", "what", "CPU, ms", f"{card}, ms", "times as fast", "apart", f"the same to {TOLERANCE:g}"]
    table("the GPU path", columns, rows)
    for name, kinds in found.items():
        print(f"{name}: {kinds['copies']} copies between host and device in an update of GRPO by example")
    return int(not all(row["same"] for kinds in found.values() for kind, row in kinds.items() if kind != "copies"))


if __name__ == "__main__":
    raise SystemExit(main())
