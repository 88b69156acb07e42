"""The settings by which `learn` trains: the first and the last stage of a policy, and how rewards teach."""

import torch

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.grpo.felt import check_felt

RULE = "muon" if hasattr(torch.optim, "Muon") else "adamw"  # Muon from torch 2.9 on; what is measured was learned by it
RATES = (2e-3, 7e-4)  # of a first stage: the second where the first leads nowhere
TRUNK = {"backbone.dim": 96, "backbone.edge_dim": 16, "backbone.depth": 3}
PAIRS_TRUNK = {"backbone.dim": 96, "backbone.edge_dim": 64}  # states of runs, and rewards after them, ask for wider edges
SIZES = {  # of an update: the first whose updates are quick enough
    "large": {"distil.nets": 16, "distil.images": 384, "distil.steps": [1, 1, 2]},
    "small": {"distil.nets": 4, "distil.images": 192, "distil.steps": [1]},
}
LAST_STEPS = {"large": [1, 2, 2, 3, 4, 6], "small": [1, 2]}  # K that the last stage trains on
DISTIL = {
    "distil.labels": "hard",
    "distil.leads": 0.45,
    "distil.apart": 2.0,
    "distil.optim.rule": RULE,
    "distil.optim.warmup": 30,
    "distil.optim.ema": 0.99,
    "distil.optim.learning_rate": RATES[0],
}
LEG, PATIENCE = 0.2, 2  # of all the time there is; legs in a row without a gain, after which controllers are done
# noise, rule and rate, each once
RACES = tuple(dict.fromkeys([(0.3, RULE, 3e-3), (0.3, "adamw", 3e-3), (0.3, "adamw", 1e-3), (1.0, "adamw", 1e-3)]))
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
FEW_STARTS = {"task.starts": 4}  # of a plant: which all rollouts share, so that more of these are worth more
BY_NET = {"grpo.rollout": "net", "grpo.sigma": 0.07, "grpo.signal_every": 0, "grpo.noisy_steps": "last", "grpo.prompts": 8}
BY_EXAMPLE = {
    "grpo.rollout": "example",
    "grpo.num_generations": 4,
    "grpo.sigma_by": "role",
    "grpo.sigma": 0.07,
    "grpo.apart": 3.0,
    "grpo.signal_every": 0,
    "grpo.optim.rule": RULE,
    "grpo.optim.learning_rate": 1e-3,
    "grpo.optim.final_rate": 0.02,
    "grpo.optim.ema": 0.98,
    "reward.batch": 768,
}
BY_LAYER = {**BY_EXAMPLE, "grpo.sigma_by": "weight", "reward.batch": 512}  # in one at a time, as GRPO does by itself there


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
