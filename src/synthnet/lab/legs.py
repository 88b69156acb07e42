"""The settings by which `learn` trains: how it begins, and the legs that it may go on in."""

from collections.abc import Mapping
from dataclasses import dataclass

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.grpo.felt import check_felt
from synthnet.stages import as_text


@dataclass(frozen=True)
class Leg:
    """A stage that is run for a share of the time: its kind, and the settings that are its own."""

    kind: str
    settings: Mapping[str, object]

    @property
    def name(self) -> str:
        return f"{self.kind} {' '.join(as_text(self.settings))}"

    @property
    def told(self) -> dict:
        return {"kind": self.kind, "name": self.name, "settings": dict(self.settings)}


LEG, PATIENCE = 0.2, 2  # of all the time there is; legs in a row without a gain, after which it ends
BEGIN_RATES = (2e-3, 7e-4, 4e-3)  # tried in turn, until one leads somewhere
SMALL_TRUNK = {"backbone.dim": 96, "backbone.edge_dim": 16, "backbone.depth": 3}  # for large nets
MOST_STEPS = 2  # K that the legs train on
FORCES = {"distil.optim.rule": "muon", "distil.apart": 1.0}
BEGIN = {
    **FORCES,
    "distil.steps": [1],
    "distil.leads": 0.45,
    "distil.images": 192,
    "distil.optim.learning_rate": BEGIN_RATES[0],
}
TEACH = {"zoo.heldout": 0, "zoo.states": [0.0, 1.0], "zoo.strong": True}
RACES = ((0.3, 3e-3), (0.3, 1e-3), (0.1, 1e-3), (1.0, 1e-3))  # noise and rate
RACE_UPDATES = 40
ALONE = {
    "grpo.steps": [1],
    "grpo.prompts": 8,
    "grpo.num_generations": 32,
    "grpo.apart": 0.1,
    "grpo.signal_every": 0,
    "grpo.val_seeds": 32,
    "grpo.guard.kl": None,
    "grpo.guard.norm": None,
    "grpo.guard.drop": None,
    "grpo.optim.weight_decay": 0.0,
}
FEW_STARTS = {"task.starts": 2}  # of a plant: which all rollouts share, so that more of these are worth more
BY_NET = {"grpo.sigma": 0.07, "grpo.signal_every": 0, "grpo.noisy_steps": "last", "grpo.prompts": 8}
BY_EXAMPLE = {
    "grpo.rollout": "example",
    "grpo.num_generations": 4,
    "grpo.sigma_by": "role",
    "grpo.sigma": 0.07,
    "grpo.apart": 2.0,
    "grpo.signal_every": 0,
    "grpo.optim.learning_rate": 2e-4,
    "reward.batch": 512,
}
BY_LAYER = {  # noise in one layer at a time, as GRPO does by itself for such nets
    **BY_EXAMPLE,
    "grpo.sigma_by": "weight",
    "grpo.optim.rule": "muon",
    "grpo.optim.learning_rate": 4e-4,
}


def by_rewards_of(net: Network, by_example: bool) -> dict[str, object]:
    """How GRPO trains for such a net: by example, layer by layer where a weight is used more than once; whole nets where
    examples cannot feel its layers, or are not what is rewarded."""
    if not by_example:
        return BY_NET
    try:
        check_felt(net)
    except InputError:
        return BY_NET
    return BY_EXAMPLE if net.chain is not None else BY_LAYER


def legs_of(net: Network, by_example: bool, large: bool, rewards_only: bool) -> list[Leg]:
    """The legs that a policy for such a net may go on in. by_example: whether examples may be what is rewarded."""
    base = by_rewards_of(net, by_example)
    if rewards_only:
        return [Leg("grpo", base), Leg("grpo", {**base, "grpo.sigma": 0.03})]
    more = {**FORCES, "distil.images": 192 if large else 384}
    further = [Leg("distil", {**more, "distil.optim.learning_rate": rate}) for rate in (1e-3, 4e-4)]
    return [further[0], *([Leg("grpo", base)] if base is BY_EXAMPLE else []), further[1]]
