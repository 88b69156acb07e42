"""What a net is for: data, splits, metric, the conventional recipe of its twins. One file each in `problems/` and `data/`."""

from synthnet.tasks.controllers import GymConfig
from synthnet.tasks.data_key import check_same_data, data_settings, with_data
from synthnet.tasks.dataset import Data
from synthnet.tasks.fingerprint import note
from synthnet.tasks.judging import judge, trained
from synthnet.tasks.recipes import Strong, quality_of, recipe_of, strong_recipe
from synthnet.tasks.registry import build_task, name_of, own_arch, task_names
from synthnet.tasks.settings import OwnConfig, is_gym, is_own, names_itself, recorded_task
from synthnet.tasks.source import Source
from synthnet.tasks.task import REWARD_DRAWS, Task
from synthnet.tasks.twins import grow_strong, grow_twins, twins_on_val
