"""Supervised stages, and the loop that every stage shares: zoo, pairs, distil, corrupt, critic."""

from synthnet.train.corrupt import CorruptConfig, corrupted_states, train_corrupt
from synthnet.train.critic import CriticConfig, train_critic
from synthnet.train.distil import DistilConfig, train_distil
from synthnet.train.guards import Anchor, GuardConfig
from synthnet.train.loop import STEPS, LoopConfig, OptimConfig, Run, check_steps
from synthnet.train.pairs import PairsConfig, train_pairs
from synthnet.train.snapshot import policy_of_run
from synthnet.train.validation import CollapseWatch, Validation
from synthnet.train.zoo import Zoo, ZooConfig, build_zoo, member_path
