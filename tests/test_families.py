"""One policy for several architectures: how a family is drawn, what goes through its stages, and files of unseen widths."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import make_policy
from synthnet.cli import main
from synthnet.commands.lab import calibrate
from synthnet.engine.objective import cross_entropy
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.experience import experience
from synthnet.grpo.objective import policy_loss
from synthnet.grpo.score import RewardConfig
from synthnet.lab.fork import run_command
from synthnet.policy.file import read_policy
from synthnet.policy.policy import Policy
from synthnet.policy.rollout import synthesize_flat
from synthnet.tasks import build_task
from synthnet.train.distil import RIDGE, travelled, undone, whitened

FAMILY = ["task=digits-mlp-family", "task.members=[[6],[4,3]]", "task.heldout=[[5]]", "backbone.dim=16", "backbone.depth=1"]


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.slow
def test_one_policy_goes_through_all_stages_of_a_family(tmp_path):
    """Members take turns; each has a zoo of its own; the policy then serves a width that it has never seen."""
    run_command("zoo", [*FAMILY, "zoo.runs=4", "zoo.heldout=2", "zoo.shard=4", f"run_dir={tmp_path / 'zoo'}"])
    assert {path.name for path in (tmp_path / "zoo").iterdir()} == {"mlp-64-6-10", "mlp-64-4-3-10"}
    base = [*FAMILY, "backbone.heads=2", "pairs.batch=4", f"zoo_dir={tmp_path / 'zoo'}"]
    quick = ["loop.updates=2", "loop.validate_every=2", "val_seeds=3"]
    pairs = run_command("pairs", [*base, *[f"pairs.{x}" for x in quick], f"run_dir={tmp_path / 'pairs'}"])
    distil = [
        "distil.steps=[3]",
        "distil.graded=1",
        "distil.stay=0.1",
        "distil.anchor=0.1",
        "distil.standardised=1",
        "distil.differ=0.1",
        *[f"distil.{x}" for x in quick],
    ]
    made = run_command("distil", [*base, *distil, f"policy_from={pairs}", f"run_dir={tmp_path / 'distil'}"])
    grpo = ["grpo.prompts=2", "grpo.num_generations=2", "reward.batch=16", *[f"grpo.{x}" for x in quick]]
    made = run_command("grpo", [*base, *grpo, f"policy_from={made}", f"run_dir={tmp_path / 'grpo'}"])
    policy = read_policy(made)
    assert [arch.label for arch in policy.archs] == ["mlp-64-6-10", "mlp-64-4-3-10"]
    last = json.loads((tmp_path / "grpo" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["val/accuracy_k1"] == pytest.approx(
        (last["val/accuracy_k1/mlp-64-6-10"] + last["val/accuracy_k1/mlp-64-4-3-10"]) / 2
    )
    unseen = build_task("digits-mlp", hidden=[5])
    assert synthesize_flat(policy, unseen.draw_start("val", [0]), 2, unseen.network).shape == (1, 2, 385)


def test_a_residual_family_is_told_by_width_and_blocks():
    family = build_task("digits-resnet-family", members=[[8, 0], [8, 1]], heldout=[[12, 2]])
    assert [arch.kwargs["blocks"] for arch in (*family.family, *family.heldout)] == [0, 1, 2]
    assert family.arch.spec().n_weights == (9 + 1 + 2) * 8 + (8 * 4 + 1) * 10, "stem, its norm, and 2x2 positions a channel"
    for wrong in ([[8]], []):
        with pytest.raises(InputError, match="width, blocks" if wrong else "must list"):
            build_task("digits-resnet-family", members=wrong)


def test_a_family_of_transformers_is_told_by_width_and_blocks():
    family = build_task("digits-vit-family", members=[[8, 1], [16, 2]], heldout=[[8, 2]])
    sizes = [(arch.kwargs["dim"], arch.kwargs["blocks"]) for arch in (*family.family, *family.heldout)]
    assert sizes == [(8, 1), (16, 2), (8, 2)]
    assert build_task("digits-vit").arch in build_task("digits-vit-family").family, "the task itself is a member"
    for wrong in ([[8]], []):
        with pytest.raises(InputError, match="dim, blocks" if wrong else "must list"):
            build_task("digits-vit-family", members=wrong)


def test_a_family_lists_its_members_and_holds_none_of_them_out():
    family = build_task("digits-mlp-family", members=[[24], [8, 9]], heldout=[[9, 9]])
    assert [arch.kwargs["sizes"][1:-1] for arch in family.family] == [[24], [8, 9]]
    for wrong in ({"members": [[24]], "heldout": [[24]]}, {"members": []}):
        with pytest.raises(InputError, match="members"):
            build_task("digits-mlp-family", **wrong)


def test_a_family_has_the_settings_of_its_nets():
    task = build_task("cartpole-plants-family", differ=["target"])
    assert task.variants.names == task.reward.spec.names == ["target"]


def test_a_mixed_update_holds_every_member(deep, tiny):
    """Rollouts of two networks in one loss, normalised within their own start states' groups."""
    policy, config = make_policy(deep), GrpoConfig(prompts=3, num_generations=4, steps=[1, 2])
    policy.archs = [deep.arch, tiny.arch]
    seen = experience(policy, [deep, tiny], config, RewardConfig(batch=32), (), seed=0, update=0)
    assert len(seen.advantages) == 2 * 3 * 4
    assert {step.net for step in seen.noisy} == {deep.network, tiny.network}
    assert torch.allclose(seen.advantages.view(6, 4).mean(1), torch.zeros(6, dtype=torch.float64), atol=1e-9)
    loss, stats = policy_loss(policy, policy, seen.noisy, seen.advantages, config, 100)
    assert loss.isfinite() and stats["ratio/max"] == pytest.approx(1, abs=1e-4)


def test_a_bare_cnn_file_of_another_width_needs_only_its_task(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = build_task("mnist5k-cnn", channels=[3, 5]).network
    save_file(net.spec.unflatten(torch.zeros(net.spec.n_weights)), "bare.safetensors")
    assert main(["inspect", "bare.safetensors", "--task", "mnist5k-cnn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arch"]["kwargs"]["channels"] == [1, 3, 5]


@pytest.mark.parametrize("name", ["set_transformer", "perceiver_io", "edge_exchange"])
def test_the_layer_graph_tells_a_layer_what_the_others_are(name, deep):
    """The first layers of 7-5 and 7-9 have the same place; with the encoder, what FiLM reads for them differs, and once more
    for a net of another depth. The policy stays equivariant."""
    backbone = {"name": name, "dim": 16, "heads": 2, "edge_dim": 8, "condition": 8, "graph": 2}
    policy, plain = make_policy(deep, backbone), make_policy(deep, {**backbone, "graph": 0})
    wider, deeper = (build_task("digits-mlp", hidden=hidden) for hidden in ([7, 9], [7, 5, 5]))

    def first(policy, task):
        condition, _ = policy.trunk.conditions(policy.layout(task.network), torch.tensor([2]))
        return condition.steps, condition.place[0]

    told = {task.arch.label: first(policy, task) for task in (deep, wider, deeper)}
    steps = [steps for steps, _ in told.values()]
    assert torch.equal(told[deep.arch.label][1], told[wider.arch.label][1])
    assert min((steps[i] - steps[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-4
    assert torch.equal(first(plain, deep)[0], first(plain, wider)[0])
    weights, net = deep.draw_start("val", [0, 1]) / 0.1, deep.network
    permutations = net.symmetry.random(torch.Generator().manual_seed(3))
    moved = net.symmetry.permute(policy(weights, 2, net).mean, permutations)
    assert torch.allclose(policy(net.symmetry.permute(weights, permutations), 2, net).mean, moved, atol=1e-4)
    fresh = Policy.create(policy.config, [deep.arch], 0)
    assert not fresh.trunk.graph(fresh.layout(net)).any(), "zero at first"


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
@pytest.mark.slow
def test_a_policy_for_two_data_sets_is_told_which_one_a_net_is_for(tmp_path, capsys):
    """Zoo, pairs, distil and GRPO of a joint task; then files of both tasks, one start state each way, and one of neither."""
    small = ["task=digits-mnist8", "task.hidden=[6]", "threads=1", "lab.tensorboard=false"]
    trunk = ["backbone.dim=16", "backbone.depth=1", "backbone.heads=2", "backbone.data=true"]
    zoo = f"zoo_dir={tmp_path / 'zoo'}"
    run_command("zoo", [*small, "zoo.runs=4", "zoo.heldout=2", "zoo.shard=4", f"run_dir={tmp_path / 'zoo'}"])
    pairs = ["pairs.loop.updates=4", "pairs.val_seeds=2", "pairs.batch=4", "pairs.function=1", f"run_dir={tmp_path / 'pairs'}"]
    start = run_command("pairs", [*small, *trunk, zoo, *pairs])
    rows = [json.loads(line) for line in (tmp_path / "pairs" / "metrics.jsonl").read_text().splitlines()]
    assert {"val/accuracy_k1/digits-mlp", "val/accuracy_k1/mnist8-mlp"} <= set(rows[0])
    distil = ["distil.loop.updates=4", "distil.val_seeds=2", "distil.nets=2", f"run_dir={tmp_path / 'distil'}"]
    made = run_command("distil", [*small, zoo, *distil, f"policy_from={start}"])
    grpo = ["grpo.loop.updates=2", "grpo.val_seeds=2", "grpo.prompts=2", "grpo.num_generations=4", "reward.batch=16"]
    made = run_command("grpo", [*small, *grpo, f"policy_from={made}", f"run_dir={tmp_path / 'grpo'}"])
    with pytest.raises(InputError, match="several data sets"):
        run_command("grpo", [*small, *grpo, "grpo.mixed=true", f"policy_from={made}", f"run_dir={tmp_path / 'mixed'}"])
    made = run_command("grpo", [*small, *grpo, "grpo.trainable=lora", f"policy_from={made}", f"run_dir={tmp_path / 'lora'}"])
    calibrate([*small, *grpo, f"policy_from={made}"])
    settings = capsys.readouterr().out.splitlines()[-1]
    assert settings.startswith("grpo.sigma=")
    assert main(["evaluate", "--policy", str(made), "--seeds", "2"]) == 2
    assert main(["evaluate", "--policy", str(made), "--seeds", "2", "--task", "mnist8-mlp"]) == 0
    policy = read_policy(made)
    assert list(policy.data_sets) == ["digits-mlp", "mnist8-mlp"]
    torch.nn.init.normal_(policy.trunk.data.weight)
    for parameter in policy.trunk.head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    for part in policy.trunk.modules():
        if hasattr(part, "film"):
            torch.nn.init.normal_(part.film.weight, std=0.1)
    policy.save(tmp_path / "p.safetensors")
    outputs = {}
    for task in ("digits-mlp", "mnist8-mlp", "elsewhere"):
        shown = {"synthnet.task": task} if task != "elsewhere" else {}
        nets = {name: value.contiguous() for name, value in _start_of(policy.archs[0]).items()}
        save_file(nets, tmp_path / f"{task}.safetensors", shown)
        command = ["synthesize", str(tmp_path / f"{task}.safetensors"), "--policy", str(tmp_path / "p.safetensors")]
        code = main([*command, "-o", str(tmp_path / f"out-{task}.safetensors")])
        assert code == (2 if task == "elsewhere" else 0)
        if code == 0:
            outputs[task] = load_file(tmp_path / f"out-{task}.safetensors")["fc1.weight"]
    assert "told which task" in capsys.readouterr().err
    assert not torch.allclose(*outputs.values())


def _start_of(arch):
    return arch.spec().unflatten(build_task("digits-mlp", hidden=[6]).draw_start("val", [0])[0])


def test_a_step_is_measured_over_weights_or_over_tensors():
    """fc1.weight moved by 3, everything else by 1: a large tensor outweighs three small ones, or counts as one of four."""
    net = build_task("digits-mlp", hidden=[6]).network
    moves = torch.ones(2, net.spec.n_weights)
    moves[:, net.spec.slices()["fc1.weight"]] = 3.0
    large = 64 * 6 / net.spec.n_weights
    assert travelled(moves, net.spec, "weight").item() == pytest.approx(9 * large + 1 - large)
    assert travelled(moves, net.spec, "tensor").item() == pytest.approx((9 + 3) / 4)


def test_whitened_logits_are_worth_what_they_tell_apart():
    """Neither a scale, nor a constant of a class, nor how small a direction is beside another; of each net alone. What is the
    same on all images is a guess."""
    logits = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])  # centred per class: 1, 0 and -1, 0
    assert torch.allclose(whitened(logits), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), atol=1e-3)
    nets = torch.randn(3, 50, 10, generator=torch.Generator().manual_seed(0))
    moved = nets * torch.tensor([1e-2, 1.0, 1e3])[:, None, None] + torch.arange(10.0)
    assert torch.allclose(whitened(moved), whitened(nets), atol=1e-3)
    assert torch.allclose(whitened(nets[:1]), whitened(nets)[:1], atol=1e-6)
    mixed = nets @ torch.randn(10, 10, generator=torch.Generator().manual_seed(1))
    centred = (mixed - mixed.mean(1, keepdim=True)).double()
    centred = centred / centred.square().mean((1, 2), keepdim=True).sqrt()
    values, vectors = torch.linalg.eigh(centred.mT @ centred / 50 + RIDGE * torch.eye(10))
    expected = centred @ (vectors * values.rsqrt()[:, None]) @ vectors.mT
    assert torch.allclose(whitened(mixed).double(), expected, atol=1e-3)
    wide = torch.tensor([[[1.0, 0.1], [-1.0, 0.1], [2.0, -0.1], [-2.0, -0.1]]])  # the second direction is a sixteenth as wide
    assert whitened(wide).square().mean(1)[0].tolist() == pytest.approx([1.0, 0.8], abs=0.1)
    same = torch.arange(10.0).expand(1, 50, 10)
    assert cross_entropy(whitened(same), torch.arange(50) % 10).mean().item() == pytest.approx(math.log(10))


@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_what_one_more_step_undoes_is_counted_where_the_step_before_was_right():
    """Known values: nothing where nothing changes; the Kullback-Leibler divergence of the examples that were right, a wrong one
    free to change; likewise for probabilities as targets. Breaks when the divergence is taken the other way round."""
    before = torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    after, labels = torch.zeros(1, 2, 2), torch.tensor([1, 1])
    assert undone(before, before, labels) == 0
    p = before[0, 0].softmax(-1)
    expected = (p * (2 * p).log()).sum() / 2
    assert torch.allclose(undone(before, after, labels), expected)
    assert torch.allclose(undone(before, after, torch.tensor([[0.1, 0.9], [0.2, 0.8]])), expected)
    assert undone(before, torch.tensor([[[0.0, 2.0], [0.0, 9.0]]]), labels) == 0, "what was wrong may change"


@pytest.mark.slow
def test_logits_are_standardised_at_the_beginning_only(tmp_path):
    """The first update's loss is that of standardised logits; from then on both runs minimise the same loss. Until then the
    newest policy is kept, whatever its raw logits are worth."""
    run_command("zoo", [*FAMILY, "zoo.runs=4", "zoo.heldout=2", "zoo.shard=4", f"run_dir={tmp_path / 'zoo'}"])
    base = [*FAMILY, "backbone.heads=2", "pairs.batch=4", "pairs.val_seeds=3", f"zoo_dir={tmp_path / 'zoo'}"]
    pairs = run_command("pairs", [*base, "pairs.loop.updates=1", f"run_dir={tmp_path / 'pairs'}"])
    losses, scores = [], []
    for first in (0, 1, 2, 3):
        out = tmp_path / f"distil-{first}"
        quick = [
            "distil.loop.updates=2",
            "distil.val_seeds=3",
            "distil.optim.learning_rate=1e-9",
            f"distil.standardised={first}",
        ]
        run_command("distil", [*base, *quick, f"policy_from={pairs}", f"run_dir={out}"])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["target_loss"] for row in rows if "target_loss" in row])
        scores.append([row["val/score"] for row in rows if "val/score" in row])
    never, once, twice, always = losses
    assert once[0] == always[0]
    assert scores[3] == [-2, -1] and scores[2][0] == -2 and min(scores[2][1], *scores[0]) > -1
    assert never[0] != pytest.approx(once[0], abs=0.01) and once[0] == twice[0]
    assert never[1] == pytest.approx(once[1], abs=1e-4) and once[1] != pytest.approx(twice[1], abs=0.01)
