"""A process that imports the heavy libraries once and forks a child for every stage.

Importing torch, transformers and trl takes several seconds, and a small run has more than ten stages. The parent
imports and never computes: it has no threads and no CUDA context, so its children start clean. It is not for GPUs: a
CUDA context must not be forked, and there a few seconds do not matter.

Protocol, one JSON object per line: `{"spec": path, "log": path}` comes in, and `{"exit": code}` goes out when that
stage has ended. When standard input ends, this process kills its child and exits.

The fork server of `multiprocessing` cannot replace this one: while it imports it does not notice that the runner died,
and its children outlive it if it is killed, so they could write into a run that somebody resumes. It also imports the
caller's main module in every child, so a script that calls `api.run` without a `__main__` guard fails; it shares the
runner's process group and terminal; and it has no public way to be stopped.
"""

import contextlib
import faulthandler
import gc
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.02


def preload() -> None:
    """Import what stages need, without creating a thread or touching a device.

    Garbage is neither looked for meanwhile nor later among what is imported here: that takes time, and since it writes
    to every object, each child would have to copy the memory that it shares with this process.
    """
    gc.disable()
    import transformers  # noqa: F401
    import trl.trainer.dpo_trainer
    import trl.trainer.reward_trainer
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import spa_recipes.generation.rewards
    import spa_recipes.generation.scoring
    import spa_recipes.generation.transformers
    import spa_recipes.training.reward
    import spa_recipes.training.run  # noqa: F401
    from spa_recipes.state.versions import library_versions

    get_checkpoint_conversion_mapping("llama")  # makes a table of all architectures, which loading any model needs
    library_versions()
    gc.freeze()
    gc.enable()


def fork_stage(spec: Path, log: Path, lifeline: tuple[int, int]) -> int:
    """Fork a child that runs the stage with its output in `log`; returns its process id.

    `lifeline` is a pipe that nobody writes to. The child has it as its standard input and ends with it, so neither the
    child nor what it started outlives this process, however this process dies.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(lifeline[0], 0)
        os.close(lifeline[1])
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
        from spa_recipes.run.lifeline import end_with_starter
        from spa_recipes.run.worker import run_spec

        end_with_starter(leader=os.getppid())
        code = run_spec(spec)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # cleaning up is for the parent to do


def wait_or_stop(child: int) -> int | None:
    """Return the child's exit code; None, after killing the child, if standard input ends first.

    Where this process leads its group, it ends with that: the child may have started others.
    """
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if readable and not os.read(0, 4096):
            if os.getpgrp() == os.getpid():
                os.killpg(0, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None


def main() -> None:
    """Serve until standard input ends."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with _ending_with_input():
        preload()
    lifeline = os.pipe()
    while line := _read_line():
        request = json.loads(line)
        code = wait_or_stop(fork_stage(Path(request["spec"]), Path(request["log"]), lifeline))
        if code is None:
            return
        print(json.dumps({"exit": code}), flush=True)


@contextlib.contextmanager
def _ending_with_input() -> Iterator[None]:
    """Exit if standard input ends during the imports, which are slow on a busy machine. Leaves no thread behind."""
    done = threading.Event()

    def watch() -> None:
        hangup = select.poll()
        hangup.register(0, 0)  # reports a closed pipe, and no request that waits
        while not done.wait(POLL_SECONDS):
            if hangup.poll(0):
                os._exit(1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _read_line() -> str:
    """Read a line of standard input byte by byte: a buffer would hide the end of input from `select`."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return ""
        line += byte
    return line.decode()


if __name__ == "__main__":
    main()
