"""Random controllers in, working ones out, to look at: carts with their poles before and after synthesis, as an animation."""

import itertools
import time
from pathlib import Path

import torch
from torch import Tensor

from synthnet.audit import summary
from synthnet.bundled import policy_path
from synthnet.commands.demo import write_starts
from synthnet.console import figure_library, table
from synthnet.engine import Nets
from synthnet.errors import InputError
from synthnet.nets import read_weights
from synthnet.seeds import generator
from synthnet.synthesis import synthesize
from synthnet.tasks import Task, build_task
from synthnet.tasks.plants import cartpole

SHOWN, FRAMES, EVERY = 8, 150, 2  # carts a row; frames, one for so many steps
WIDTH, HEIGHT, REACH = 150, 110, 2.6  # pixels of a cart's field; metres to its sides
INK, POLE, FALLEN, RAIL = "#1d2430", "#d9772b", "#c8ccd4", "#8a94a6"


def demo_control(n_nets: int, out: str) -> None:
    """Write start files, synthesise them, judge both in Gymnasium, and save an animation in `out`."""
    if n_nets < SHOWN:
        raise InputError(f"--nets must be at least {SHOWN}, got {n_nets}")
    folder, task, began = Path(out), build_task("cartpole"), time.perf_counter()
    starts, names = write_starts(task, n_nets, folder / "start")
    synthesize(names, policy_path("cartpole"), None, folder / "synthesised", like=task.arch)
    made = torch.stack([read_weights(folder / "synthesised" / name.name).flat(task.network.spec) for name in names])
    rows = []
    for title, nets in (("random nets", starts), ("synthesised", made)):
        found = summary(task.judged(nets)[0])
        rows.append([title, f"{found['mean']:.1f} ± {found['sd']:.1f}", f"{found['min']:.1f}", f"{found['max']:.1f}"])
    table(f"cartpole: {n_nets} fresh seeds, 20 episodes each in Gymnasium", ["nets", "steps of 500", "worst", "best"], rows)
    animation = animate(task, starts[:SHOWN], made[:SHOWN], folder / "carts.gif")
    print(f"files in {folder}/start and {folder}/synthesised; {animation}; {time.perf_counter() - began:.0f} s in all")


def animate(task: Task, before: Tensor, after: Tensor, path: Path) -> Path:
    """Above the random nets' carts, below those of what was made of them, all from one start; what has fallen is grey. Raises:
    InputError where matplotlib, whose pillow draws, is not installed."""
    figure_library()
    from PIL import Image, ImageDraw

    rows, frames = [played(task, nets) for nets in (before, after)], []
    for number in range(FRAMES):
        image = Image.new("RGB", (SHOWN * WIDTH, 2 * (HEIGHT + 22)), "white")
        pen = ImageDraw.Draw(image)
        for row, title in enumerate(("random weights", "after synthesis")):
            top = row * (HEIGHT + 22)
            pen.text((8, top + 4), f"{title}: step {EVERY * number}", fill=INK)
            state, alive = rows[row][number]
            for column in range(SHOWN):
                _draw_cart(pen, state[column], bool(alive[column]), column * WIDTH, top + 22)
        frames.append(image)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=20 * EVERY, loop=0, optimize=True)
    return path


def played(task: Task, nets: Tensor) -> list[tuple[Tensor, Tensor]]:
    """State and whether it stands of every net's cart [net], one for each frame."""
    start = cartpole.PLANT.begin(1, generator(0, "carts")).expand(len(nets), 1, -1)
    seen = [(start[:, 0], torch.ones(len(nets), dtype=torch.bool))]
    for state, _, alive in itertools.islice(cartpole.PLANT.steps(Nets(task.network, nets), start), FRAMES * EVERY):
        seen.append((state[:, 0], alive[:, 0]))
    return [seen[min(step, len(seen) - 1)] for step in range(0, FRAMES * EVERY, EVERY)]


def _draw_cart(pen, state: Tensor, alive: bool, left: int, top: int) -> None:
    place, _, angle, _ = state.tolist()
    ground, scale = top + HEIGHT - 22, WIDTH / (2 * REACH)
    x = left + WIDTH / 2 + scale * place
    pen.line([(left + 8, ground + 12), (left + WIDTH - 8, ground + 12)], fill=RAIL, width=1)
    pen.rectangle([x - 12, ground, x + 12, ground + 10], fill=INK if alive else FALLEN)
    tip = torch.tensor([angle]).sin().item(), torch.tensor([angle]).cos().item()
    pen.line([(x, ground), (x + 62 * tip[0], ground - 62 * tip[1])], fill=POLE if alive else FALLEN, width=4)
