"""What each use command does with its parsed flags. Imports happen inside, so that every command starts fast."""

import json
import sys
from pathlib import Path

from synthnet.errors import InputError, one_line


def _as_json(value, indent=None) -> str:
    from synthnet.console import as_json

    return as_json(value, indent)


def like_of(options):
    """The kind of architecture that the flags name, if they name one."""
    from synthnet.tasks import build_task, own_arch

    if getattr(options, "arch_py", None):
        return own_arch(options.arch_py)
    return build_task(options.task).arch if options.task else None


def settings_of(options) -> dict:
    """--set KEY=VALUE, with values as JSON."""
    made = {}
    for entry in options.set or []:
        key, _, value = entry.partition("=")
        try:
            made[key] = json.loads(value)
        except ValueError as error:
            raise InputError(f"--set expects KEY=VALUE with a JSON value, as in hidden=[48], got {entry!r}") from error
        if key in ("split_seed", "data_dir"):
            raise InputError(f"--set {key}: use --{key.replace('_', '-')} instead")
    return made


def spec_of(options) -> dict | None:
    """--spec NAME=VALUE, or None where it is not given."""
    made = {}
    for entry in options.spec or []:
        name, _, value = entry.partition("=")
        try:
            made[name] = float(value)
        except ValueError as error:
            raise InputError(f"--spec expects NAME=VALUE with a number, as in length=0.8, got {entry!r}") from error
    return made or None


def init(options) -> None:
    import torch

    from synthnet.engine.netfiles import output_files, write_all
    from synthnet.nets.weights import WeightState
    from synthnet.tasks import build_task

    if options.count < 1:
        raise InputError(f"--count must be at least 1, got {options.count}")
    task = build_task(options.task, **settings_of(options)).members[0]
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
        whole = {t.name: torch.zeros(t.shape, dtype=torch.int64) for t in task.network.spec.tensors if t.integer}
        states.append(WeightState({**task.network.spec.unflatten(flat), **whole}, metadata))
    write_all(targets, states, options.count == 1)
    print(f"wrote {len(targets)} start state(s) of {task.name} to {one_line(str(options.out))}", file=sys.stderr)


def synthesize(options) -> None:
    from synthnet.synthesis import synthesize

    given = options.files[0] if len(options.files) == 1 else options.files
    done = synthesize(
        given,
        options.policy,
        options.steps,
        options.out,
        options.sample,
        like_of(options),
        options.device,
        options.strict,
        options.memory,
        spec_of(options),
    )
    states = done if isinstance(done, list) else [done]
    taken = [json.loads(state.metadata["synthnet.provenance"])["steps"] for state in states]
    steps = f"{taken[0]} step(s) each" if min(taken) == max(taken) else f"{min(taken)} to {max(taken)} steps"
    print(f"synthesised {len(states)} net(s) in {steps}, without data -> {one_line(str(options.out))}", file=sys.stderr)


def evaluate(options) -> None:
    from synthnet.commands.describe import print_evaluation, print_policy

    if bool(options.files) == bool(options.policy):
        raise InputError("name weight files, or --policy, and not both")
    settings = {"split_seed": options.split_seed or 0, "data_dir": options.data_dir}
    if options.policy:
        from synthnet.audit.evaluation import evaluate_policy, task_of
        from synthnet.bundled import policy_path
        from synthnet.device import choose_device
        from synthnet.policy.file import read_policy
        from synthnet.tasks import build_task, data_settings, recorded_task

        if options.seeds < 2:
            raise InputError(f"--seeds must be at least 2, got {options.seeds}")
        if min(options.steps) < 1:
            raise InputError(f"--steps must be at least 1, got {min(options.steps)}")
        policy = read_policy(policy_path(options.policy), choose_device(options.device))
        asked = {} if options.split_seed is None else {"split_seed": options.split_seed}
        settings |= {**data_settings(policy.record.get("data")), **asked}
        recorded = recorded_task(policy.record.get("task"))
        if "joint" in (policy.record.get("data") or {}) and not options.task:
            raise InputError("this policy was trained for several tasks: pass --task NAME of the one to evaluate")
        if options.spec:
            raise InputError("--spec is for files: a policy is evaluated on specs that are drawn")
        if options.set and (options.task or recorded):
            task = build_task(options.task or recorded, **{**settings, **settings_of(options)}).members[0]
        else:
            task = task_of(policy.archs[0], options.task, recorded, **settings)
        report = evaluate_policy(policy, task, options.seeds, options.steps, options.split)
        print(_as_json(report, 1)) if options.json else print_policy(report)
        return
    from synthnet.audit.evaluation import evaluate

    if options.set and not options.task:
        raise InputError("--set is of a task: name that too, with --task")
    settings |= settings_of(options)
    results = evaluate(options.files, options.split, options.task, spec_of(options), **settings)
    print(_as_json({"results": results})) if options.json else print_evaluation(results)


def inspect(options) -> None:
    from synthnet.commands.describe import describe_file, print_description

    description = describe_file(options.file, like_of(options))
    print(_as_json(description)) if options.json else print_description(description)


def policies(options) -> None:
    from synthnet.bundled import described, policies
    from synthnet.console import table
    from synthnet.synthesis import told_inputs

    rows = [described(name) for name in policies()]
    if options.json:
        print(_as_json(rows))
        return
    columns = ["policy", "nets", "data and inputs", "best K", "trunk", "MB", "stages"]
    shown = lambda row: ", ".join(row["nets"][:2]) + (f" and {len(row['nets']) - 2} more" if len(row["nets"]) > 2 else "")  # noqa: E731
    cells = lambda row: [  # noqa: E731
        row["name"],
        shown(row),
        told_inputs(row["inputs"]),
        str(row["best_k"]),
        row["trunk"],
        f"{row['bytes'] / 1e6:.1f}",
        " ".join(row["stages"]),
    ]
    table("policies that ship", columns, [cells(row) for row in rows])


def audit(options) -> None:
    from synthnet.audit.run import Case, audit_part, audit_policy, print_audit
    from synthnet.runs.lab import WorkersConfig

    also = {}
    for entry in options.also:
        name, _, path = entry.partition("=")
        if not name or not path or name in also:
            raise InputError(f"--also expects NAME=POLICY with names that differ, got {entry!r}")
        also[name] = path
    folder = Path(options.out or f"runs/audit-{Path(options.policy).stem}")
    case = Case.open(options.policy, options.zoo, options.training, options.heldout, also, options.task, options.device)
    if options.part is not None:
        print(audit_part(case, folder, options.part))
        return
    command = ["audit", options.policy, "--zoo", options.zoo, "-o", str(folder), "--device", options.device]
    command += ["--training", str(options.training), "--heldout", str(options.heldout)]
    command += [*(["--also", *options.also] if also else []), *(["--task", options.task] if options.task else [])]
    workers = WorkersConfig(options.executor, options.workers, options.threads)
    report = audit_policy(case, folder, options.steps, workers, command)
    print(_as_json(report)) if options.json else print_audit(report, folder)


def sgd(options) -> None:
    import torch

    from synthnet.audit.evaluation import spec_for, task_of
    from synthnet.bundled import known_archs
    from synthnet.device import choose_device
    from synthnet.engine.netfiles import input_files, open_net, result_files, write_all
    from synthnet.progress import Bar
    from synthnet.tasks import grow_strong, grow_twins

    paths = input_files(options.files)
    single = len(options.files) == 1 and not Path(options.files[0]).is_dir()
    targets = result_files(paths, options.out, single)
    like, known = like_of(options), known_archs()
    files = [open_net(path, like, known) for path in paths]
    device, grown, asked = choose_device(options.device), {}, spec_of(options)
    with Bar("sgd", len(files)) as bar:
        kinds = [(file.arch, file.state.metadata.get("synthnet.task")) for file in files]
        for arch, recorded in dict.fromkeys(kinds):
            members = [i for i, kind in enumerate(kinds) if kind == (arch, recorded)]
            task = task_of(arch, options.task, recorded, data_dir=options.data_dir)
            starts = torch.stack([files[i].flat for i in members]).to(device)
            told = [spec_for(files[i], task, asked) for i in members]
            spec = torch.cat(told) if task.variants else None
            grow = (lambda *each, **told: grow_strong(*each, done=True, **told)[0]) if options.strong else grow_twins
            twins = grow(task, starts, spec=spec).cpu()
            for number, (i, twin) in enumerate(zip(members, twins, strict=True)):
                kept = {key: text for key, text in files[i].state.metadata.items() if key != "synthnet.provenance"}
                if task.variants:
                    kept["synthnet.spec"] = task.variants.told(spec[number])
                grown[i] = files[i].replaced(twin, kept)
            bar.advance(len(members))
    write_all(targets, [grown[i] for i in range(len(files))], single)


def exr(options) -> None:
    from synthnet.engine.netfiles import input_files
    from synthnet.nets.exr import export, read_exr
    from synthnet.nets.weights import read_weights, write_weights
    from synthnet.synthesis import synthesize_sequence

    if options.back:
        if len(options.files) != 1 or options.policy:
            raise InputError("--import takes one .exr file and no --policy")
        write_weights(options.out, read_exr(options.files[0]))
        return
    paths = input_files(options.files)
    if options.spec and not options.policy:
        raise InputError("--spec is told to a policy: give --policy as well")
    if options.policy:
        if len(paths) != 1:
            raise InputError(f"--policy draws the sequence of one start file, got {len(paths)}")
        states = synthesize_sequence(paths[0], options.policy, options.steps, like_of(options), spec=spec_of(options))
        names = [f"{paths[0].stem}-w{k}" for k in range(len(states))]
    else:
        states, names = [read_weights(path) for path in paths], [path.stem for path in paths]
    made = export(states, names, options.out)
    print(f"wrote {len(made)} .exr file(s) to {one_line(str(options.out))}", file=sys.stderr)


def demo(options) -> None:
    from synthnet.commands.carts import demo_control
    from synthnet.commands.demo import demo

    if options.what == "control":
        demo_control(options.nets, options.out)
        return
    demo(options.task, options.nets, options.out, options.train, options.distil, options.device)


def config(options) -> None:
    from synthnet.config import KNOB_COLUMNS, explain, knob_rows
    from synthnet.console import markdown

    print(markdown(KNOB_COLUMNS, knob_rows())) if options.knobs else print(explain(options.settings), end="")
