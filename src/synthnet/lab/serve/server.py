"""`synthnet serve`: an HTTP interface on 127.0.0.1 over a folder of runs, and one page that uses it.

Everything it knows it reads from run directories, everything it asks it appends to their patches.jsonl, so it can come and
go while runs train. Every call but that for the page needs the token of the folder's `.token` file (mode 0600) as a bearer
header; the Host header must name this machine; bodies are strict; writes are limited in rate. Nothing that comes over HTTP
names code or leaves the runs folder.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated

from synthnet.config import CONFIG_DIR, groups
from synthnet.console import as_json
from synthnet.errors import InputError, missing_extra, unknown
from synthnet.files import make_folder
from synthnet.lab.fork import fork as fork_run
from synthnet.lab.fork import lay_out, next_free
from synthnet.lab.requests import answer, request_patch, request_rollback, request_stop
from synthnet.lab.serve.view import comparison, knob_view, metric_rows, run_folder, sweep_view
from synthnet.runs import APPLIED, list_runs, read_status, records
from synthnet.runs.executors import command_line
from synthnet.settings import hot_knobs
from synthnet.stages import STAGES, as_text, live_sections

try:
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise missing_extra("fastapi", "serve") from error

PAGE = Path(__file__).with_name("page.html")
PLOTS = {"uPlot.js": "text/javascript", "uPlot.css": "text/css"}  # https://github.com/leeoniya/uPlot, MIT, 1.6.32
HOSTS = ["127.0.0.1", "localhost", "[::1]"]
LARGEST_BODY = 1 << 16
WRITES, WINDOW_S = 20, 10.0  # at most so many writes in so many seconds
ANSWER_S = 3.0
SEEDS, UPDATES = (0, 2**31 - 1), (1, 1_000_000)  # bounds of the cold settings that may be changed over HTTP
LENGTHS = [f"{stage}.loop.updates" for stage in STAGES if STAGES[stage].live]
HOT = {name: knob for stage in STAGES for name, knob in hot_knobs(live_sections(stage)).items()}
Value = bool | int | float | str | list[int] | list[float] | None


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PatchBody(Strict):
    values: dict[str, Value] = Field(min_length=1, max_length=64)
    over: int = Field(default=0, ge=0, le=1_000_000)


class RollbackBody(Strict):
    to: int | None = Field(default=None, ge=0)
    weights: bool = False


class StartBody(Strict):
    overrides: dict[str, Value] = Field(default_factory=dict, max_length=64)


def token_of(root: Path) -> str:
    """The token of a folder of runs, made on first use, readable by its owner alone."""
    path = root / ".token"
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} can be read by others; delete it, and a new one is made")
    if len(token := path.read_text().strip()) < 32:
        raise InputError(f"{path} holds no token; delete it, and a new one is made")
    return token


class RateLimit:
    """Refuses more than WRITES calls within WINDOW_S seconds."""

    def __init__(self):
        self._times: deque[float] = deque()

    def __call__(self) -> None:
        now = time.monotonic()
        while self._times and now - self._times[0] > WINDOW_S:
            self._times.popleft()
        if len(self._times) >= WRITES:
            raise HTTPException(429, f"more than {WRITES} changes within {WINDOW_S:.0f} s; wait a moment")
        self._times.append(now)


class Answer(JSONResponse):
    """JSON of whatever files hold: numbers that are not finite are null, text of any kind is escaped."""

    def render(self, content: object) -> bytes:
        return as_json(content).encode()


def build_app(root: Path, token: str) -> FastAPI:
    """The application over one folder of runs."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Answer)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    limit = RateLimit()

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "this needs the token that `synthnet serve` printed")

    reads = [Depends(allowed)]
    writes = [Depends(allowed), Depends(limit)]

    @app.middleware("http")
    async def bounded(request: Request, proceed):
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdigit() or int(length) > LARGEST_BODY:
            return JSONResponse({"detail": f"bodies are at most {LARGEST_BODY} bytes, of known length"}, 413)
        return await proceed(request)

    @app.exception_handler(InputError)
    def refused(_: Request, error: InputError) -> JSONResponse:
        return Answer({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        said = [{"loc": [str(part) for part in each["loc"]], "msg": each["msg"]} for each in error.errors()]
        return JSONResponse({"detail": said}, 422)  # without the input, which JSON may have no word for

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self' 'nonce-{nonce}'; connect-src 'self'; "
        policy += "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy}
        headers |= {"referrer-policy": "no-referrer", "cache-control": "no-store"}
        return HTMLResponse(PAGE.read_text().replace("{{nonce}}", nonce), headers=headers)

    @app.get("/{name}")
    def plots(name: str) -> FileResponse:
        if name not in PLOTS:
            raise HTTPException(404, "nothing here")
        return FileResponse(PAGE.with_name("uplot") / name, media_type=PLOTS[name])

    def folder_of(name: str) -> Path:
        return run_folder(root, name)

    Folder = Annotated[Path, Depends(folder_of)]

    @app.get("/api/runs", dependencies=reads)
    def runs() -> list[dict]:
        return [status.as_dict() for status in list_runs(root)]

    @app.get("/api/status", dependencies=reads)
    def status(folder: Folder) -> dict:
        return {**read_status(folder, root).as_dict(), "applied": records(folder / APPLIED)}

    @app.get("/api/metrics", dependencies=reads)
    def metrics(folder: Folder, after: int = 0) -> dict:
        return metric_rows(folder, after)

    @app.get("/api/knobs", dependencies=reads)
    def knobs(folder: Folder) -> list[dict]:
        return knob_view(folder)

    @app.get("/api/compare", dependencies=reads)
    def compare(names: str) -> dict:
        return comparison([run_folder(root, name) for name in names.split(",")])

    @app.get("/api/sweep", dependencies=reads)
    def sweep(folder: Folder) -> dict:
        return sweep_view(folder)

    @app.get("/api/experiments", dependencies=reads)
    def experiments() -> list[str]:
        return groups().get("experiment", [])

    @app.post("/api/patch", dependencies=writes)
    def patch(folder: Folder, body: PatchBody) -> dict:
        return _answered(folder, request_patch(folder, body.values, body.over))

    @app.post("/api/rollback", dependencies=writes)
    def rollback(folder: Folder, body: RollbackBody) -> dict:
        return _answered(folder, request_rollback(folder, body.to, body.weights))

    @app.post("/api/stop", dependencies=writes)
    def stop(folder: Folder) -> dict:
        return _answered(folder, request_stop(folder))

    @app.post("/api/fork", dependencies=writes)
    def fork(folder: Folder, body: StartBody) -> dict:
        stage, given = fork_run(folder, bounded_overrides(body.overrides, read_status(folder).stage), None)
        return _spawn(stage, given)

    @app.post("/api/start", dependencies=writes)
    def start(experiment: str, body: StartBody) -> dict:
        known = groups().get("experiment", [])
        if experiment not in known or not (CONFIG_DIR / "experiment" / f"{experiment}.yaml").is_file():
            raise unknown("experiment", experiment[:80], known)
        given, first = bounded_overrides(body.overrides, None), root / f"run-{experiment}"
        folder = str(first) if not first.exists() else next_free(first)
        return _spawn("run", {"experiment": experiment, **given, "run_dir": folder})

    return app


def bounded_overrides(overrides: dict[str, Value], stage: str | None) -> dict[str, object]:
    """Overrides as settings: hot knobs within their bounds, `seed`, and the number of updates. Raises: InputError for
    others."""
    made: dict[str, object] = {}
    for name, value in overrides.items():
        low_high = SEEDS if name == "seed" else UPDATES if name in LENGTHS and stage in (None, name.partition(".")[0]) else None
        if low_high is not None:
            if type(value) is not int or not low_high[0] <= value <= low_high[1]:
                raise InputError(f"{name} must be a whole number from {low_high[0]} to {low_high[1]}, got {str(value)[:80]!r}")
            made[name] = value
        elif name in HOT and not name.startswith("backbone."):
            made[name] = HOT[name].check(value)
        else:
            raise unknown("setting that can be changed over HTTP", name[:80], {*HOT, *LENGTHS, "seed"})
    return made


def _answered(folder: Path, request: int) -> dict:
    """What the run did about a request, or that it has yet to get to it. Raises: InputError where it refused."""
    entry = answer(folder, request, ANSWER_S)
    if entry and entry["kind"] == "refused":
        raise InputError(f"the run refused: {entry['reason']}")
    return {"request": request, "applied": entry}


def _spawn(command: str, given: dict[str, object]) -> dict:
    """Start a run that outlives this server; what it prints goes to log.txt in its run directory."""
    folder = lay_out(command, given)
    with (folder / "log.txt").open("ab") as log:
        line = command_line(["runs", "resume", str(folder)])
        subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True)
    return {"run": folder.name, "command": ["synthnet", command, *as_text(given)]}


def serve(root: Path, port: int) -> None:
    """Serve a folder of runs until Ctrl-C. Raises: InputError where the folder or the port cannot be used."""
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("uvicorn", "serve") from error
    if not 1 <= port <= 65535:
        raise InputError(f"--port must lie in 1..65535, got {port}")
    make_folder(root)
    token = token_of(root)
    print(
        f"http://127.0.0.1:{port}/#{token}\n(the token is also in {root / '.token'}; Ctrl-C ends)", file=sys.stderr, flush=True
    )
    server = uvicorn.Server(uvicorn.Config(build_app(root, token), host="127.0.0.1", port=port, log_level="warning"))
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way to say that it could not bind
        raise InputError(f"port {port} of 127.0.0.1 cannot be used; choose another with --port") from error
