"""Trunks at equal training time: each gets the same CPU seconds of pairs and of distil on one thread, then the test split.

python benchmarks/trunks.py run NAME … [--seed 0] --zoo runs/zoo-mnist5k-cnn-0 -o DIR   # trunks -> DIR/NAME-SEED.json
python benchmarks/trunks.py table DIR -o FILE.json                                      # all of them, one table

How many updates fit is measured first, on this machine, so the JSON holds the numbers of updates. CPU time, not wall time: a
machine that does something else as well leaves the comparison fair. `size-…` are Set Transformers from about 20k to 5M weights,
dense and with two experts: the smallest that still generalises.
"""

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from family import kept_twins

from synthnet.audit.evaluation import evaluate_policy
from synthnet.console import percent, table
from synthnet.files import write_atomic
from synthnet.policy.experts import choices, information
from synthnet.policy.file import read_policy
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.runs import Setup
from synthnet.tasks import Task, build_task
from synthnet.train.distil import DistilConfig, train_distil
from synthnet.train.loop import LoopConfig
from synthnet.train.pairs import PairsConfig, train_pairs
from synthnet.train.zoo import Zoo

PROBES = (2, 8, 56)  # updates: a warm-up, and two runs whose difference tells how long an update takes
UNIT, FIXED = {"name": "unit", "classes": True}, {"name": "unit", "classes": False}
CHUNK, WHOLE = {"name": "chunk", "size": 128}, {"name": "chunk", "size": 0}
# `ffn` is the hidden width over the width of the trunk: top-1 routing keeps the FLOPs of a token those of the dense trunk
SHARED = {"dim": 96, "heads": 4, "edge_dim": 64}
PERCEIVER = {"name": "perceiver_io", "rounds": 3, **SHARED}
SET = {"name": "set_transformer", "depth": 4, **SHARED}
EXCHANGE = {"name": "edge_exchange", "depth": 4, **SHARED}
MOE = {"experts": 4}
SIZES = ((16, 16), (32, 24), (64, 48), (96, 64), (192, 96), (320, 128))
TRUNKS = {
    "perceiver_io": (UNIT, PERCEIVER),
    "perceiver_io-moe": (UNIT, PERCEIVER | MOE),
    "set_transformer": (UNIT, SET),
    "set_transformer-moe": (UNIT, SET | MOE),
    "edge_exchange": (UNIT, EXCHANGE),
    "edge_exchange-moe": (UNIT, EXCHANGE | MOE),
    "set_transformer, last layer in unit tokens": (FIXED, SET),
    "perceiver_io, chunk tokens": (CHUNK, PERCEIVER),
    "flat_mlp": (WHOLE, {"name": "flat_mlp"}),
    **{
        f"size-{dim}{'-moe' if experts else ''}": (
            UNIT,
            SET | {"dim": dim, "edge_dim": edge_dim, "condition": min(dim, 64), "experts": experts},
        )
        for dim, edge_dim in SIZES
        for experts in (0, 2)
    },
}


def train(name: str, task: Task, zoo: Zoo, seed: int, seconds: int, out: Path) -> tuple[Policy, dict]:
    """Both stages, each with as many updates as fit into its seconds: short runs of a copy tell how long one takes."""
    tokens, backbone = TRUNKS[name]
    policy = Policy.create(PolicyConfig(tokens, backbone), [task.arch], seed)
    record: dict = {"parameters": policy.n_parameters, "seconds_of_each_stage": seconds}
    pairs = PairsConfig(function=0.0, val_seeds=16, val_steps=[1, 2])
    distil = DistilConfig(labels="hard", steps=[1, 1, 2, 4], graded=2, input_noise=0.2, nets=8, images=128, val_seeds=16)
    distil = replace(distil, stay=0.003, apart=1.0)
    distil.optim = replace(distil.optim, learning_rate=1e-3)

    def stage(kind: str, learner: Policy, updates: int, validations: int, folder: Path) -> Path:
        every = max(updates // validations, 1)
        config = pairs if kind == "pairs" else distil
        config = replace(config, loop=LoopConfig(updates=updates, validate_every=every, checkpoint_every=updates))
        if kind == "pairs":
            return train_pairs(learner, task, [zoo], config, Setup(kind, task.name, folder, seed=seed))
        return train_distil(learner, task, [zoo], config, pairs, Setup(kind, task.name, folder, seed=seed))

    for kind in ("pairs", "distil"):
        took = []
        for updates in PROBES:
            began = time.process_time()
            stage(kind, copy.deepcopy(policy), updates, 1, out / "probes" / f"{name}-{seed}-{kind}-{time.time_ns()}")
            took.append(time.process_time() - began)
        each = (took[2] - took[1]) / (PROBES[2] - PROBES[1])
        if each <= 0:
            raise RuntimeError(f"{name}: {PROBES[2]} updates took no longer than {PROBES[1]}; is the machine busy?")
        began, updates = time.process_time(), max(int(seconds / each), 4)
        policy = read_policy(stage(kind, policy, updates, 4, out / "runs" / f"{name}-{seed}-{kind}")).train()
        record[kind] = {"updates": updates, "seconds": round(time.process_time() - began, 1)}
    return policy.eval(), record


def divided_work(policy: Policy, task: Task) -> dict[str, float]:
    """Mixture -> how much a unit token's role tells about its expert, 0 to 1 (`policy.experts.information`)."""
    start = task.draw_start("val", list(range(16)))
    return {name: round(information(*chosen), 4) for name, chosen in choices(policy, task.network, start).items()}


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    task, zoo = build_task("mnist5k-cnn"), Zoo.open(options.zoo)
    for name in options.names:
        path = options.out / f"{name}-{options.seed}.json"
        if path.exists():
            continue
        policy, record = train(name, task, zoo, options.seed, options.seconds, options.out)
        twins = kept_twins(task, options.seeds, options.twins)
        record["experts"] = divided_work(policy, task)
        report = evaluate_policy(policy, task, options.seeds, [1, 2, 4], twins=twins)
        write_atomic(path, json.dumps({"trunk": name, "seed": options.seed, **record, **report}, indent=1) + "\n")
        print(name, record, {k: percent(row["share_of_sgd"]) for k, row in report["steps"].items()}, flush=True)


def summarise(options: argparse.Namespace) -> None:
    found = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    rows = {}
    for report in found:
        rows.setdefault(report["trunk"], []).append(report)
    lines = []
    for name in (name for name in TRUNKS if name in rows):
        runs = rows[name]
        cells = [" / ".join(percent(r["steps"][k]["accuracy"]["mean"]) for r in runs) for k in ("1", "2", "4")]
        ratio = " / ".join(f"{r['steps']['2']['identity']['aligned_distance']['ratio']:.2f}" for r in runs)
        updates = f"{runs[0]['pairs']['updates']} + {runs[0]['distil']['updates']}"
        seconds = " / ".join(f"{r['pairs']['seconds']:.0f} + {r['distil']['seconds']:.0f}" for r in runs)
        known = " / ".join(f"{max(r['experts'].values()):.2f}" if r["experts"] else "–" for r in runs)
        lines.append([name, f"{runs[0]['parameters']:,}", updates, seconds, *cells, ratio, known])
    write_atomic(options.result, json.dumps(rows, indent=1) + "\n")
    columns = [
        "trunk",
        "weights",
        "updates",
        "CPU seconds",
        "K = 1",
        "K = 2",
        "K = 4",
        "aligned / SGD's, K = 2",
        "experts know roles",
    ]
    table("equal CPU seconds of pairs and of distil; mnist5k-cnn, test split", columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("run")
    sub.set_defaults(do=run)
    sub.add_argument("names", nargs="+", choices=list(TRUNKS))
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--seeds", type=int, default=48)
    sub.add_argument("--seconds", type=int, default=150, help="CPU seconds of each of the two stages")
    sub.add_argument("--zoo", required=True)
    sub.add_argument("--twins", type=Path, default=Path("runs/twins"))
    sub.add_argument("-o", "--out", type=Path, required=True)
    sub = commands.add_parser("table")
    sub.set_defaults(do=summarise)
    sub.add_argument("out", type=Path)
    sub.add_argument("-o", "--result", type=Path, required=True)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
