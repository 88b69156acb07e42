import pytest

from synthnet.device import _has_kernels, choose_device
from synthnet.errors import InputError


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 1), ["sm_60", "sm_70"], True),  # a GTX 1080 runs sm_60 binaries
        ((6, 1), ["sm_75", "sm_80", "sm_90"], False),  # and none of a build that dropped Pascal
        ((6, 1), ["sm_75", "compute_75"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # newer GPUs compile embedded PTX
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_kernels_are_matched_to_the_gpu(capability, built_for, runs):
    assert _has_kernels(capability, built_for) is runs


def test_unknown_and_absent_devices_are_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="sees no GPU"):
        choose_device("cuda")
    with pytest.raises(InputError, match="auto, cpu or cuda"):
        choose_device("tpu")


def test_a_gpu_without_kernels_is_left_alone_with_a_warning(monkeypatch):
    import torch

    for name, value in (("is_available", True), ("get_device_capability", (6, 1)), ("get_arch_list", ["sm_80"])):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GTX 1080")
    with pytest.warns(UserWarning, match="no kernels for GTX 1080"):
        assert choose_device("auto").type == "cpu"
    with pytest.raises(InputError, match="no kernels"):
        choose_device("cuda")
