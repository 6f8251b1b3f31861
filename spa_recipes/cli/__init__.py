"""The command line: `app` has the commands; the other modules say what they print, a module per command."""

import gc
import os
import signal
import sys
from pathlib import Path
from types import FrameType

# Imports make objects that stay: to look for garbage among them finds nothing. This line runs before all other imports.
gc.set_threshold(100_000)


def _end_at_once(signum: int, frame: FrameType | None) -> None:
    """End a command that has done nothing yet; `app.main` sets another handler when it begins."""
    os.write(2, b"stopped\n")
    os._exit(128 + signum)


# Where this is a command and no library: its imports take a third of a second, in which Ctrl-C would be a traceback.
if Path(sys.argv[0]).name in ("spa", "-m") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_at_once)
