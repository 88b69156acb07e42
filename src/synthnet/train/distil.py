"""The distil stage: pathwise, through the target's loss. Supervised; not GRPO, and never called so. Optional.

Cross-entropy of the synthesised nets on the training images flows back through the target network, the weights and every
synth step. Labels are the zoo ensemble's mean predictions (soft) or the data's own (hard). The pairs loss can stay on as
an anchor: without it the policy drifts towards one solution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from synthnet.engine import LARGEST_WARP, Variation, check_variation, predictions, shuffled
from synthnet.errors import InputError
from synthnet.nets import WeightSpec, aligned_distance, prediction_shortfall, shortfall
from synthnet.policy import Policy, Prompt, draw_prompt, rollout
from synthnet.runs import Setup, ranks
from synthnet.seeds import generator
from synthnet.settings import COUNT, SHARE, WEIGHT, check_settings, setting
from synthnet.tasks import Task
from synthnet.train.loop import STEPS, LoopConfig, OptimConfig, Run, check_steps
from synthnet.train.pairs import PairsConfig, draw_pairs, move, pairs_loss
from synthnet.train.validation import CollapseWatch, Validation
from synthnet.train.zoo import Zoo

RIDGE, NEWTON = 1e-3, 16  # of a covariance, whose mean is 1; steps that its inverse square root is found in
TEACHERS = 256  # zoo nets whose mean prediction is the soft label
FEW = 4  # one in so many of an update's images is shuffled to be an outlier
SLOW = 0.9  # of the running mean of a member's loss, how much stays


@dataclass
class DistilConfig:
    """Settings of `synthnet distil`; what the forces are is said where they are computed."""

    steps: list[int] = setting([1, 2], "the K that chains may have, one drawn an update", STEPS, hot=True)
    members: str = setting(
        "turns", "of a family: in turn, or drawn by loss, or by what they lack to twins", choices=("turns", "lacking", "behind")
    )
    standardised: int = setting(
        0, "at the beginning, where the loss sees logits as `whitened` leaves them", (0, 1e9), unit="updates"
    )
    leads: float = setting(
        0.0,
        "share of the loss of guessing below which the running mean of a member's whitened losses ends that (0: none)",
        SHARE,
    )
    graded: int | None = setting(None, "through how many of a chain's last steps gradients flow (null: all)", STEPS, hot=True)
    labels: str = setting("soft", "the mean prediction of zoo nets, or the data's own", choices=("soft", "hard"))
    input_noise: float = setting(0.0, "on training images, in standard deviations of pixels", (0, 10), hot=True)
    warp: float = setting(0.0, "affine maps of training images (`Variation`)", (0, LARGEST_WARP), hot=True)
    anchor: float = setting(0.0, "weight of the pairs loss (0: off)", WEIGHT, hot=True)
    stay: float = setting(0.0, "weight of the squared distance from the start weights, in scale units", WEIGHT, hot=True)
    stay_by: str = setting("weight", "its mean over weights, or over tensors of their means", choices=("weight", "tensor"))
    apart: float = setting(0.0, "weight of what nets of different seeds lack in distance (`shortfall`)", WEIGHT, hot=True)
    differ: float = setting(0.0, "of what their predictions lack (`prediction_shortfall`)", WEIGHT, hot=True)
    steady: float = setting(0.0, "of what K steps undo of what K − 1 had right (`undone`)", WEIGHT, hot=True)
    outliers: float = setting(0.0, "weight of how sure nets are of shuffled inputs (`Forces.outliers`)", WEIGHT, hot=True)
    apart_ratio: float = setting(0.9, "how far apart is enough, as a share of the zoo's nets", (0, 2), hot=True)
    nets: int = setting(32, "start weights an update", COUNT, hot=True)
    images: int = setting(256, "training images an update", COUNT, hot=True)
    val_seeds: int = setting(64, "unseen start weights that are validated on", (2, 1e6))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=800, validate_every=50, checkpoint_every=100))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=3e-4, weight_decay=0.0, warmup=20, ema=0.98))

    @property
    def reads_zoo(self) -> bool:
        """Whether it cannot do without zoo nets."""
        return self.labels == "soft" or bool(self.anchor or self.differ)


def check_distil(config: DistilConfig, policy: Policy, task: Task, zoos: Sequence[Zoo] | None = None) -> None:
    """Refuse settings that the stage cannot work with, before any work."""
    check_settings("distil", config)
    check_steps("distil.steps", config.steps, policy)
    mine = ranks.own_share(config.nets, "distil.nets")
    if (config.apart or config.differ) and mine.stop - mine.start < 2:
        raise InputError(
            "distil.apart and distil.differ compare nets of different seeds: distil.nets must be at least 2 a process, "
            f"got {config.nets}"
        )
    if (config.apart or config.differ) and (few := [zoo.path for zoo in zoos or () if len(zoo.seeds("zoo")) < 2]):
        raise InputError(f"distil.apart and distil.differ compare with zoo nets: {few[0]} has one run, they need two or more")
    if config.labels == "soft" and any(member.objective.loss and member.objective.kind == "classes" for member in task.members):
        raise InputError("a loss of the task's own is of labels, soft ones are probabilities: pass distil.labels=hard")
    if zoos is not None and not zoos and config.reads_zoo:
        raise InputError("distil.anchor and distil.differ read a zoo, and this run began without one: fork it with zoo_dir=…")
    if config.members == "behind" and len(task.members) < 2:
        raise InputError(f"distil.members=behind draws one of several nets, and {task.name} has one: pass distil.members=turns")
    if any(member.variant for member in task.members):
        for name, only in {"labels": "hard", "differ": 0, "anchor": 0}.items():
            if getattr(config, name) != only:
                raise InputError(f"a task with variants has no zoo: pass distil.{name}={only}, not {getattr(config, name)}")
    if config.outliers and (wrong := [each for each in task.members if each.objective.kind != "classes" or not each.floating]):
        raise InputError(
            f"distil.outliers is for classes and inputs that are numbers: {wrong[0].name} has others, pass distil.outliers=0"
        )
    for member in task.members:
        check_variation("distil", Variation(config.input_noise, config.warp), member.examples("train")[0])


def whitened(logits: Tensor) -> Tensor:
    """Logits [net example class] of each net with mean 0 and covariance near the identity over the images: multiplied by the
    inverse square root of their covariance, by the coupled Newton iteration (Higham 2008, Functions of Matrices, ch. 6).

    A policy that begins from nothing first learns to switch the last layer off, from where no gradient leads on; here nothing
    is worth less for being small. Nor is a second direction for being smaller than the first: in a net of five layers all
    units of a layer learn one thing, and one deviation for all classes leaves it there (LOG.md, 30 November 2026).
    """
    n_classes = logits.shape[-1]
    centred = logits - logits.mean(-2, keepdim=True)
    centred = centred / (centred.square().mean((-2, -1), keepdim=True) + 1e-12).sqrt()
    one = torch.eye(n_classes).to(logits)
    covariance = centred.mT @ centred / logits.shape[-2] + RIDGE * one
    size = covariance.square().sum((-2, -1), keepdim=True).sqrt()
    root, inverse = covariance / size, one.expand_as(covariance)
    for _ in range(NEWTON):
        middle = 0.5 * (3 * one - inverse @ root)
        root, inverse = root @ middle, middle @ inverse
    return centred @ (inverse / size.sqrt())


def travelled(moves: Tensor, spec: WeightSpec, by: str) -> Tensor:
    """Mean square of moves [net weight] over weights, or the mean over tensors of theirs."""
    squares = moves.square().mean(0)
    return squares.mean() if by == "weight" else torch.stack([squares[part].mean() for part in spec.slices().values()]).mean()


def undone(before: Tensor, after: Tensor, targets: Tensor) -> Tensor:
    """Divergence, in nats, of predictions from logits [net example class] from what they were before, the mean over all
    examples, of which only those count that were right (as positive-congruent training weighs them, Yan et al. 2021, arXiv
    2011.09161). Targets: class ids [example] or probabilities [example class]."""
    right = before.argmax(-1) == (targets.argmax(-1) if targets.is_floating_point() else targets)
    told = before.log_softmax(-1)
    return (right * (told.exp() * (told - after.log_softmax(-1))).sum(-1)).mean()


def next_member(state: dict, config: DistilConfig, n_members: int, seed: int) -> int:
    """The member of an update: in turn; or, once each had its turn, drawn by the running means of their losses; or half the
    time any, half the time by what the last validation found it to lack to its twins."""
    update, losses, behind = state["update"], state.get("losses", {}), state.get("behind", [])
    if config.members == "lacking" and len(losses) == n_members:
        chances = torch.tensor([losses[str(turn)] for turn in range(n_members)]).clamp_min(1e-6)
    elif config.members == "behind" and len(behind) == n_members and sum(behind) > 0:
        chances = torch.tensor(behind) / sum(behind) + 1 / n_members
    else:
        return update % n_members
    return int(torch.multinomial(chances, 1, generator=generator(seed, "member", update)))


def note_loss(state: dict, turn: int, loss: float) -> None:
    """Keep the running mean of a member's loss in the run's state, the same in every process."""
    losses, mean = state.setdefault("losses", {}), ranks.average({"loss": loss})["loss"]
    if mean is not None and math.isfinite(mean):
        losses[str(turn)] = SLOW * losses.get(str(turn), mean) + (1 - SLOW) * mean


def note_lead(state: dict, turn: int, config: DistilConfig, chance: float) -> None:
    """Keep in the run's state that a member's whitened losses lead somewhere."""
    led = state.setdefault("led", [])
    if turn not in led and state["losses"].get(str(turn), math.inf) < config.leads * chance:
        led.append(turn)


def still_whitened(state: dict, turn: int, config: DistilConfig) -> bool:
    """Whether a member's logits are whitened at this update: to the end of that, or until its losses led somewhere."""
    return state["update"] < config.standardised and turn not in state.get("led", ())


@torch.no_grad()
def ensemble_labels(task: Task, zoo: Zoo, inputs: Tensor) -> Tensor:
    """Mean predicted probabilities [example class] of zoo nets on their own training images."""
    return predictions(task.network, zoo.trained(TEACHERS).to(inputs.device), inputs).mean(0)


@dataclass(frozen=True, eq=False)
class Forces:
    """What the loss of an update is made of, beside the target's own: each gives its value [] for the nets of one member."""

    config: DistilConfig
    pairs: PairsConfig
    members: tuple[Task, ...]
    zoos: Sequence[Zoo]
    place: torch.device
    seed: int
    watch: CollapseWatch

    @cache  # noqa: B019  (it lives as long as its run)
    def references(self, turn: int) -> Tensor:
        return self.zoos[turn].trained(64).to(self.place)

    @cache  # noqa: B019
    def distance(self, turn: int) -> float:
        if not self.zoos:
            return self.watch.references[turn]
        return aligned_distance(self.members[turn].network.alignment, self.references(turn))

    @cache  # noqa: B019
    def states(self, turn: int) -> Tensor:
        return self.zoos[turn].states("zoo", self.pairs.runs)

    def apart(self, turn: int, final: Tensor) -> Tensor:
        net = self.members[turn].network
        return shortfall(net.alignment, final, self.config.apart_ratio * self.distance(turn))

    def differ(self, turn: int, logits: Tensor, images: Tensor) -> Tensor:
        net = self.members[turn].network
        trained = predictions(net, self.references(turn)[:16], images)
        return prediction_shortfall(net.objective.predictions(logits), trained, self.config.apart_ratio)

    def steady(self, turn: int, policy: Policy, prompt: Prompt, logits: Tensor) -> Tensor:
        net, (n_steps, start, images, targets, spec) = self.members[turn].network, prompt
        with torch.no_grad():
            before = net.logits(rollout(policy, start, n_steps - 1, net, spec=spec)[-1], images, own_inputs=spec is not None)
        return undone(before, logits, targets)

    def outliers(self, turn: int, final: Tensor, images: Tensor, update: int) -> Tensor:
        """How far, in nats, predictions on inputs whose numbers are shuffled lie from all classes being alike (outlier
        exposure, Hendrycks et al. 2019, arXiv 1812.04606). images: [example …], or own ones [net example …]."""
        own = images[0] if self.members[turn].variant is not None else images
        strange = shuffled(own[: max(1, len(own) // FEW)], generator(self.seed, "outliers", update))
        told = self.members[turn].network.logits(final, strange).log_softmax(-1)
        return -told.mean() - math.log(told.shape[-1])

    def anchor(self, turn: int, policy: Policy, update: int, images: Tensor) -> Tensor:
        draw = generator(self.seed, "distil-anchor", update)
        batch = draw_pairs(self.pairs, self.states(turn), policy.config.k_max, draw)
        return pairs_loss(policy, move(batch, self.place), self.members[turn].network, self.pairs.function, images)


def train_distil(
    policy: Policy, task: Task, zoos: Sequence[Zoo], config: DistilConfig, pairs: PairsConfig, setup: Setup
) -> Path:
    """Run the stage on the task's members in turn; returns the path of its policy. Soft labels come from the first zoo of each
    data set."""
    check_distil(config, policy, task, zoos)
    seed, place, members = setup.seed, setup.place, task.members
    policy.to(place)
    soft: dict[str, Tensor] = {}
    if config.labels == "soft":
        for member, zoo in zip(members, zoos, strict=True):
            if member.data_set not in soft:
                soft[member.data_set] = ensemble_labels(member, zoo, member.examples("train")[0].to(place))
    validation = Validation.of_task(task, config.val_seeds, config.steps, place)
    before, watch = validation(policy), CollapseWatch(validation)
    forces = Forces(config, pairs, members, zoos, place, seed, watch)

    def validate(average: Policy, progress: float) -> dict:
        metrics = watch(average, progress)
        if config.members == "behind":
            run.state["behind"] = list(ranks.average(dict(enumerate(watch.behind(metrics)))).values())
        early = any(still_whitened(run.state, turn, config) for turn in range(len(members)))
        return {**metrics, "score": progress - 2} if early else metrics  # accuracy says nothing yet: the newest is the best

    with Run(setup, policy, config, validate, {"distil": config}, lambda: check_distil(config, policy, task, zoos)) as run:
        for update in run.updates():
            turn = next_member(run.state, config, len(members), seed)
            member, net = members[turn], members[turn].network
            drawn = (config.steps, config.nets, config.images, seed, update)
            vary, labels = Variation(config.input_noise, config.warp), soft.get(member.data_set)
            prompt = draw_prompt("distil", member, "train", place, *drawn, labels, vary)
            prompt = prompt.share(ranks.own_share(config.nets, "distil.nets"))
            n_steps, start, images, targets, spec = prompt
            final = rollout(policy, start, n_steps, net, graded=config.graded, spec=spec)[-1]
            logits = net.logits(final, images, own_inputs=spec is not None)
            blind = still_whitened(run.state, turn, config)
            loss = net.objective.losses(whitened(logits) if blind else logits, targets).mean()
            metrics = {"target_loss": loss.item(), "n_steps": n_steps}
            if config.standardised:
                metrics["whitened"] = float(blind)
            if (blind and config.leads) or config.members == "lacking":
                note_loss(run.state, turn, metrics["target_loss"])
            if blind and config.leads:
                note_lead(run.state, turn, config, net.objective.chance)
            moved = travelled((final - start) / policy.scale(net), net.spec, config.stay_by)
            loss, metrics["moved"] = loss + config.stay * moved, moved.item()
            if config.apart:
                lack = forces.apart(turn, final)
                loss, metrics["shortfall"] = loss + config.apart * lack, lack.item()
            if config.differ:
                lack = forces.differ(turn, logits, images)
                loss, metrics["likeness"] = loss + config.differ * lack, lack.item()
            if config.outliers and not blind:
                sure = forces.outliers(turn, final, images, update)
                loss, metrics["outliers"] = loss + config.outliers * sure, sure.item()
            if config.steady and n_steps > 1:
                worse = forces.steady(turn, policy, prompt, logits)
                loss, metrics["undone"] = loss + config.steady * worse, worse.item()
            if config.anchor:
                anchor = forces.anchor(turn, policy, update, images)
                loss, metrics["anchor_loss"] = loss + config.anchor * anchor, anchor.item()
            run.step(loss, metrics)
        run.best.record["best_k"] = validation.best_steps(run.best)
        return run.finish({"before": before, "after": validation(run.best)})
