"""What GRPO by example passes on between the steps of a sequence: the mean, or a whole draw of the weights.

Under the mean a group's rollouts share all states, so the noise of a step moves its own reward alone, and the groupings of
`objective.py` have one expectation up to scale. Under `drawn` each rollout of a group carries a draw of its own through its
steps, and examples draw around the last one: an earlier step is credited, as whole nets are, for all that follows from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from synthnet.engine import Network
from synthnet.grpo.agreement import in_half
from synthnet.grpo.objective import GROUPINGS, controlled, policy_loss
from synthnet.grpo.sample import Cohort, NoisyStep, sample_cohort
from synthnet.policy import Policy, Prompt

PASSED = ("mean", "drawn")
LAST = {  # the share of its advantage that the last of K steps is credited with, whose own examples are scored
    "inter": lambda n_steps, mix: 1.0,
    "process": lambda n_steps, mix: 1.0,
    "intra": lambda n_steps, mix: 1 - 1 / n_steps,
    "both": lambda n_steps, mix: 1 + mix * (1 - 1 / n_steps),
}
Judge = Callable[[int, Tensor], Tensor]  # a prompt's number, weights [net weights] -> the mean reward of its examples [net]


@dataclass(frozen=True)
class Chains:
    """Drawn sequences from each prompt, `group` in a row, up to the last step. noisy: their K − 1 steps; states W0..W(K−1) [R
    weights] in raw units; the steps' advantages [R K] or [R 1], once the last step was rewarded."""

    noisy: list[NoisyStep]
    states: list[Tensor]
    group: int
    advantages: Tensor | None = None

    def credited(self, rewards_R: Tensor, sizes_R: Tensor, judge: Judge, config, draw: torch.Generator) -> "Chains":
        """With advantages under the grouping: from the mean reward of what each rollout's last step made, over the root mean
        square of its examples' own advantages (a prompt's mean), so that both kinds of noise estimate one gradient."""
        rewards_PG, sizes_P1 = rewards_R.view(-1, self.group), sizes_R.view(-1, self.group).mean(1, keepdim=True)
        gains_PGK = None
        if config.grouping != "inter":
            gains_PGK = self._gains(rewards_PG, judge, config.step_rewards) / sizes_P1.unsqueeze(-1)
        found = GROUPINGS[config.grouping](rewards_PG / sizes_P1, gains_PGK, replace(config, scale_rewards="none"))
        if config.control:
            found = controlled(found, config.control, draw)
        return replace(self, advantages=found.flatten(0, 1).to(rewards_R))

    def half(self, which: int) -> "Chains":
        """With the advantages of every second prompt set to zero."""
        mine = in_half(len(self.advantages), self.group, which).to(self.advantages.device)
        return replace(self, advantages=self.advantages * mine[:, None])

    def _gains(self, rewards_PG: Tensor, judge: Judge, step_rewards: bool) -> Tensor:
        """What each step added to the mean reward [P G K]; without step rewards, all of it at the last."""
        if not step_rewards:
            before = torch.zeros(*rewards_PG.shape, len(self.states) - 1)
            return torch.cat([before.to(rewards_PG), rewards_PG.unsqueeze(-1)], -1)
        start, *drawn = (state.unflatten(0, (-1, self.group)) for state in self.states)
        before = [torch.stack([judge(number, nets) for number, nets in enumerate(part)]) for part in (start[:, :1], *drawn)]
        return torch.stack([before[0].expand_as(rewards_PG), *before[1:], rewards_PG], -1).diff(dim=-1)

    def loss(self, policy: Policy, reference: Policy | None, config, longest: int) -> tuple[Tensor, dict[str, float]]:
        """The clipped loss of the drawn steps, summed over the tokens of a rollout, as that of examples is; a ratio a token."""
        token = {"importance_sampling_level": "token", "loss_type": "dr_grpo"}
        summed = replace(config, **token, beta=config.beta / longest)
        loss, stats = policy_loss(policy, reference, self.noisy, self.advantages, summed, longest)
        return longest * loss, stats


def draw_chains(
    policy: Policy, net: Network, prompt: Prompt, config, seed: int, update: int, first: int
) -> tuple[Prompt, Chains | None]:
    """The drawn sequences of a prompt's start weights, and the prompt of their last step; of one step, the prompt as it is.
    `first`: the number of its first start among those of all processes."""
    if prompt.n_steps == 1 or config.passed_on == "mean":
        return prompt, None
    group = config.num_generations
    rows = torch.arange(len(prompt.start) * group)
    cohort = Cohort(net, prompt.n_steps, prompt.start, group, 0, first, rows, prompt.spec)
    made = sample_cohort(policy, cohort, config, seed, update, range(prompt.n_steps - 1), "chain")
    last = prompt.share(rows // group)._replace(n_steps=1, start=made.states[-2])
    return last, Chains(made.noisy, made.states[:-1], group)
