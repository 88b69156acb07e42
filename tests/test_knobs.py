"""Hot knobs: their values over updates, what they refuse, their documented table; and a thousand malformed requests."""

import json
import math
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synthnet.config import KNOB_COLUMNS, all_knobs, knob_rows
from synthnet.console import markdown
from synthnet.errors import InputError
from synthnet.grpo.config import GrpoConfig
from synthnet.grpo.score import RewardConfig
from synthnet.runs.journal import records
from synthnet.runs.knobs import Dials
from synthnet.runs.lab import Schedule
from synthnet.runs.live import Live
from synthnet.settings import hot_knobs, hot_value
from synthnet.stages import STAGES, live_sections

SECTIONS = {"grpo": GrpoConfig, "reward": RewardConfig}
HOT = {name: knob for stage in STAGES for name, knob in hot_knobs(live_sections(stage)).items()}


def test_a_number_moves_linearly_and_everything_else_switches_at_once():
    config, reward = GrpoConfig(), RewardConfig()
    dials = Dials({"grpo": config, "reward": reward}, {})
    dials.turn(10, dials.check({"reward.gain": 0.4, "grpo.prompts": 8, "grpo.grouping": "process"}), [], over=4)
    gains = [dials.value("reward.gain", update) for update in (9, 10, 11, 12, 13, 50)]
    assert gains == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert dials.set(10) == {"grpo.grouping": "process", "grpo.prompts": 8, "reward.gain": pytest.approx(0.1)}
    assert (config.prompts, config.grouping, reward.gain) == (8, "process", pytest.approx(0.1))
    dials.turn(12, {"reward.gain": 0.0}, [], over=2)  # from where it is, not from where it was going
    assert dials.value("reward.gain", 12) == pytest.approx((0.3 + 0.0) / 2)
    dials.turn(20, {}, ["reward.gain"], over=0)
    assert dials.value("reward.gain", 20) == 0.0


def test_schedules_run_and_a_patch_overrides_them():
    reward = RewardConfig()
    lab = {
        "reward.gain": Schedule("cosine", 0.0, 1.0, begin=10, over=20),
        "reward.stability": Schedule("linear", 1.0, 0.5, over=10),
    }
    dials = Dials({"reward": reward}, lab)
    values = [dials.value("reward.gain", update) for update in (0, 10, 15, 20, 30, 99)]
    assert values == pytest.approx([0, 0, 0.5 * (1 - math.cos(math.pi / 4)), 0.5, 1, 1])
    assert dials.value("reward.stability", 4) == pytest.approx(0.8)
    dials.turn(20, {"reward.gain": 0.25}, [], over=0)
    assert dials.value("reward.gain", 25) == 0.25
    dials.turn(26, {}, ["reward.gain"], over=0)
    assert dials.value("reward.gain", 30) == 1.0
    for wrong in (Schedule("steep"), Schedule(end=math.inf), Schedule(over=0), Schedule(end=2e3)):
        with pytest.raises(InputError):
            Dials({"reward": reward}, {"reward.gain": wrong})
    with pytest.raises(InputError, match="numbers with a fraction"):
        Dials({"reward": reward}, {"reward.batch": Schedule(start=10, end=20)})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("grpo.epsilon", math.nan, "must lie in"),
        ("grpo.epsilon", -0.1, "must lie in"),
        ("grpo.epsilon", 10**400, "must lie in"),
        ("grpo.epsilon", "much", "of type float"),
        ("grpo.epsilon", True, "of type float"),
        ("grpo.epsilon", None, "of type float"),
        ("grpo.prompts", 2.5, "of type int"),
        ("grpo.mirrored", 1, "of type bool"),
        ("grpo.grouping", "outer", "one of inter"),
        ("grpo.steps", [], "list of 1 to 64"),
        ("grpo.steps", [1, 0], "must lie in"),
        ("grpo.epsilonn", 0.1, "did you mean 'grpo.epsilon'"),
        ("grpo.val_seeds", 8, "cold for this run: synthnet fork"),
        ("pairs.function", 1.0, "not read by a run"),
        ("grpo.loop", 1, "unknown hot knob"),
        ("grpo.optim.learning_rate.x", 1, "unknown hot knob"),
    ],
)  # fmt: skip
def test_values_that_a_knob_cannot_have_are_refused(name, value, message):
    with pytest.raises(InputError, match=message):
        hot_value(name, value, SECTIONS)


def test_null_is_a_value_where_the_setting_may_have_none():
    assert hot_value("grpo.delta", None, SECTIONS) is None
    assert hot_value("grpo.steps_by", None, SECTIONS) is None
    assert hot_value("grpo.beta", 1, SECTIONS) == 1.0


def test_every_setting_takes_its_own_default_and_its_bounds_hold(request):
    """Bounds that leave a default out break this; so does a bound of the wrong kind."""
    for name, knob in all_knobs().items():
        if knob.bounds and knob.default not in (None, []):
            assert knob.check(knob.default) == knob.default, name
            beyond = [knob.bounds[1] * 2 + 1] if isinstance(knob.default, list) else knob.bounds[1] * 2 + 1
            with pytest.raises(InputError, match="must lie in"):
                knob.check([int(x) for x in beyond] if isinstance(beyond, list) and knob.plain == list[int] else
                           int(beyond) if knob.plain is int else beyond)  # fmt: skip
        if knob.choices:
            assert knob.default in knob.choices, name


def test_every_setting_says_what_it_is_for():
    assert [name for name, knob in all_knobs().items() if len(knob.help) < 5] == []


def test_the_knob_table_is_the_documented_one(request):
    columns, rows = KNOB_COLUMNS, knob_rows()
    assert len({row[0] for row in rows}) == len(rows)
    assert {row[0] for row in rows if row[4] != "cold"} == set(HOT)
    page = (request.config.rootpath / "docs" / "knobs.md").read_text()
    assert markdown(columns, rows) in page, "made anew by: synthnet config --knobs"


def test_a_thousand_ramps_on_one_knob_are_one_value():
    dials = Dials({"reward": RewardConfig()}, {})
    for update in range(3000):
        dials.turn(update, {"reward.gain": float(update % 2)}, [], over=5)
    assert 0.0 <= dials.value("reward.gain", 3001) <= 1.0


LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), st.text(max_size=20))
JUNK = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=8
)
KNOB = st.sampled_from([*HOT, "grpo.val_seeds", "task.hidden", "grpo", "", "__class__", "grpo.__class__", "grpo.loop.updates"])
REQUEST = st.fixed_dictionaries(
    {"kind": st.sampled_from(["patch", "rollback", "stop ", "", 1])},
    optional={"values": JUNK | st.dictionaries(KNOB, JUNK, max_size=3), "over": LEAF, "to": LEAF, "weights": LEAF},
)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    line=st.one_of(REQUEST.map(lambda r: json.dumps(r).encode()), st.binary(max_size=200).map(lambda b: b.replace(b"\n", b" ")))
)
@pytest.mark.slow
def test_malformed_requests_leave_a_live_run_untouched(line, tmp_path_factory):
    """Whatever is refused moves no knob; whatever is accepted is a change that the knob allows."""
    folder = tmp_path_factory.mktemp("live")
    config, reward = GrpoConfig(), RewardConfig()
    live = Live({"grpo": config, "reward": reward}, {})
    live.open(folder, type("P", (), {"settings": {}})())
    before = json.dumps([str(config), str(reward)])
    (folder / "patches.jsonl").write_bytes(line + b"\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turned, _ = live.turn(3, ())
    assert not turned.stop
    (entry,) = records(folder / "applied.jsonl")
    if entry["kind"] == "refused":
        assert json.dumps([str(config), str(reward)]) == before
        assert entry["reason"]
        assert live.version == 0
    else:
        live.dials.check(entry.get("values", {}))


def test_a_schedule_ends_where_it_says():
    """0.2 + (1e-4 - 0.2) is less than 1e-4, and so beyond the bounds of grpo.epsilon."""
    for shape in ("linear", "cosine"):
        assert Schedule(start=0.2, end=1e-4, over=7, shape=shape).value(100) == 1e-4
