"""The audit must give known generators the verdicts they deserve; each measure by value."""

import json

import pytest
import torch
from scipy.stats import mannwhitneyu

from conftest import setup_at
from synthnet.audit import checkpoints
from synthnet.audit.audit import OURS, Source, audit, controls, sgd_epochs, sources
from synthnet.audit.basins import confidence, lost_between, lost_merged
from synthnet.audit.connectivity import barrier
from synthnet.audit.ddpm import Ddpm, DdpmConfig, kept_signal
from synthnet.audit.measures import Field, measure
from synthnet.audit.novelty import copying_z, error_iou, highest, nearest_aligned, nearest_raw, novel_and_performant
from synthnet.audit.page import page
from synthnet.audit.run import Case, _alone
from synthnet.audit.sequence import compare_sequences, nearest_states
from synthnet.audit.verdicts import judge
from synthnet.cli import main
from synthnet.engine.population import Training, train_population
from synthnet.errors import InputError
from synthnet.nets.start import init_scale
from synthnet.train.zoo import Zoo, ZooConfig, build_zoo

N_TRAINING, N_HELDOUT, N_HONEST = 96, 32, 32


@pytest.fixture(scope="module")
def zoo(tiny, tmp_path_factory):
    config = ZooConfig(runs=N_TRAINING + N_HONEST, heldout=N_HELDOUT, shard=128)
    return Zoo.open(build_zoo(tiny, config, setup_at(tmp_path_factory.mktemp("audit") / "zoo", "zoo")))


@pytest.fixture(scope="module")
def field(tiny, zoo):
    return Field.of_zoo(tiny, zoo, N_TRAINING, N_HELDOUT)


@pytest.fixture(scope="module")
def referees(field):
    """The controls, 16 nets each, made once."""
    return {name: Source(source.make().clone) for name, source in controls(field, n=16).items()}


def audited(field, nets, others=()):
    """The report of one synth step that ends in these nets, and the measured sets."""
    sets = {name: measure(field, s.make(), s.own) for name, s in sources(field, lambda: nets, dict(others)).items()}
    return audit(field, {1: nets[:, None]}, 1, sets), sets


# --- generators with known answers ---------------------------------------------------------------------------------


def _generator(name, field, zoo):
    draw, training, symmetry = torch.Generator().manual_seed(5), field.training, field.network.symmetry
    scale, n = init_scale(field.network.spec), N_HELDOUT
    if name.startswith("honest"):  # conventional training from the same starts, the minibatches in another order
        data, recipe = field.task.examples("train"), Training(field.task.recipe, order_seed=1)
        nets = train_population(field.network, field.starts, *data, recipe, [field.task.recipe.epochs])[:, 0]
        nets[:2] = training[:2] if name != "honest" else nets[:2]
        return nets
    if name == "copier":
        return checkpoints.copies(training, n, draw)
    if name == "noisy copier":
        return checkpoints.noisy(training, n, draw, scale, 0.05)
    if name == "permuted copier":
        return checkpoints.permuted(training, n, draw, symmetry)
    if name == "interpolator":
        return checkpoints.interpolations(training, n, draw, symmetry)
    if name == "start weights":
        return field.starts.clone()
    good = _ordinary(field, zoo.states("zoo")[N_TRAINING:, -1])
    if name == "one net, noisy":  # one basin with variation that does not leave it
        return checkpoints.noisy(good[None], n, draw, scale, 0.05)
    if name == "constant":
        return checkpoints.constant(good, n)
    return checkpoints.permuted(good[None], n, draw, symmetry)


def _ordinary(field, nets):
    """The net that is no training net's copy, and neither nearer to them nor farther than held-out nets are."""
    off = torch.zeros(len(nets), dtype=torch.float64)
    for nearest in (
        lambda w: nearest_aligned(field.network.symmetry, w, field.training),
        lambda w: nearest_raw(w, field.training),
    ):
        off += ((nearest(field.twins)[None] < nearest(nets)[:, None]).double().mean(1) - 0.5).abs()
    return nets[off.argmin()]


COPY, RAW, SINGLE = "no copying (aligned)", "no copying (raw)", "no single copies"
ALIKE, NOVEL, BASINS = "seeds differ in weights", "novel and performant", "basins of their own"
DESERVED = {
    "honest": {
        COPY: "pass",
        RAW: "pass",
        SINGLE: "pass",
        ALIKE: "pass",
        "not dominated": "pass",
        NOVEL: "pass",
        BASINS: "pass",
    },
    "copier": {COPY: "fail", RAW: "fail", SINGLE: "fail", NOVEL: "fail"},
    "noisy copier": {COPY: "fail", RAW: "fail", SINGLE: "fail", NOVEL: "fail"},
    "permuted copier": {COPY: "fail", RAW: "pass", SINGLE: "fail", NOVEL: "fail"},
    "honest, but for two copies": {COPY: "pass", SINGLE: "fail", ALIKE: "pass"},
    "interpolator": {COPY: "fail", SINGLE: "fail", "accuracy": "fail"},
    "constant": {ALIKE: "fail", COPY: "pass", SINGLE: "pass", BASINS: "fail"},
    "one net, noisy": {BASINS: "fail", SINGLE: "pass"},
    "one net, permuted": {ALIKE: "fail", COPY: "pass", RAW: "pass", SINGLE: "pass"},
    "start weights": {"accuracy": "fail", COPY: "pass", "seeds differ in predictions": "not applicable"},
}


@pytest.mark.parametrize("name", DESERVED)
def test_a_generator_gets_the_verdict_it_deserves(name, field, zoo, referees):
    report, sets = audited(field, _generator(name, field, zoo), referees)
    found = {v["criterion"]: v["verdict"] for v in judge(report, sets)}
    assert {criterion: found[criterion] for criterion in DESERVED[name]} == DESERVED[name]


def test_start_weights_are_nearest_to_their_own_twin_so_raw_distance_is_no_evidence(field):
    report, _ = audited(field, field.starts)
    assert report["identity"]["start_weights_nearest_to_own_twin_raw"] > 0.9
    twins, _ = audited(field, field.twins)
    assert twins["identity"]["own_twin_by_displacement"]["own_twin_first"] == 1
    assert twins["identity"]["aligned_distance"]["ratio"] == pytest.approx(1)


# --- measures by value ---------------------------------------------------------------------------------------------


def test_error_iou_counts_shared_over_all_errors_and_leaves_out_the_net_itself():
    wrong = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert torch.allclose(error_iou(wrong, wrong), torch.tensor([[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 0]]))
    assert torch.allclose(highest(error_iou(wrong, wrong), torch.arange(3)), torch.tensor([1 / 3, 1 / 3, 0]))


def test_the_copying_statistic_is_mann_whitneys():
    draw = torch.Generator().manual_seed(0)
    one, other = torch.rand(40, generator=draw).round(decimals=1), torch.rand(60, generator=draw).round(decimals=1)
    u = mannwhitneyu(one.numpy(), other.numpy(), method="asymptotic", use_continuity=False, alternative="two-sided")
    from scipy.stats import norm

    assert abs(copying_z(one, other)) == pytest.approx(norm.isf(u.pvalue / 2), abs=1e-6)
    assert copying_z(one - 1, other) < -8 < 8 < copying_z(one + 1, other)


def test_a_permuted_rescaled_copy_is_far_in_raw_distance_and_at_zero_when_aligned(field):
    symmetry, draw = field.network.symmetry, torch.Generator().manual_seed(1)
    nets = checkpoints.permuted(field.training[:4], 4, draw, symmetry)
    nets = symmetry.rescale(nets, "hidden1", torch.full((4, 8), 1.7))
    assert nearest_aligned(symmetry, nets, field.training).max() < 1e-3
    assert nearest_raw(nets, field.training).min() > 1
    assert nearest_aligned(symmetry, nets, field.training[10:]).min() > 0.3, "and far from nets it is no copy of"


def test_the_pruned_search_finds_what_trying_every_net_finds(field):
    symmetry = field.network.symmetry
    fast = nearest_aligned(symmetry, field.twins[:3], field.training[:20])
    from synthnet.nets.identity import canonical

    nets, training = canonical(symmetry, field.twins[:3]), canonical(symmetry, field.training[:20])
    slow = torch.stack([min((symmetry.align(net, t)[0] - t).norm() for t in training) for net in nets])
    assert torch.allclose(fast, slow, atol=1e-4)


def test_several_groups_are_aligned_from_a_shortlist(deep):
    symmetry, draw = deep.network.symmetry, torch.Generator().manual_seed(0)
    training = deep.draw_start("zoo", list(range(30)))
    copies = checkpoints.permuted(training[5:6], 2, draw, symmetry)
    assert torch.allclose(symmetry.signature(copies), symmetry.signature(training[5:6]).expand(2, -1), atol=1e-6)
    assert nearest_aligned(symmetry, copies, training).max() < nearest_aligned(symmetry, copies, training[6:]).min()


def test_novel_and_performant_needs_both():
    distances, accuracy = torch.tensor([0.5, 1.5, 5.0, 5.0]), torch.tensor([0.9, 0.9, 0.9, 0.1])
    assert novel_and_performant(distances, accuracy, 1.0, 0.8) == {"1": 0.5, "2": 0.25, "4": 0.25, "6": 0.0}


def test_a_barrier_is_the_height_above_the_straight_line():
    hill = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.2, 1.0]])
    assert torch.allclose(barrier(hill), torch.tensor([1.5, 0.0]))


def test_epochs_are_interpolated_and_infinite_beyond_the_curve(field):
    curve = field.by_epoch
    assert sgd_epochs(field, curve[2]) == pytest.approx(field.epochs[2])
    assert field.epochs[1] < sgd_epochs(field, (curve[1] + curve[2]) / 2) < field.epochs[2]
    assert sgd_epochs(field, 1.1) is None


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("predicts", ["eps", "x0"])
def test_ddpm_learns_a_gaussian_and_ends_in_noise(schedule, predicts):
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(512, 1, generator=draw)
    training = torch.cat([base, -base, 3 + 0.1 * torch.randn(512, 1, generator=draw)], 1)
    config = DdpmConfig(schedule, predicts, hidden=64, updates=500)
    assert kept_signal(config)[-1] < 0.01 < 0.9 < kept_signal(config)[0]
    made = Ddpm(training, config).sample(400)
    assert torch.allclose(made.mean(0), training.mean(0), atol=0.25)
    assert torch.corrcoef(made.T)[0, 1] < -0.6, "independent coordinates would be a per-coordinate Gaussian"


def test_ddpm_refuses_what_cannot_work():
    for config in (DdpmConfig(schedule="none"), DdpmConfig(predicts="none"), DdpmConfig(steps=1)):
        with pytest.raises(InputError):
            Ddpm(torch.randn(4, 3), config)


def test_a_sequence_that_is_the_real_run_is_at_distance_zero_and_cosine_one(field):
    real = field.states
    report = compare_sequences(field.network, real[:, 1:], real, field.inputs, field.labels)
    assert report["accuracy_by_step"] == pytest.approx(report["accuracy_by_state"][1:])
    assert nearest_states(report) == list(range(1, real.shape[1]))
    assert set(report["layers"]) == {"all weights", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"}
    for layer in report["layers"].values():
        assert torch.tensor(layer["distance"])[:, 1:].diagonal().max() < 1e-2
        assert torch.tensor(layer["cosine"]).diagonal().min() > 0.999
    away = compare_sequences(field.network, 2 * real[:, :1] - real[:, 1:], real, field.inputs, field.labels)
    assert torch.tensor(away["layers"]["all weights"]["cosine"]).diagonal().max() < -0.999, "the mirror image points away"


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_audit_writes_a_report_and_a_page_that_needs_no_network(zoo, tiny, policy, tmp_path, capsys, field, referees):
    policy.record = {"task": "digits-mlp", "best_k": 2, "data": tiny.data_key}
    policy.save(tmp_path / "p.safetensors")
    counts = ["--training", "40", "--heldout", "8", "--steps", "1"]
    for wrong in (["--also", "x"], ["--also", f"DDPM={tmp_path / 'p.safetensors'}"], ["--training", "-3"]):
        assert (
            main(
                ["audit", str(tmp_path / "p.safetensors"), "--zoo", str(zoo.path), "-o", str(tmp_path / "no"), *counts, *wrong]
            )
            == 2
        )
        assert capsys.readouterr().err.count("synthnet: ") == 1
    command = ["audit", str(tmp_path / "p.safetensors"), "--zoo", str(zoo.path), "-o", str(tmp_path / "out"), *counts]
    assert main([*command, "--also", f"again={tmp_path / 'p.safetensors'}", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["accuracy_by_step"]) == {"1", "2"}
    assert {OURS, "held-out SGD nets", "DDPM", "again", "start weights"} <= set(report["sets"])
    assert report["sets"]["training net, copied"]["max_error_iou"]["mean"] == pytest.approx(1)
    html = (tmp_path / "out" / "report.html").read_text()
    assert html.count("<svg") == 5
    assert "src=" not in html.replace("xlink:href", "")
    assert "<script" not in html
    again, sets = audited(field, field.starts, referees)
    again |= {"policy": "<b>", "verdicts": judge(again, sets)}
    assert "<b> on" not in page(again, sets)


def test_audit_refuses_zoos_of_other_nets_or_too_few_runs(zoo, tiny, policy, tmp_path, capsys):
    policy.record = {"task": "digits-mlp", "best_k": 1, "data": tiny.data_key}
    policy.save(tmp_path / "p.safetensors")
    command = ["audit", str(tmp_path / "p.safetensors"), "--zoo", str(zoo.path), "-o", str(tmp_path / "out")]
    assert main([*command, "--training", "5000"]) == 2
    assert "has 128 runs of purpose zoo, asked for 5000" in capsys.readouterr().err
    policy.record["data"] = {"source": "digits", "split_seed": 7}
    policy.save(tmp_path / "q.safetensors")
    command[1] = str(tmp_path / "q.safetensors")
    assert main(command) == 2
    assert "split_seed is 7 there and 0 here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_audit_goes_on_where_it_was_and_workers_find_what_one_process_finds(zoo, tiny, policy, tmp_path, monkeypatch):
    """Stopped after five sets, the same command measures the other ten only; two processes give the same report. Another
    policy in the same folder finds nothing of the first one's."""
    policy.record = {"task": "digits-mlp", "best_k": 1, "data": tiny.data_key}
    policy.save(tmp_path / "p.safetensors")
    policy.record["best_k"] = 2
    policy.save(tmp_path / "q.safetensors")
    command = ["--zoo", str(zoo.path), "--training", "16", "--heldout", "6", "--steps", "1", "-o"]
    counted = []

    def counting(*arguments):
        counted.append(arguments)
        if len(counted) == 6:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr("synthnet.audit.run.measure", counting)
    first = ["audit", str(tmp_path / "p.safetensors"), *command]
    assert main([*first, str(tmp_path / "killed")]) == 130
    assert main(["audit", str(tmp_path / "q.safetensors"), *command, str(tmp_path / "killed")]) == 0
    assert len(counted) == 6 + 15
    assert main([*first, str(tmp_path / "killed")]) == 0
    assert len(counted) == 6 + 15 + 10
    assert main([*first, str(tmp_path / "whole")]) == 0
    assert main([*first, str(tmp_path / "spread"), "--executor", "processes", "--workers", "2"]) == 0
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("whole", "killed", "spread")]
    assert reports[1] | {"seconds_s": 0} == reports[0] | {"seconds_s": 0}
    assert reports[2] | {"seconds_s": 0} == reports[0] | {"seconds_s": 0}
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["report.html", "report.json"]
    assert main([*first, str(tmp_path / "part"), "--part", "15"]) == 2
    case = Case.open(str(tmp_path / "p.safetensors"), str(zoo.path), 16, 6, {}, None, "cpu")
    with _alone(case.folder(tmp_path / "twice")):
        assert main([*first, str(tmp_path / "twice")]) == 2, "the same audit is under way there"


def test_what_is_lost_between_nets_is_nothing_for_permuted_copies_and_much_for_sgd_nets(field):
    draw, symmetry = torch.Generator().manual_seed(3), field.network.symmetry
    one = checkpoints.permuted(field.twins[:1], 6, draw, symmetry)
    assert lost_between(field, one).abs().max() < 1e-6
    assert abs(lost_merged(field, one)) < 1e-6
    assert lost_between(field, field.twins[:6]).mean() > 0.01
    assert lost_merged(field, field.twins[:10]) > lost_between(field, field.twins[:10]).mean()


def test_confidence_is_a_tenth_for_nets_that_put_out_nothing_and_one_for_nets_that_shout(field):
    net, inputs = field.network, field.inputs
    sure = confidence(net, inputs, torch.zeros_like(field.twins[:2]))
    assert sure.keys() == {"shuffled", "noise"}
    assert all(torch.allclose(each, torch.full((2,), 0.1), atol=1e-6) for each in sure.values())
    loud = confidence(net, inputs, 30 * field.twins[:2])
    assert min(each.min() for each in loud.values()) > 0.98
