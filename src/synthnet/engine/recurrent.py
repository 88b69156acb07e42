"""GRU and LSTM for a whole population: gates of all nets as one product a moment. Equations as in torch.nn.GRU and LSTM."""

import torch
from torch import Tensor, nn

from synthnet.engine.stacks import LEADING, Value, leading
from synthnet.errors import InputError


def recurrent(call, value: Value, state: object = None) -> tuple:
    """What the module of a call gives for inputs [net example time feature] (or time first, as it says): outputs and last
    states, as torch's own. Raises: InputError for first states that are given, projections and dropout."""
    module, tensors = call.module, call.tensors
    if state is not None or module.proj_size or (module.dropout and module.training):
        raise InputError("first states, projections and dropout of recurrent layers are not computed for populations")
    x = leading(value, call.n_nets)
    if x.ndim != 4:
        raise InputError("recurrent layers are computed for batches of sequences")
    x = x if module.batch_first else x.transpose(1, 2)
    step = _gru if isinstance(module, nn.GRU) else _lstm
    lasts: list[tuple[Tensor, ...]] = []
    for layer in range(module.num_layers):
        outs = []
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            weights = [tensors.get(f"{kind}_l{layer}{suffix}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            out, last = _sequence(x.flip(2) if suffix else x, *weights, step)
            outs.append(out.flip(2) if suffix else out)
            lasts.append(last)
        x = torch.cat(outs, -1)
    states = tuple(Value(torch.stack(parts, 1), LEADING) for parts in zip(*lasts, strict=True))
    out = Value(x if module.batch_first else x.transpose(1, 2), LEADING)
    return out, states[0] if len(states) == 1 else states


def _sequence(x: Tensor, into: Tensor, across: Tensor, bias: Tensor | None, bias_across: Tensor | None, step):
    """Outputs [net example time unit] and the last states of one layer in one direction."""
    given = x.flatten(1, 2) @ into.mT
    given = (given if bias is None else given + bias.unsqueeze(1)).unflatten(1, x.shape[1:3])
    state = (x.new_zeros(*x.shape[:2], across.shape[-1]),) * (1 if step is _gru else 2)
    outs = []
    for moment in given.unbind(2):
        felt = state[0] @ across.mT
        state = step(moment, felt if bias_across is None else felt + bias_across.unsqueeze(1), *state)
        outs.append(state[0])
    return torch.stack(outs, 2), state


def _gru(given: Tensor, felt: Tensor, hidden: Tensor) -> tuple[Tensor]:
    (reset, update, new), (reset_felt, update_felt, new_felt) = given.chunk(3, -1), felt.chunk(3, -1)
    candidate = torch.tanh(new + torch.sigmoid(reset + reset_felt) * new_felt)
    share = torch.sigmoid(update + update_felt)
    return (candidate + share * (hidden - candidate),)


def _lstm(given: Tensor, felt: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    enter, forget, new, leave = (given + felt).chunk(4, -1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
    return torch.sigmoid(leave) * torch.tanh(cell), cell
