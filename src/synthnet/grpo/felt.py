"""What examples feel of noise on the weights: one net, run so that each example sees its own draw of them.

A layer's own draw for each example need not be made. Where a weight is used once for an example (Linear layers of an MLP), the
pre-activation under its own draw is exactly z = M h + b + √(S² h² + s²) ∘ ξ (local reparameterisation: Kingma, Salimans and
Welling 2015, arXiv 1506.02557), and conditioning on z (Rao and Blackwell) leaves out all noise that the example did not feel.
What each kind of layer does, also where a weight is used several times, is the matter of `rules.py`.

No derivative passes from layer to layer: a layer's inputs are recorded as they came, and what is differentiated is what it
makes of them, which is linear in its weights.
"""

import operator
from collections.abc import Container, Sequence

import torch
from torch import Tensor, fx, nn

from synthnet.engine import Network
from synthnet.errors import InputError
from synthnet.grpo.draws import LEAST, Draws, Layer, Score, Tensors, made, sum_of
from synthnet.grpo.rules import CONVOLUTIONS, FELT, feel_layer, plain

USES = ("auto", "tied", "node", "flipout")
LAYERS = ("all", "last", "one")
ELEMENTWISE = (operator.add, operator.mul, torch.add, torch.mul)


def check_felt(net: Network) -> None:
    """Raises: InputError, naming it, for a net with a layer that no rule here serves."""
    if net.batched is None:
        raise InputError(f"{type(net.module).__name__} cannot be traced, and examples feel traced nets only")
    for name, owned in net.batched.owned.items():
        module = net.batched.modules[name]
        strange = not isinstance(module, FELT) or getattr(module, "padding_mode", "zeros") != "zeros"
        strange = strange or isinstance(getattr(module, "padding", None), str)
        if owned and (strange or (isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats)):
            raise InputError(f"examples cannot feel noise on {name}, {type(module).__name__}")


@torch.no_grad()
def feel(net: Network, mean: Tensor, sigma: Tensor, inputs: Tensor, draws: Draws) -> tuple[Tensor, Score]:
    """Outputs [draw example out…] of a net with mean weights [weights] under noise of deviation sigma [weights], on inputs
    [example …]; and the score of all that was felt, of changes of the mean weights by name."""
    means, deviations, scores = net.spec.unflatten(mean), net.spec.unflatten(sigma.clamp_min(LEAST)), []
    env: dict[fx.Node, object] = {}
    own = net.batched.owned
    for node in net.batched.nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "placeholder":
            env[node] = inputs if _shared_to_a_layer(node, net, draws) else draws.rows(inputs)
            n_rows = len(env[node])
        elif node.op == "output":
            return args[0].unflatten(0, (draws.group, draws.n)), sum_of(scores)
        elif node.op == "get_attr":
            env[node], score = _parameter(node, means, deviations, draws)
            scores += [score] if score else []
        elif node.op == "call_module" and own[node.target]:
            module = net.batched.modules[node.target]
            local = {name: name.removeprefix(f"{node.target}.") for name in own[node.target] if name in means}
            held, spread = ({short: part[name] for name, short in local.items()} for part in (means, deviations))
            if len(args[0]) != n_rows:
                raise InputError(f"{node.target} takes {len(args[0])} inputs of {n_rows} examples: fold nothing into the batch")
            if not draws.reach(node.target):
                env[node] = torch.func.functional_call(module, held, args, kwargs)
                continue
            env[node], score = feel_layer(Layer(module, held, spread, args[0]), draws)
            n_rows = draws.group * draws.n
            scores.append(_by_full_names(score, local))
        elif node.op == "call_module":
            env[node] = plain(net.batched.modules[node.target], *args, **kwargs)
        else:
            function = node.target if node.op == "call_function" else getattr(torch.Tensor, node.target)
            env[node] = function(*(_as_rows(node.args, args) if function in ELEMENTWISE else args), **kwargs)
    raise InputError("the traced module returns nothing")


def _by_full_names(score: Score, local: dict[str, str]) -> Score:
    """A module's score, of tensors by their names in the net; `local`: these -> its own names for them."""
    full = {own: name for name, own in local.items()}
    return Score(
        lambda change: score.level({own: change[name] for name, own in local.items()}),
        lambda weights: {full[own]: slope for own, slope in score.slope(weights).items()},
    )


def noisy_layers(net: Network, which: str | None, draw: torch.Generator) -> frozenset[str] | None:
    """The layers that have noise: all (None), the one nearest the outputs, or one of them, drawn; each that has something to
    learn, bare parameters too. If nothing is asked for: all of an MLP, one of other nets, of which an update then takes half
    the time and teaches as much (docs/experiments/by-example.md)."""
    if (which or ("all" if net.chain is not None else "one")) == "all":
        return None
    learned = {name for name, _ in net.module.named_parameters()}

    def learns(node: fx.Node) -> bool:
        if node.op == "call_module":
            return not learned.isdisjoint(net.batched.owned[node.target])
        return node.op == "get_attr" and _is_felt(node, learned)

    names = list(dict.fromkeys(node.target for node in net.batched.nodes if learns(node)))
    number = -1 if which == "last" else int(torch.randint(len(names), (), generator=draw))
    return frozenset({names[number]})


def _shared_to_a_layer(node: fx.Node, net: Network, draws: Draws) -> bool:
    """Whether inputs go through operations without noise into one Linear layer or convolution, and nowhere else: what it makes
    of them before noise is then the same for all draws of an example."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module" and net.batched.owned[node.target] and draws.reach(node.target):
            return isinstance(net.batched.modules[node.target], (nn.Linear, *CONVOLUTIONS))
        if len(node.all_input_nodes) != 1 or node.op == "output":
            return False
    return False


def _parameter(node: fx.Node, means: Tensors, deviations: Tensors, draws: Draws) -> tuple[Tensor, Score | None]:
    """A bare parameter, as positions are: noise where it is added to or multiplied with what examples have, else as it is."""
    name = node.target
    if not draws.reach(name) or not _is_felt(node, means):
        return means[name], None
    noise, score = made({"own": means[name]}, {"own": deviations[name]}, draws)
    return means[name] + draws.signed(noise["own"]), _by_full_names(score, {name: "own"})


def _is_felt(node: fx.Node, names: Container[str]) -> bool:
    return node.target in names and all(user.target in ELEMENTWISE for user in node.users)


def _as_rows(nodes: Sequence[object], values: Sequence[object]) -> list[object]:
    """The operands of an elementwise operation; a bare parameter of shape [1 …] that has a noise for each row meets rows."""
    most = max((v.ndim for n, v in zip(nodes, values, strict=True) if isinstance(v, Tensor) and not _is_bare(n)), default=None)
    found = []
    for node, value in zip(nodes, values, strict=True):
        while most is not None and _is_bare(node) and value.ndim > most and value.shape[1] == 1:
            value = value.squeeze(1)
        found.append(value)
    return found


def _is_bare(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"
