"""The control plane: who may ask, what it refuses, and the page itself in a real browser."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import make_policy, wait_for
from synthnet.config import read_config
from synthnet.errors import InputError
from synthnet.lab.fork import run_command
from synthnet.lab.serve import server
from synthnet.lab.serve.server import WRITES, bounded_overrides, build_app, token_of
from synthnet.runs.journal import append, records
from synthnet.runs.status import list_runs, read_status

pytestmark = pytest.mark.filterwarnings("ignore:outputs of different seeds")
QUICK = [
    "task=digits-mlp", "task.hidden=[8]", "threads=1", "grpo.prompts=2", "grpo.num_generations=4", "grpo.steps=[1,2]",
    "reward.batch=32", "grpo.val_seeds=2", "grpo.signal_every=0", "grpo.loop.validate_every=5", "lab.tensorboard=false",
    "grpo.guard.norm=null",
]  # fmt: skip
TOKEN = "t" * 40


@pytest.fixture
def root(tmp_path, tiny):
    """A folder of runs with one finished run."""
    make_policy(tiny).save(tmp_path / "p.safetensors")
    settings = [
        *QUICK,
        f"policy_from={tmp_path / 'p.safetensors'}",
        "grpo.loop.updates=3",
        f"run_dir={tmp_path / 'runs' / 'done'}",
    ]
    run_command("grpo", settings)
    return tmp_path / "runs"


@pytest.fixture
def client(root):
    from starlette.testclient import TestClient

    return TestClient(build_app(root, TOKEN), base_url="http://127.0.0.1", headers={"authorization": f"Bearer {TOKEN}"})


def _live(root, name="live", updates=100_000):
    start = root.parent / "p.safetensors"
    command = [sys.executable, "-m", "synthnet.cli", "grpo", *QUICK, f"policy_from={start}"]
    command += [f"grpo.loop.updates={updates}", f"run_dir={root / name}"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(records(root / name / "metrics.jsonl")) > 3, process)
    return process


def test_only_the_token_and_this_machine_get_in(client):
    assert client.get("/api/runs").status_code == 200
    for header in (
        {"authorization": ""},
        {"authorization": "Bearer x"},
        {"authorization": f"Bearer {TOKEN} "},
        {"authorization": TOKEN},
    ):
        wrong = client.get("/api/runs", headers=header)
        assert (wrong.status_code, "detail" in wrong.json()) == (401, True), header
    assert client.get("/api/runs", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404
    page = client.get("/", headers={"authorization": ""})
    assert page.status_code == 200
    assert "digits-mlp" not in page.text  # no data without the token
    assert "access-control-allow-origin" not in page.headers
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert (
        "http://" not in page.text.replace("http://www.w3.org/", "") and "https://" not in page.text
    )  # nothing from elsewhere


def test_the_token_file_is_private(tmp_path):
    token = token_of(tmp_path)
    assert len(token) >= 32
    assert stat.S_IMODE((tmp_path / ".token").stat().st_mode) == 0o600
    assert token_of(tmp_path) == token
    (tmp_path / ".token").chmod(0o644)
    with pytest.raises(InputError, match="can be read by others"):
        token_of(tmp_path)


@pytest.mark.parametrize("name", ["..", "../runs/done", "/etc", "done/../..", "", ".", "a\0b", "x" * 5000, "outside"])
def test_run_names_cannot_leave_the_folder(client, root, name):
    shutil.copytree(root / "done", root.parent / "elsewhere")
    (root / "outside").symlink_to(root.parent / "elsewhere")
    answer = client.get("/api/status", params={"name": name})
    assert answer.status_code == 422
    assert "no " in answer.json()["detail"]


def test_bodies_are_strict_and_small(client):
    wrong = [
        {}, {"values": {}}, {"values": {"grpo.beta": 0.1}, "extra": 1}, {"values": {"grpo.beta": {"_target_": "os.system"}}},
        {"values": {"grpo.beta": 0.1}, "over": "3"}, {"values": {"grpo.beta": 0.1}, "over": -1}, [], "x",
    ]  # fmt: skip
    for body in wrong:
        assert client.post("/api/patch", params={"name": "done"}, json=body).status_code in (422, 429), body
    for raw in ('{"values": {"grpo.beta": NaN}}', '{"values": {"grpo.beta": 1e999}}', '{"values":'):
        answer = client.post("/api/patch", params={"name": "done"}, content=raw, headers={"content-type": "application/json"})
        assert answer.status_code in (422, 429), raw
    big = {"values": {"grpo.beta": "x" * 100_000}}
    assert client.post("/api/patch", params={"name": "done"}, json=big).status_code == 413
    late = client.post("/api/patch", params={"name": "done"}, json={"values": {"grpo.beta": 0.1}})
    assert (late.status_code, "is not running" in late.json()["detail"]) == (422, True)


def test_writes_are_limited_in_rate_and_reads_are_not(client):
    codes = [client.post("/api/stop", params={"name": "done"}).status_code for _ in range(WRITES + 3)]
    assert codes == [422] * WRITES + [429] * 3
    assert client.get("/api/runs").status_code == 200


def test_overrides_over_http_are_bounded():
    assert bounded_overrides({"grpo.beta": 0, "seed": 3, "grpo.loop.updates": 7}, "grpo") == {
        "grpo.beta": 0.0, "seed": 3, "grpo.loop.updates": 7
    }  # fmt: skip
    assert bounded_overrides({"grpo.steps": [1, 2], "grpo.delta": None, "grpo.mirrored": False}, "grpo") == {
        "grpo.steps": [1, 2], "grpo.delta": None, "grpo.mirrored": False
    }  # fmt: skip
    for wrong in (
        {"reward.python": "evil.py:f"}, {"run_dir": "/tmp/x"}, {"policy_from": "/etc/passwd"}, {"task._target_": "os.system"},
        {"seed": -1}, {"seed": True}, {"grpo.loop.updates": 10**9}, {"grpo.beta": "1,2"}, {"experiment": "x"},
        {"loop.updates": 5}, {"pairs.loop.updates": 5}, {"grpo.seed": 3},
    ):  # fmt: skip
        with pytest.raises(InputError):
            bounded_overrides(wrong, "grpo")


def test_what_it_shows_of_a_run(client, root):
    (listed,) = client.get("/api/runs").json()
    assert (listed["name"], listed["state"], listed["stage"], listed["update"]) == ("done", "done", "grpo", 3)
    first = client.get("/api/metrics", params={"name": "done"}).json()
    assert [row["update"] for row in first["rows"] if "loss" in row] == [1, 2, 3]
    with (root / "done" / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "lo')  # being written
    assert client.get("/api/metrics", params={"name": "done", "after": first["next"]}).json()["rows"] == []
    again = client.get("/api/metrics", params={"name": "done", "after": 10**9}).json()
    assert again["reset"] and len(again["rows"]) == len(first["rows"])  # the file was cut back: from the start
    knobs = {knob["name"]: knob for knob in client.get("/api/knobs", params={"name": "done"}).json()}
    assert knobs["grpo.epsilon"] | {"moved": False} == {
        "name": "grpo.epsilon", "value": 0.2, "set": 0.2, "moved": False, "low": 1e-4, "high": 1
    }  # fmt: skip
    assert not any(name.startswith("backbone.") for name in knobs)  # it has no experts


def test_starting_and_forking_name_only_what_is_known(client, root, monkeypatch):
    spawned = []
    monkeypatch.setattr(server.subprocess, "Popen", lambda command, **_: spawned.append(command))
    assert client.post("/api/start", params={"experiment": "../../x"}, json={"overrides": {}}).status_code == 422
    said = client.post("/api/start", params={"experiment": "digits-mlp"}, json={"overrides": {"seed": 4}}).json()
    assert said["run"] == "run-digits-mlp"
    assert said["command"][:4] == ["synthnet", "run", "experiment=digits-mlp", "seed=4"]
    assert spawned[0][3:] == ["runs", "resume", str(root / "run-digits-mlp")]
    assert read_config(root / "run-digits-mlp").seed == 4
    assert client.post("/api/fork", params={"name": "done"}, json={"overrides": {"grpo.prompts": 4}}).json()["run"] == "done-2"
    assert read_config(root / "done-2").grpo.prompts == 4
    assert client.post("/api/fork", params={"name": "done"}, json={"overrides": {"zoo_dir": "/"}}).status_code == 422


def test_it_lists_two_hundred_runs_and_tells_the_dead_from_the_living(client, root):
    record = json.loads((root / "done" / "run.json").read_text())
    for number in range(200):
        folder = root / f"copy-{number:03d}"
        shutil.copytree(root / "done", folder)
        (folder / "policy.safetensors").unlink()
        (folder / "run.json").write_text(json.dumps({**record, "outcome": None}))
    states = [row["state"] for row in client.get("/api/runs").json()]
    assert (states.count("dead"), states.count("done")) == (200, 1)


@pytest.mark.slow
def test_a_run_is_patched_rolled_back_and_stopped_over_http(client, root):
    process = _live(root)
    try:
        ask = lambda path, body: client.post(f"/api/{path}", params={"name": "live"}, json=body)  # noqa: E731
        assert ask("patch", {"values": {"reward.gain": 0.2}, "over": 3}).json()["applied"]["version"] == 1
        refused = ask("patch", {"values": {"grpo.num_generations": 3}})
        assert (refused.status_code, "even" in refused.json()["detail"]) == (422, True)
        assert ask("rollback", {"to": 0}).json()["applied"]["released"] == ["reward.gain"]
        assert ask("rollback", {"to": 9}).status_code == 422
        assert ask("stop", {}).status_code == 200
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert read_status(root / "live").state == "stopped"
    assert {status.name for status in list_runs(root)} == {"done", "live"}


@pytest.mark.parametrize("text", ["[]", "3", '{"trials": 1}', '{"metric": "x", "trials": [1]}', "{", '"\\ud800"', "null"])
def test_a_sweep_of_damaged_results_is_an_error_of_its_own(client, root, text):
    (root / "done" / "results.json").write_text(text)
    answer = client.get("/api/sweep", params={"name": "done"})
    assert answer.status_code == 422
    assert "is damaged" in answer.json()["detail"]


def test_metrics_of_any_kind_are_answered(client, root):
    lines = [
        '{"update": 1, "loss": NaN}',
        '{"update": 2, "note": "\\ud800\\u0000"}',
        '{"update": 3, "loss": 1e999}',
        "[1]",
        "",
        '{"a": 1}',
    ]
    (root / "done" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    answer = client.get("/api/metrics", params={"name": "done", "after": 0})
    assert answer.status_code == 200
    assert [row.get("loss") for row in answer.json()["rows"]] == [None] * 4
    for path in ("status", "knobs", "runs", "compare"):
        assert client.get(f"/api/{path}", params={"name": "done", "names": "done"}).status_code in (200, 422), path


# --- in a browser ------------------------------------------------------------------------------------------------------

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1500,1200",
]  # fmt: skip


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.chrome.options.Options()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = chromium
    opened = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    yield opened
    opened.quit()


class Page:
    """The lab's page of a folder of runs, in a browser."""

    def __init__(self, root, browser):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "synthnet.cli", "serve", "--runs", str(root), "--port", str(port)]
        self.browser, self.server = browser, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.address = self.server.stderr.readline().decode().strip()
        assert self.address == f"http://127.0.0.1:{port}/#{Path(root, '.token').read_text()}"
        wait_for(lambda: _answers(port), self.server)
        browser.get(self.address)

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def click(self, css):
        self.run("document.querySelector(arguments[0]).click()", css)

    def text(self, css):
        return self.run("return document.querySelector(arguments[0])?.textContent || ''", css)

    def close(self):
        self.server.terminate()
        self.server.communicate()


@pytest.fixture
def page(browser, root):
    opened = Page(root, browser)
    yield opened
    opened.close()


def _long_run(root, updates=9000):
    """A finished run whose metrics are so many rows of a known curve."""
    shutil.copytree(root / "done", root / "long")
    record = json.loads((root / "long" / "run.json").read_text())
    (root / "long" / "run.json").write_text(json.dumps({**record, "updates": updates}))
    rows = [
        {"update": n, "loss": 1 / (1 + n)} | ({"val/score": n / updates} if n % 10 == 0 else {}) for n in range(1, updates + 1)
    ]
    (root / "long" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


XS = "return state.charts.find((chart) => chart.title === 'loss')?.plot?.data[0] || []"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_row_of_a_long_run_is_drawn_once_however_often_it_is_chosen(page, root):
    """Choosing and refreshing once loaded from the same place, so rows came twice and lines jumped back."""
    _long_run(root)
    wait_for(lambda: "2 runs" in page.text("#count"))
    for name in 5 * ("long", "done", "long"):
        page.run(f"document.querySelector('.run[title={name}]').click(); refresh();")
    wait_for(lambda: page.text("#charts") and page.run("return state.rows.length") == 9000)
    assert page.run("return state.rows.map((row) => row.update)") == list(range(1, 9001))
    wait_for(lambda: page.run(XS))
    assert page.run(XS) == list(range(1, 9001))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_the_page_fits_its_window_and_text_keeps_its_size(page, root, width):
    _long_run(root, 500)
    page.browser.set_window_size(max(width, 500), 900)
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    )
    wait_for(lambda: "2 runs" in page.text("#count"))
    page.click(".run[title=long]")
    wait_for(lambda: page.run(XS))
    assert page.run("return document.documentElement.scrollWidth") <= width
    sizes = "return state.charts.map((c) => [c.plot.root.getBoundingClientRect().width, c.card.getBoundingClientRect().width])"
    assert all(0.7 * card < plot < card for plot, card in page.run(sizes))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_keyboard_stays_where_it_is_and_a_run_that_is_gone_goes(page, root):
    _long_run(root, 50)
    wait_for(lambda: "2 runs" in page.text("#count"))
    page.click(".run[title=long]")
    page.run("document.querySelector('.run[title=done]').focus()")
    page.run("for (let i = 0; i < 3; i++) refresh()")
    shutil.rmtree(root / "long")
    wait_for(lambda: "1 runs" in page.text("#count"))
    assert page.run("return document.activeElement.title") == "done"
    wait_for(lambda: "is gone" in page.text("#view"))
    shutil.rmtree(root / "done")
    wait_for(lambda: "0 runs" in page.text("#count"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_shows_a_live_run_patches_it_and_says_what_is_refused(page, browser, root):
    process = _live(root)
    find, click, text = lambda css: browser.find_element("css selector", css), page.click, page.text
    curve = "return JSON.stringify(state.charts[0]?.plot?.data || '')"
    try:
        wait_for(lambda: "2 runs, 1 running" in text("#count"))
        click(".run[title=live]")
        wait_for(lambda: text("#state") == "running" and len(browser.execute_script(curve)) > 2)
        before = browser.execute_script(curve)
        wait_for(lambda: browser.execute_script(curve) != before)  # the curve moves
        find("[data-knob='reward.gain']").send_keys("0.25")
        click("#send")
        wait_for(lambda: "version 1" in text("#say"))
        wait_for(lambda: "reward.gain = 0.25" in text("#history"))
        wait_for(lambda: "v1" in text("#charts .marktext"))
        field = find("[data-knob='grpo.epsilon']")
        field.send_keys("99")
        click("#send")
        wait_for(lambda: "must lie in" in text("#say"))
        assert find("#say").get_attribute("class") == "no"
        click("#stop")
        wait_for(lambda: text("#state") == "stopped")
        for name in ("live", "done"):
            click(f"[aria-label='compare {name}']")
        click("#compare")
        wait_for(lambda: "grpo.loop.updates" in text("#differences"))
    finally:
        process.kill()
        process.wait()


def _answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_append_ends_a_torn_line_first(tmp_path):
    (tmp_path / "j").write_bytes(b'{"a": 1}\n{"b"')
    append(tmp_path / "j", {"c": 3})
    assert records(tmp_path / "j") == [{"a": 1}, {"c": 3}]
