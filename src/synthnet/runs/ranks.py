"""Several processes that train one policy, as torchrun starts them; alone, everything here is the identity.

Each rank works on its own share of an update's start states (or pairs), with the seeds that one process would give them.
Gradients are averaged over ranks in one explicit all-reduce: the gradient of the whole update, since shares are equal. Rank 0
owns the run directory. What is exchanged is numbers and JSON: torch.distributed's object collectives would unpickle.
"""

import json
import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

from synthnet.errors import InputError


def start() -> None:
    """Join the other ranks, where torchrun set WORLD_SIZE. Gloo for what lies on the CPU, NCCL for gradients on GPUs."""
    if world() > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this rank owns the run directory."""
    return rank() == 0


def own_share(count: int, name: str) -> slice:
    """This rank's part of `count` things of one update. Raises: InputError, naming the setting, where ranks would differ."""
    if count % world():
        raise InputError(f"{name} must be a multiple of the {world()} processes, got {count}")
    size = count // world()
    return slice(rank() * size, (rank() + 1) * size)


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace the gradients by their mean over ranks; one all-reduce of all of them."""
    if world() == 1:
        return
    owners = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in owners])
    distributed.all_reduce(flat)
    flat /= world()
    for parameter, part in zip(owners, flat.split([p.numel() for p in owners]), strict=True):
        parameter.grad = part.view_as(parameter)


def average_buffers(module: nn.Module, name: str) -> None:
    """Make buffers of that name the mean over ranks."""
    if world() == 1:
        return
    for value in (value for key, value in module.named_buffers() if key.rpartition(".")[2] == name):
        distributed.all_reduce(value)
        value /= world()


def average(metrics: dict) -> dict:
    """The numbers of metrics, averaged over ranks; all ranks must have the same names. A number that any rank lacks (None) is
    lacking; other values are this rank's."""
    if world() == 1:
        return metrics
    names = sorted(name for name, value in metrics.items() if value is None or isinstance(value, int | float))
    values = torch.tensor([torch.nan if metrics[name] is None else float(metrics[name]) for name in names], dtype=torch.float64)
    distributed.all_reduce(values)
    means = (values / world()).tolist()
    return {**metrics, **{name: mean if mean == mean else None for name, mean in zip(names, means, strict=True)}}


def gathered(part: Tensor) -> Tensor:
    """The parts [row …] of all ranks, in order of rank."""
    if world() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world())]
    distributed.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def anywhere(asked: bool) -> bool:
    """Whether any rank says so."""
    if world() == 1:
        return asked
    flag = torch.tensor([int(asked)])
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag.item())


def told(records: Iterable[dict]) -> list[dict]:
    """Rank 0's records, on every rank."""
    records = list(records)
    if world() == 1:
        return records
    data = torch.frombuffer(bytearray(json.dumps(records).encode()), dtype=torch.uint8)
    size = torch.tensor([len(data)])
    distributed.broadcast(size, 0)
    data = data if first() else torch.empty(size.item(), dtype=torch.uint8)
    distributed.broadcast(data, 0)
    return json.loads(bytes(data.numpy()))


def together() -> None:
    """Wait for all ranks."""
    if world() > 1:
        distributed.barrier()
