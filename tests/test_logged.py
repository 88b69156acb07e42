"""docs/logged.md against what runs log."""

import re

import pytest

from synthnet.lab.fork import run_command
from synthnet.runs.journal import append, records


@pytest.mark.filterwarnings("ignore:outputs of different seeds", "ignore:half-batch gradients")
@pytest.mark.slow
def test_every_logged_name_is_documented(tmp_path, request):
    """All stages with all terms on; a name that is logged and not in docs/logged.md breaks this, and one that is only there."""
    page = (request.config.rootpath / "docs" / "logged.md").read_text().split("|---|")[-1]
    documented = [
        name for line in page.splitlines() for name in re.findall(r"`([^`]+)`", line.split("|")[1] if "|" in line else "")
    ]
    patterns = {name: re.compile(re.sub(r"\\{\w+\\}", "[^ ]+", re.escape(name))) for name in documented}
    small = ["task.hidden=[8]", "threads=1", "lab.tensorboard=false", "backbone.dim=16", "backbone.depth=1", "backbone.heads=2"]
    small += ["backbone.experts=2"]
    zoo = [*small, f"zoo_dir={tmp_path / 'zoo'}"]
    run_command("zoo", [*small, "zoo.runs=4", "zoo.heldout=4", "zoo.shard=4", f"run_dir={tmp_path / 'zoo'}"])
    run_command("corrupt", [*zoo, "corrupt.loop.updates=1", f"run_dir={tmp_path / 'corrupt'}"])
    start = run_command("pairs", [*zoo, "pairs.loop.updates=1", "pairs.val_seeds=2", f"run_dir={tmp_path / 'pairs'}"])
    distil = ["distil.loop.updates=2", "distil.val_seeds=2", "distil.nets=2", "distil.apart=1", "distil.anchor=0.1"]
    distil += ["distil.differ=0.1", "distil.steady=0.1", "distil.outliers=0.1", "distil.steps=[2]", "distil.standardised=1"]
    run_command("distil", [*zoo, *distil, f"policy_from={start}", f"run_dir={tmp_path / 'distil'}"])
    terms = [f"reward.{term}=0.1" for term in ("gain", "efficiency", "step_cost", "stability", "robustness", "diversity")]
    grpo = [
        "grpo.prompts=2",
        "grpo.num_generations=4",
        "grpo.val_seeds=2",
        "reward.batch=32",
        "grpo.beta=0.1",
        "grpo.loop.updates=2",
    ]
    (tmp_path / "grpo").mkdir()
    append(tmp_path / "grpo" / "patches.jsonl", {"kind": "patch", "values": {"grpo.guard.kl": 1e-9}})
    with pytest.warns(UserWarning, match="rolled back"):
        settings = [*small, *terms, *grpo, "grpo.loop.validate_every=1", f"policy_from={start}", f"run_dir={tmp_path / 'grpo'}"]
        run_command("grpo", settings)
    critic = ["critic.loop.updates=1", "critic.val_seeds=2", "critic.nets=4", f"policy_from={start}"]
    run_command("critic", [*small, *critic, f"run_dir={tmp_path / 'critic'}"])
    logged = {name for file in tmp_path.glob("*/metrics.jsonl") for row in records(file) for name in row}
    assert {name for name in logged if not any(p.fullmatch(name) for p in patterns.values())} == set()
    assert {name for name, p in patterns.items() if not any(p.fullmatch(each) for each in logged)} == {
        "val/accuracy_k{K}/{net}"
    }
