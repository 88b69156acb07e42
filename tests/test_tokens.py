import pytest
import torch

from conftest import TINY_TRUNK, make_policy
from synthnet.cli import main
from synthnet.engine.network import network_of
from synthnet.errors import InputError
from synthnet.nets.arch import Arch
from synthnet.nets.start import draw_init
from synthnet.nets.weights import read_weights
from synthnet.policy import tokens
from synthnet.policy.policy import Policy, PolicyConfig
from synthnet.policy.rollout import rollout
from synthnet.policy.tokens import Tokens, build_layout
from synthnet.settings import options
from synthnet.tasks import build_task


def _layout(task, scheme):
    return build_layout(scheme, task.network.spec, task.network.symmetry)


@pytest.fixture(scope="module")
def cnn():
    """Two convolutions: an edge holds the nine numbers of a kernel, and the flatten gives a channel nine places."""
    return build_task("mnist5k-cnn", channels=[3, 5])


def test_every_scheme_of_the_folder_is_tested():
    assert {scheme["name"] for scheme in SCHEMES} == set(options(tokens))


SCHEMES = [{"name": "unit"}, {"name": "unit", "classes": True}, {"name": "chunk", "size": 64}, {"name": "chunk", "size": 0}]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("task_name", ["tiny", "deep", "cnn"])
def test_tokens_are_an_exact_inverse(scheme, task_name, request):
    task = request.getfixturevalue(task_name)
    layout, weights = _layout(task, scheme), task.draw_start("val", [0, 1, 2])
    assert torch.equal(layout.decode(layout.encode(weights)), weights)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_reads_zero_and_is_never_written(scheme, deep):
    layout, weights = _layout(deep, scheme), deep.draw_start("val", [0])
    tokens = layout.encode(weights)
    padding = layout.unit_index == layout.n_weights
    assert not tokens.units[0][padding].any()
    n_real = (~padding).sum() + sum(edge.index.numel() for edge in layout.edges)
    assert n_real == layout.n_weights
    spoiled = Tokens(torch.where(padding, torch.full_like(tokens.units, 9.0), tokens.units), tokens.edges)
    assert torch.equal(layout.decode(spoiled), weights)


def test_every_weight_belongs_to_one_action_token(deep):
    layout = _layout(deep, {"name": "unit"})
    counts = torch.bincount(layout.token_of, minlength=layout.n_action_tokens)
    assert counts.sum() == layout.n_weights
    assert (counts > 0).all()
    assert layout.n_action_tokens == 7 + 5 + 1 + 5  # units, the fixed token, one edge row per unit of the second layer


@pytest.mark.parametrize("task_name", ["tiny", "deep", "cnn"])
@pytest.mark.parametrize(
    "trunk",
    [
        {"name": "set_transformer", "depth": 2},
        {"name": "set_transformer", "depth": 2, "inducing": 3},
        {"name": "perceiver_io", "latents": 3},
        {"name": "perceiver_io", "latents": 3, "rounds": 1},
        {"name": "perceiver_io", "latents": 3, "queries": "place"},
        {"name": "edge_exchange", "depth": 2},
        {"name": "edge_exchange", "depth": 2, "place": False},
    ],
)
@pytest.mark.parametrize("classes", [False, True])
def test_policy_is_equivariant_to_hidden_permutations(task_name, trunk, classes, request):
    task = request.getfixturevalue(task_name)
    symmetry = task.network.symmetry
    backbone = {"dim": 16, "heads": 2, "edge_dim": 8, "condition": 8, **trunk}
    policy = make_policy(task, backbone, {"name": "unit", "classes": classes})
    weights = task.draw_start("val", [0, 1]) / 0.1
    torch.manual_seed(3)
    permutations = symmetry.random(torch.Generator().manual_seed(3))
    moved = symmetry.permute(policy(weights, 2, task.network).mean, permutations)
    assert torch.allclose(policy(symmetry.permute(weights, permutations), 2, task.network).mean, moved, atol=1e-5)
    assert (moved - policy(weights, 2, task.network).mean).abs().max() > 1e-2, "the permutation moves nothing: no evidence"


@pytest.mark.parametrize("backbone", [None, {"name": "flat_mlp", "hidden": 16, "step_dim": 4}])
def test_chunk_policies_are_not_equivariant(backbone, tiny):
    """The negative control: tokens with positions must break what unit tokens keep."""
    symmetry = tiny.network.symmetry
    policy = make_policy(tiny, backbone, {"name": "chunk", "size": 64 if backbone is None else 0})
    weights, permutations = tiny.draw_start("val", [0]) / 0.1, {"hidden1": torch.arange(7, -1, -1)}
    moved = symmetry.permute(policy(weights, 2, tiny.network).mean, permutations)
    assert not torch.allclose(policy(symmetry.permute(weights, permutations), 2, tiny.network).mean, moved, atol=1e-3)


def test_one_policy_serves_other_widths_but_not_other_inputs(tiny):
    policy = make_policy(tiny)
    wide = build_task("digits-mlp", hidden=[19])
    assert policy(wide.draw_start("val", [0]), 1, wide.network).mean.shape == (1, wide.network.spec.n_weights)
    foreign = build_task("mnist5k-mlp")
    with pytest.raises(InputError, match="does not cover"):
        policy.layout(foreign.network)


def test_a_policy_without_edges_refuses_deeper_nets(tiny, deep):
    with pytest.raises(InputError, match="edge"):
        make_policy(tiny).layout(deep.network)


@pytest.mark.parametrize("name", ["set_transformer", "perceiver_io", "edge_exchange"])
def test_no_learned_module_is_chosen_by_layer_kind(name, deep, cnn):
    """Every edge, whatever its layer and kernel, goes through the same modules; a Linear and a convolution differ in the
    columns they fill. A ModuleDict by kind, as there once was, would leave parameters that one block's gradient
    never reaches."""
    backbone = {"name": name, "dim": 16, "heads": 2, "edge_dim": 8}
    deeper = build_task("digits-mlp", hidden=[4, 3])
    policy = make_policy(deeper, backbone, {"name": "unit", "classes": True})
    layout = policy.layout(deeper.network)
    assert [block.kind for block in layout.edges] == ["edge", "edge-out"], "two kinds, or there is nothing to choose by"
    assert not any("3x3" in n or "edge-" in n or "weight-" in n for n in make_policy(cnn, backbone).state_dict())
    reached = []
    for block in layout.edges:
        policy.zero_grad()
        weights = deeper.draw_start("val", [0])
        policy(weights, 1, deeper.network).mean[0, block.index.reshape(-1)].square().sum().backward()
        reached.append({n for n, p in policy.trunk.named_parameters() if p.grad is not None and p.grad.any()})
    assert reached[0] == reached[1]


def test_film_reads_a_place_only_where_it_is_told():
    """Two tokens of equal content in layers of equal size: FiLM alone can tell them apart, and only with `place`."""
    same = build_task("digits-mlp", hidden=[4, 4])
    for place in (True, False):
        trunk = make_policy(same, {"name": "perceiver_io", "dim": 16, "heads": 2, "edge_dim": 8, "place": place}).trunk
        layout = make_policy(same).layout(same.network)
        condition, _ = trunk.conditions(layout, torch.tensor([1]))
        normed = trunk.norm(torch.ones(1, layout.n_tokens, 16).cumsum(-1), condition)
        assert torch.equal(normed[0, 0], normed[0, 4]) is not place


def test_a_family_shares_one_vocabulary_and_each_member_decodes_exactly():
    family = build_task("digits-mlp-family", members=[[4], [5, 3], [6, 2, 3]])
    config = PolicyConfig({"name": "unit"}, TINY_TRUNK, k_max=2)
    policy = Policy.create(config, [member.arch for member in family.members], 0)
    for member in family.members:
        layout, weights = policy.layout(member.network), member.draw_start("val", [0])
        assert layout.vocabulary == policy.vocabulary
        assert torch.equal(layout.decode(layout.encode(weights)), weights)


@pytest.mark.parametrize(
    "arch", [Arch.of("resnet", side=8, width=8, groups=2), Arch.of("vit", side=4, patch=2, dim=8)], ids=str
)
def test_nets_with_norms_heads_and_residuals_have_unit_tokens(arch):
    """Several biases and norms of one residual stream fill columns of their own; inner units stand for pairs."""
    net = network_of(arch)
    layout = build_layout({"name": "unit"}, net.spec, net.symmetry)
    weights = torch.stack([draw_init(net.spec, torch.Generator().manual_seed(seed)) for seed in range(2)])
    weights = weights + 0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(9))
    assert torch.equal(layout.decode(layout.encode(weights)), weights)
    config = PolicyConfig({"name": "unit"}, {"name": "perceiver_io", "dim": 16, "heads": 2, "edge_dim": 8})
    policy = Policy.create(config, [arch], 0)
    with torch.no_grad():
        for parameter in policy.trunk.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    permutations = net.symmetry.random(torch.Generator().manual_seed(1))
    moved = net.symmetry.permute(policy(weights, 1, net).mean, permutations)
    assert torch.allclose(policy(net.symmetry.permute(weights, permutations), 1, net).mean, moved, atol=1e-5)
    assert (moved - policy(weights, 1, net).mean).abs().max() > 1e-2


@pytest.mark.parametrize("trunk", ["perceiver_io", "set_transformer", "edge_exchange"])
def test_a_policy_is_told_which_channels_share_a_norm_group(trunk):
    """The same weights mean another function where other channels are normalised together. Breaks without `siblings`."""
    made = {}
    for groups in (2, 4):
        task = build_task("digits-resnet").with_arch(Arch.of("resnet", side=8, width=8, blocks=2, groups=groups, pool=2))
        policy = make_policy(task, {"name": trunk, "dim": 16, "heads": 2, "edge_dim": 8})
        made[groups] = policy(task.draw_start("val", [0]), 1, task.network).mean
    assert made[2].shape == made[4].shape
    assert (made[2] - made[4]).abs().max() > 1e-3


def test_siblings_are_the_dims_of_a_head_and_plain_nets_have_none(deep):
    vit = network_of(Arch.of("vit", side=4, patch=2, dim=8, heads=2))
    siblings = build_layout({"name": "unit"}, vit.spec, vit.symmetry).siblings
    assert sorted(torch.bincount(siblings).unique().tolist()) == [0, 1, 4], "units alone, or the four dims of one head"
    assert build_layout({"name": "unit"}, deep.network.spec, deep.network.symmetry).siblings is None


def test_depth_told_from_the_ends_makes_a_middle_layer_neither_first_nor_last():
    """First and last layers are told as in shallower nets, and the middle of three as their sum less the only layer of one."""
    places = {}
    for hidden in ([5], [5, 5], [5, 5, 5]):
        net = build_task("digits-mlp", hidden=hidden).network
        layout = build_layout({"name": "unit", "depth": "ends"}, net.spec, net.symmetry)
        places[len(hidden)] = [layout.descriptors[5 * layer, :2].tolist() for layer in range(len(hidden))]
    assert places == {
        1: [[1, 1]],
        2: [[1, 0.5], [0.5, 1]],
        3: [[1, pytest.approx(1 / 3)], [0.5, 0.5], [pytest.approx(1 / 3), 1]],
    }
    with pytest.raises(InputError, match="must be one of relative"):
        build_layout({"name": "unit", "depth": "absolute"}, net.spec, net.symmetry)


def test_a_place_that_is_untold_is_the_same_for_every_hidden_layer_and_not_that_of_the_classes():
    for hidden in ([8], [8, 8, 8]):
        net = network_of(Arch.of("mlp", sizes=[16, *hidden, 10]))
        layout = build_layout({"name": "unit", "depth": "untold", "classes": True}, net.spec, net.symmetry)
        units = layout.descriptors[: 8 * len(hidden)]
        assert torch.equal(units, units[:1].expand_as(units)) and not torch.equal(units[0], layout.descriptors[8 * len(hidden)])


def test_queries_decide_what_units_hear_and_unknown_ones_are_refused(tiny):
    """Asked by place alone, all units of a layer get the same answer; asked by content, each its own."""
    for name, alike in (("place", True), ("content", False)):
        trunk = make_policy(tiny, {"name": "perceiver_io", "dim": 16, "heads": 2, "queries": name}).trunk
        layout, units = make_policy(tiny).layout(tiny.network), torch.randn(1, 9, 16)
        asked = trunk.rounds[0].queries(units, layout.descriptors)[0, :8]
        assert torch.equal(asked, asked[:1].expand_as(asked)) is alike
    with pytest.raises(InputError, match="query builder"):
        make_policy(tiny, {"name": "perceiver_io", "dim": 16, "heads": 2, "queries": "colour"})


def test_classes_as_units_have_identities_and_are_never_permuted(cnn):
    """Two classes must be told apart, or the net could not learn which output is which; hidden units must not be."""
    layout = _layout(cnn, {"name": "unit", "classes": True})
    assert [edge.kind for edge in layout.edges] == ["edge-3x3", "edge-out-3x3"]
    assert len(layout.descriptors[-11:-1].unique(dim=0)) == 10
    assert len(layout.descriptors[:3].unique(dim=0)) == 1


@pytest.mark.parametrize("backbone", ["set_transformer", "perceiver_io", "edge_exchange"])
@pytest.mark.parametrize("tile", [1 << 16, 20])
def test_streamed_edges_give_the_same_bits_as_held_ones(deep, backbone, tile, monkeypatch):
    """In one tile and in several; a tile read in another order, or an exchange left out of the past, breaks this."""
    from synthnet.policy.trunks import _edges

    monkeypatch.setattr(_edges, "TILE", tile)
    policy = make_policy(deep, {"name": backbone, "dim": 16, "heads": 2, "edge_dim": 8})
    start = deep.draw_start("user", [0, 1])
    with torch.no_grad():
        held = rollout(policy, start, 2, deep.network)
        policy.trunk.held_bytes = 0
        streamed = rollout(policy, start, 2, deep.network)
    assert all(torch.equal(a, b) for a, b in zip(held, streamed, strict=True))
    if tile == 20:  # and tiles are no more than an order of sums
        monkeypatch.setattr(_edges, "TILE", 1 << 16)
        with torch.no_grad():
            assert torch.allclose(rollout(policy, start, 2, deep.network)[-1], held[-1], atol=1e-5)


def test_streamed_edges_refuse_a_trunk_that_makes_an_exchange_twice(deep):
    """What leaves is made in the last exchange; one that is made twice would be taken for the last too soon."""
    policy = make_policy(deep, {"name": "set_transformer", "dim": 16, "heads": 2, "edge_dim": 8})
    policy.trunk.blocks[1].exchange = policy.trunk.blocks[0].exchange
    policy.trunk.held_bytes = 0
    with pytest.raises(RuntimeError, match="each should be made once"), torch.no_grad():
        rollout(policy, deep.draw_start("user", [0]), 1, deep.network)


def test_a_memory_budget_changes_no_bit_and_is_refused_where_it_is_too_small(tmp_path, capsys):
    assert (
        main(["init", "--task", "digits-mlp-family", "--set", "members=[[24,24]]", "-o", str(tmp_path / "a.safetensors")]) == 0
    )
    base = ["synthesize", str(tmp_path / "a.safetensors"), "--policy", "digits-mlp-family", "--steps", "2"]
    assert main([*base, "-o", str(tmp_path / "free.safetensors")]) == 0
    assert main([*base, "-o", str(tmp_path / "tight.safetensors"), "--memory", "525M"]) == 0
    free, tight = (read_weights(tmp_path / f"{name}.safetensors").tensors for name in ("free", "tight"))
    assert all(torch.equal(free[name], tight[name]) for name in free)
    for wrong, message in (("1M", "need at least"), ("much", "as in 8G"), ("-3G", "as in 8G")):
        assert main([*base, "-o", str(tmp_path / "x.safetensors"), f"--memory={wrong}"]) == 2
        assert message in capsys.readouterr().err
