"""How a command ends when it is asked to stop."""

import signal
from types import FrameType
from typing import NoReturn


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """Turn a signal into an exit that unwinds the stack, which ends the stage processes on its way."""
    raise SystemExit(128 + signum)


def stop_on_signals() -> None:
    """Ctrl-C, SIGTERM and a terminal that is closed stop a command in order; `nohup` lets it outlive its terminal."""
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)
