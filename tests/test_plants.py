"""Controllers: plants step as Gymnasium's own environments, returns are what it pays, random nets learn from returns alone."""

import json
import sys

import pytest
import torch

from conftest import make_policy
from synthnet.cli import main
from synthnet.config import compose
from synthnet.engine import Nets
from synthnet.errors import InputError
from synthnet.grpo import GrpoConfig, RewardConfig
from synthnet.grpo.config import Kinds, check
from synthnet.nets import read_weights
from synthnet.tasks import build_task
from synthnet.tasks.plants import GymPlant, acrobot, cartpole, mountain_car, pendulum

gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed (extra control)")
PLANTS = {module.PLANT.environment: module.PLANT for module in (cartpole, acrobot, pendulum, mountain_car)}
NAMES = ["cartpole", "acrobot", "pendulum", "mountain-car"]


@pytest.mark.parametrize("name", PLANTS)
def test_every_step_is_gymnasiums_own(name):
    """From its own states, under random actions: next states, rewards, ends and what is observed."""
    plant, environment, draw = PLANTS[name], gymnasium.make(name), torch.Generator().manual_seed(0)
    for episode in range(5):
        seen, _ = environment.reset(seed=episode)
        for _ in range(200):
            state = torch.tensor(list(environment.unwrapped.state), dtype=torch.float64)[None, None]
            assert torch.allclose(plant.observe(state)[0, 0].float(), torch.as_tensor(seen).float(), atol=1e-6)
            action = plant.act(torch.randn((1, 1, plant.n_outputs), generator=draw).double())
            moved, reward, over = plant.advance(state, action)
            seen, paid, ended, cut, _ = environment.step(action[0, 0].numpy())
            after = torch.tensor(list(environment.unwrapped.state), dtype=torch.float64)
            assert torch.allclose(moved[0, 0], after, atol=1e-9)
            assert reward.item() == pytest.approx(float(paid), abs=1e-9)
            assert bool(over) == ended
            if ended or cut:
                break


@pytest.mark.parametrize("name", PLANTS)
def test_starts_lie_where_gymnasiums_do(name):
    plant, environment = PLANTS[name], gymnasium.make(name)
    ours = plant.observe(plant.begin(2000, torch.Generator().manual_seed(0)))
    theirs = torch.stack([torch.as_tensor(environment.reset(seed=seed)[0]) for seed in range(2000)]).double()
    assert torch.allclose(ours.mean(0), theirs.mean(0), atol=0.06 * theirs.std(0).max().item() + 1e-6)
    assert torch.allclose(ours.std(0), theirs.std(0), rtol=0.1, atol=1e-6)
    assert torch.allclose(ours.amin(0), theirs.amin(0), atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_returns_are_what_gymnasium_pays(name):
    """The mean over many episodes of a net, simulated and played; and a horizon is a time limit."""
    task = build_task(name)
    nets = Nets(task.network, 5 * task.draw_start("val", [0, 1]))
    simulated, *_ = task.reward.simulate(nets, torch.Generator().manual_seed(0), 200)
    played = task.reward.play(nets, list(range(60)))
    error = (simulated.var(1) / 200 + played.var(1) / 60).sqrt()
    assert ((simulated.mean(1) - played.mean(1)).abs() < 4 * error + 1e-6).all()
    assert gymnasium.spec(task.reward.environment).max_episode_steps == task.reward.horizon
    values, n_episodes = task.judged(task.draw_start("val", [0, 1]))
    assert (len(values), n_episodes) == (2, 20)


def test_a_balancing_controller_stands_to_the_end_and_an_energy_pump_arrives():
    """Known answers: push towards the fall; push along the speed."""
    balance, pump = build_task("cartpole", hidden=[2]), build_task("mountain-car", hidden=[2])
    flat = balance.network.spec.flatten(
        {
            "fc1.weight": torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 0.0, -1.0, -0.5]]),
            "fc1.bias": torch.zeros(2),
            "fc2.weight": torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
            "fc2.bias": torch.zeros(2),
        }
    )
    assert balance.reward(Nets(balance.network, flat[None]), torch.Generator().manual_seed(0)).item() > 150
    flat = pump.network.spec.flatten(
        {
            "fc1.weight": torch.tensor([[0.0, 0.07], [0.0, -0.07]]),
            "fc1.bias": torch.zeros(2),
            "fc2.weight": torch.tensor([[0.0, 1.0], [-1.0, -1.0], [1.0, 0.0]]),
            "fc2.bias": torch.tensor([0.0, -1.0, 1e-6]),
        }
    )
    returns, came, lengths = pump.reward.simulate(Nets(pump.network, flat[None]), torch.Generator().manual_seed(0))
    assert (returns > -200).all()
    assert (came > 0.99).all()
    assert torch.equal(lengths, -returns), "a step costs one"


def test_nets_see_numbers_about_zero_and_can_ask_for_the_strongest_torque():
    """The valley is zero, a usual speed one; outputs of a tenth, which random nets have, reach both ends of the torque."""
    valley, fast = mountain_car.PLANT.see(torch.tensor([[-0.5, 0.0], [0.1, 0.02]], dtype=torch.float64))
    assert valley.tolist() == [0, 0]
    assert fast.tolist() == pytest.approx([2, 1])
    assert pendulum.PLANT.act(torch.tensor([-1.0, -0.05, 0.1])).tolist() == pytest.approx([-2, -1, 2])
    assert torch.equal(acrobot.PLANT.see(fast), fast), "as it is"


def test_a_pendulum_is_the_same_in_a_mirror_and_its_nets_are_asked_both_ways_round():
    """A net that would push one way for ever pushes not at all; of any net, mirrored states get mirrored torques."""
    plant, task, draw = pendulum.PLANT, build_task("pendulum"), torch.Generator().manual_seed(0)
    state, nets = plant.begin(50, draw)[None].expand(3, -1, -1), Nets(task.network, task.draw_start("val", [0, 1, 2]))
    assert torch.equal(plant.observe(-state), plant.observe(state) * torch.tensor(plant.mirror))
    action = plant.decide(nets, plant.observe(state))
    assert action.abs().min() > 0
    assert torch.equal(plant.decide(nets, plant.observe(-state)), -action)
    (moved, reward, _), (other, same, _) = plant.advance(state, action), plant.advance(-state, -action)
    assert torch.equal(other, -moved)
    assert torch.allclose(same, reward)
    push = task.network.spec.unflatten(torch.zeros(3, task.network.spec.n_weights))
    push["fc2.bias"] += 1.0
    assert not plant.decide(Nets(task.network, task.network.spec.flatten(push)), plant.observe(state)).any()


def test_files_of_controllers_say_what_they_are_given(tmp_path, monkeypatch):
    assert cartpole.PLANT.inputs == {"data": "what Gymnasium's CartPole-v1 shows", "shape": [4]}
    assert mountain_car.PLANT.inputs["subtracted"] == [-0.5, 0.0]
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--task", "pendulum", "-o", "start.safetensors"]) == 0
    assert main(["synthesize", "start.safetensors", "-o", "made.safetensors"]) == 0
    told = json.loads(read_weights("made.safetensors").metadata["synthnet.inputs"])
    assert told["mirror"] == [1.0, -1.0, -1.0]
    assert told["divided_by"] == [1.0, 1.0, 4.0]


def test_how_far_a_net_came_breaks_ties_and_outweighs_nothing():
    task = build_task("acrobot")
    nets = Nets(task.network, task.draw_start("val", list(range(8))))
    plain, shaped = (f(nets, torch.Generator().manual_seed(0)) for f in (task.reward, task.reward.shaped))
    assert (plain == -500).any()
    assert ((shaped - plain) >= 0).all()
    assert ((shaped - plain) <= 5).all()
    assert len(shaped[plain == -500].unique()) > 1


def test_controllers_are_rolled_out_whole():
    task = build_task("cartpole")
    config = GrpoConfig(signal_every=0)
    assert check(config, RewardConfig(), make_policy(task), task) == Kinds(False, True)
    assert task.objective.name == "return"


def test_any_environment_is_a_task_by_its_name(tmp_path, capsys):
    task = build_task("gym:CartPole-v1")
    assert (task.reward.n_inputs, task.reward.n_outputs) == (4, 2)
    start = task.draw_start("val", [0, 1])
    ours = build_task("cartpole").reward
    assert torch.equal(task.reward.play(Nets(task.network, start), [3, 4]), ours.play(Nets(task.network, start), [3, 4]))
    torques = GymPlant.of("Pendulum-v1")
    assert torques.act(torch.tensor([[[9.0]], [[-9.0]]]).double()).flatten().tolist() == [2.0, -2.0]
    assert main(["init", "--task", "gym:CartPole-v1", "-o", str(tmp_path / "w.safetensors")]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["task"], row["metric"], row["n"]) == ("gym:CartPole-v1", "return", 20)
    assert "loss" not in row


def test_an_environment_by_its_name_has_the_settings_of_a_plant():
    config = compose(["task=gym:CartPole-v1", "task.hidden=[8, 4]", "task.starts=3"])
    task = config.build_task()
    assert task.arch.label == "mlp-4-8-4-2" and task.reward.starts == 3
    plain = compose(["task=gym:CartPole-v1"]).build_task()
    assert plain.arch.label == "mlp-4-32-2" and plain.reward.starts == 4
    with pytest.raises(InputError, match="starst"):
        build_task("gym:CartPole-v1", starst=3)
    with pytest.raises(InputError, match="hidden should be"):
        build_task("gym:CartPole-v1", hidden=8)
    with pytest.raises(InputError, match=r"task\.starts"):
        compose(["task=problem.py:mine", "task.starts=3"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:NoSuchPlace-v0", "Gymnasium cannot make NoSuchPlace-v0"),
        ("gym:os:CartPole-v1", "would import a module"),
        ("gym:FrozenLake-v1", "expected a vector of numbers|cannot make"),
    ],
)
def test_environments_that_cannot_be_had_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        build_task(name)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    task = build_task("cartpole")
    with pytest.raises(InputError, match=r"synthnet\[control\]"):
        task.judged(task.draw_start("val", [0]))


def test_an_environment_whose_own_packages_are_missing_is_refused(monkeypatch):
    def make(name):
        raise ModuleNotFoundError("No module named 'imageio'")

    monkeypatch.setattr(gymnasium, "make", make)
    with pytest.raises(InputError, match="Gymnasium cannot make InvertedPendulum-v5: No module named 'imageio'"):
        build_task("gym:InvertedPendulum-v5")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:outputs of different seeds")
def test_random_controllers_learn_from_returns_alone(tmp_path):
    """CartPole, a fresh policy: no zoo, no pairs, no gradient through a net."""
    settings = ["task=cartpole", "threads=1", "backbone.dim=64", "grpo.prompts=4", "grpo.num_generations=16", "grpo.sigma=0.3",
                "grpo.steps=[1]", "grpo.optim.learning_rate=3e-3", "grpo.signal_every=0", "grpo.val_seeds=16",
                "grpo.guard.norm=null", "grpo.guard.drop=null", "lab.tensorboard=false", "grpo.loop.updates=60",
                "grpo.loop.validate_every=30"]  # fmt: skip
    assert main(["grpo", *settings, f"run_dir={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [row["val/accuracy_k1"] for row in rows if "val/accuracy_k1" in row]
    assert scores[0] < 20
    assert scores[-1] > 100
