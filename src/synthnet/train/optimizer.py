"""The optimiser of a policy: AdamW for everything, or Muon for its matrices and AdamW for the rest."""

from itertools import chain

import torch
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.policy import mixtures

RULES = ("adamw", "muon")
SMALLEST_SIDE = 8  # of a matrix that Muon takes: thinner ones (heads of few outputs, LoRA factors) have little to orthogonalise


class Optimizer:
    """One or two of torch's optimisers as one: their groups side by side, their slots numbered on.

    muon: momentum of matrices is orthogonalised before each step (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
    and scaled to the root mean square that AdamW's steps have (Liu et al. 2025, arXiv 2502.16982), so that one learning rate
    serves both. Of a stack of experts' matrices each is taken by itself. Tables, of which an update touches some rows only,
    stay with AdamW.
    Raises: InputError for another rule, or where torch has no Muon (before 2.9).
    """

    def __init__(self, policy: nn.Module, rule: str = "adamw"):
        if rule not in RULES:
            raise InputError(f"optim.rule must be one of {', '.join(RULES)}, got {rule!r}")
        if rule == "muon" and not hasattr(torch.optim, "Muon"):
            raise InputError(f"optim.rule=muon needs torch 2.9 or newer, this is {torch.__version__}: pass optim.rule=adamw")
        matrices = _matrices(policy) if rule == "muon" else []
        stacks = [stack for part in mixtures(policy) for stack in (part.up, part.down)] if rule == "muon" else []
        self.views = [(stack, [nn.Parameter(matrix) for matrix in stack.detach()]) for stack in stacks]  # of the same numbers
        taken = {id(one) for one in (*matrices, *stacks)}
        rest = [one for one in policy.parameters() if id(one) not in taken]
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest)]
        if matrices := [*matrices, *(view for _, views in self.views for view in views)]:
            from synthnet.train.muon import Muon  # which an older torch cannot import

            self.parts.append(Muon(matrices))

    def set(self, learning_rate: float, weight_decay: float) -> None:
        for group in chain.from_iterable(part.param_groups for part in self.parts):
            group.update(lr=learning_rate, weight_decay=weight_decay)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)
        for stack, _ in self.views:
            stack.grad = None

    def step(self) -> None:
        for stack, views in self.views:
            for number, view in enumerate(views):
                view.grad = None if stack.grad is None else stack.grad[number]
        for part in self.parts:
            part.step()

    def forget(self) -> None:
        """Drop all momenta."""
        for part in self.parts:
            part.state.clear()

    @property
    def slots(self) -> dict[int, dict[str, Tensor]]:
        """Number of a parameter -> what its optimiser keeps of it."""
        kept, first = {}, 0
        for part in self.parts:
            kept |= {first + number: slots for number, slots in part.state_dict()["state"].items()}
            first += _count(part)
        return kept

    @slots.setter
    def slots(self, kept: dict[int, dict[str, Tensor]]) -> None:
        first = 0
        for part in self.parts:
            mine = {number: kept[first + number] for number in range(_count(part)) if first + number in kept}
            part.load_state_dict({"state": mine, "param_groups": part.state_dict()["param_groups"]})
            first += _count(part)


def _matrices(policy: nn.Module) -> list[nn.Parameter]:
    tables = {id(module.weight) for module in policy.modules() if isinstance(module, nn.Embedding)}
    return [one for one in policy.parameters() if one.ndim == 2 and min(one.shape) >= SMALLEST_SIDE and id(one) not in tables]


def _count(part: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in part.param_groups)
