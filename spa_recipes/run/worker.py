"""The process of one stage: reads its spec, runs it, commits the result.

    python -m spa_recipes.run.worker SPEC

Its standard input is a pipe from the runner, with which it ends (see `lifeline`).
"""

import contextlib
import faulthandler
import importlib
import json
import os
import shutil
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from spa_recipes.data.hub import is_network_error
from spa_recipes.errors import SpaError, StageError, TryAgainError
from spa_recipes.models.memory import is_out_of_memory
from spa_recipes.plan import KINDS
from spa_recipes.redaction import redacted_output
from spa_recipes.run import usage
from spa_recipes.run.disk import disk_error, is_full
from spa_recipes.run.failure import ERROR, LOG
from spa_recipes.run.lifeline import end_with_starter
from spa_recipes.run.memory import smaller
from spa_recipes.stages.context import DONE, Context, StageSpec
from spa_recipes.state import atomic
from spa_recipes.state.reading import read_json
from spa_recipes.state.versions import in_words, library_versions, others
from spa_recipes.state.watchdog import Watchdog

VERSIONS = "versions.json"
"""In the folder of an attempt: the libraries that it worked with."""


def run_spec(path: Path) -> int:
    """`run_stage` of the spec in a file."""
    try:
        spec = StageSpec.read(path)
    except SpaError as error:
        return _fail(path.parent / ERROR, error)
    return run_stage(spec)


def run_stage(spec: StageSpec) -> int:
    """Run and commit a stage in this process; returns the exit code and leaves an error file for the runner."""
    context = Context.from_environment(spec)
    if not context.commits:
        _write_own_log(context)
    with redacted_output():
        return _run_stage(context)


def _write_own_log(context: Context) -> None:
    """Let the output of this process go to a file of its own: beside other processes' lines nobody finds the reason."""
    log = os.open(context.own_file(LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


def _run_stage(context: Context) -> int:
    spec = context.spec
    started = time.monotonic()
    try:
        if context.commits:
            for draft in context.folder.drafts():  # an earlier attempt's, which thereby has nothing left to commit
                shutil.rmtree(draft, ignore_errors=True)
            context.draft.mkdir(parents=True)
        elif context.pool is not None:
            context.draft.mkdir()
        begun_with = _begun_with(context) if context.commits else {}
        _limit_threads(spec)
        context.watchdog = _watchdog(context)
        _check_processes(context)
        result = importlib.import_module(f"spa_recipes.stages.{KINDS[spec.kind].module}").run(context)
        if context.commits:
            context.folder.commit(
                {
                    "id": spec.id,
                    "kind": spec.kind,
                    "key": spec.key,
                    "material": spec.material,
                    "rows": result.rows,
                    "tokens": result.tokens,
                    "seconds": round(time.monotonic() - started, 3),
                    "metrics": result.metrics,
                    "versions": library_versions(),
                    "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "attempt": spec.attempt,
                    "begun_with": begun_with,
                }
            )
            usage.note_checkpoints(context)
            _clean_up(context)
        elif context.pool is not None:
            shutil.rmtree(context.draft)
            atomic.write_text(context.own_file(DONE), "")
    except SpaError as error:
        return _fail(context.own_file(ERROR), error)
    except Exception as error:
        failure = _explained(context, error)  # before anything is deleted: it says how much is free
        if is_full(error) and context.commits:
            shutil.rmtree(context.draft, ignore_errors=True)  # nobody needs it, and what happened must be written down
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return _fail(context.own_file(ERROR), failure)
    finally:
        if context.watchdog is not None:
            context.watchdog.end()
        usage.write(context)
    return 0


def _check_processes(context: Context) -> None:
    """Refuse a training in which this process has not as many companions as the recipe says: it would go unnoticed.

    Raises:
        StageError: names both numbers.
    """
    if "train" not in KINDS[context.spec.kind].work:
        return
    if context.world_size != (asked := context.spec.runtime["training_processes"]):
        raise StageError(
            f"the launcher started {context.world_size} processes that train together, and the recipe asks for {asked}",
            where="compute.executor",
            fix="look at the settings of accelerate in compute.executor.config_file, if it has one",
        )


def _watchdog(context: Context) -> Watchdog | None:
    minutes = context.spec.runtime["compute"]["stall_minutes"]
    return None if minutes is None else Watchdog(context.attempt_dir, context.process or "0", minutes * 60)


def _explained(context: Context, error: Exception) -> SpaError:
    """An error of a library or of the system as one of ours."""
    spec = context.spec
    if is_out_of_memory(error):
        return TryAgainError("out of memory", where=spec.id, fix=smaller(spec.kind, spec.settings))
    if is_network_error(error) and getattr(error, "filename", None) is None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return TryAgainError(
            f"the network failed ({reason})", where=spec.id, fix="check it, then run the same command again"
        )
    needed = spec.runtime.get("disk_needed")
    if (found := disk_error(error, context.folder.path, where=spec.id, needed=needed)) is not None:
        return found
    return StageError(f"{type(error).__name__}: {error}", where=spec.id)


def _begun_with(context: Context) -> dict[str, str]:
    """Note the versions of this attempt; those of earlier ones that worked on what this one goes on with, if others."""
    now = library_versions()
    found: dict[str, str] = {}
    goes_on = context.folder.work.is_dir() and any(context.folder.work.iterdir())
    for attempt in context.folder.attempts() if goes_on else ():
        with contextlib.suppress(OSError, ValueError):
            found |= others(read_json(attempt / VERSIONS), now)
    atomic.write_json(context.attempt_dir / VERSIONS, now)
    if found:
        installed = in_words({name: now.get(name, "(none)") for name in found})
        context.notice(f"goes on under {installed} with what was begun under {in_words(found)}")
    return found


def _limit_threads(spec: StageSpec) -> None:
    threads = spec.runtime["compute"]["cpu_threads"]
    if threads is not None and KINDS[spec.kind].uses_torch:
        import torch

        torch.set_num_threads(threads)


def _clean_up(context: Context) -> None:
    """After the commit, drop progress that nobody needs any more."""
    storage = context.spec.runtime["storage"]
    for name, keep in (("checkpoints", storage["keep_checkpoints"]), ("shards", storage["keep_shards"])):
        if not keep:
            shutil.rmtree(context.folder.work / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        context.folder.work.rmdir()  # only if it is empty


def _fail(path: Path, error: SpaError) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    record = {"exit_code": error.exit_code, "what": error.what, "where": error.where, "fix": error.fix}
    with contextlib.suppress(OSError):
        atomic.write_text(path, json.dumps(record))
    return error.exit_code


def main() -> None:
    """Entry of the stage process."""
    faulthandler.enable()  # a crash says in the log where it was
    end_with_starter()
    sys.exit(run_spec(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
