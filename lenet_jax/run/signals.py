"""Ctrl-C, SIGTERM and SIGHUP: the first signal stops a run after a checkpoint, the second ends it at once."""

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))  # not on Windows

REPEAT_S = 1.0
"""Time in which a second signal is the first one again: Slurm, mpirun and terminals signal the process and also its
launcher, which forwards the signal."""


class Stop:
    """Context manager that receives the signals.

    A thread waits for them: Python calls a signal handler only after XLA returns from a computation, which can take
    minutes.

    Attributes:
      signal: the number of the first signal received; 0 before.
      unsaved: whether there is progress to save. If not, the first signal ends the program.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.unsaved = False

    def __enter__(self) -> "Stop":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        # Python's handlers do nothing: the thread does the work.
        # What `nohup` ignores stays ignored; shells ignore SIGINT for jobs in the background, which it still stops.
        hung_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        wanted = STOPPING if hung_up else STOPPING[:-1]
        self._before = {number: signal.signal(number, lambda *_: None) for number in wanted}
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()  # which ends the thread

    def _wait(self) -> None:
        first = -math.inf
        while received := self._reader.recv(1):
            number = received[0]
            if number not in self._before or time.monotonic() - first < REPEAT_S:
                continue
            if self.signal or not self.unsaved:
                message = "stopped at once" if self.signal else "stopped; rerun the same command to resume"
                exit_now(128 + number, message)
            self.signal, first = number, time.monotonic()
            with contextlib.suppress(OSError):  # stderr may be closed
                message = "finishing the current segment of the epoch and saving; a second signal stops at once"
                print(f"\nlenet-jax: {signal.Signals(number).name}: {message}", file=sys.stderr, flush=True)
        self._reader.close()


def exit_now(code: int, message: str) -> NoReturn:
    """Prints one line and ends the program and its worker processes.

    Not sys.exit: computations may still run in XLA's threads, and tearing Python down under them crashes.
    """
    try:
        if sys.stderr.isatty():
            sys.stderr.write("\x1b[?25h")  # shows the cursor, which a progress bar hides
        print(f"lenet-jax: {message}", file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # even if stderr or stdout is closed
        for process in multiprocessing.active_children():
            process.kill()  # it would end by itself, but perhaps after seconds
        os._exit(code)
