"""Ctrl-C and SIGTERM: the first one asks a run to stop once it has saved, the second one ends it."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType

STOPPING = (signal.SIGINT, signal.SIGTERM)

SHOW_CURSOR = "\x1b[?25h"
"""What a terminal is told after a progress bar that had no time to clean up."""


class Stop:
    """Notices the signals while it is entered.

    A thread waits for them: Python itself would call a handler only once XLA comes back from what it computes, which
    can take minutes, and nobody could end the program before.

    Attributes:
      signal: the number of the first one that came; 0 until then.
      unsaved: whether there is something to save. If not, the first signal already ends the program.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.unsaved = False

    def __enter__(self) -> "Stop":
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, ignore) for number in STOPPING}
        threading.Thread(target=self._wait, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._writer.close()  # which ends the thread

    def _wait(self) -> None:
        while received := self._reader.recv(1):
            number = received[0]
            if number not in STOPPING:
                continue
            if self.signal or not self.unsaved:
                exit_now(number, "stopped at once" if self.signal else "stopped; the same command goes on")
            self.signal = number
            with contextlib.suppress(OSError):  # nobody may be left to read it
                print(
                    f"\nlenet-jax: {signal.Signals(number).name}: finishing this segment of an epoch, then saving; "
                    "once more stops at once",
                    file=sys.stderr,
                    flush=True,
                )
        self._reader.close()


def ignore(number: int, frame: FrameType | None) -> None:
    """Python's part of a handler: the thread does all."""


def exit_now(number: int, message: str) -> None:
    """Ends the program as a signal does, with one line.

    Not sys.exit: computations still run in XLA's threads, and tearing Python down under them crashes.
    """
    try:
        if sys.stderr.isatty():
            sys.stderr.write(SHOW_CURSOR)
        print(f"lenet-jax: {message}", file=sys.stderr, flush=True)
    finally:  # nobody may be left to read it
        for process in multiprocessing.active_children():
            process.kill()  # it ends by itself, but perhaps after seconds
        os._exit(128 + number)
