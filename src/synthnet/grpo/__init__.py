"""Rewards alone: sampling, scoring, the objective, the loop."""

from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.loop import train_grpo
from synthnet.grpo.score import RewardConfig
