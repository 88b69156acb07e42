"""Plants: what controllers are for. The field's classic environments, simulated for a whole population of nets at once, each
step as Gymnasium's own; judged in Gymnasium itself."""

from synthnet.tasks.plants.gym import GymPlant, play
from synthnet.tasks.plants.plant import STARTS, Plant
