"""The life of a run: its directory, live knobs, trackers, several processes, executors."""

from synthnet.runs.directory import RunDirectory
from synthnet.runs.jobs import run_parts
from synthnet.runs.journal import append, parse, records
from synthnet.runs.knobs import MOST_UPDATES, Dials
from synthnet.runs.lab import LabConfig, SweepConfig, WorkersConfig, by_full_name
from synthnet.runs.live import APPLIED, REQUESTS, Live
from synthnet.runs.setup import Setup
from synthnet.runs.status import RunStatus, is_locked, is_run, lies_in, list_runs, read_given, read_settings, read_status
from synthnet.runs.tracking import open_run
