"""One policy on every member of a family and on the architectures that were held out of it: one JSON file and one table.

python benchmarks/family.py POLICY --task mnist5k-cnn-family [--seeds 48] [--steps 1 2 3] [--twins DIR] [--strong SECONDS]
    [--set KEY=JSON] -o FILE

Test split, unseen seeds; SGD twins by the fixed recipe, grown once and kept in --twins. --strong: strong twins of members that
were trained on too, by the best recipe that a search on val finds in so many seconds each (or found before).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from synthnet.audit.evaluation import evaluate_policy
from synthnet.bundled import load_policy
from synthnet.console import percent, table
from synthnet.files import write_atomic, write_safetensors
from synthnet.nets.weights import read_weights
from synthnet.policy.policy import Policy
from synthnet.tasks import Task, build_task, grow_twins, strong_recipe

LARGE = 20_000


def kept_twins(task: Task, n_seeds: int, folder: Path) -> Tensor:
    """The twins [seed weights] of the test seeds, from `folder` where they have been grown before."""
    made_of = [
        task.name,
        task.arch.label,
        task.data.source,
        f"split{task.split_seed}",
        *map(str, vars(task.recipe).values()),
        n_seeds,
    ]
    path = folder / f"{'-'.join(map(str, made_of))}.safetensors"
    if task.data.data_dir:
        raise SystemExit("twins are kept for the images that ship with the packages only")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"twins": grow_twins(task, task.draw_start("test", list(range(n_seeds))))}, {})
    return read_weights(path).tensors["twins"]


def family_report(
    policy: Policy,
    task: Task,
    seeds: int,
    few: int,
    steps: list[int],
    twins: Path,
    split: str = "test",
    strong: float | None = None,
) -> dict:
    """Architecture (of a joint task: member) -> its report (`evaluate_policy`), with `trained` saying whether the policy was
    trained on it; `strong`: seconds that a search for strong twins may take."""
    rows = {}
    for member in (*task.members, *map(task.with_arch, task.heldout)):
        arch, label = member.arch, member.name if task.joint else member.arch.label
        label = f"{label} {arch.label}" if label in rows else label
        n_seeds = few if member.network.spec.n_weights > LARGE else seeds
        beside = strong is not None and arch in policy.archs
        if beside:
            strong_recipe(member, strong)
        report = evaluate_policy(policy, member, n_seeds, steps, split, kept_twins(member, n_seeds, twins), beside)
        rows[label] = {"trained": arch in policy.archs, "n_weights": member.network.spec.n_weights, **report}
        print(label, {k: percent(row["share_of_sgd"]) for k, row in report["steps"].items()}, flush=True)
    return rows


def task_of(name: str, settings: Sequence[str]) -> Task:
    """The task of a name, with settings as KEY=JSON."""
    return build_task(name, **{key: json.loads(value) for key, _, value in (each.partition("=") for each in settings)})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("policy")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=JSON", help="settings of the task")
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--few", type=int, default=48, help=f"seeds of nets above {LARGE:,} weights, whose twins are slow")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--twins", type=Path, default=Path("runs/twins"))
    parser.add_argument("--strong", type=float, metavar="SECONDS")
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    policy, task = load_policy(options.policy), task_of(options.task, options.set)
    chosen = options.seeds, options.few, options.steps, options.twins, options.split, options.strong
    rows = family_report(policy, task, *chosen)
    report = {
        "policy": options.policy,
        "stages": policy.record["stages"],
        "best_k_on_val": policy.record["best_k"],
        "rows": rows,
    }
    write_atomic(options.out, json.dumps(report, indent=1) + "\n")
    lines = []
    for label, row in rows.items():
        shares = [percent(step["share_of_sgd"]) for step in row["steps"].values()]
        ratios = "/".join(f"{step['identity']['aligned_distance']['ratio']:.2f}" for step in row["steps"].values())
        twins = f"{percent(row['sgd_twins']['mean'])} ± {100 * row['sgd_twins']['sd']:.2f}"
        strong = "not grown"
        if "strong_twins" in row:
            gain = max(step["minus_strong"] for step in row["steps"].values())
            strong = f"{percent(row['strong_twins']['mean'])}, {100 * gain:+.2f}"
        lines.append([label, "yes" if row["trained"] else "no", twins, strong, *shares, ratios])
    columns = [
        "net",
        "trained on",
        "SGD twins",
        "strong, best K minus these",
        *(f"K = {k}, of SGD" for k in options.steps),
        "aligned distance / SGD's",
    ]
    table(f"{options.seeds} unseen seeds, {options.split} split", columns, lines)


if __name__ == "__main__":
    main()
