"""Conventional training tuned on val for every architecture of a family, beside the fixed recipe: what a policy has to beat.

python benchmarks/tuned_sgd.py --task mnist5k-cnn-family [--seeds 48] [--few 8] [--twins DIR] -o FILE.json

Nine settings (rate and epochs times 1/3 to 3 and 1/2 to 2) on 4 seeds of purpose val, the best one on the test seeds; nets of
more than 20,000 weights get `few` seeds and the setting of the largest net below. Test split.
"""

import argparse
import json
from pathlib import Path

from controls import trained, tuned_recipe
from family import LARGE, kept_twins

from synthnet.audit.evaluation import split_data, summary
from synthnet.console import percent, table
from synthnet.engine.scoring import score
from synthnet.files import write_atomic
from synthnet.tasks import Task, build_task

TUNING_SEEDS = 4


def row(member: Task, recipe, seeds: int, twins: Path) -> dict:
    """Test accuracy of the tuned recipe and of the fixed one, from the same start weights."""
    start, data = member.draw_start("test", list(range(seeds))), split_data(member, "test")
    fixed = score(member.network, kept_twins(member, seeds, twins), *data)[0]
    tuned = score(member.network, trained(member, start, recipe), *data)[0]
    return {"seeds": seeds, "recipe": vars(recipe), "fixed": summary(fixed), "tuned": summary(tuned)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", required=True)
    parser.add_argument("--seeds", type=int, default=48)
    parser.add_argument("--few", type=int, default=8)
    parser.add_argument("--twins", type=Path, default=Path("runs/twins"))
    parser.add_argument("-o", "--out", required=True)
    options = parser.parse_args()
    task = build_task(options.task)
    members = sorted(
        (task.with_arch(arch) for arch in (*task.family, *task.heldout)), key=lambda one: one.network.spec.n_weights
    )
    rows, recipe = {}, None
    for member in members:
        large = member.network.spec.n_weights > LARGE
        recipe = recipe if large and recipe else tuned_recipe(member, TUNING_SEEDS)
        found = rows[member.arch.label] = row(member, recipe, options.few if large else options.seeds, options.twins)
        print(member.arch.label, found["recipe"], percent(found["tuned"]["mean"]), flush=True)
        write_atomic(options.out, json.dumps({"task": options.task, "rows": rows}, indent=1) + "\n")
    lines = [
        [
            label,
            str(found["seeds"]),
            *(f"{percent(found[kind]['mean'])} ± {100 * found[kind]['sd']:.2f}" for kind in ("fixed", "tuned")),
            f"{found['recipe']['learning_rate']:g} x {found['recipe']['epochs']}",
        ]
        for label, found in rows.items()
    ]
    table("conventional training, test split", ["net", "seeds", "fixed recipe", "tuned on val", "rate x epochs"], lines)


if __name__ == "__main__":
    main()
