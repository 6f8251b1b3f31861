"""The process of one stage: reads its spec, runs it, commits the result.

    python -m spa_recipes.run.worker SPEC

Its standard input is a pipe from the runner. When the runner is gone, however it went, the pipe ends and so does the
worker: no orphan holds a GPU.
"""

import contextlib
import faulthandler
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spa_recipes.errors import SpaError, StageError, TryAgainError
from spa_recipes.models.memory import is_out_of_memory
from spa_recipes.plan import KINDS
from spa_recipes.redaction import redacted_output
from spa_recipes.run.disk import full_disk, is_full
from spa_recipes.run.memory import smaller
from spa_recipes.stages.context import Context, StageSpec
from spa_recipes.state import atomic
from spa_recipes.state.watchdog import Watchdog

VERSIONED = ("spa-recipes", "torch", "transformers", "trl", "datasets", "accelerate", "peft", "vllm")


def run_stage(spec: StageSpec) -> int:
    """Run and commit a stage in this process; returns the exit code and leaves `error.json` for the runner."""
    with redacted_output():
        return _run_stage(spec)


def _run_stage(spec: StageSpec) -> int:
    context = Context.from_environment(spec)
    started = time.monotonic()
    try:
        if context.rank == 0:
            shutil.rmtree(context.draft, ignore_errors=True)
            context.draft.mkdir(parents=True)
        _limit_threads(spec)
        context.watchdog = _watchdog(context)
        result = importlib.import_module(f"spa_recipes.stages.{KINDS[spec.kind].module}").run(context)
        if context.rank == 0:
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
                }
            )
            _clean_up(context)
    except SpaError as error:
        return _fail(context, error)
    except Exception as error:
        failure = _explained(context, error)  # before anything is deleted: it says how much is free
        if is_full(error) and context.rank == 0:
            shutil.rmtree(context.draft, ignore_errors=True)  # nobody needs it, and what happened must be written down
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return _fail(context, failure)
    finally:
        if context.watchdog is not None:
            context.watchdog.end()
    return 0


def _watchdog(context: Context) -> Watchdog | None:
    minutes = context.spec.runtime["compute"]["stall_minutes"]
    return None if minutes is None else Watchdog(context.attempt_dir, context.rank, minutes * 60)


def _explained(context: Context, error: Exception) -> SpaError:
    """An error of a library or of the system as one of ours."""
    spec = context.spec
    if is_full(error):
        return full_disk(error, context.folder.path, where=spec.id, needed=spec.runtime.get("disk_needed"))
    if is_out_of_memory(error):
        return TryAgainError("out of memory", where=spec.id, fix=smaller(spec.kind, spec.settings))
    if isinstance(error, OSError):
        return StageError(f"{error.strerror or error}: {error.filename or ''}", where=spec.id)
    return StageError(f"{type(error).__name__}: {error}", where=spec.id)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can change a result."""
    found = {}
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _limit_threads(spec: StageSpec) -> None:
    threads = spec.runtime["compute"]["cpu_threads"]
    if threads is not None and KINDS[spec.kind].torch:
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


def _fail(context: Context, error: SpaError) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    record = {"exit_code": error.exit_code, "what": error.what, "where": error.where, "fix": error.fix}
    with contextlib.suppress(OSError):
        atomic.write_text(context.attempt_dir / "error.json", json.dumps(record))
    return error.exit_code


def die_with_runner() -> None:
    """Block until standard input ends, then end this process (group) at once: everything on disk is atomic."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    """Entry of the stage process."""
    faulthandler.enable()  # a crash says in the log where it was
    threading.Thread(target=die_with_runner, daemon=True).start()
    sys.exit(run_stage(StageSpec.read(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
