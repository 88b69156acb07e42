"""The command line. Use commands take flags; training commands take key=value settings. Exit codes: 0 done, 2 bad input or
settings (one line, no traceback), 130 interrupted (state saved), 1 a fault of ours."""

import argparse
import sys
import warnings
from pathlib import Path

from synthnet import __version__
from synthnet.commands import lab, learn, use
from synthnet.errors import InputError, one_line

EXECUTORS = sorted(path.stem for path in (Path(__file__).parent / "runs" / "executors").glob("[a-z]*.py"))  # torch stays out
TRAINING = {
    "zoo": "train the zoo of a task, or `zoo import DIR`: take your own runs",
    "corrupt": "optional: a model that takes clean states back towards their start, for pairs.source",
    "pairs": "supervised stage on pairs of weight states",
    "distil": "optional pathwise stage through the target's loss",
    "grpo": "reward-only stage",
    "run": "the stages of a configuration one after the other, as in experiment=digits-mlp",
    "sweep": "many runs: settings with several values, sweep.sampler=grid|random|tpe, sweep.executor=processes|ray|slurm",
    "calibrate": "which action noise and how many reward images give GRPO a signal; prints settings for it",
    "critic": "optional: a head that foresees, from weights alone, whether another step helps; for synthesize --steps auto",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if strange := [each for each in arguments if any("\ud800" <= char <= "\udfff" for char in each)]:
            raise InputError(f"{strange[0]!a} is no UTF-8, in which files of weights are named: rename it")
        if arguments and arguments[0] in TRAINING and not {"-h", "--help"} & set(arguments):
            return _train(arguments[0], arguments[1:])
        options, rest = (parser := _parser()).parse_known_args(arguments)
        if rest and (not hasattr(options, "settings") or any(each.startswith("-") or "=" not in each for each in rest)):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        if rest:  # settings may stand on either side of flags
            options.settings = [*options.settings, *rest]
        return options.run(options) or 0
    except InputError as error:
        print(f"synthnet: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:  # the system refuses a path or a file: too long a name, no permission, a full disk
        print(f"synthnet: {one_line(f'{error.filename or error}: {error.strerror or type(error).__name__}')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("synthnet: interrupted; what was finished is saved, the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="synthnet", description="Random network weights in, trained network weights out.")
    parser.add_argument("--version", action="version", version=f"synthnet {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    sub = command("init", use.init, "write files of random start weights")
    sub.add_argument("--task", default="digits-mlp")
    sub.add_argument("--seed", type=int, default=0, help="first seed")
    sub.add_argument("--count", type=int, default=1)
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the task, as in hidden=[48] or channels=[6,12]")
    sub.add_argument("-o", "--out", required=True, help="a file; a folder where --count is above 1")

    sub = command("synthesize", use.synthesize, "turn random weights into working ones, with no data")
    sub.add_argument("files", nargs="+", help=".safetensors files, or a folder of them")
    sub.add_argument("-o", "--out", required=True, help="a file for one input file, else a folder")
    sub.add_argument("--policy", help="a bundled policy's name or a policy file")
    sub.add_argument(
        "--steps", help="synth steps K, by default the policy's best on val; or auto: its critic decides for each net"
    )
    sub.add_argument("--sample", type=int, metavar="SEED", help="draw actions instead of taking their mean")
    sub.add_argument("--strict", action="store_true", help="refuse architectures that the policy was never trained on")
    sub.add_argument("--memory", metavar="SIZE", help="what the process may take, as in 8G; large nets then go in tiles")
    _spec(sub)
    _shared(sub, arch_py=True)

    sub = command("evaluate", use.evaluate, "accuracy of weight files, or of a policy over fresh seeds")
    sub.add_argument("files", nargs="*", help=".safetensors files, or a folder of them")
    sub.add_argument("--policy", help="evaluate this policy over fresh seeds instead")
    sub.add_argument("--seeds", type=int, default=256)
    sub.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    sub.add_argument("--split", default="test", choices=["train", "reward", "val", "test"])
    sub.add_argument("--set", nargs="+", metavar="KEY=VALUE", help="settings of the task, as in hidden=[48] or channels=[6,12]")
    sub.add_argument("--split-seed", type=int, help="by default the one the policy was trained on, else 0")
    _spec(sub)
    _shared(sub, json=True, data=True)

    sub = command("inspect", use.inspect, "what a weight file or policy holds: tensors, architecture, unit groups, tokens")
    sub.add_argument("file")
    _shared(sub, json=True, device=False, arch_py=True)

    sub = command("sgd", use.sgd, "grow the conventionally trained twin of start weights")
    sub.add_argument("files", nargs="+")
    sub.add_argument("-o", "--out", required=True)
    sub.add_argument("--strong", action="store_true", help="by the best recipe of a search on val: the strongest twin known")
    _spec(sub)
    _shared(sub, data=True)

    sub = command("audit", use.audit, "does a policy make new, different, working nets, or does it copy? Beside every control")
    sub.add_argument("policy", help="a bundled policy's name or a policy file")
    sub.add_argument("--zoo", required=True, help="the zoo it was trained on, or one of the same recipe, with held-out runs")
    sub.add_argument("--steps", type=int, nargs="+", help="synth steps to measure; by default 1, 2, 4 and the policy's best")
    sub.add_argument("--training", type=int, default=1024, help="training nets to compare with")
    sub.add_argument("--heldout", type=int, default=256, help="unseen seeds")
    sub.add_argument("--also", nargs="+", metavar="NAME=POLICY", default=[], help="further policies, as controls")
    sub.add_argument("-o", "--out", help="a folder for report.json and report.html; by default runs/audit-POLICY")
    sub.add_argument(
        "--executor", choices=EXECUTORS, help="measure sets of nets side by side, there; by default in this process"
    )
    sub.add_argument("--workers", type=int, default=2, help="with --executor: sets at a time")
    sub.add_argument("--threads", type=int, default=1, help="with --executor: cores of each")
    sub.add_argument("--part", type=int, metavar="N", help="measure one set only, as the workers of --executor do")
    _shared(sub, json=True)

    sub = command("policies", use.policies, "the policies that ship: nets, data, inputs, best K, trunk, size, stages")
    sub.add_argument("--json", action="store_true", help="machine-readable result on standard output")

    sub = command("learn", learn.run, "from nothing to a policy, its card and a report")
    sub.add_argument("task", help="FILE.py:NAME, a built-in task, an .npz, a .csv, or a folder of class folders")
    sub.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings that the recipe leaves as they are")
    sub.add_argument("--minutes", type=float, default=15.0, help="at most; fewer where its stages are done")
    sub.add_argument("-o", "--out", help="the policy file; by default policy.safetensors in the run directory")
    sub.add_argument("--rewards-only", action="store_true", help="leave every stage out that differentiates the target")
    sub.add_argument("--module", metavar="FILE.py:NAME", help="with data: a function that returns the net")
    sub.add_argument("--target", metavar="COLUMN", help="with a .csv: the column to predict; by default the last one")
    sub.add_argument("--json", action="store_true", help="the report as JSON on standard output")

    sub = command("exr", use.exr, "weights as OpenEXR images and PNG sheets, and back; with --policy, the sequence it makes")
    sub.add_argument("files", nargs="+", help=".safetensors files or a folder of them; with --import, one .exr file")
    sub.add_argument("-o", "--out", required=True, help="a folder; with --import, a .safetensors file")
    sub.add_argument("--import", dest="back", action="store_true", help="turn an .exr file back into .safetensors")
    sub.add_argument("--policy", help="draw W0, W1 … WK of one start file under this policy")
    sub.add_argument("--steps", type=int, help="K; by default the policy's best")
    _spec(sub)
    _shared(sub, device=False)

    sub = command("demo", use.demo, "the main job with the bundled policy, or --train to rebuild one from nothing")
    sub.add_argument("what", nargs="?", default="images", choices=["images", "control"], help="what the nets are for")
    sub.add_argument("--train", action="store_true", help="zoo, pairs and GRPO from nothing (up to 20 minutes on two cores)")
    sub.add_argument("--distil", action="store_true", help="with --train: add the distil stage")
    sub.add_argument("--task", default="digits-mlp")
    sub.add_argument("--nets", type=int, default=32)
    sub.add_argument("-o", "--out", default="out")
    sub.add_argument("--device", default="auto")

    sub = command("shard", lab.shard, "one shard of a zoo under construction: what the workers of zoo.executor run")
    sub.add_argument("zoo", help="its run directory")
    sub.add_argument("number", type=int)
    sub.add_argument("--code", nargs="+", default=[], metavar="FILE.py:NAME", help="code of yours that it may use")

    sub = command("config", use.config, "print the composed configuration, and where each value is from")
    sub.add_argument("settings", nargs="*", help="key=value or group=option")
    sub.add_argument("--knobs", action="store_true", help="print every setting and whether a live run can change it")
    _lab(command)
    for name, text in TRAINING.items():
        command(name, None, text).add_argument("settings", nargs="*", help="key=value or group=option; see synthnet config")
    return parser


def _lab(command) -> None:
    sub = command("patch", lab.patch, "change hot knobs of a run while it trains")
    sub.add_argument("run_dir")
    sub.add_argument("settings", nargs="+", metavar="KNOB=VALUE", help="see synthnet config --knobs")
    sub.add_argument("--over", type=int, default=0, metavar="UPDATES", help="how slowly numbers move to their new value")
    sub.add_argument("--wait", type=float, default=lab.ANSWER_S, metavar="SECONDS", help="for the run's answer")

    sub = command("rollback", lab.rollback, "give a live run the knob values of an earlier patch version")
    sub.add_argument("run_dir")
    sub.add_argument("--to", type=int, metavar="VERSION", help="by default the version before the last one; 0 is the start")
    sub.add_argument("--weights", action="store_true", help="and take the policy back to its best so far")
    sub.add_argument("--over", type=int, default=0, metavar="UPDATES")
    sub.add_argument("--wait", type=float, default=lab.ANSWER_S, metavar="SECONDS")

    sub = command("fork", lab.fork, "a new run like an old one but for some settings; reuses what fits")
    sub.add_argument("run_dir")
    sub.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    sub.add_argument("--replay", action="store_true", help="repeat the run with all that was applied to it, bit for bit")
    sub.add_argument("-o", "--out", help="the new run directory; by default the old one's name with a number")

    sub = command("runs", lab.runs, "list, show, stop, resume, compare or prune runs")
    sub.add_argument("action", nargs="?", default="list", choices=["list", "show", "stop", "resume", "compare", "prune"])
    sub.add_argument("names", nargs="*", metavar="RUN")
    sub.add_argument("--runs", default="runs", help="the folder of runs, for list and prune")
    sub.add_argument("--state", nargs="+", default=["dead", "failed"], help="what prune deletes: dead, failed, stopped, done")
    sub.add_argument("--yes", action="store_true", help="prune without asking")
    sub.add_argument("--code", nargs="+", default=[], metavar="FILE.py:NAME", help="code of yours that a resumed run may use")
    sub.add_argument("--json", action="store_true")

    sub = command("serve", lab.serve, "a page on 127.0.0.1 to watch, patch, stop, fork and compare runs")
    sub.add_argument("--runs", default="runs", help="the folder of runs")
    sub.add_argument("--port", type=int, default=8642)


def _spec(sub) -> None:
    sub.add_argument("--spec", nargs="+", metavar="NAME=VALUE", help="which variant of its task a net is for, as in length=0.8")


def _shared(sub, json: bool = False, data: bool = False, device: bool = True, arch_py: bool = False) -> None:
    sub.add_argument("--task", help="a task, or FILE.py:NAME; only where neither metadata nor names and shapes decide")
    if arch_py:
        sub.add_argument("--arch-py", metavar="FILE.py:FACTORY", help="a module of your own; runs that file")
    if device:
        sub.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    if json:
        sub.add_argument("--json", action="store_true", help="machine-readable result on standard output")
    if data:
        sub.add_argument("--data-dir", help="folder of IDX files (full MNIST or Fashion-MNIST), for mnist5k-mlp")


def _train(stage: str, settings: list[str]) -> int:
    if stage == "zoo" and settings[:1] == ["import"]:
        lab.import_runs(settings[1:])
    elif stage in ("sweep", "calibrate"):
        getattr(lab, stage)(settings)
    else:
        lab.train(stage, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
