"""Closed-form gradients of cross-entropy for a population of chains: what autograd would give, without its bookkeeping.

A population's training step is many small products, so the time goes into everything around them. Written out, a step of 64
nets takes about half as long (LOG.md, "The population engine").
"""

from collections.abc import Callable

import torch
from torch import Tensor

from synthnet.nets import ACTIVATIONS, Chain

# gradient with respect to an activation's input, from the one with respect to its output and the output itself
DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda gradient, output: torch.ops.aten.threshold_backward(gradient, output, 0),
    "tanh": lambda gradient, output: gradient.addcmul_(gradient * output, output, value=-1),
    "sigmoid": lambda gradient, output: gradient.mul_(output).mul_(1 - output),
}


def has_closed_form(chain: Chain | None) -> bool:
    """Whether `chain_gradients` serves this chain."""
    return chain is not None and all(layer.activation in (None, *DERIVATIVES) for layer in chain.layers)


@torch.no_grad()
def chain_gradients(
    chain: Chain, tensors: dict[str, Tensor], inputs: Tensor, targets: Tensor, gradients: dict[str, Tensor]
) -> None:
    """Write the gradient of each net's mean cross-entropy into `gradients` [net *shape] by name.

    inputs: [example feature], or own ones [net example feature]; targets: probabilities [example class] or
    [net example class]. Units are rows and examples are columns throughout.
    """
    outputs = [inputs.t() if inputs.ndim == 2 else inputs.transpose(1, 2)]
    for layer in chain.layers:
        outputs.append(_forward(layer, tensors, outputs[-1]))
    n_nets, n_examples = len(outputs[-1]), inputs.shape[-2]
    error = torch.softmax(outputs.pop(), 1).sub_(targets.transpose(-2, -1)).div_(n_examples)
    for index in range(chain.depth - 1, -1, -1):
        layer, seen = chain.layers[index], outputs[index]
        if seen.ndim == 2:
            out = gradients[layer.weight].view(-1, layer.n_in)
            torch.mm(error.view(n_nets * layer.n_out, n_examples), seen.t(), out=out)
        else:
            torch.bmm(error, seen.transpose(1, 2), out=gradients[layer.weight])
        if layer.bias:
            torch.sum(error, -1, out=gradients[layer.bias])
        if index:
            back = torch.bmm(tensors[layer.weight].transpose(1, 2), error)
            error = DERIVATIVES[chain.layers[index - 1].activation](back, seen)


def _forward(layer, tensors: dict[str, Tensor], seen: Tensor) -> Tensor:
    weight = tensors[layer.weight]
    bias = tensors[layer.bias] if layer.bias else weight.new_zeros(weight.shape[:2])
    if seen.ndim == 2:
        out = torch.addmm(bias.reshape(-1, 1), weight.reshape(-1, layer.n_in), seen).view(*weight.shape[:2], -1)
    else:
        out = torch.baddbmm(bias.unsqueeze(-1), weight, seen)
    return ACTIVATIONS[layer.activation](out) if layer.activation else out
