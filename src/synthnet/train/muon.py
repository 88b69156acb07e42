"""torch's Muon with matrices of one shape orthogonalised together; its own step takes each by itself, which on one core was up
to two fifths of an update (LOG.md, 30 November 2026)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from synthnet.policy import orthogonalised


class Muon(torch.optim.Muon):
    """Momentum with Nesterov's correction, orthogonalised by five Newton–Schulz steps (Jordan et al. 2024), scaled to the root
    mean square of AdamW's steps (Liu et al. 2025, arXiv 2502.16982). Its state is as torch's own. In float32: bfloat16, which
    torch's takes, is thirty times slower on processors that do not have it."""

    def __init__(self, matrices: Sequence[Tensor]):
        super().__init__(matrices, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            found: dict[tuple[int, int], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    found.setdefault(tuple(sorted(matrix.shape)), []).append(matrix)
            for shape, matrices in found.items():
                self._step_of(matrices, shape, group)

    def _step_of(self, matrices: list[Tensor], shape: tuple[int, int], group: dict) -> None:
        """The step of all matrices of one shape, turned to be wide."""
        for one in matrices:
            if "momentum_buffer" not in self.state[one]:
                self.state[one]["momentum_buffer"] = torch.zeros_like(one)
        momenta = [self.state[one]["momentum_buffer"] for one in matrices]
        gradients = [one.grad for one in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        tall = [one.shape[0] > one.shape[1] for one in matrices]
        wide = torch.stack([one.T if turned else one for one, turned in zip(ahead, tall, strict=True)])
        turns = orthogonalised(wide)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        moves = [one.T if turned else one for one, turned in zip(turns, tall, strict=True)]
        torch._foreach_add_(matrices, moves, alpha=-group["lr"] * 0.2 * shape[1] ** 0.5)
