"""The population engine against its peers: training and scoring many nets, memory, growth.

python benchmarks/engine.py speed -o benchmarks/results/engine.json   # five architectures, medians of alternating rounds
python benchmarks/engine.py memory -o benchmarks/results/engine-memory.json
python benchmarks/engine.py growth -o benchmarks/results/engine-growth.json
python benchmarks/engine.py bfloat16 -o benchmarks/results/engine-bfloat16.json   # what rewards in half the bytes cost and gain
python benchmarks/engine.py figure benchmarks/results/engine.json -o docs/engine.png

Peers: the plain PyTorch loop (a module and an Adam per net), torch.func.vmap with a fused Adam over the stacked weights,
torch.compile of the loop (compilation not counted), and the plain loop in one process per core (kept, so their start is not
counted). A loop and its compiled form run with one thread and with all, and count as the faster of the two.
"""

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from synthnet.console import table
from synthnet.engine import Recipe
from synthnet.engine.network import Network, network_of
from synthnet.engine.population import Training, batch_orders, train_population
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.nets.arch import Arch
from synthnet.nets.start import draw_init
from synthnet.tasks import build_task
from synthnet.tasks.twins import grow_twins

BATCH, STEPS, IMAGES, RATE, LOOP_NETS = 64, 20, 512, 2e-3, 16
ARCHS = {  # architecture, nets, nets at a time in training
    "digits-mlp": (Arch.of("mlp", sizes=[64, 32, 10]), 256),
    "mnist5k-mlp": (Arch.of("mlp", sizes=[784, 10, 10]), 256),
    "mnist5k-cnn": (Arch.of("cnn", side=14, channels=[1, 8, 16]), 32),
    "resnet": (Arch.of("resnet", side=8, width=16, blocks=2), 16),
    "vit": (Arch.of("vit", side=8, patch=2, dim=32, blocks=2, heads=4), 16),
}


def material(arch: Arch, n_nets: int) -> tuple[Network, Tensor, Tensor, Tensor]:
    """Start weights [net weights], and noise with labels: the work is that of real images."""
    net, draw = network_of(arch), torch.Generator().manual_seed(0)
    start = torch.stack([draw_init(net.spec, draw) for _ in range(n_nets)])
    n_examples = max(BATCH * STEPS, IMAGES)
    return net, start, torch.randn(n_examples, net.module.n_inputs, generator=draw), torch.arange(n_examples) % 10


# --- the ways to train: STEPS minibatches of every net ---------------------------------------------------------------------


def train_engine(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    return train_population(network_of(arch), start, inputs, labels, Training(Recipe(RATE, BATCH, 1)), [1])[:, 0]


def train_loop(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor, compiled: nn.Module | None = None) -> Tensor:
    net, trained = network_of(arch), []
    for weights in start:
        module = arch.build().train() if compiled is None else compiled
        module.load_state_dict(
            {("" if compiled is None else "_orig_mod.") + k: v for k, v in net.spec.unflatten(weights).items()}
        )
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
        for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
        state = {k.removeprefix("_orig_mod."): v for k, v in module.state_dict().items()}
        trained.append(net.spec.flatten(state).clone())
    return torch.stack(trained)


def train_vmap(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    net, module = network_of(arch), arch.build()
    tensors = {name: value.clone().requires_grad_() for name, value in net.spec.unflatten(start).items()}
    optimizer = torch.optim.Adam(list(tensors.values()), lr=RATE, fused=True)
    gradient = vmap(grad(lambda w, x, y: F.cross_entropy(functional_call(module, w, (x,)), y)), in_dims=(0, None, None))
    for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True):
        found = gradient({name: value.detach() for name, value in tensors.items()}, x, y)
        for name, value in tensors.items():
            value.grad = found[name]
        optimizer.step()
    return net.spec.flatten({name: value.detach() for name, value in tensors.items()})


# --- the ways to score: accuracy and cross-entropy of every net on IMAGES images --------------------------------------------


def score_engine(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    return score(network_of(arch), start, inputs, labels)[1]


@torch.no_grad()
def score_loop(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor, compiled: nn.Module | None = None) -> Tensor:
    net, losses = network_of(arch), []
    module = arch.build() if compiled is None else compiled
    for weights in start:
        module.load_state_dict(
            {("" if compiled is None else "_orig_mod.") + k: v for k, v in net.spec.unflatten(weights).items()}
        )
        logits = module(inputs)
        (logits.argmax(1) == labels).float().mean()
        losses.append(F.cross_entropy(logits, labels))
    return torch.stack(losses).double()


@torch.no_grad()
def score_vmap(arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    module = arch.build()

    def one(weights):
        logits = functional_call(module, weights, (inputs,))
        return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()

    return vmap(one)(network_of(arch).spec.unflatten(start))[0].double()


def _one_core() -> None:
    torch.set_num_threads(1)


class Processes:
    """The plain loop in one process per core; the processes are kept between calls."""

    def __init__(self, workers: int):
        self.workers = workers
        self.pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_core)

    def __call__(self, job, arch: Arch, start: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        parts = start.chunk(self.workers)
        futures = [self.pool.submit(job, arch, part.clone(), inputs, labels) for part in parts]
        return torch.cat([future.result() for future in futures])


# --- measuring -------------------------------------------------------------------------------------------------------------


def alternating(ways: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round: every way runs twice in a row, and the second run counts, its caches being its own."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def on_one_thread(way) -> Tensor:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return way()
    finally:
        torch.set_num_threads(threads)


def matmul_rate() -> float:
    """FLOP/s of a float32 matrix product of 1,024 squared on all threads: the best of ten."""
    a, b, best = torch.randn(1024, 1024), torch.randn(1024, 1024), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 1024**3 / best


def flops(arch: Arch, inputs: Tensor, backward: bool) -> float:
    """Floating-point operations of one net on `inputs`, as torch counts them."""
    module = arch.build()
    with FlopCounterMode(display=False) as counter:
        out = module(inputs)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def report_speed(options) -> dict:
    processes, found = Processes(torch.get_num_threads()), {}
    report = {"threads": torch.get_num_threads(), "torch": torch.__version__, "matmul_gflops": matmul_rate() / 1e9}
    for name in options.archs or ARCHS:
        arch, n_nets = ARCHS[name]
        net, start, inputs, labels = material(arch, n_nets)
        train = (arch, start, inputs[: BATCH * STEPS], labels[: BATCH * STEPS])
        order = batch_orders(
            Training(Recipe(RATE, BATCH, 1)), 1, BATCH * STEPS, None
        )  # the engine shuffles; its peers get it shuffled
        rate = (arch, start, inputs[:IMAGES], labels[:IMAGES])
        ways = {"train": {"engine": train_engine, "vmap": train_vmap}, "score": {"engine": score_engine, "vmap": score_vmap}}
        compiled = {"train": torch.compile(arch.build().train()), "score": torch.compile(arch.build())}
        entry = {"n_weights": net.spec.n_weights, "nets": n_nets}
        for kind, arguments in (("train", train), ("score", rate)):
            peer = arguments if kind == "score" else (arch, start, train[2][order], train[3][order])
            few = (arch, start[:LOOP_NETS], *peer[2:])  # the rate of a loop does not depend on how many nets it runs over
            loop, module = {"train": train_loop, "score": score_loop}[kind], compiled[kind]
            calls = {
                "engine": partial(ways[kind]["engine"], *arguments),
                "vmap": partial(ways[kind]["vmap"], *peer),
                "processes": partial(processes, loop, *peer),
                "loop": partial(loop, *few),
                "compile": partial(loop, *few, module),
            }
            calls |= {f"{way}, 1 thread": partial(on_one_thread, calls[way]) for way in ("loop", "compile")}
            reference = loop(*few)
            agreement = {way: (call()[: len(reference)] - reference).abs().max().item() for way, call in calls.items()}
            seconds = alternating(calls, options.rounds)
            for way in ("loop", "compile"):
                alone = seconds.pop(f"{way}, 1 thread")
                seconds[way] = min(seconds[way], alone, key=statistics.median)
            nets = {way: n_nets if way in ("engine", "vmap", "processes") else LOOP_NETS for way in seconds}
            rates = {way: [nets[way] / t for t in times] for way, times in seconds.items()}
            best = max((way for way in rates if way != "engine"), key=lambda way: statistics.median(rates[way]))
            work = flops(arch, arguments[2][:BATCH], kind == "train") / BATCH * len(arguments[2])
            reached = work * statistics.median(rates["engine"]) / 1e9
            entry[kind] = {
                "nets_per_s": {way: statistics.median(found) for way, found in rates.items()},
                "speedup": {
                    way: statistics.median(e / p for e, p in zip(rates["engine"], found, strict=True))
                    for way, found in rates.items()
                    if way != "engine"
                },
                "best_peer": best,
                "gflops": reached,
                "share_of_matmul_rate": reached / report["matmul_gflops"],
                "flop_per_byte": work / _bytes(net, arguments[2], kind),
                "largest_difference_from_loop": agreement,
            }
            print(name, kind, json.dumps(entry[kind]), flush=True)
        found[name] = entry
    return {**report, "steps": STEPS, "batch": BATCH, "images": IMAGES, "rounds": options.rounds, "archs": found}


def _bytes(net: Network, inputs: Tensor, kind: str) -> float:
    """What must move at least once per net: weights (in training with gradients and moments, each step), outputs of modules."""
    outputs = net.activations(inputs)[0] * len(inputs)
    steps = len(inputs) // BATCH if kind == "train" else 1
    return 4 * (outputs * (3 if kind == "train" else 1) + net.spec.n_weights * steps * (7 if kind == "train" else 1))


def report_memory(options) -> dict:
    """Peak memory of a process that scores or trains 256 nets, above what it holds before."""
    found = {}
    for name in options.archs or ARCHS:
        for way in ("train_engine", "train_vmap", "score_engine", "score_vmap"):
            run = [sys.executable, __file__, "peak", name, way]
            found.setdefault(name, {})[way] = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
            print(name, way, found[name][way], flush=True)
    return {"unit": "MiB", "nets": 256, "peak": found}


def _peak(name: str, way: str) -> float:
    arch, _ = ARCHS[name]
    _, start, inputs, labels = material(arch, 256)
    size = BATCH * 2 if way.startswith("train") else IMAGES
    job = globals()[way]
    job(arch, start[:1], inputs[:BATCH], labels[:BATCH])
    resident = lambda field: next(  # noqa: E731
        int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    job(arch, start, inputs[:size], labels[:size])
    return resident("VmHWM") - before


def report_growth(options) -> dict:
    """Microseconds per net and step (training) and per net (scoring) by hidden width and by population size."""
    found: dict = {"width": [], "population": []}
    for width in (16, 32, 64, 128, 256, 512):
        found["width"].append(_growth_row(Arch.of("mlp", sizes=[784, width, 10]), 64, options.rounds))
    for n_nets in (1, 4, 16, 64, 256, 1024, 4096):
        found["population"].append(_growth_row(Arch.of("mlp", sizes=[64, 32, 10]), n_nets, options.rounds))
    return found


def _growth_row(arch: Arch, n_nets: int, rounds: int) -> dict:
    net, start, inputs, labels = material(arch, n_nets)
    train, rate = (arch, start, inputs, labels), (arch, start, inputs[:IMAGES], labels[:IMAGES])
    seconds = alternating({"train": lambda: train_engine(*train), "score": lambda: score_engine(*rate)}, rounds)
    row = {"n_weights": net.spec.n_weights, "nets": n_nets}
    row["train_us"] = statistics.median(seconds["train"]) / n_nets / (len(inputs) / BATCH) * 1e6
    row["score_us"] = statistics.median(seconds["score"]) / n_nets * 1e6
    print(json.dumps(row), flush=True)
    return row


def report_bfloat16(options) -> dict:
    """Rewards of 1,024 trained nets on train + reward images in float32 and bfloat16: speed, and how far they differ."""
    found = {}
    for name in ("digits-mlp", "mnist5k-mlp"):
        task = build_task(name)
        nets = grow_twins(task, task.draw_start("val", list(range(128)))).repeat(8, 1)
        data = task.examples("train+reward")
        ways = {str(d)[6:]: partial(score, task.network, nets, *data, dtype=d) for d in (torch.float32, torch.bfloat16)}
        (accuracy, loss), (rough_accuracy, rough_loss) = (way() for way in ways.values())
        seconds = alternating(ways, options.rounds)
        found[name] = {
            "images": len(data[1]),
            "evaluations_per_s": {way: len(nets) / statistics.median(times) for way, times in seconds.items()},
            "accuracy": {"moved_by": (rough_accuracy - accuracy).abs().mean().item(), "sd_of_nets": accuracy.std().item()},
            "loss": {"moved_by": (rough_loss - loss).abs().mean().item(), "sd_of_nets": loss.std().item()},
        }
        print(name, json.dumps(found[name]), flush=True)
    return {"threads": torch.get_num_threads(), "tasks": found}


def show(report: dict) -> None:
    rows = []
    for name, entry in report["archs"].items():
        for kind, unit in (("train", f"nets/s of {report['steps']} steps"), ("score", "evaluations/s")):
            found = entry[kind]
            speeds = [f"{found['nets_per_s'][way]:,.0f}" for way in ("engine", "loop", "vmap", "compile", "processes")]
            best = found["best_peer"]
            ratios = [f"{found['speedup']['loop']:.1f}", f"{found['speedup'][best]:.1f} ({best})"]
            rows.append([name, unit, *speeds, *ratios, f"{100 * found['share_of_matmul_rate']:.0f} %"])
    columns = ["net", "what", "engine", "loop", "vmap", "compile", "processes", "/ loop", "/ best peer", "of matmul rate"]
    table(f"population engine, {report['threads']} threads, matmul {report['matmul_gflops']:.0f} GFLOP/s", columns, rows)


def draw(report: dict, path: str) -> None:
    """The roofline: what the engine reaches against FLOP per byte, below the measured matmul rate and memory bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    roof = report["matmul_gflops"]
    x = [1.0, roof / report["copy_gbytes"], 300.0]
    axes.plot(x, [min(roof, report["copy_gbytes"] * v) for v in x], color="black", lw=1)
    axes.text(x[-1], roof, f"matmul {roof:.0f} GFLOP/s ", ha="right", va="bottom", fontsize=8)
    for kind, marker in (("train", "o"), ("score", "s")):
        found = {name: entry[kind] for name, entry in report["archs"].items()}
        axes.plot([e["flop_per_byte"] for e in found.values()], [e["gflops"] for e in found.values()], marker, label=kind)
        for name, entry in found.items():
            axes.annotate(
                name, (entry["flop_per_byte"], entry["gflops"]), fontsize=7, xytext=(4, 4), textcoords="offset points"
            )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s reached")
    axes.set_title(f"population engine on {report['threads']} cores", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def copy_rate() -> float:
    """GB/s of copying 256 MB: read and written bytes, the best of ten."""
    a, b, best = torch.randn(64 << 20), torch.empty(64 << 20), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        b.copy_(a)
        best = min(best, time.perf_counter() - began)
    return 2 * a.nbytes / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["speed", "memory", "growth", "bfloat16", "figure", "peak"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--archs", nargs="+", choices=list(ARCHS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("-o", "--out")
    options = parser.parse_args()
    if options.what == "peak":
        print(json.dumps(_peak(*options.rest)))
        return
    if options.what == "figure":
        draw(json.loads(Path(options.rest[0]).read_text()), options.out)
        return
    report = {"speed": report_speed, "memory": report_memory, "growth": report_growth, "bfloat16": report_bfloat16}[
        options.what
    ](options)
    report["command"] = ["python", *sys.argv]
    if options.what == "speed":
        report["copy_gbytes"] = copy_rate()
        show(report)
    if options.out:
        write_atomic(options.out, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
