"""Stops runs at commit points and at random times, resumes them, and compares them with a run that nobody stopped.

    python -m tests.injection.campaign --kills 200 --seed 0 [--jobs 2]

A trial is one folder: its command is stopped several times, each time further on, and made again until it ends.
Commands: `run` (then `resume`) with the fork executor, `run locally` with the local one, `run fresh` in new
interpreters and at random times only, `adopt` (a run that takes its stages over from another one) and `judge`. Points
are drawn from the calls that an undisturbed command makes, evenly over their kinds. Exit code 1 if anything is wrong;
each problem comes with the command that repeats its trial.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from spa_recipes.run import gc
from spa_recipes.run.rundir import RunDir
from tests.injection import checks, processes
from tests.injection.faults import (
    HALVES,
    REACHED,
    Fault,
    Note,
    Victim,
    When,
    left_alone,
    lose_unsynced,
    reached,
    read_notes,
)
from tests.kit.forked import load_libraries
from tests.kit.models import judge_inputs
from tests.kit.processes import processes_of
from tests.kit.recipes import mini, write_recipe

SAVE_STEPS = 2
PATIENCE = 600.0
RECIPE = mini(
    data={"pairs": {"rows": 120}, "seed_labels": 24, "prompts_per_iteration": [12], "heldout": 8},
    sft={"data": {"rows": 48}, "global_batch_size": 8, "per_device_train_batch_size": 8, "save_steps": SAVE_STEPS},
    seed_training={"global_batch_size": 4, "per_device_train_batch_size": 4, "save_steps": SAVE_STEPS},
    sampling={"max_tokens": 16, "backend": {"shard_size": 4}},
    refine={"global_batch_size": 2, "per_device_train_batch_size": 2, "save_steps": SAVE_STEPS},
    noise={"threshold": {"window": 8, "min_pairs": 2}},
    evaluation={"max_prompts": 4},
)
"""One iteration with six optimizer steps in every training (two checkpoints each) and three shards of answers."""

Job = Literal["run", "run locally", "run fresh", "adopt", "judge"]
RUNS: tuple[Job, ...] = ("run", "run locally", "run fresh")
"""Those whose result is the same."""
SHARES: dict[Job, float] = {"run": 0.7, "run locally": 0.08, "run fresh": 0.03, "adopt": 0.07, "judge": 0.12}
"""How the kills are shared out."""
KILLS_PER_TRIAL: dict[Job, int] = {"run": 10, "run locally": 8, "run fresh": 6, "adopt": 4, "judge": 5}
VICTIMS: dict[Victim, int] = {
    "process": 8,
    "tree": 4,
    "power": 4,
    "server": 1,
    "runner+server": 1,
    "SIGTERM": 2,
    "SIGINT": 2,
    "SIGINT twice": 1,
}
DEADLY = frozenset({"process", "tree", "power"})
"""Victims among which is the process that makes the call: only a process that died leaves half of a file."""
ROUNDS = 6
"""How often the kills that did not take place are tried again."""
TIMED = 0.15
"""Share of stops at a random time instead of at a call."""
EXIT_CODES = {"SIGTERM": 128 + signal.SIGTERM, "SIGINT": 128 + signal.SIGINT, "SIGINT twice": 128 + signal.SIGINT}


class Trial(NamedTuple):
    """One folder: what runs in it, and how it is stopped, in turn."""

    job: Job
    faults: tuple[Fault, ...]


@dataclass
class Report:
    """What a trial showed.

    Attributes:
        kills: faults that took place, in turn.
        missed: faults that the run did not meet.
        commands: how often the command was started.
        gone: longest time until the processes of a stopped run were gone, in seconds.
        problems: what is wrong.
    """

    trial: Trial
    kills: list[Fault] = field(default_factory=list)
    missed: int = 0
    commands: int = 0
    gone: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Bench(NamedTuple):
    """Where the campaign works: models and pairs for `spa judge`, and the undisturbed results."""

    base: Path

    def reference(self, job: Job) -> Path:
        return self.base / "whole" / ("run" if job in RUNS else job)

    def notes(self, job: Job) -> list[Note]:
        return read_notes(self.reference(job).with_suffix(".notes"))


# --- commands ---


def prepare(bench: Bench, job: Job, folder: Path) -> None:
    """Put what the command needs into a new folder."""
    folder.mkdir(parents=True)
    recipe = RECIPE if job != "run locally" else {**RECIPE, "compute": {**RECIPE["compute"], "executor": {}}}
    write_recipe(folder / "mini.yaml", recipe)
    if job == "adopt":
        shutil.copytree(bench.reference("run") / "runs" / "mini", folder / "runs" / "first", symlinks=True)


def command(job: Job, folder: Path, base: Path) -> list[str]:
    """What a user types, after `spa`."""
    if job == "judge":
        models = [f"--{role}={base / role}" for role in ("policy", "reference")]
        return [
            "judge",
            *models,
            f"--pairs={base / 'pairs.jsonl'}",
            "--out=out.jsonl",
            "--max-length=256",
            "--max-prompt-length=96",
        ]
    started = (folder / "runs" / "mini" / "resolved.json").exists()
    return ["resume", "mini"] if started else ["run", "mini.yaml"]


def run_of(job: Job, folder: Path) -> Path:
    """The run's folder."""
    return folder / ("out.jsonl.spa" if job == "judge" else "runs/mini")


def start_and_stop(
    arguments: Sequence[str], folder: Path, log: Path, notes: Path, armed: Sequence[Fault], *, fresh: bool = False
) -> int | None:
    """Exit code of the command, stopped by the first of the `armed` faults; None if it does not end.

    A fault at a time is armed alone.
    """
    timed = armed[0] if armed and armed[0].kind == "time" else None
    pid = processes.start(folder, arguments, log, notes, () if timed else armed, fresh=fresh)
    if timed is not None:
        code = processes.wait(pid, timed.nth / 1000)
        if code is not None:
            return code
        with notes.open("a") as handle:
            handle.write(f"0\trunner\t{REACHED}\t{json.dumps(timed)}\t\n")
        _strike_from_outside(timed, pid, folder)
    code = processes.wait(pid, PATIENCE)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        processes.wait(pid, PATIENCE)
    return code


def _strike_from_outside(fault: Fault, runner: int, folder: Path) -> None:
    others = [pid for pid in processes_of(folder) if pid != runner]
    signs = {"SIGTERM": [signal.SIGTERM], "SIGINT": [signal.SIGINT], "SIGINT twice": [signal.SIGINT] * 2}
    for sign in signs.get(fault.victim, []):
        os.kill(runner, sign)
        time.sleep(0.01)
    if fault.victim in signs:
        return
    whole = fault.victim in ("tree", "power")
    for pid in [runner, *others] if whole else [runner] if fault.role == "runner" else others[-1:]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# --- one trial ---


def conduct(bench: Bench, trial: Trial, name: str) -> Report:
    """Stop the command at one fault after the other, then let it end, and look."""
    begin = time.monotonic()
    report, folder = Report(trial), bench.base / "trials" / name
    prepare(bench, trial.job, folder)
    left = list(trial.faults)
    while _step(bench, report, folder, left):
        pass
    report.missed = len(left)
    if not report.problems:
        report.problems += _end(bench, trial.job, folder)
    if not report.problems:
        shutil.rmtree(folder)
    report.seconds = time.monotonic() - begin
    return report


def _step(bench: Bench, report: Report, folder: Path, left: list[Fault]) -> bool:
    """One command, and the fault that stopped it is taken out of those that are left; True if it did not end."""
    job, number = report.trial.job, report.commands
    before = checks.snapshot(folder)
    log, notes = (folder.with_name(f"{folder.name}.{number}.{kind}") for kind in ("log", "notes"))
    armed = left[:1] if left and left[0].kind == "time" else [fault for fault in left if fault.kind != "time"]
    code = start_and_stop(command(job, folder, bench.base), folder, log, notes, armed, fresh=job == "run fresh")
    report.commands += 1
    fault = reached(notes)
    if fault is not None:
        report.kills.append(fault)
        left.remove(fault)
    problems = _after_a_stop(report, job, folder, code, fault)
    if left_alone(notes):
        problems.append("a worker went on after the runner and the fork server were killed")
    if fault is not None and fault.victim == "power":
        lose_unsynced(folder, notes, fault)
    if not (job == "judge" and (folder / "out.jsonl").exists()):  # then what is left is being removed
        problems += checks.lost_work(folder, before, checks.snapshot(folder), read_notes(notes), SAVE_STEPS)
    report.problems += [f"command {number} ({fault}): {problem}; see {log}" for problem in problems]
    return not report.problems and code != 0


def _after_a_stop(report: Report, job: Job, folder: Path, code: int | None, fault: Fault | None) -> list[str]:
    """Processes, the lock, and the exit code."""
    if code is None:
        return [f"it did not end within {PATIENCE:.0f} s"]
    problems = []
    gone = processes.seconds_until_gone(folder)
    if gone is None:
        problems.append(f"processes of the run are alive {processes.PROMISE_SECONDS:.0f} s later")
    report.gone = max(report.gone, gone or 0.0)
    if not checks.is_free(run_of(job, folder)):
        problems.append("the run is still locked")
    if fault is None and code != 0:
        problems.append(f"it was not stopped and ended with exit code {code}")
    wanted = EXIT_CODES.get(fault.victim) if fault is not None else None
    if wanted is not None and code not in (wanted, 0):
        problems.append(f"exit code {code} instead of {wanted}")
    return problems


def _end(bench: Bench, job: Job, folder: Path) -> list[str]:
    """Compare what the command left with what it leaves when nobody stops it."""
    whole, run = bench.reference(job), run_of(job, folder)
    problems = [f"{name}: a temporary file was left in an output" for name in checks.leftovers(run, "output")]
    if job != "judge":
        gc.sweep([RunDir(run)], models=False)  # it may find temporary files elsewhere, and progress of finished stages
    problems += [f"{name}: a temporary file was left" for name in checks.leftovers(folder)]
    if job == "judge":
        same = (folder / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
        problems += [] if same else ["out.jsonl: other bytes"]
        odd = {path.name for path in folder.iterdir()} ^ {path.name for path in whole.iterdir()}
        return problems + [f"{name}: only in one of the folders" for name in sorted(odd)]
    problems += checks.swallowed_events(run / "events.jsonl")
    return problems + checks.differences(run_of(job, whole), run)


# --- choosing the faults ---


class Draws:
    """Trials with random faults, until as many have taken place as were asked for."""

    def __init__(self, bench: Bench, kills: int, seed: int) -> None:
        rng = random.Random(seed)
        self._wanted = {job: round(kills * share) for job, share in SHARES.items()}
        self._wanted["run"] += kills - sum(self._wanted.values())
        self._points = {job: _Points(bench.notes(job), rng) for job in SHARES}

    def trials(self, reports: Sequence[Report]) -> list[Trial]:
        """For what the trials so far left to do: a run that ends early meets no more faults."""
        done = Counter(report.trial.job for report in reports for _ in report.kills)
        return [trial for job in SHARES for trial in self._trials(job, self._wanted[job] - done[job])]

    def _trials(self, job: Job, kills: int) -> Iterator[Trial]:
        for start in range(0, kills, KILLS_PER_TRIAL[job]):
            count = min(kills - start, KILLS_PER_TRIAL[job])
            points = self._points[job]
            yield Trial(job, tuple(points.draw(count) if job != "run fresh" else points.timed(count)))


class _Points:
    """Draws points of an undisturbed command: kinds in turn, and of a kind no point twice before all were drawn."""

    def __init__(self, notes: list[Note], rng: random.Random) -> None:
        self._rng = rng
        self._position: dict[tuple[Any, int], int] = {}
        seen: Counter[Any] = Counter()
        kinds = defaultdict(list)
        for position, note in enumerate(notes):
            seen[note.point] += 1
            self._position[note.point, seen[note.point]] = position
            kinds[note.point.role, note.point.kind].append((note.point, seen[note.point]))
        for members in kinds.values():
            rng.shuffle(members)
        self._kinds = itertools.cycle([itertools.cycle(kinds[name]) for name in sorted(kinds)])

    def draw(self, count: int) -> list[Fault]:
        """Faults in the order in which a run meets them."""
        drawn = [next(next(self._kinds)) for _ in range(count)]
        drawn.sort(key=self._position.__getitem__)
        faults = []
        for number, (point, occurrence) in enumerate(drawn):
            if self._rng.random() < TIMED:
                faults.append(self._timed(2500))
                continue
            # A command that goes on makes fewer of the calls at the same place.
            occurrence = occurrence if number == 0 else min(occurrence, self._rng.randint(1, 3))
            whens: list[When] = ["before", "after", "half"] if point.kind in HALVES else ["before", "after"]
            when, victim = self._rng.choice(whens), self._victim(point.role)
            if when == "half" and victim not in DEADLY:
                victim = "process"
            faults.append(Fault(*point, occurrence, when, victim))
        return faults

    def timed(self, count: int) -> list[Fault]:
        """Faults at random times of a command that starts slowly."""
        return [self._timed(15_000) for _ in range(count)]

    def _timed(self, longest: int) -> Fault:
        role = self._rng.choice(["runner", "worker"])
        return Fault(role, "time", "", self._rng.randint(50, longest), "before", self._victim("runner"))

    def _victim(self, role: str) -> Victim:
        (victim,) = self._rng.choices(list(VICTIMS), weights=list(VICTIMS.values()))
        # Only a worker knows that there is a fork server.
        return "tree" if role == "runner" and victim in ("server", "runner+server") else victim


SHORT: dict[Job, list[tuple[str, str, str, When, Victim]]] = {
    "run": [
        ("runner", "rename", r"/\.resolved\.json\.tmp$", "after", "process"),
        ("worker", "rename", r"02-sft.*/output\.draft-1$", "after", "power"),
        ("worker", "write", r"04-seed.*/checkpoint-4/trainer_state\.json$", "half", "tree"),
        ("worker", "save", r"06-generate.*/\.00000004-00000008\.parquet\.tmp$", "half", "process"),
        ("worker", "rmtree", r"06-generate.*/work/shards$", "half", "tree"),
        ("worker", "write", r"07-score.*/attempts/N/progress\.jsonl$", "after", "SIGTERM"),
        ("worker", "fsync", r"09-refine.*/checkpoint-4/\.spa_checkpoint\.json\.tmp$", "before", "runner+server"),
        ("runner", "symlink", r"/\.final\.new/model\.safetensors$", "before", "process"),
        ("runner", "rename", r"/\.final\.new$", "before", "power"),
    ],
    "adopt": [("runner", "link", r"model\.safetensors$", "before", "process")],
    "judge": [
        ("worker", "save", r"01-score.*/work/shards/.*\.parquet\.tmp$", "half", "process"),
        ("runner", "rmtree", r"^out\.jsonl\.spa$", "half", "process"),
    ],
}
"""A few points of different kinds, as patterns of their paths."""


def short_trials(bench: Bench) -> list[Trial]:
    """The trials of SHORT."""
    return [Trial(job, tuple(_fault(bench, job, *wanted) for wanted in SHORT[job])) for job in SHORT]


def _fault(bench: Bench, job: Job, role: str, kind: str, pattern: str, when: When, victim: Victim) -> Fault:
    points = {note.point for note in bench.notes(job) if note.point[:2] == (role, kind)}
    found = sorted(point for point in points if re.search(pattern, point.path))
    if not found:
        raise SystemExit(f"no {kind} of {pattern} by the {role}; it makes these: {sorted(points)}")
    return Fault(*found[0], 1, when, victim)


# --- the campaign ---


def set_up(bench: Bench) -> None:
    """Models and pairs for `spa judge`, and every kind of command once without a fault."""
    pid = os.fork()  # this process must stay without threads, which a model may start
    if not pid:
        judge_inputs(bench.base, 12)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for job in ("run", "adopt", "judge"):
        folder = bench.reference(job)
        prepare(bench, job, folder)
        log = folder.with_suffix(".log")
        code = start_and_stop(command(job, folder, bench.base), folder, log, folder.with_suffix(".notes"), [])
        if code != 0:
            raise SystemExit(f"the undisturbed {job} ended with exit code {code}: {log.read_text()}")


def conduct_all(bench: Bench, chosen: Sequence[Trial], jobs: int, first: int) -> Iterator[Report]:
    """Trials as they end; they are numbered from `first`."""
    names = [f"{number:03d}" for number in range(first, first + len(chosen))]
    do = functools.partial(conduct, bench)
    if jobs == 1:
        yield from map(do, chosen, names)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        yield from pool.map(do, chosen, names)


def repeat_command(trial: Trial) -> str:
    """What repeats a trial."""
    return f"python -m tests.injection.campaign --repeat '{json.dumps(trial)}'"


def parse_trial(text: str) -> Trial:
    """A trial as `repeat_command` wrote it."""
    job, faults = json.loads(text)
    assert job in get_args(Job)
    return Trial(job, tuple(Fault(*fault) for fault in faults))


def print_report(report: Report, number: int) -> None:
    """A line per trial, and its problems."""
    print(
        f"trial {number} ({report.trial.job}): {len(report.kills)} kills, {report.missed} missed, "
        f"{report.commands} commands, {report.seconds:.0f} s, {'FAILED' if report.problems else 'ok'}",
        flush=True,
    )
    for problem in report.problems:
        print(f"  {problem}")
    if report.problems:
        print(f"  {repeat_command(report.trial)}", flush=True)


def print_summary(reports: Sequence[Report], seconds: float) -> None:
    """Counts over the campaign."""
    kills = [fault for report in reports for fault in report.kills]
    print(f"\n{len(kills)} kills in {len(reports)} trials, {seconds:.0f} s")
    _print_counts("by command", (report.trial.job for report in reports for _ in report.kills))
    _print_counts("by point", (fault.kind for fault in kills))
    _print_counts("by process", (fault.role for fault in kills))
    _print_counts("by moment", (fault.when if fault.kind != "time" else "any time" for fault in kills))
    _print_counts("by victim", (fault.victim for fault in kills))
    print(f"resumed: {sum(max(report.commands - 1, 0) for report in reports)} times")
    print(f"faults that were not met: {sum(report.missed for report in reports)}")
    print(f"processes gone after at most {max((report.gone for report in reports), default=0):.2f} s")
    print(f"trials with problems: {sum(bool(report.problems) for report in reports)}")


def _print_counts(title: str, values: Iterable[str]) -> None:
    counts = Counter(values)
    print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


def main() -> None:
    """Entry of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how often runs are stopped")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time")
    parser.add_argument("--short", action="store_true", help="a few chosen points instead")
    parser.add_argument("--repeat", metavar="TRIAL", action="append", help="this trial only; may be given again")
    parser.add_argument("--folder", type=Path, help="work there and keep it; default: a temporary folder")
    options = parser.parse_args()
    begin = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    base = (options.folder or Path(tempfile.mkdtemp(prefix="injection-"))).absolute()
    base.mkdir(exist_ok=True)
    bench = Bench(base)
    load_libraries()
    set_up(bench)
    print(f"undisturbed runs are there after {time.monotonic() - begin:.0f} s, in {base}", flush=True)
    draws = Draws(bench, options.kills, options.seed)
    fixed = [parse_trial(text) for text in options.repeat or []] or (short_trials(bench) if options.short else [])
    chosen = fixed or draws.trials([])
    reports: list[Report] = []
    for _ in range(1 if fixed else ROUNDS):
        for report in conduct_all(bench, chosen, options.jobs, len(reports)):
            print_report(report, len(reports))
            reports.append(report)
        chosen = draws.trials(reports)
    print_summary(reports, time.monotonic() - begin)
    failed = any(report.problems for report in reports)
    if not failed and options.folder is None:
        shutil.rmtree(base)
    sys.exit(failed)


if __name__ == "__main__":
    main()
