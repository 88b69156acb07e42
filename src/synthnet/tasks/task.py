"""Tasks: what nets are for. A module or an architecture, its data and splits, loss and metric, and the recipe of its twins."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthnet.engine import (
    CHANNELS,
    PICTURE,
    STATISTICS,
    Measure,
    Nets,
    Network,
    Objective,
    Recipe,
    Variants,
    arch_of,
    network_of,
)
from synthnet.errors import InputError, unknown
from synthnet.nets import Arch, asked, draw_init, init_scale, match_start
from synthnet.seeds import generator, start_generator
from synthnet.tasks.checks import check_fit, check_own, check_varied, made
from synthnet.tasks.dataset import Data
from synthnet.tasks.source import Source

REWARD_DRAWS = 64  # of fixed seeds, which a reward is averaged over in evaluation
EPISODES = range(10_000, 10_020)  # seeds of those that controllers are judged by
OWN_RECIPE = Recipe(2e-3, 64, None)  # of tasks that give none: its epochs are found by patience on val


@dataclass(frozen=True, eq=False)
class Task:
    """What nets are for: a `module`, `data`, and by which loss and metric they are judged; or a `reward` alone.

    module: a function without arguments that makes a net, any nn.Module; built-in tasks have an `arch` instead. data: `Data`
    or a built-in `Source`. loss, metric: of (outputs, targets) -> [example]; by default cross-entropy and accuracy for labels
    of classes, mean squared error and r2 for real targets. reward: of (nets, draw) -> [net], higher is better (`Nets`), where
    there are no data; then `example` is a batch of one. recipe: of its twins (by default Adam at 2e-3, batches of 64, epochs by
    patience on val). start: draws a net's start weights from a torch.Generator, as a module (default: `module` itself under the
    seed). name: by default the function's. split_seed, held_back: which examples are train, reward, val and test; so many of
    the last train examples count as reward examples instead.

    spec: the numbers that say which variant of the task a net is for, as in {"length": (0.25, 1.0)}, or lists of the values
    that there are; drawn for each start state, told to the policy, and given to the reward as `nets.spec`, or to `variant`: of
    (inputs [example …], targets [example …], spec [net number]), what the data are for each of these nets: inputs [example …]
    or [net example …], targets [net example …].

    A family of task `of` has several architectures: `family`, to train on, and `heldout`, never trained on. A joint task has
    the members of several tasks, each on its own data. `named_only`: a file that names no task is not taken to be of this one.
    Raises: InputError for a module that fails, is random, does not fit the data, or mixes examples.
    """

    module: Callable[[], nn.Module] | None = None
    data: Data | Source | None = None
    loss: Measure | None = None
    metric: Measure | None = None
    reward: Callable[[Nets, torch.Generator], Tensor] | None = None
    example: Tensor | None = None
    recipe: Recipe = OWN_RECIPE
    start: Callable[[torch.Generator], nn.Module] | None = None
    spec: Mapping[str, Sequence[float]] | Variants | None = None
    variant: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    name: str = ""
    arch: Arch = None  # type: ignore[assignment]  # found from the module where none is given
    split_seed: int = 0
    held_back: int = 0
    of: str | None = None
    family: tuple[Arch, ...] = ()
    heldout: tuple[Arch, ...] = ()
    joint: tuple["Task", ...] = ()
    named_only: bool = False

    def __post_init__(self):
        self.variants  # noqa: B018  (refuses a spec that is none)
        if self.arch is None:
            check_own(self)
            first, second = made(self.module), made(self.module)
            if first is second:
                raise InputError("the task's module returns the same net each time: let it make a new one, as a lambda does")
            object.__setattr__(self, "arch", arch_of(first, self._inputs()))
            self._check_outputs()

    @property
    def own(self) -> bool:
        """Whether it is of a module of the user's own."""
        return self.module is not None

    @cached_property
    def variants(self) -> Variants | None:
        """What its spec says, checked."""
        return Variants.of(self.spec)

    @cached_property
    def objective(self) -> Objective:
        """Loss and metric. Of real targets a net that has learnt nothing has a loss of 1: they are standardised."""
        classes = self.data.classes if isinstance(self.data, Data) else ()
        if self.data is None:
            return Objective("own", getattr(self.reward, "metric", "reward"))
        kind = "classes" if classes is not None else "numbers"
        name = "r2" if kind == "numbers" else "accuracy"
        if self.metric is not None:
            name = getattr(self.metric, "__name__", "metric").strip("<>")
        elif self.loss is not None and kind == "numbers":
            kind, name = "own", "minus loss"
        n_classes = len(classes) if classes and self.variant is None else self.arch.n_outputs
        chance = math.log(n_classes) if kind == "classes" else 1.0
        return Objective(kind, name, self.loss, self.metric, chance)

    @property
    def floating(self) -> bool:
        """Whether inputs are real numbers, to which noise can be added."""
        return self.arch.example is None or self.arch.example.is_floating_point()

    @property
    def images(self) -> bool:
        """Whether inputs are square images, which maps can be applied to."""
        if isinstance(self.data, Data):
            shape = self.data.shape
            return self.floating and len(shape) == 3 and shape[0] in CHANNELS and shape[1] == shape[2]
        return self.data is not None

    @property
    def members(self) -> tuple["Task", ...]:
        """The tasks that a stage trains on: one for each architecture of a family, those of each joint task, else this one."""
        if self.joint:
            return tuple(member for task in self.joint for member in task.members)
        return tuple(self.with_arch(arch) for arch in self.family) or (self,)

    def with_arch(self, arch: Arch) -> "Task":
        """The same data and recipe for another architecture."""
        if arch == self.arch and not self.family and not self.joint:
            return self
        return replace(self, name=self.of or self.name, arch=arch, of=None, family=(), heldout=(), joint=())

    @cached_property
    def network(self) -> Network:
        return network_of(self.arch, self.name, self.objective)

    @property
    def start_scale(self) -> Tensor:
        """The scale of each weight [weights] of the start distribution."""
        return init_scale(self.network.spec)

    @property
    def data_set(self) -> str:
        """The name of the examples as the net sees them."""
        return self.data.name if self.data is not None else self.name

    @property
    def statistics(self) -> Tensor:
        """What a policy may be told of the training images [STATISTICS]: mean, deviation and, less the mean, the mean of each
        of the first ten classes, as pictures of 8x8 numbers each, mean over colours; nothing (zeros) of what are no images."""
        if not self.images or self.objective.kind != "classes":
            return torch.zeros(STATISTICS)
        inputs, labels = self.examples("train")
        of_class = torch.stack([inputs[labels == c].mean(0) if (labels == c).any() else inputs.mean(0) for c in range(10)])
        pictures = torch.cat([inputs.mean(0)[None], inputs.std(0)[None], of_class - inputs.mean(0)]).flatten(1)
        colours = 1 if math.isqrt(pictures.shape[1]) ** 2 == pictures.shape[1] else 3
        side = math.isqrt(pictures.shape[1] // colours)
        return F.adaptive_avg_pool2d(pictures.view(-1, colours, side, side).mean(1), PICTURE).flatten()

    @property
    def data_key(self) -> dict:
        """What decides which examples are train and which are test; recorded in zoos and policies."""
        if self.joint:
            return {"joint": [task.data_key for task in self.joint]}
        held_back = {"held_back": self.held_back} if self.held_back else {}
        return {**(self.data.key if self.data is not None else {}), "split_seed": self.split_seed, **held_back}

    @property
    def inputs(self) -> dict:
        """What nets of this task are given and put out, as JSON."""
        told = getattr(self.reward, "inputs", None) if self.data is None else self.data.inputs(self.split_seed, self.held_back)
        return told or {"shape": list(self.example.shape[1:])}

    @property
    def n_classes(self) -> int:
        return self.network.n_classes

    def examples(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets of train, reward or val, or of several joined with '+', as in 'train+reward'.

        Raises: InputError for the test split: only evaluation reads it (`test_data`).
        """
        parts = split.split("+")
        if "test" in parts:
            raise InputError("the test split is read by evaluation and reports only; use train, reward or val")
        return self._select(tuple(parts))

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The test split. Called by evaluation and reports only; a test enforces it."""
        return self._select(("test",))

    def _select(self, parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        if self.joint:
            raise ValueError(f"{self.name} has several data sets: ask its members")
        if self.data is None:
            raise InputError(f"task {self.name} has no data, only a reward: train it with synthnet grpo or learn")
        chosen = _chosen(self.data, self.split_seed, self.held_back, parts)
        if not self.own and self.variant is None:
            check_fit(self.name, self.network.module, self.data_set, *chosen)
        return chosen

    def rewards(self, flat: Tensor, draw: torch.Generator, shaped: bool = False, spec: Tensor | None = None) -> Tensor:
        """What the task's reward gives for nets [net weights] [net], float64; `draw` is shared by all of them. shaped: as
        training has it, where a plant says more than what counts in the end. spec [net number]: which variant each is for.

        Raises: InputError where it fails, or gives no finite number for each net.
        """
        reward = getattr(self.reward, "shaped", self.reward) if shaped else self.reward
        what, nets = f"the reward of task {self.name} fails", self.nets(flat, spec)
        found = asked(what, lambda: torch.as_tensor(reward(nets, draw), dtype=torch.float64).detach().cpu())
        if found.shape != (len(flat),):
            raise InputError(f"the reward of task {self.name} should be [net], here [{len(flat)}], got {list(found.shape)}")
        if not torch.isfinite(found).all():
            raise InputError(f"the reward of task {self.name} gave NaN or infinity: give a low number to nets that fail")
        return found

    def nets(self, flat: Tensor, spec: Tensor | None = None) -> Nets:
        """Nets [net weights] as a reward meets them. Raises: InputError where the task has variants, and none is said."""
        return Nets(self.network, flat, self.variants.spec(None) if self.variants and spec is None else spec)

    def mean_reward(self, flat: Tensor, n_draws: int = REWARD_DRAWS, spec: Tensor | None = None) -> Tensor:
        """The mean reward of each net [net weights] [net] over draws of fixed seeds."""
        draws = [generator(0, "reward", index) for index in range(n_draws)]
        return torch.stack([self.rewards(flat, draw, spec=spec) for draw in draws]).mean(0)

    def judged(self, flat: Tensor, spec: Tensor | None = None) -> tuple[Tensor, int]:
        """The reward of each net [net weights] [net] as evaluation has it, and over how many draws: of controllers, episodes of
        fixed seeds in Gymnasium."""
        if not hasattr(self.reward, "play"):
            return self.mean_reward(flat, spec=spec), REWARD_DRAWS
        return self.reward.play(self.nets(flat, spec), list(EPISODES)).mean(1), len(EPISODES)

    def draw_spec(self, purpose: str, seeds: list[int]) -> Tensor | None:
        """Which variant the net of each seed is for [seed number]; None for a task that has none."""
        if self.variants is None:
            return None
        return self.variants.draw([generator(seed, f"spec/{purpose}", self.name) for seed in seeds], purpose == "test")

    def varied(self, inputs: Tensor, targets: Tensor, spec: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs [example …] and targets as they are for nets of these specs [net number]: [net example …] each; as they came
        where the task has no variants. Raises: InputError where its `variant` fails, or gives other shapes."""
        if self.variant is None or spec is None:
            return inputs, targets
        found = asked(f"the variant of task {self.name} fails", self.variant, inputs, targets, spec.to(inputs.device))
        made, wanted = check_varied(self, inputs, len(spec), found)
        return made.expand(len(spec), *inputs.shape), wanted

    def draw_start(self, purpose: str, seeds: list[int]) -> Tensor:
        """Start weights [seed weights] (`draw_init`). Each seed has a generator of its own, so a net does not depend on which
        others are drawn with it. Of a module of the user's own, its own initialisation at the root mean square of ours."""
        spec, draws = self.network.spec, [start_generator(purpose, self.name, seed) for seed in seeds]
        if not self.own:
            return torch.stack([draw_init(spec, draw) for draw in draws])
        return torch.stack([match_start(spec, spec.flatten(_started(self, draw).state_dict()))[0] for draw in draws])

    def _inputs(self) -> Tensor:
        """A few inputs that the module is tried on [example …]."""
        if self.data is None:
            return self.example.expand(2, *self.example.shape[1:])
        if not isinstance(self.data, Data):
            return self.data.splits(self.split_seed).inputs[:8]
        splits = self.data.splits(self.split_seed, self.held_back)
        return splits.inputs[splits.indices["train"][:8]]

    def _check_outputs(self) -> None:
        """Refuse a module whose outputs are not as many as there are classes or targets."""
        plain = isinstance(self.data, Data) and self.loss is None and self.variant is None
        if plain and self.arch.n_outputs != self.data.n_targets:
            what = "classes" if self.data.classes is not None else "targets"
            name = self.name or "of yours"
            raise InputError(
                f"task {name}: its module puts out {self.arch.n_outputs} numbers, data have {self.data.n_targets} {what}"
            )


def _started(task: Task, draw: torch.Generator) -> nn.Module:
    """A module with start weights that depend on the generator alone."""
    if task.start is not None:
        return made(lambda: task.start(draw), "start")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw.initial_seed())
        return made(task.module)


@lru_cache(maxsize=32)
def _chosen(data: Data | Source, split_seed: int, held_back: int, parts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Inputs and targets of some splits, shared by all who ask."""
    splits = data.splits(split_seed, held_back)
    if wrong := [part for part in parts if part not in splits.indices]:
        raise unknown("split", wrong[0], splits.indices)
    chosen = torch.cat([splits.indices[part] for part in parts])
    return splits.inputs[chosen], splits.targets[chosen]
