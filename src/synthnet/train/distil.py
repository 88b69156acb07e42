"""The distil stage: pathwise, through the target's loss. Supervised; not GRPO, and never called so. Optional.

Cross-entropy of the synthesised nets on the training images flows back through the target network, the weights and every
synth step. Labels are the zoo ensemble's mean predictions (soft) or the data's own (hard). The pairs loss can stay on as
an anchor: without it the policy drifts towards one solution.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from synthnet.device import choose_device
from synthnet.engine.network import cross_entropy, predictions
from synthnet.engine.variation import Variation, check_warp
from synthnet.errors import InputError, at_least
from synthnet.nets.identity import aligned_distance, prediction_shortfall, shortfall
from synthnet.nets.weights import WeightSpec
from synthnet.policy.policy import Policy
from synthnet.policy.prompts import draw_prompt
from synthnet.policy.rollout import rollout
from synthnet.runs import ranks
from synthnet.runs.lab import LabConfig
from synthnet.runs.live import Live
from synthnet.runs.tracking import open_run
from synthnet.seeds import generator
from synthnet.tasks.task import Task
from synthnet.train.loop import LoopConfig, OptimConfig, check_steps, train
from synthnet.train.pairs import PairsConfig, draw_pairs, move, pairs_loss
from synthnet.train.snapshot import finish
from synthnet.train.validation import CollapseWatch, Validation
from synthnet.train.zoo import Zoo


@dataclass
class DistilConfig:
    """Settings of `synthnet distil`.

    steps: the K that chains may have, one drawn per update. join: after how many updates the next of a family's members
    joins (0: all are there from the start), so that what is hard to begin with begins as what is easy. standardised: for how
    many updates at the beginning the loss sees logits as `standardise` leaves them; accuracy says nothing of them yet, so until
    then the newest policy counts as the best, and less than any that is judged. labels: soft (mean
    prediction of `teachers` zoo nets) or hard. graded: through how many of a chain's last steps the gradient flows (None:
    all); the steps before take the policy as it is, and what it does with more than `graded` steps left is never learned.
    input_noise, warp: how training images are varied (`variation.Variation`). anchor: weight of the pairs loss (0: off).
    stay: weight of the squared distance from the start weights in scale units, the mean over weights or (stay_by=tensor) the
    mean over tensors of their means, where a norm or a position counts as much as a large matrix. Conventional training
    leaves a net near its start where the data does not move it; a policy that erases the start is on its way to one solution
    for all. apart: weight of what nets of different seeds lack to `apart_ratio` times the aligned distance of the zoo's nets
    (`identity.shortfall`). differ: likewise of what their predictions lack to `apart_ratio` times the differences between the
    predictions of the zoo's nets on the same images (`identity.prediction_shortfall`). steady: weight of the divergence of
    the predictions after K steps from those after K − 1 from the same start weights, on images that those had right: one more
    step must not undo what one less had learned (`undone`).
    """

    steps: list[int] = field(default_factory=lambda: [1, 2])
    join: int = 0
    standardised: int = 0
    graded: int | None = None
    labels: str = "soft"
    teachers: int = 256
    input_noise: float = 0.0
    warp: float = 0.0
    anchor: float = 0.0
    stay: float = 0.0
    stay_by: str = "weight"
    apart: float = 0.0
    differ: float = 0.0
    steady: float = 0.0
    apart_ratio: float = 0.9
    nets: int = 32
    images: int = 256
    val_seeds: int = 64
    stop_on_collapse: bool = False
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(updates=800, validate_every=50, checkpoint_every=100))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=3e-4, weight_decay=0.0, warmup=20, ema=0.98))


def check_distil(config: DistilConfig, policy: Policy) -> None:
    """Refuse settings that the stage cannot work with, before any work."""
    if config.labels not in ("soft", "hard"):
        raise InputError(f"distil.labels must be soft or hard, got {config.labels!r}")
    if config.stay_by not in ("weight", "tensor"):
        raise InputError(f"distil.stay_by must be weight or tensor, got {config.stay_by!r}")
    check_steps("distil.steps", config.steps, policy)
    at_least(1, "distil", config, "teachers")
    mine = ranks.own_share(config.nets, "distil.nets")
    if (config.apart or config.differ) and mine.stop - mine.start < 2:
        raise InputError(
            "distil.apart and distil.differ compare nets of different seeds: distil.nets must be at least 2 a process, "
            f"got {config.nets}"
        )
    at_least(0, "distil", config, "join", "standardised")
    at_least(2, "distil", config, "val_seeds")


def member_of(update: int, n_members: int, join: int) -> int:
    """The number of the member that an update (from 0) works on: all those that have joined, in turn."""
    return update % (min(1 + update // join, n_members) if join else n_members)


def standardise(logits: Tensor) -> Tensor:
    """Logits [net example class] of each net with mean 0 over the images for every class and standard deviation 1 over all.

    A policy that begins from nothing first learns to switch the last layer off, from where no gradient leads on; what is
    standardised is worth no less for being small, nor anything for being the same on every image.
    """
    centred = logits - logits.mean(-2, keepdim=True)
    return centred / (centred.square().mean((-2, -1), keepdim=True) + 1e-12).sqrt()


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


@torch.no_grad()
def ensemble_labels(task: Task, zoo: Zoo, inputs: Tensor, n_teachers: int) -> Tensor:
    """Mean predicted probabilities [example class] of zoo nets on their own training images."""
    return predictions(task.network, zoo.trained(n_teachers).to(inputs.device), inputs).mean(0)


def train_distil(
    policy: Policy,
    task: Task,
    zoos: Sequence[Zoo],
    config: DistilConfig,
    pairs: PairsConfig,
    run_dir: str | Path,
    config_yaml: str,
    seed: int,
    device: str = "auto",
    lab: LabConfig | None = None,
) -> Path:
    """Run the stage on the task's members in turn; returns the path of its policy. Soft labels come from the first zoo of each
    data set."""

    def sound() -> None:
        check_distil(config, policy)
        for member in task.members:
            check_warp("distil.warp", config.warp, member.data("train")[0])

    sound()
    live = Live("distil", {"distil": config}, lab, sound)
    place, members = choose_device(device), task.members
    policy.to(place)
    soft: dict[str, Tensor] = {}
    if config.labels == "soft":
        for member, zoo in zip(members, zoos, strict=True):
            if member.data_set not in soft:
                soft[member.data_set] = ensemble_labels(member, zoo, member.data("train")[0].to(place), config.teachers)
    states = cache(lambda: [zoo.states("zoo", pairs.runs) for zoo in zoos])
    references = cache(lambda turn: zoos[turn].trained(64).to(place))
    distances = cache(lambda turn: aligned_distance(members[turn].network.symmetry, references(turn)))
    validation = Validation.of_task(task, config.val_seeds, config.steps, place)
    watch = CollapseWatch(validation, config)

    def step(update: int, learner: Policy) -> Iterator[tuple[Tensor, dict]]:
        turn = member_of(update, len(members), config.join)
        net = members[turn].network
        n_steps, start, images, targets = draw_prompt(
            "distil",
            members[turn],
            "train",
            place,
            config.steps,
            config.nets,
            config.images,
            seed,
            update,
            soft.get(members[turn].data_set),
            Variation(config.input_noise, config.warp),
        )
        start = start[ranks.own_share(config.nets, "distil.nets")]
        final = rollout(learner, start, n_steps, net, graded=config.graded)[-1]
        logits = net.logits(final, images)
        seen = standardise(logits) if update < config.standardised else logits
        target_loss = cross_entropy(seen, targets).mean()
        loss, metrics = target_loss, {"target_loss": target_loss.item(), "n_steps": n_steps}
        distance = travelled((final - start) / learner.scale(net), net.spec, config.stay_by)
        loss, metrics["moved"] = loss + config.stay * distance, distance.item()
        if config.apart:
            lack = shortfall(net.symmetry, final, config.apart_ratio * distances(turn))
            loss, metrics["shortfall"] = loss + config.apart * lack, lack.item()
        if config.differ:
            trained = predictions(net, references(turn)[:16], images)
            lack = prediction_shortfall(logits.softmax(-1), trained, config.apart_ratio)
            loss, metrics["likeness"] = loss + config.differ * lack, lack.item()
        if config.steady and n_steps > 1:
            with torch.no_grad():
                before = net.logits(rollout(learner, start, n_steps - 1, net)[-1], images)
            worse = undone(before, logits, targets)
            loss, metrics["undone"] = loss + config.steady * worse, worse.item()
        if config.anchor:
            batch = draw_pairs(pairs, states()[turn], learner.config.k_max, generator(seed, "distil-anchor", update))
            anchor = pairs_loss(learner, move(batch, place), net, pairs.function, images)
            loss, metrics["anchor_loss"] = loss + config.anchor * anchor, anchor.item()
        yield loss, metrics

    def validate(average: Policy, progress: float) -> dict:
        metrics = watch(average, progress)
        blind = round(progress * config.loop.updates) < config.standardised
        return {**metrics, "score": progress - 2} if blind else metrics

    with open_run(run_dir, config_yaml, lab) as run:
        before = validation(policy)
        best = train(run, f"distil {task.name}", policy, config, step, validate, live)
        best.record["best_k"] = validation.best_steps(best)
        return finish(run, best, "distil", {"seed": seed, "before": before, "after": validation(best)})
