"""Worker processes. Each arrangement has its own, so that thread pools and settings do not interfere.

A worker waits for commands on a pipe without using the processor, and keeps its sessions between commands.
"""

import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from task import Task

SPAWN = multiprocessing.get_context("spawn")

PATIENCE = 900
"""Longest time, in seconds, that the processes of one arrangement wait for each other."""


class WorkerError(RuntimeError):
    """An error in a worker, reported in one line."""


def serve(pipe: Connection, barrier: Barrier, module: str, options: dict[str, Any], images: Task) -> None:
    """Worker main loop: answers messages (command, session, arguments) until the pipe closes or sends None.

    Commands: ``create`` (a session), ``drop`` (closes all sessions), ``train`` (waits until all processes of the
    arrangement are ready), any other method of the session, and, for session None, functions of the module.

    Args:
      pipe: connection for commands and answers.
      barrier: barrier shared by all processes of the arrangement.
      module: `ours`, `peers_torch` or `peers_flax`.
      options: keyword arguments of its `configure` and `Session`.
      images: the training images.
    """
    sessions: dict[tuple[int, int], Any] = {}
    peer = None
    while (message := receive(pipe)) is not None:
        command, key, arguments = message
        try:
            if peer is None:
                peer = importlib.import_module(module)
                peer.configure(**options)
            answer = None
            if command == "create":
                sessions[key] = peer.Session(images, *key, **options)
            elif command == "drop":
                for session in sessions.values():
                    session.close()
                sessions.clear()
            elif key is None:
                answer = getattr(peer, command)(images, *arguments)
            else:
                if command == "train":
                    barrier.wait(PATIENCE)
                answer = getattr(sessions[key], command)(*arguments)
            pipe.send((answer, ""))
        except Exception as error:  # reported to the parent, which decides
            lines = str(error).strip().splitlines() or [""]
            pipe.send((None, f"{type(error).__name__}: {lines[0]}"))


def receive(pipe: Connection) -> Any:
    """The next message, or None if the other end has closed."""
    try:
        return pipe.recv()
    except EOFError:
        return None


class Workers:
    """The processes of one arrangement: one in total, or one per core."""

    def __init__(self, module: str, options: list[dict[str, Any]], images: Task) -> None:
        """Starts one process for each element of `options`."""
        self.barrier = SPAWN.Barrier(len(options))  # kept: it needs a reference in this process
        self.pipes, self.processes = [], []
        for option in options:
            here, there = SPAWN.Pipe()
            arguments = (there, self.barrier, module, option, images)
            process = SPAWN.Process(target=serve, args=arguments)  # not a daemon: it starts processes itself
            process.start()
            there.close()  # so that the pipe closes when the process ends
            self.pipes.append(here)
            self.processes.append(process)

    def ask(self, command: str, key: tuple[int, int] | None = None, *arguments: Any) -> list[Any]:
        """Sends a command to all processes at once and waits for their answers.

        Raises:
          WorkerError: a process failed.
        """
        try:
            for pipe in self.pipes:
                pipe.send((command, key, arguments))
            answers = [pipe.recv() for pipe in self.pipes]
        except (EOFError, OSError) as error:
            raise WorkerError(f"the process ended during {command!r}") from error
        errors = [error for _, error in answers if error]
        if errors:
            raise WorkerError(errors[0])
        return [answer for answer, _ in answers]

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            with contextlib.suppress(OSError):  # it has already ended
                pipe.send(None)
            process.join(10)
            if process.is_alive():
                print(f"terminating process {process.pid}, which did not stop", file=sys.stderr)
                process.terminate()


READY = "ready"
"""What a process of `run_in_turn` prints when it waits for its turn."""


def wait_for_turn() -> None:
    """In a process of `run_in_turn`: waits until it may use the machine alone."""
    print(READY, flush=True)
    sys.stdin.readline()


def run_in_turn(commands: list[list[str]], environment: dict[str, str]) -> Iterator[tuple[list[Any], int]]:
    """Runs programs that prepare side by side and go on one after the other.

    Yields:
      The JSON lines of each program's output, and its exit code, in the order of the commands.
    """
    pipe = subprocess.PIPE
    options: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "text": True, "env": os.environ | environment}
    processes = [subprocess.Popen(command, **options) for command in commands]
    heads = ["".join(itertools.takewhile(lambda line: line.strip() != READY, process.stdout)) for process in processes]
    for head, process in zip(heads, processes, strict=True):
        rest, _ = process.communicate("go\n")  # if it has ended, this is ignored
        lines = (head + rest).splitlines()
        yield [json.loads(line) for line in lines if line.startswith("{")], process.returncode
