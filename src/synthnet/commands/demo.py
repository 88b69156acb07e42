"""The main job, shown end to end: random files in, working files out, beside conventional training from the same weights."""

import time
from pathlib import Path

import torch
from torch import Tensor

from synthnet.audit import split_data, summary
from synthnet.bundled import find_policy, policy_path
from synthnet.console import accuracy_row, figure_library, percent, table
from synthnet.device import choose_device
from synthnet.engine import Training, score, train_population
from synthnet.errors import InputError
from synthnet.files import make_folder
from synthnet.lab.fork import run_command
from synthnet.nets import WeightState, read_weights, to_image, write_weights
from synthnet.policy import choose_steps, read_policy
from synthnet.synthesis import synthesize
from synthnet.tasks import Task, build_task, recipe_of


def demo(task_name: str, n_nets: int, out: str, rebuild: bool, distil: bool, device: str) -> None:
    """Write start files, synthesise them, train their twins, and save a table and a figure in `out`."""
    if n_nets < 2:
        raise InputError(f"--nets must be at least 2, got {n_nets}")
    if distil and not rebuild:
        raise InputError("--distil goes with --train: the bundled policy is already trained")
    folder, task = Path(out), build_task(task_name).members[0]
    choose_device(device)
    policy = rebuild_policy(task, folder / "train", distil, device) if rebuild else policy_path(find_policy(task.arch)[0])
    record = read_policy(policy)
    n_steps = max(choose_steps(record, None), 2)

    began = time.perf_counter()
    starts, starting = write_starts(task, n_nets, folder / "start")
    synthesis_began = time.perf_counter()
    for k in range(1, n_steps + 1):
        synthesize(starting, policy, k, folder / f"synthesised-k{k}", like=task.arch, device=device)
    synthesis_s = (time.perf_counter() - synthesis_began) / n_steps

    files = {k: [folder / f"synthesised-k{k}" / path.name for path in starting] for k in range(1, n_steps + 1)}
    outputs = {k: torch.stack([read_weights(path).flat(task.network.spec) for path in paths]) for k, paths in files.items()}
    sgd_began = time.perf_counter()
    trained = sgd_states(task, starts, choose_device(device))
    sgd_s = time.perf_counter() - sgd_began

    inputs, labels = split_data(task, "test")
    accuracy = lambda flat: score(task.network, flat, inputs, labels)[0]  # noqa: E731
    synth = {0: accuracy(starts), **{k: accuracy(flat) for k, flat in outputs.items()}}
    sgd = torch.stack([accuracy(trained[:, epoch]) for epoch in range(trained.shape[1])])
    print_table(task, synth, sgd, n_nets, synthesis_s, sgd_s)
    figure = draw(task, synth, sgd, starts[0], outputs[n_steps][0], folder)
    print(f"files in {folder}/start and {folder}/synthesised-k*; figure {figure}; {time.perf_counter() - began:.0f} s in all")


def write_starts(task: Task, n_nets: int, folder: Path) -> tuple[Tensor, list[Path]]:
    """Start weights [net weights], and the files that they were written to, bare: no metadata is needed."""
    make_folder(folder)
    starts = task.draw_start("user", list(range(n_nets)))
    paths = [folder / f"net-{index:04d}.safetensors" for index in range(n_nets)]
    for path, flat in zip(paths, starts, strict=True):
        write_weights(path, WeightState(task.network.spec.unflatten(flat)))
    return starts, paths


def rebuild_policy(task: Task, folder: Path, distil: bool, device: str) -> Path:
    """A policy from nothing: zoo → pairs → (distil) → GRPO, with the settings of configs/experiment/demo.yaml."""
    stages = "stages=[zoo,pairs,distil,grpo]" if distil else "stages=[zoo,pairs,grpo]"
    target = folder.with_name(f"{folder.name}-distil") if distil else folder
    return run_command("run", [f"device={device}", f"task={task.name}", "experiment=demo", stages, f"run_dir={target}"])


def sgd_states(task: Task, starts: Tensor, device: torch.device) -> Tensor:
    """The twins' weights after every epoch: [net epoch weights], epoch 0 being the start."""
    inputs, labels = (part.to(device) for part in task.examples("train"))
    epochs = list(range(recipe_of(task).epochs + 1))
    return train_population(task.network, starts.to(device), inputs, labels, Training(recipe_of(task)), epochs).cpu()


def print_table(task: Task, synth: dict[int, Tensor], sgd: Tensor, n_nets: int, synthesis_s: float, sgd_s: float) -> None:
    """Accuracy on the test split of start weights, synthesised nets and SGD twins, with the time each took."""
    twin = sgd[-1].mean().item()
    rows = [accuracy_row("start weights", summary(synth[0]), percent(synth[0].mean().item() / twin), "")]
    for k, values in list(synth.items())[1:]:
        share, cost = percent(values.mean().item() / twin), f"{1e3 * synthesis_s / n_nets:.1f} ms"
        rows.append(accuracy_row(f"synthesised, K = {k}", summary(values), share, cost))
    rows.append(
        accuracy_row(f"SGD twins, {len(sgd) - 1} epochs", summary(sgd[-1]), percent(1.0), f"{1e3 * sgd_s / n_nets:.1f} ms")
    )
    title = f"{task.name}: {n_nets} fresh seeds, test split; synthesis reads no data"
    table(title, ["weights", "accuracy, mean ± sd", "worst", "best", "share of SGD", "time per net"], rows)


def draw(task: Task, synth: dict[int, Tensor], sgd: Tensor, before: Tensor, after: Tensor, folder: Path) -> Path:
    """The figure: accuracy by synth step against SGD epochs; one net's first-layer weights before and after."""
    _, plt = figure_library()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1.5, 1, 1], layout="constrained")
    epochs = range(len(sgd))
    mean, low, high = (100 * part.numpy() for part in (sgd.mean(1), sgd.min(1).values, sgd.max(1).values))
    left.plot(epochs, mean, color="tab:gray", label="SGD twins, by epoch")
    left.fill_between(epochs, low, high, color="tab:gray", alpha=0.2, lw=0, label="worst to best")
    steps = list(synth)
    centres = [100 * values.mean().item() for values in synth.values()]
    spread = [100 * values.std().item() for values in synth.values()]
    left.errorbar(steps, centres, spread, color="tab:orange", marker="o", capsize=3, label="SynthNet, by synth step")
    left.axhline(mean[-1], color="tab:gray", ls=":", lw=1)
    left.set_xscale("symlog", linthresh=4)
    left.set_xlim(-0.2, len(sgd) - 1)
    ticks = [k for k in (0, 1, 2, 4, 10, 20, 40, 100) if k < len(sgd)]
    left.set_xticks(ticks, ticks)
    left.set(xlabel="synth steps / SGD epochs", ylabel="test accuracy (%)", title=f"{task.name}, {sgd.shape[1]} unseen seeds")
    left.legend(loc="lower right", frameon=False)
    for axes, flat, title in ((middle, before, "start weights"), (right, after, f"after {steps[-1]} synth steps")):
        image = _first_layer(task, flat)
        bound = image.abs().max().item()
        axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest")
        axes.set_title(f"first layer of one net:\n{title}", fontsize=10)
        axes.axis("off")
    path = folder / "demo.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _first_layer(task: Task, flat: Tensor) -> Tensor:
    """The incoming weights of each hidden unit as an image, tiled in a near-square grid with one blank pixel between; of a
    convolution, its kernels."""
    tensors, chain = task.network.spec.unflatten(flat), task.network.chain
    if chain is None:
        return torch.from_numpy(to_image(next(value for value in tensors.values() if value.ndim > 1)))
    layer = chain.layers[0]
    weight = tensors[layer.weight]
    side = round(layer.n_in**0.5)
    root = len(weight) ** 0.5
    columns = next((n for n in range(1, len(weight) + 1) if len(weight) % n == 0 and root <= n <= 2 * root), round(root) + 1)
    rows = -(-len(weight) // columns)
    canvas = torch.zeros(rows * (side + 1) - 1, columns * (side + 1) - 1)
    for unit, image in enumerate(weight[:, : side * side].reshape(-1, side, side)):
        top, left = unit // columns * (side + 1), unit % columns * (side + 1)
        canvas[top : top + side, left : left + side] = image
    return canvas
