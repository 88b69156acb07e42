"""Unlike nets on several data sets, for one policy: MLPs of one to four hidden layers, CNNs, a residual net, a Transformer; the
digits, and MNIST images of 8, 14 and 28 pixels a side."""

from dataclasses import dataclass, replace

from synthnet.errors import InputError, unknown
from synthnet.settings import setting
from synthnet.tasks.problems import digits_mlp, digits_resnet, digits_vit, mnist5k_cnn, mnist5k_mlp, mnist8_mlp
from synthnet.tasks.problems import mnist_simplecnn as simplecnn
from synthnet.tasks.problems import mnist_simplemlp as simplemlp
from synthnet.tasks.settings import DataConfig
from synthnet.tasks.task import Task

MEMBERS = {
    "digits-mlp": (digits_mlp, {}),
    "digits-mlp-narrow": (digits_mlp, {"hidden": [16]}),
    "digits-mlp-2": (digits_mlp, {"hidden": [24, 24]}),
    "digits-mlp-3": (digits_mlp, {"hidden": [24, 24, 24]}),
    "digits-mlp-4": (digits_mlp, {"hidden": [16, 16, 16, 16]}),
    "digits-resnet": (digits_resnet, {}),
    "digits-vit": (digits_vit, {}),
    "mnist8-mlp": (mnist8_mlp, {}),
    "mnist5k-mlp": (mnist5k_mlp, {}),
    "mnist5k-cnn": (mnist5k_cnn, {}),
    "mnist5k-cnn-narrow": (mnist5k_cnn, {"channels": [4, 8]}),
    "mnist-simplecnn": (simplecnn, {"channels": [4, 8]}),
    "mnist-simplemlp": (simplemlp, {"hidden": [16]}),
}


@dataclass
class Config(DataConfig):
    name: str = "one"
    nets: list[str] = setting(list(MEMBERS), "which of its nets")


def build(config: Config) -> Task:
    if not config.nets:
        raise InputError(f"task.nets must name some of {', '.join(MEMBERS)}")
    if wrong := [name for name in config.nets if name not in MEMBERS]:
        raise unknown("net of task one", wrong[0], MEMBERS)
    told = {"split_seed": config.split_seed, "held_back": config.held_back}
    chosen = [MEMBERS[name] for name in config.nets]
    nets = [file.build(file.Config(**settings, data_dir=config.data_dir)) for file, settings in chosen]
    joint = tuple(replace(net, **told) for net in nets)
    return replace(joint[0], name=config.name, joint=joint)
