import pytest

from synthnet.config import CONFIG_DIR, compose, groups
from synthnet.errors import InputError


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_composes_and_builds(path):
    config = compose([f"experiment={path.stem}"])
    assert config.build_task().network.spec.n_weights > 0
    assert config.policy_config().k_max >= 1


@pytest.mark.parametrize("group", ["task", "tokens", "backbone", "action", "zoo", "pairs", "distil", "grpo", "reward"])
@pytest.mark.slow
def test_every_option_of_every_group_composes(group):
    for option in groups()[group]:
        compose([f"{group}={option}"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("pairs.bacth=3", "did you mean 'pairs.batch'"),
        ("zoo.rums=3", "did you mean 'zoo.runs'"),
        ("task=digit-mlp", "did you mean 'digits-mlp'"),
        ("backbone=set_transfomer", "did you mean 'set_transformer'"),
        ("pairs.batch=many", "could not be converted to Integer"),
        ("grpo.epsilon=x", "could not be converted to Float"),
        ("grpo.steps=2", "ListConfig"),
        ("pairs", "expected key=value"),
        ("pairs.batch=[1", "bad setting"),
        ("task._target_=os.system", "unknown setting"),
    ],
)
def test_bad_settings_are_refused_with_the_nearest_known_one(setting, message):
    with pytest.raises(InputError, match=message):
        compose([setting])


def test_values_arrive_typed_and_the_text_repeats_them():
    config = compose(["grpo.steps=[1,3]", "pairs.runs=7", "task=mnist5k-mlp"])
    assert config.grpo.steps == [1, 3]
    assert config.pairs.runs == 7
    assert config.build_task().arch.kwargs == {"sizes": [784, 10, 10]}
    assert "steps:\n  - 1\n  - 3\n" in config.text(config.build_task())
