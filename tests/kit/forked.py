"""`spa` commands without the seconds of their imports: each is a fork of a process that has imported the libraries.

Where such a command starts `python -m spa_recipes.run.forkserver` or `.worker`, the new process is a fork, too, instead
of a fresh interpreter. All else is the real thing: processes and sessions of their own, pipes, locks and signals.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.kit import refused_calls
from tests.kit.synced import no_sync

ROOT = Path(__file__).parents[2]


def load_libraries() -> None:
    """Import what commands and stages need."""
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    import spa_recipes.cli.app
    import spa_recipes.cli.summary
    import spa_recipes.plan
    import spa_recipes.run.worker
    from spa_recipes.run.forkserver import preload
    from spa_recipes.sandbox.world import all_prompts

    preload()
    all_prompts()  # a table that is made once in a process
    for kind in spa_recipes.plan.KINDS.values():
        importlib.import_module(f"spa_recipes.stages.{kind.module}")


LAUNCH = "spa_recipes.run.launch"


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that runs `python -m MODULE ARGUMENTS` of this package in a fork of this process.

    Attributes:
        forked: whether it did.
    """

    def __init__(self, command: Sequence[str], *, env: Any = None, **options: Any) -> None:
        ours = len(command) > 2 and command[:2] == [sys.executable, "-m"]  # another Python has other libraries
        module = command[2] if ours else ""
        self.forked = module.startswith("spa_recipes.run.") and module != LAUNCH  # it starts processes itself
        if not self.forked:
            super().__init__(command, env=env, **options)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        super().__init__(command, preexec_fn=lambda: _become(command[2], command[3:], env), **options)


def _become(module: str, arguments: Sequence[str], environment: Mapping[str, str] | None) -> None:
    """Be the process of that module; never returns."""
    code = 1
    try:
        os.closerange(3, 1024)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        code = run_module(module, [module, *arguments])
    finally:
        os._exit(code)


def run_module(module: str, arguments: list[str]) -> int:
    """Call the `main` of a module as the interpreter would; returns the exit code."""
    sys.argv = arguments
    try:
        importlib.import_module(module).main()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve(address: str) -> None:
    """Fork a process for every request, until standard input ends.

    A request is answered by the id of the process, and by its exit code (negative: signal) when it has ended.
    """
    load_libraries()
    gc.collect()
    os.fsync = no_sync
    gc.freeze()  # a search for garbage in a fork would copy the memory that it shares with this process
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    commands: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor of the process: its id, and who asked for it
    while 0 not in (ready := select.select([0, listener.fileno(), *commands], [], [])[0]):
        for descriptor in ready:
            with contextlib.suppress(ConnectionError):  # who asked may be gone
                if descriptor == listener.fileno():
                    connection, _ = listener.accept()
                    child = _start(connection)
                    commands[os.pidfd_open(child)] = child, connection
                    connection.sendall(f"{child}\n".encode())
                else:
                    child, connection = commands.pop(descriptor)
                    os.close(descriptor)
                    _, status = os.waitpid(child, 0)
                    with connection:
                        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _start(connection: socket.socket) -> int:
    """Start the command that a request asks for, in a fork; returns its process id."""
    request, files, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while not request.endswith(b"\n"):
        request += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        _be_spa(files, **json.loads(request))
    for file in files:
        os.close(file)
    return child


def _be_spa(files: list[int], folder: str, arguments: list[str], environment: dict[str, str], umask: int) -> None:
    """Be `spa ARGUMENTS` in a folder, with standard output and error going to two files; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.umask(umask)
        for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(environment)
        _read_anew(environment)
        refused_calls.install_from(environment)  # what this process forks inherits it
        subprocess.Popen = ForkingPopen  # type: ignore[assignment,misc]
        code = run_module("spa_recipes.cli.app", ["spa", *arguments])
    finally:
        os._exit(code)


def _read_anew(environment: Mapping[str, str]) -> None:
    """Do what Python and huggingface_hub do with variables when they start."""
    from huggingface_hub import constants

    if coding := environment.get("PYTHONIOENCODING"):
        sys.stdout.reconfigure(encoding=coding)  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=coding, errors="backslashreplace")  # type: ignore[union-attr]
    if home := environment.get("HF_HOME"):
        constants.HF_HOME, constants.HF_HUB_CACHE = home, str(Path(home) / "hub")


class Command:
    """A `spa` command that was started.

    Attributes:
        pid: its process id.
    """

    def __init__(self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self._out, self._err = (tempfile.TemporaryFile("w+b") for _ in range(2))  # noqa: SIM115
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(_address())
        request = {
            "folder": str(folder), "arguments": list(arguments), "environment": dict(environment), "umask": umask,
        }  # fmt: skip
        files = [self._out.fileno(), self._err.fileno()]
        line = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(connection, [line], files)
        connection.sendall(line[sent:])
        self._answers = connection.makefile()
        self.pid = int(self._answers.readline())

    def wait(self) -> int:
        """Exit code (negative: signal), once it has ended."""
        return int(self._answers.readline())

    def kill(self, sign: signal.Signals = signal.SIGKILL) -> int:
        """Send it a signal and wait for its end; returns the exit code."""
        os.kill(self.pid, sign)
        return self.wait()

    def out(self) -> str:
        """Its standard output."""
        return _text(self._out)

    def err(self) -> str:
        """Its standard error."""
        return _text(self._err)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


@functools.cache
def _address() -> str:
    """Start the server of this process at the first command; it ends when this process does."""
    address = str(Path(tempfile.mkdtemp(prefix="spa-tests-")) / "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.forked", address],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    _servers.append(server)
    return address


_servers: list["subprocess.Popen[bytes]"] = []
"""Keeps the pipe of the server open."""

if __name__ == "__main__":
    serve(sys.argv[1])
