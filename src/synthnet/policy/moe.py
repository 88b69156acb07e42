"""Sparse mixture of experts as a feed-forward: each token goes to the expert (or the k experts) that a linear gate prefers.

Switch Transformer routing (Fedus et al. 2022, arXiv 2101.03961): y = p_e · FFN_e(x) with p the softmax over all experts, not
renormalised, so that the gate has a gradient. Dropless and without noise: under GRPO a token's expert must depend on the token
alone, or the probability ratio is wrong before any update. Which expert does what is learned, not assigned by layer kind.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthnet.errors import InputError
from synthnet.settings import setting

Z_LOSS = 1e-3  # weight of the mean logsumexp²
RECENT = 0.01  # of the running mean of loads, how much a pass counts


@dataclass
class MixtureKnobs:
    """What a trunk's mixtures of experts read at every forward."""

    temperature: float = setting(1.0, "of the gate", (1e-2, 100), hot=True)
    balance: float = setting(0.01, "weight of the loss that balances the experts' load", (0, 10), hot=True)


class MixtureOfExperts(nn.Module):
    """Feed-forward [… dim] -> [… dim] with `experts` hidden layers of `hidden` units, of which each token uses `top_k`.

    balance: weight of the load-balancing loss (`auxiliary_loss`). over_time: what it balances is the running mean of loads, so
    that all tokens of one net may go to one expert if those of other nets go elsewhere.
    """

    usage: Tensor | None

    def __init__(
        self,
        dim: int,
        hidden: int,
        experts: int,
        top_k: int = 1,
        temperature: float = 1.0,
        balance: float = 0.01,
        over_time: bool = False,
    ):
        super().__init__()
        if not 1 <= top_k <= experts or experts < 2 or not temperature > 0:
            raise InputError(
                f"a mixture needs at least 2 experts, 1 <= top_k <= experts and a positive gate temperature, "
                f"got {experts}, {top_k} and {temperature}"
            )
        self.top_k, self.temperature, self.balance = top_k, temperature, balance
        self.gate = nn.Linear(dim, experts, bias=False)
        nn.init.normal_(self.gate.weight, std=0.1 * dim**-0.5)  # small: experts start nearly equally preferred
        self.up = nn.Parameter(torch.empty(experts, dim, hidden).uniform_(-1, 1) * dim**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, dim).uniform_(-1, 1) * hidden**-0.5)
        self.down_bias = nn.Parameter(torch.zeros(experts, dim))
        self.register_buffer("usage", torch.full((experts,), 1 / experts) if over_time else None)
        self.passes: list[Tensor] = []  # auxiliary losses of the forwards with gradient since they were last asked for
        self.load: Tensor | None = None
        self.chosen: Tensor | None = None  # experts of the last forward [token k]
        self.replay: Tensor | None = None  # experts to use instead of the gate's own choice

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        scores = self.gate(flat) / self.temperature
        probabilities = scores.softmax(-1)
        chosen = scores.topk(self.top_k, dim=-1).indices if self.replay is None else self.replay
        self.chosen = chosen
        self._note(scores, probabilities, chosen)
        out = torch.zeros_like(flat)
        for expert in chosen.unique().tolist():
            rows, _ = (chosen == expert).nonzero(as_tuple=True)
            hidden = F.gelu(torch.addmm(self.up_bias[expert], flat[rows], self.up[expert]))
            made = torch.addmm(self.down_bias[expert], hidden, self.down[expert])
            out = out.index_add(0, rows, made * probabilities[rows, expert, None])
        return out.view_as(x)

    def _note(self, scores: Tensor, probabilities: Tensor, chosen: Tensor) -> None:
        """Keep the share of tokens per expert, and the auxiliary losses: balance E·Σ f_e P_e (1 when balanced, E when
        collapsed) and z = mean logsumexp² (Zoph et al. 2022, arXiv 2202.08906)."""
        experts = probabilities.shape[-1]
        self.load = torch.bincount(chosen.flatten(), minlength=experts).float() / chosen.numel()
        if torch.is_grad_enabled():
            if self.usage is not None:
                self.usage.lerp_(self.load, RECENT)
            used = self.load if self.usage is None else self.usage.clone()
            balance = experts * (used * probabilities.mean(0)).sum()
            self.passes.append(self.balance * balance + Z_LOSS * scores.logsumexp(-1).square().mean())

    def auxiliary_loss(self) -> Tensor:
        """The weighted auxiliary losses, mean over the forwards with gradient since the last call."""
        loss, self.passes = torch.stack(self.passes).mean(), []
        return loss


def mixtures(module: nn.Module) -> list[MixtureOfExperts]:
    return [part for part in module.modules() if isinstance(part, MixtureOfExperts)]


def chosen_experts(module: nn.Module) -> tuple[Tensor, ...]:
    """The experts that each mixture sent its tokens to at the last forward, [token k]."""
    return tuple(part.chosen for part in mixtures(module))


@contextmanager
def replayed_experts(module: nn.Module, experts: Sequence[Tensor]) -> Iterator[None]:
    """Inside, tokens go to the experts recorded earlier (routing replay: GSPO, arXiv 2507.18071; R3, arXiv 2510.11370):
    rounding flips near-ties, and a token under another expert has another log-probability before anything was learned."""
    parts = mixtures(module) if experts else []
    try:
        for part, chosen in zip(parts, experts, strict=True):
            part.replay = chosen
        yield
    finally:
        for part in parts:
            part.replay = None
