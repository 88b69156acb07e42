"""What the shipped policies synthesise and what tiny runs of every stage measure, by the commands alone.

python tests/golden/record.py [-o tests/golden/record.json]

A change of structure must leave all of it as it is, to the bit where torch and the machine are those of the record, else to
1e-5. A change that is meant is recorded anew, and LOG.md says why.
"""

import argparse
import contextlib
import hashlib
import io
import json
import platform
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file

from synthnet.cli import main

NETS = {  # policy -> start files: task and its settings
    "acrobot": ("acrobot", []),
    "acrobot-plants": ("acrobot-plants", []),
    "cartpole": ("cartpole", []),
    "cartpole-plants": ("cartpole-plants", []),
    "mountain-car": ("mountain-car", ["hidden=[12]"]),
    "pendulum": ("pendulum", []),
    "digits-mlp": ("digits-mlp", []),
    "digits-mlp-family": ("digits-mlp", ["hidden=[20,12]"]),
    "digits-mlp-family-perceiver": ("digits-mlp", ["hidden=[24,24]"]),
    "digits-mnist8": ("mnist8-mlp", []),
    "digits-resnet": ("digits-resnet", []),
    "digits-resnet-family": ("digits-resnet", ["blocks=1"]),
    "digits-turned": ("digits-turned", []),
    "digits-vit": ("digits-vit", []),
    "digits-yes": ("digits-yes", []),
    "mnist-simplecnn-family": ("mnist-simplecnn", ["channels=[4,8]"]),
    "mnist-simplemlp-family": ("mnist-simplemlp", ["hidden=[16]"]),
    "mnist-targetcnn-family": ("mnist-targetcnn", ["channels=[4,8]", "hidden=[16]"]),
    "mnist5k-cnn-family": ("mnist5k-cnn", ["channels=[5,10]"]),
    "mnist5k-cnn-family-depths": ("mnist5k-cnn", ["channels=[6,7,8]", "pools=2"]),
    "mnist5k-mlp": ("mnist5k-mlp", []),
    "mnist5k-yes": ("mnist5k-yes", []),
}
SPECS = {  # what those are told that are told anything
    "acrobot-plants": ["mass=0.75", "torque=1.25", "motor=-1"],
    "cartpole-plants": ["length=0.75", "force=8", "motor=-1"],
    "digits-turned": ["angle=-30"],
    "digits-yes": [f"yes{c}={c % 2}" for c in range(10)],
    "mnist5k-yes": [f"yes{c}={c % 2}" for c in range(10)],
}
SMALL = ["task.hidden=[8]", "threads=1", "device=cpu", "lab.tensorboard=false"]
TRUNK = ["backbone.dim=16", "backbone.depth=2", "backbone.heads=2", "backbone.edge_dim=8"]
FAMILY = ["task=digits-mlp-family", "task.members=[[6],[5,4]]", "task.heldout=[]"]
LOOP = ["loop.updates=3", "loop.validate_every=2", "loop.checkpoint_every=2", "val_seeds=2"]
PAIRS = ["pairs.batch=8", "pairs.val_steps=[1,2]"]
DISTIL = ["distil.nets=4", "distil.images=32", "distil.input_noise=0.1", "distil.warp=0.02"]
GRPO = ["grpo.prompts=4", "grpo.num_generations=4", "reward.batch=64", "grpo.signal_every=2"]
TERMS = ["accuracy", "bounded_loss", "gain", "efficiency", "step_cost", "stability", "robustness", "diversity", "worst_class"]


def loop(stage: str) -> list[str]:
    return [f"{stage}.{part}" for part in LOOP]


def stage_runs(root: Path) -> dict[str, list[str]]:
    """Run name -> its command, in an order in which each finds what it builds on."""
    zoo, family = f"zoo_dir={root / 'zoo'}", f"zoo_dir={root / 'zoo-family'}"
    pairs = f"policy_from={root / 'pairs'}"
    from_pairs = [*SMALL, pairs, *GRPO, *loop("grpo")]
    every = [f"reward.{term}={0.1 + 0.05 * place}" for place, term in enumerate([*TERMS, "calibration"])]
    runs = {
        "zoo": ["zoo", *SMALL, "zoo.runs=8", "zoo.heldout=4", "zoo.shard=4"],
        "zoo-family": ["zoo", *FAMILY, *SMALL[1:], "zoo.runs=4", "zoo.heldout=4", "zoo.shard=4", "zoo.per_run_order=true"],
        "pairs": ["pairs", *SMALL, *TRUNK, "backbone.experts=2", zoo, *PAIRS, *loop("pairs")],
        "corrupt": ["corrupt", *SMALL, *TRUNK, zoo, "corrupt.batch=8", *LOOP_OF_CORRUPT],
        "pairs-corruptor": ["pairs", *SMALL, *TRUNK[:1], *TRUNK[2:], "backbone=perceiver_io", zoo, *PAIRS, *loop("pairs"),
                            "pairs.source=both", f"pairs.corruptor={root / 'corrupt'}", "action.learn_sigma=true"],
        "pairs-family": ["pairs", *FAMILY, *SMALL[1:], *TRUNK, "tokens.classes=true", family, *PAIRS, *loop("pairs")],
        "distil": ["distil", *SMALL, pairs, zoo, *DISTIL, *loop("distil"), "distil.steps=[1,2,3]", "distil.apart=1",
                   "distil.differ=0.5", "distil.steady=0.5", "distil.anchor=0.1", "distil.stay=0.01", "distil.graded=2"],
        "distil-new": ["distil", *FAMILY, *SMALL[1:], *TRUNK, family, *DISTIL, *loop("distil"), "distil.labels=hard",
                       "distil.standardised=1", "distil.stay=0.01", "distil.stay_by=tensor", "imagined=3",
                       "distil.optim.rule=muon"],
        "grpo": ["grpo", *from_pairs, "grpo.steps=[1,2]"],
        "grpo-terms": ["grpo", *from_pairs, "grpo.steps=[1,3]", *every, "grpo.steps_by=rollout", "grpo.beta=0.1",
                       "grpo.sync_ref_model=true", "grpo.ref_model_sync_steps=1", "grpo.num_iterations=2",
                       "grpo.target_kl=10", "reward.warp=0.02", "reward.input_noise=0.1"],
        "grpo-roles": ["grpo", *from_pairs, "grpo.noisy_steps=last", "grpo.sigma_by=role", "grpo.sigma=0.05",
                       "grpo.steps=[2]", "grpo.loss_type=grpo", "grpo.delta=2",
                       "grpo.importance_sampling_level=sequence", "grpo.select=reward"],
        "grpo-code": ["grpo", *from_pairs, "grpo.action=code", "grpo.code_dim=4", "grpo.grouping=process",
                      "grpo.discount=0.9", "grpo.noisy_steps=one", "grpo.steps=[2]", "grpo.loss_type=dr_grpo"],
        "grpo-both": ["grpo", *from_pairs, "grpo.grouping=both", "grpo.steps=[2]", "grpo.mirrored=false",
                      "grpo.scale_rewards=batch", "grpo.trainable=lora", "grpo.lora_rank=2", "grpo.current_states=0.5",
                      "grpo.importance_sampling_level=normalized", "grpo.control=random", "grpo.loss_type=bnpo"],
        "grpo-family": ["grpo", *FAMILY, *SMALL[1:], f"policy_from={root / 'pairs-family'}", *GRPO, *loop("grpo"),
                        "grpo.mixed=true", "grpo.scale_rewards=none", "grpo.select=last", "grpo.grouping=intra"],
        "critic": ["critic", *SMALL, pairs, "critic.nets=4", "critic.images=64", *loop("critic")],
        "sweep": ["sweep", *SMALL, *TRUNK, zoo, "stages=[pairs]", *PAIRS, *loop("pairs"), "pairs.function=0,1",
                  "sweep.executor=inline", "sweep.threads=1"],
        "run": ["run", *SMALL, *TRUNK, zoo, "stages=[pairs,grpo]", *PAIRS, *loop("pairs"), *GRPO, *loop("grpo")],
    }  # fmt: skip
    return {name: [*command, f"run_dir={root / name}"] for name, command in runs.items()}


LOOP_OF_CORRUPT = [f"corrupt.{part}" for part in LOOP if "val_seeds" not in part]


def command(*arguments: str) -> str:
    """Run a command of ours; returns what it printed. Raises: RuntimeError where it ended badly."""
    out, said = io.StringIO(), io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        code = main(list(arguments))
    if code:
        raise RuntimeError(f"{' '.join(arguments)}: exit code {code}: {said.getvalue()[-2000:]}")
    return out.getvalue()


def fingerprint(tensors: dict[str, torch.Tensor]) -> dict:
    """A digest of tensors, and enough of their values to compare where bits may differ."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].contiguous().flatten().numpy().tobytes())
    flat = torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    few = flat[torch.linspace(0, len(flat) - 1, 12).long()]
    return {"sha256": found.hexdigest(), "values": [*few.tolist(), flat.norm().item()]}


def synthesised(root: Path) -> dict:
    """Policy, K -> fingerprints of what it makes of two fixed start files."""
    made = {}
    for policy, (task, settings) in NETS.items():
        start = root / "start" / policy
        command("init", "--task", task, *(["--set", *settings] if settings else []), "--count", "2", "-o", str(start))
        asked = {f"K={k}": ["--steps", str(k)] for k in range(1, 7)} | {"sample": ["--steps", "2", "--sample", "3"]}
        for name, more in asked.items():
            out = root / "out" / policy / name
            told = ["--spec", *SPECS[policy]] if policy in SPECS else []
            command("synthesize", str(start), "--policy", policy, "--device", "cpu", *more, *told, "-o", str(out))
            made[f"{policy} {name}"] = [fingerprint(load_file(path)) for path in sorted(out.glob("*.safetensors"))]
    return made


def measured(root: Path) -> dict:
    """Run -> its metrics, without what depends on time and place."""
    found = {}
    for name, arguments in stage_runs(root).items():
        command(*arguments)
        folder = root / name
        for path in sorted(folder.rglob("metrics.jsonl")):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[str(path.parent.relative_to(root))] = [_timeless(row) for row in rows]
        for path in sorted(folder.rglob("states-*.safetensors")):
            found[str(path.relative_to(root))] = fingerprint(load_file(path))
        for path in sorted(folder.rglob("policy.safetensors")):
            found[str(path.relative_to(root))] = fingerprint(load_file(path))
    command("audit", str(root / "pairs" / "policy.safetensors"), "--zoo", str(root / "zoo"), "--training", "8", "--heldout",
            "4", "--steps", "1", "2", "--device", "cpu", "-o", str(root / "audit"))  # fmt: skip
    audit = json.loads((root / "audit" / "report.json").read_text())
    found["audit"] = _timeless({name: value for name, value in audit.items() if name not in ("policy", "zoo")})
    results = json.loads((root / "sweep" / "results.json").read_text())
    found["sweep"] = _timeless(results)
    found["calibrate"] = command("calibrate", *SMALL, f"policy_from={root / 'pairs'}", *GRPO).strip().splitlines()[-1]
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if not name.endswith("_s")}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def machine() -> dict:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"torch": torch.__version__, "cpu": f"{model}, {torch.backends.cpu.get_cpu_capability()}"}


def record(root: Path) -> dict:
    torch.set_num_threads(1)
    return {"machine": machine(), "synthesised": synthesised(root), "measured": measured(root)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_name("record.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = record(Path(folder))
    options.out.write_text(json.dumps(made, indent=None, separators=(",", ":"), sort_keys=True).replace('],"', '],\n"') + "\n")
