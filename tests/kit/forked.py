"""`spa` commands without the seconds of their imports: each is a fork of a process that has imported the libraries.

Where such a command starts `python -m spa_recipes.run.forkserver` or `.worker`, the new process is a fork, too, instead
of a fresh interpreter. All else is the real thing: processes and sessions of their own, pipes, locks and signals.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

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
"""It starts processes itself, so it is a fresh interpreter."""
SPA = "spa"


class ForkingPopen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen` that runs `python -m MODULE ARGUMENTS` of this package in a fork of this process.

    Attributes:
        forked: whether it did.
        forks_code: whether `python -c CODE ARGUMENTS` is a fork, too.
    """

    forks_code = False

    def __init__(self, command: Sequence[str], *, env: Any = None, **options: Any) -> None:
        python, kind, program = command[:3] if len(command) > 2 else ("", "", "")
        self.forked = python == sys.executable and (  # another Python has other libraries
            (kind == "-m" and program.startswith("spa_recipes.run.") and program != LAUNCH)
            or (kind == "-c" and self.forks_code)
        )
        if not self.forked:
            super().__init__(command, env=env, **options)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        super().__init__(command, preexec_fn=lambda: _become(kind, program, command[3:], env), **options)


class ForkingCode(ForkingPopen):
    """It runs `python -c CODE ARGUMENTS` in a fork of this process, too."""

    forks_code = True


def _become(kind: str, program: str, arguments: Sequence[str], environment: Mapping[str, str] | None) -> None:
    """Be the process of that module or code; never returns."""
    code = 1
    try:
        os.closerange(3, 1024)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        if environment is not None:
            _be_in(environment)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        code = run_module(program, [program, *arguments]) if kind == "-m" else run_code(program, ["-c", *arguments])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_module(module: str, arguments: list[str]) -> int:
    """Call the `main` of a module as the interpreter would; returns the exit code."""
    return _exit_code_of(lambda: importlib.import_module(module).main(), arguments)


def run_code(code: str, arguments: list[str]) -> int:
    """Run the text of a main module as the interpreter would; returns the exit code."""
    return _exit_code_of(lambda: exec(code, {"__name__": "__main__"}), arguments)


def _exit_code_of(main: Callable[[], object], arguments: list[str]) -> int:
    sys.argv = arguments
    try:
        main()
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def serve(address: str, owner: int) -> None:
    """Fork a process for every request, until the process `owner` ends.

    A request is answered by the id of the process, and by its exit code (negative: signal) when it has ended.
    """
    owner_end = os.pidfd_open(owner)
    load_libraries()
    gc.collect()
    os.fsync = no_sync
    gc.freeze()  # a search for garbage in a fork would copy the memory that it shares with this process
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    commands: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor of the process: its id, and who asked for it
    while owner_end not in (ready := select.select([owner_end, listener.fileno(), *commands], [], [])[0]):
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
        _be(files, **json.loads(request))
    for file in files:
        os.close(file)
    return child


def _be(
    files: list[int], folder: str, program: str, arguments: list[str], environment: dict[str, str], umask: int
) -> None:
    """Be `spa ARGUMENTS` or Python code in a folder, output and errors going to two files; never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.umask(umask)
        for number, descriptor in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        _be_in(environment)
        refused_calls.install_from(environment)  # what this process forks inherits it
        subprocess.Popen = ForkingPopen  # type: ignore[assignment,misc]
        spa = program == SPA
        code = run_module("spa_recipes.cli.app", [SPA, *arguments]) if spa else run_code(program, ["-c", *arguments])
    finally:
        os._exit(code)


def _be_in(environment: Mapping[str, str]) -> None:
    """Take these variables, and read anew those that Python and the libraries of Hugging Face read when they start."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    coding, _, errors = environment.get("PYTHONIOENCODING", "").partition(":")
    if coding:
        sys.stdout.reconfigure(encoding=coding, errors=errors or "strict")  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=coding, errors="backslashreplace")  # type: ignore[union-attr]
    if any(name.startswith("HF_") and before.get(name) != environment.get(name) for name in {*before, *environment}):
        import datasets.config
        import huggingface_hub.constants

        for constants in (huggingface_hub.constants, datasets.config):  # others look up there what they need
            importlib.reload(constants)


class Command:
    """A command that was started.

    Args:
        program: `spa`, or Python code.

    Attributes:
        pid: its process id.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], environment: Mapping[str, str], program: str = SPA
    ) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self._out, self._err = (tempfile.TemporaryFile("w+b") for _ in range(2))  # noqa: SIM115
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(_address())
        request = {
            "folder": str(folder), "program": program, "arguments": list(arguments), "environment": dict(environment),
            "umask": umask,
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


PLACE = "SPA_TESTS_SERVER"
"""Variable with the process that owns the server of this test run, and the folder of its socket."""


def share_server() -> None:
    """Be the process that owns the server; those that inherit this one's environment use the same."""
    folder = tempfile.mkdtemp(prefix="spa-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[PLACE] = f"{os.getpid()} {folder}"


@functools.cache
def _address() -> str:
    """Address of the server, which the first command of all processes that share it starts."""
    if PLACE not in os.environ:
        share_server()
    owner, _, folder = os.environ[PLACE].partition(" ")
    address = Path(folder) / "socket"
    with FileLock(address.with_suffix(".lock")):
        if not address.exists():
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.forked", str(address), owner],
                cwd=ROOT,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            _servers.append(server)
    return str(address)


_servers: list["subprocess.Popen[bytes]"] = []
"""That of this process, if it started it: nobody waits for its end."""

if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
