"""What a net is for: data, splits, metric, the conventional recipe of its twins. One file each in `problems/` and `data/`."""

from synthnet.tasks.task import Task, build_task, check_same_data, data_settings, task_names
from synthnet.tasks.twins import grow_twins
