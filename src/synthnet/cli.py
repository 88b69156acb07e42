"""The command line. Use commands take flags; training commands take key=value settings. Exit codes: 0 done, 2 bad input or
settings (one line, no traceback), 130 interrupted (state saved), 1 a fault of ours."""

import argparse
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from synthnet.errors import InputError

TRAINING = {
    "zoo": "train the zoo of a task, or `zoo import DIR`: take your own runs",
    "pairs": "supervised stage on pairs of weight states",
    "distil": "optional pathwise stage through the target's loss",
    "grpo": "reward-only stage",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in TRAINING and not {"-h", "--help"} & set(arguments):
            return _train(arguments[0], arguments[1:])
        options = _parser().parse_args(arguments)
        return options.run(options) or 0
    except InputError as error:
        print(f"synthnet: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synthnet: interrupted; what was finished is saved, the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="synthnet", description="Random network weights in, trained network weights out.")
    parser.add_argument("--version", action="version", version=f"synthnet {version('synthnet')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("init", _init, "write files of random start weights")
    sub.add_argument("--task", default="digits-mlp")
    sub.add_argument("--seed", type=int, default=0, help="first seed")
    sub.add_argument("--count", type=int, default=1)
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the task, as in hidden=[48] or channels=[6,12]")
    sub.add_argument("-o", "--out", required=True, help="a file; a folder where --count is above 1")

    sub = command("synthesize", _synthesize, "turn random weights into working ones, with no data")
    sub.add_argument("files", nargs="+", help=".safetensors files, or a folder of them")
    sub.add_argument("-o", "--out", required=True, help="a file for one input file, else a folder")
    sub.add_argument("--policy", help="a bundled policy's name or a policy file")
    sub.add_argument("--steps", type=int, help="synth steps K; by default the policy's best on val")
    sub.add_argument("--sample", type=int, metavar="SEED", help="draw actions instead of taking their mean")
    sub.add_argument("--strict", action="store_true", help="refuse architectures that the policy was never trained on")
    _shared(sub, arch_py=True)

    sub = command("evaluate", _evaluate, "accuracy of weight files, or of a policy over fresh seeds")
    sub.add_argument("files", nargs="*", help=".safetensors files, or a folder of them")
    sub.add_argument("--policy", help="evaluate this policy over fresh seeds instead")
    sub.add_argument("--seeds", type=int, default=256)
    sub.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    sub.add_argument("--split", default="test", choices=["train", "reward", "val", "test"])
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the task, as in hidden=[48] or channels=[6,12]")
    sub.add_argument("--split-seed", type=int, help="by default the one the policy was trained on, else 0")
    _shared(sub, json=True, data=True)

    sub = command("inspect", _inspect, "what a weight file or policy holds: tensors, architecture, unit groups, tokens")
    sub.add_argument("file")
    _shared(sub, json=True, device=False, arch_py=True)

    sub = command("sgd", _sgd, "grow the conventionally trained twin of start weights")
    sub.add_argument("files", nargs="+")
    sub.add_argument("-o", "--out", required=True)
    _shared(sub, data=True)

    sub = command("audit", _audit, "does a policy make new, different, working nets, or does it copy? Beside every control")
    sub.add_argument("policy", help="a bundled policy's name or a policy file")
    sub.add_argument("--zoo", required=True, help="the zoo it was trained on, or one of the same recipe, with held-out runs")
    sub.add_argument("--steps", type=int, nargs="+", help="synth steps to measure; by default 1, 2, 4 and the policy's best")
    sub.add_argument("--training", type=int, default=1024, help="training nets to compare with")
    sub.add_argument("--heldout", type=int, default=256, help="unseen seeds")
    sub.add_argument("--also", nargs="+", metavar="NAME=POLICY", default=[], help="further policies, as controls")
    sub.add_argument("-o", "--out", help="a folder for report.json and report.html; by default runs/audit-POLICY")
    _shared(sub, json=True)

    sub = command("demo", _demo, "the main job with the bundled policy, or --train to rebuild one from nothing")
    sub.add_argument("--train", action="store_true", help="zoo, pairs and GRPO from nothing (up to 20 minutes on two cores)")
    sub.add_argument("--distil", action="store_true", help="with --train: add the distil stage")
    sub.add_argument("--task", default="digits-mlp")
    sub.add_argument("--nets", type=int, default=32)
    sub.add_argument("-o", "--out", default="out")
    sub.add_argument("--device", default="auto")

    sub = command("config", _config, "print the composed configuration of training commands")
    sub.add_argument("settings", nargs="*", help="key=value or group=option")
    for name, text in TRAINING.items():
        command(name, None, text).add_argument("settings", nargs="*", help="key=value or group=option; see synthnet config")
    return parser


def _shared(sub, json: bool = False, data: bool = False, device: bool = True, arch_py: bool = False) -> None:
    sub.add_argument("--task", help="only where neither metadata nor names and shapes decide")
    if arch_py:
        sub.add_argument("--arch-py", metavar="FILE.py:FACTORY", help="a module of your own; runs that file")
    if device:
        sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    if json:
        sub.add_argument("--json", action="store_true", help="machine-readable result on standard output")
    if data:
        sub.add_argument("--data-dir", help="folder of IDX files (full MNIST or Fashion-MNIST), for mnist5k-mlp")


# --- use commands --------------------------------------------------------------------------------------------------


def _like(options):
    """The kind of architecture that the flags name, if they name one."""
    from synthnet.tasks import build_task
    from synthnet.user_arch import UserArch

    if getattr(options, "arch_py", None):
        return UserArch.parse(options.arch_py)
    return build_task(options.task).arch if options.task else None


def _settings(options) -> dict:
    """--set KEY=VALUE, with values as JSON."""
    made = {}
    for entry in options.set or []:
        key, _, value = entry.partition("=")
        try:
            made[key] = json.loads(value)
        except ValueError as error:
            raise InputError(f"--set expects KEY=VALUE with a JSON value, as in hidden=[48], got {entry!r}") from error
    return made


def _init(options) -> None:
    from synthnet.synthesis import output_files, write_all
    from synthnet.tasks import build_task
    from synthnet.weights import WeightState

    if options.count < 1:
        raise InputError(f"--count must be at least 1, got {options.count}")
    task = build_task(options.task, **_settings(options))
    seeds = list(range(options.seed, options.seed + options.count))
    names = [Path(f"{task.name}-{seed:04d}.safetensors") for seed in seeds]
    targets = output_files(names, options.out, options.count == 1)
    states = []
    for seed, flat in zip(seeds, task.draw_start("user", seeds), strict=True):
        metadata = {
            "synthnet.format": "1",
            "synthnet.arch": json.dumps(task.arch.to_dict()),
            "synthnet.task": task.name,
            "synthnet.seed": str(seed),
        }
        states.append(WeightState(task.network.spec.unflatten(flat), metadata))
    write_all(targets, states, options.count == 1)
    print(f"wrote {len(targets)} start state(s) of {task.name} to {options.out}", file=sys.stderr)


def _synthesize(options) -> None:
    from synthnet.synthesis import synthesize

    given = options.files[0] if len(options.files) == 1 else options.files
    done = synthesize(
        given, options.policy, options.steps, options.out, options.sample, _like(options), options.device, options.strict
    )
    n_done = len(done) if isinstance(done, list) else 1
    first = done[0] if isinstance(done, list) else done
    steps = json.loads(first.metadata["synthnet.provenance"])["steps"]
    print(f"synthesised {n_done} net(s) in {steps} step(s) each, without data -> {options.out}", file=sys.stderr)


def _evaluate(options) -> None:
    from synthnet.report import print_evaluation, print_policy

    if bool(options.files) == bool(options.policy):
        raise InputError("name weight files, or --policy, and not both")
    settings = {"split_seed": options.split_seed or 0, "data_dir": options.data_dir}
    if options.policy:
        from synthnet.device import choose_device
        from synthnet.evaluation import evaluate_policy, task_of
        from synthnet.policy import load_policy
        from synthnet.synthesis import policy_path
        from synthnet.tasks import build_task

        if options.seeds < 2:
            raise InputError(f"--seeds must be at least 2, got {options.seeds}")
        if min(options.steps) < 1:
            raise InputError(f"--steps must be at least 1, got {min(options.steps)}")
        policy = load_policy(policy_path(options.policy), choose_device(options.device))
        if options.split_seed is None:
            settings["split_seed"] = policy.record.get("data", {}).get("split_seed", 0)
        recorded = options.task or policy.record.get("task")
        arch = build_task(recorded, **_settings(options)).arch if options.set and recorded else policy.archs[0]
        task = task_of(arch, recorded, **settings)
        report = evaluate_policy(policy, task, options.seeds, options.steps, options.split)
        print(json.dumps(report, indent=1)) if options.json else print_policy(report)
        return
    from synthnet.evaluation import evaluate_files

    results = evaluate_files(options.files, options.split, options.task, **settings)
    print(json.dumps({"results": results})) if options.json else print_evaluation(results)


def _inspect(options) -> None:
    from synthnet.report import describe_file, print_description

    description = describe_file(options.file, _like(options))
    print(json.dumps(description)) if options.json else print_description(description)


def _audit(options) -> None:
    from synthnet.audit_run import audit_policy, print_audit

    also = dict(entry.partition("=")[::2] for entry in options.also)
    folder = Path(options.out or f"runs/audit-{Path(options.policy).stem}")
    report = audit_policy(
        options.policy,
        options.zoo,
        folder,
        options.steps,
        options.training,
        options.heldout,
        also,
        options.task,
        options.device,
    )
    print(json.dumps(report)) if options.json else print_audit(report, folder)


def _sgd(options) -> None:
    import torch

    from synthnet.device import choose_device
    from synthnet.evaluation import task_of
    from synthnet.population import grow_twins
    from synthnet.progress import Bar
    from synthnet.synthesis import input_files, open_net, output_files, write_all

    paths = input_files(options.files)
    single = len(options.files) == 1 and not Path(options.files[0]).is_dir()
    targets = output_files(paths, options.out, single)
    files = [open_net(path, _like(options)) for path in paths]
    device, grown = choose_device(options.device), {}
    with Bar("sgd", len(files)) as bar:
        for arch in dict.fromkeys(file.arch for file in files):
            members = [i for i, file in enumerate(files) if file.arch == arch]
            recorded = options.task or files[members[0]].state.metadata.get("synthnet.task")
            task = task_of(arch, recorded, data_dir=options.data_dir)
            twins = grow_twins(task, torch.stack([files[i].flat for i in members]).to(device)).cpu()
            for i, twin in zip(members, twins, strict=True):
                kept = {key: text for key, text in files[i].state.metadata.items() if key != "synthnet.provenance"}
                grown[i] = files[i].state.replaced(files[i].net.spec, twin, kept)
            bar.advance(len(members))
    write_all(targets, [grown[i] for i in range(len(files))], single)


def _demo(options) -> None:
    from synthnet.demo import demo

    demo(options.task, options.nets, options.out, options.train, options.distil, options.device)


def _config(options) -> None:
    from synthnet.config import compose

    print(compose(options.settings)[1], end="")


# --- training commands ---------------------------------------------------------------------------------------------


def _train(stage: str, settings: list[str]) -> int:
    from synthnet.stages import import_runs, run_stage

    if stage == "zoo" and settings[:1] == ["import"]:
        print(import_runs(settings[1:]))
        return 0
    print(run_stage(stage, settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
