"""Choice of the device: auto | cpu | cuda. `auto` takes a GPU only if this torch build has kernels for it."""

import re
import warnings

import torch

from synthnet.errors import InputError


def _has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether a build for `built_for` (as in torch.cuda.get_arch_list) runs on a GPU of this compute capability.

    A binary for sm_XY runs on X.Z with Z >= Y; embedded PTX (compute_XY) is compiled for anything newer.
    Source: CUDA C++ programming guide, binary and PTX compatibility.
    """
    major, minor = capability
    for arch in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", arch)
        if not match:
            continue
        kind, a, b = match[1], int(match[2]), int(match[3])
        if kind == "sm" and a == major and b <= minor:
            return True
        if kind == "compute" and (a, b) <= (major, minor):
            return True
    return False


def choose_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Raises: InputError for an unknown name, or for `cuda` where no usable GPU is present.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cpu" or not torch.cuda.is_available():
        if name == "cuda":
            raise InputError("device=cuda, but this torch build sees no GPU; use device=auto or install a CUDA build")
        return torch.device("cpu")
    capability, built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if _has_kernels(capability, built_for):
        return torch.device("cuda")
    problem = (
        f"this torch build ({torch.__version__}) has no kernels for {torch.cuda.get_device_name()} "
        f"(compute capability {capability[0]}.{capability[1]}; built for {', '.join(built_for)})"
    )
    if name == "cuda":
        raise InputError(problem + "; install a build that has them (docs/install.md), or use device=cpu")
    warnings.warn(problem + "; computing on the CPU", stacklevel=2)
    return torch.device("cpu")
