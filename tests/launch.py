"""`lenet-jax` in processes of their own, which tests start, stop and kill.

Importing the program takes seconds, as long as all else that most tests wait for. In sessions of fast tests (see
conftest.py) a process is therefore the fork of a server that has imported it and done nothing: a process like any
other, with its own session, signals, files and end. `real=True` starts the installed script, as users do. Kernels of
notebooks are such forks, too.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "lenet-jax"
FORKED = False
"""Whether processes are forks of the server; set by conftest.py."""

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [f"lenet_jax.{name}" for name in ("cli", "run.runner", "analysis.report", "analysis.tables", "analysis.dynamics")]
    + ["tensorboardX", "scipy.special", "ipykernel.kernelapp", "ipykernel.debugger"]
)

COMMAND = "from lenet_jax import cli; cli.main()"
KERNEL = f"""
import os, sys
import matplotlib
from ipykernel import kernelapp
# As in a kernel that jupyter_client starts, and imports Matplotlib later.
os.environ["JPY_PARENT_PID"] = str(os.getppid())
matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
sys.path.remove({str(Path(__file__).parent)!r})
kernelapp.launch_new_instance()
"""


def main(code, arguments, folder, outputs, environment, session):
    """What a fork does: becomes a program, which is the code."""
    gc.freeze()  # searching what it inherited for garbage would copy the memory of all of it
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(outputs, 1):
        written = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(written, number)
        os.close(written)
    sys.argv = arguments
    exec(code, {})


class Fork:
    """A process of the server's, with what `subprocess.Popen` has that tests and jupyter_client use."""

    stdin = stdout = stderr = None

    def __init__(self, *arguments):
        self._process = SERVER.Process(target=main, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("lenet-jax", timeout)
        return self._process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def start(arguments, folder, output, errors=None, *, real=False, session=False, environment=None, before=""):
    """A process of `lenet-jax`.

    Args:
      arguments: without the program's name.
      folder: the current one.
      output, errors: files that what it says is appended to; one for both by default.
      real: see above.
      session: whether it gets a session of its own, as of a terminal.
      environment: what differs from this process's.
      before: Python that is executed first.
    """
    arguments, outputs = list(map(str, arguments)), [str(output), str(errors or output)]
    environment, code = os.environ | (environment or {}), f"{before}; {COMMAND}" if before else COMMAND
    if FORKED and not real:
        return Fork(code, [str(SCRIPT), *arguments], str(folder), outputs, dict(environment), session)
    program = [sys.executable, "-c", code] if before else [SCRIPT]
    with open(outputs[0], "a") as said, open(outputs[1], "a") as told:
        return subprocess.Popen(
            [*program, *arguments], cwd=folder, env=environment, stdout=said, stderr=told, start_new_session=session
        )


def start_kernel(command, *, cwd, env, **_):
    """A kernel of a notebook, as a fork; in place of `jupyter_client.launcher.launch_kernel`."""
    process = Fork(KERNEL, command[command.index("-m") + 1 :], str(cwd), [], dict(env), True)
    while os.getpgid(process.pid) != process.pid:  # jupyter_client sends signals to its group
        time.sleep(0.001)
    return process


def run(arguments, folder, *, real=False, environment=None, timeout=300):
    """Runs `lenet-jax` to its end; its exit code and what it said."""
    with tempfile.TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        process = start(arguments, folder, output, errors, real=real, environment=environment)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        said = [path.read_text() if path.exists() else "" for path in (output, errors)]
    return subprocess.CompletedProcess(list(arguments), code, *said)
