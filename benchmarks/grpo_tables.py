"""Tables of GRPO runs that differ in one setting each, from one committed policy at equal reward evaluations.

python benchmarks/grpo_tables.py run TABLE [ROW …] --runs DIR -o DIR      trains what is missing, one JSON per row
python benchmarks/grpo_tables.py table TABLE -o DIR --out FILE.json       gathers the rows

Each row: accuracy by K over unseen seeds on the test split before and after, the share of the gap to SGD twins (trained on
train + reward images) that the run closed, identity against those twins, and the means of the run's own signal measurements.
"""

import argparse
import json
import re
from pathlib import Path

from synthnet.audit.evaluation import evaluate_policy
from synthnet.bundled import load_policy
from synthnet.config import compose
from synthnet.console import percent, table
from synthnet.files import write_atomic
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.tasks.twins import grow_twins

PAIRS = "benchmarks/policies/pairs-digits-256.safetensors"  # from the root of the project
LOOP = ["threads=1", "grpo.loop.validate_every=50", "grpo.loop.checkpoint_every=50", "grpo.optim.ema=0.98"]
DIGITS = ["task=digits-mlp", f"policy_from={PAIRS}", *LOOP, "reward.batch=1200", "reward.input_noise=0.4", "grpo.sigma=0.1"]
LAST = ["grpo.num_generations=128", "grpo.noisy_steps=last", "grpo.optim.learning_rate=2e-4"]
WHOLE = ["grpo.prompts=8", "grpo.num_generations=32", "grpo.optim.learning_rate=4e-4", "grpo.loop.updates=50"]
TWO = [*DIGITS, *WHOLE, "grpo.steps=[2]"]
SHORT = [*DIGITS, *LAST, "grpo.loop.updates=300"]
TERM = [*DIGITS, *LAST, "grpo.loop.updates=40"]
STEPS = ["reward.gain=0.5", "reward.efficiency=0.5"]
FAMILY = [
    "task=digits-mlp-family", "task.members=[[16],[32],[80]]", "policy_from=runs/pairs-digits-c/policy.safetensors", *LOOP,
    "reward.batch=1200", "reward.input_noise=0.4", "grpo.sigma=0.1", "grpo.prompts=4", "grpo.num_generations=128",
    "grpo.noisy_steps=last", "grpo.steps=[1]", "grpo.optim.learning_rate=2e-4", "grpo.loop.updates=60", "grpo.mixed=true",
]  # fmt: skip
LARGER = [
    "task=mnist5k-mlp", "task.held_back=1000", "policy_from=runs/pairs-mnist5k-held/policy.safetensors", *LOOP,
    "reward.batch=750", "reward.input_noise=0.3", "grpo.prompts=8", "grpo.num_generations=64", "grpo.noisy_steps=last",
    "grpo.loop.updates=150", "grpo.signal_every=10",
]  # fmt: skip
MNIST = [
    "task=mnist5k-mlp", "policy_from=benchmarks/policies/pairs-mnist5k-mlp.safetensors", *LOOP, "reward.batch=500",
    "reward.input_noise=0.3", "grpo.num_generations=128", "grpo.noisy_steps=last", "grpo.optim.learning_rate=1e-4",
    "grpo.loop.updates=100", "grpo.signal_every=5",
]  # fmt: skip
WEIGHTS = ["grpo.sigma=0.2", "grpo.optim.learning_rate=6e-5"]
CODE = ["grpo.action=code", "grpo.sigma=0.1", "grpo.optim.learning_rate=1e-3"]

TABLES: dict[str, dict[str, list[str]]] = {
    "controls": {
        "rewards": SHORT,
        "constant advantage": [*SHORT, "grpo.control=constant"],
        "sign flipped": [*SHORT, "grpo.control=flip"],
        "random reward": [*SHORT, "grpo.control=random"],
    },
    "groupings": {
        **{name: [*TWO, f"grpo.grouping={name}"] for name in ("inter", "process", "both", "intra")},
        "both, reward at the end": [*TWO, "grpo.grouping=both", "grpo.step_rewards=false"],
        "inter, step terms": [*TWO, *STEPS],
        "both, step terms": [*TWO, "grpo.grouping=both", *STEPS],
    },
    "terms": {
        "accuracy": [*TERM, "reward.accuracy=1", "reward.bounded_loss=0"],
        "bounded loss": [*TERM, "reward.accuracy=0", "reward.bounded_loss=1"],
        "both": TERM,
        "both + gain": [*TERM, "reward.gain=0.5"],
        "both + efficiency (K by rollout)": [*TERM, "reward.efficiency=0.5", "reward.step_cost=0.01"],
        "both + stability": [*TERM, "reward.stability=0.1"],
        "both + robustness": [*TERM, "reward.robustness=0.5"],
        "both + worst class": [*TERM, "reward.worst_class=0.5"],
        "both + calibration": [*TERM, "reward.calibration=1"],
        "both + diversity": [*TERM, "reward.diversity=0.5"],
        "a quarter of prompts from current states": [*TERM, "grpo.current_states=0.25"],
    },
    "actions": {
        "weights": [*LARGER, *WEIGHTS],
        "weights, heads trained": [*LARGER, *WEIGHTS, "grpo.trainable=head", "grpo.optim.learning_rate=1e-4"],
        "weights, LoRA": [*LARGER, *WEIGHTS, "grpo.trainable=lora", "grpo.optim.learning_rate=3e-4"],
        "code of 128": [*LARGER, *CODE],
        "code of 64": [*LARGER, *CODE, "grpo.code_dim=64"],
    },
    "noise": {
        "mnist, all weights 0.05": [*MNIST, "grpo.sigma=0.05"],
        "mnist, all weights 0.2": [*MNIST, "grpo.sigma=0.2"],
        "mnist, by role 0.07": [*MNIST, "grpo.sigma_by=role", "grpo.sigma=0.07"],
        "digits, by role 0.05": [*TERM, "grpo.sigma_by=role", "grpo.sigma=0.05"],
        "digits, by role 0.1": [*TERM, "grpo.sigma_by=role"],
    },
    "losses": {
        **{name: [*FAMILY, f"grpo.loss_type={name}"] for name in ("dapo", "grpo", "bnpo", "dr_grpo")},
        "Perceiver IO with experts": [*FAMILY, "policy_from=digits-mlp-family-perceiver"],
    },
}  # fmt: skip


def slug(name: str) -> str:
    """A row's name as a file name that a setting may hold."""
    return re.sub(r"[^a-z0-9-]+", "", name.lower().replace("+", "and").replace(" ", "-"))


def run_row(name: str, settings: list[str], runs: Path, out: Path, seeds: int) -> None:
    """Train a row unless its run is done, and write its report."""
    run_dir = runs / slug(name)
    if not (run_dir / "policy.safetensors").exists():
        run_command("grpo", [*settings, f"run_dir={run_dir}"])
    start = compose(settings).policy_from
    policies = {"before": load_policy(start), "after": read_policy(run_dir / "policy.safetensors")}
    stage = policies["after"].record["stages"][-1]
    members = compose(settings).build_task().members
    report = {"settings": settings, "stage": stage, "members": {}, "signal": signal_means(run_dir)}
    for member in members:
        twins = grow_twins(member, member.draw_start("test", list(range(seeds))), "train+reward")
        found = {at: evaluate_policy(policy, member, seeds, (1, 2, 3), twins=twins) for at, policy in policies.items()}
        report["members"][member.arch.label] = {
            "twins": found["after"]["sgd_twins"], "steps": {k: compare(found, k) for k in found["after"]["steps"]},
        }  # fmt: skip
    write_atomic(out / f"{run_dir.name}.json", json.dumps(report, indent=1) + "\n")


def compare(found: dict, k: str) -> dict:
    """Before and after at one K: accuracy, share of the gap to the twins that was closed, identity ratios."""
    before, after = (found[at]["steps"][k] for at in ("before", "after"))
    gap = found["after"]["sgd_twins"]["mean"] - before["accuracy"]["mean"]
    closed = (after["accuracy"]["mean"] - before["accuracy"]["mean"]) / gap
    ratios = {n: v["ratio"] for n, v in after["identity"].items() if isinstance(v, dict)}
    return {"before": before["accuracy"], "after": after["accuracy"], "gap_closed": closed, "identity": ratios}


def signal_means(run_dir: Path) -> dict:
    """Means over the run of what it measured of its own signal, its first and last validation (the policy that a row reports
    is the best on val, which for a control is the start), what its guards did, and its reward evaluations."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    names = ("signal/half_batch_cosine", "signal/reward_snr")
    means = {name: [row[name] for row in rows if name in row] for name in names}
    found = {name: sum(values) / len(values) for name, values in means.items() if values}
    last = [row for row in rows if "evaluations" in row][-1]
    val = [{name: value for name, value in row.items() if name.startswith("val/")} for row in rows if "val/score" in row]
    guards = [{"update": row["update"], "reason": row["guard"], "action": row["action"]} for row in rows if "guard" in row]
    ends = {"val_first": val[0], "val_last": val[-1], "guards": guards}
    return {**found, **ends, "evaluations": sum(row.get("evaluations", 0) for row in rows), "seconds": last["elapsed_s"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("name", choices=list(TABLES))
    parser.add_argument("rows", nargs="*")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("-o", "--rows-dir", type=Path, required=True)
    parser.add_argument("--out")
    options = parser.parse_args()
    folder = options.rows_dir / options.name
    if options.action == "run":
        for name, settings in TABLES[options.name].items():
            if not options.rows or name in options.rows:
                folder.mkdir(parents=True, exist_ok=True)
                run_row(name, settings, options.runs / f"grpo-{options.name}", folder, options.seeds)
        return
    gathered, shown = {}, []
    for name in TABLES[options.name]:
        path = folder / f"{slug(name)}.json"
        if not path.exists():
            continue
        gathered[name] = json.loads(path.read_text())
        for label, member in gathered[name]["members"].items():
            for k, row in member["steps"].items():
                spread = f"{percent(row['after']['mean'])} ± {100 * row['after']['sd']:.2f}"
                cells = [
                    percent(row["before"]["mean"]),
                    spread,
                    percent(row["gap_closed"], 0),
                    f"{row['identity']['aligned_distance']:.2f}",
                ]
                shown.append([name, label, k, *cells])
    write_atomic(options.out, json.dumps(gathered, indent=1) + "\n")
    table(options.name, ["row", "net", "K", "before", "after", "gap closed", "aligned / SGD"], shown)


if __name__ == "__main__":
    main()
