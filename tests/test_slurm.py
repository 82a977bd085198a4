"""A real Slurm, and Open MPI: the scripts of docs/scaling.md as they are, on a cluster of this machine alone.

`python tests/test_slurm.py` runs the tests and stores the jobs' output in experiments/results/cluster.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import few_digits
import launch
import psutil
import pytest

from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results" / "cluster"
SCRIPTS = re.findall(r"^`(\w+\.sh)`:\n\n```bash\n(.*?)^```$", (ROOT / "docs" / "scaling.md").read_text(), re.M | re.S)
"""Names and texts."""

TINY = [
    "--config=experiments/quickstart.py",
    f"--config.dataset={few_digits.DATASET}",
    "--config.validation_size=200",
    "--config.seeds=2",
    "--tracker=none",
]
SBIN = f"{os.environ['PATH']}:/usr/sbin"

pytestmark = pytest.mark.slow
needs_slurm = pytest.mark.skipif(
    not (shutil.which("slurmctld", path=SBIN) and shutil.which("munged", path=SBIN)), reason="needs slurm-wlm, munge"
)


def ask(*command):
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A running cluster of two CPUs, whose commands find it by SLURM_CONF."""
    folder = tmp_path_factory.mktemp("daemons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        with (folder / "log").open("w") as log:
            cluster = subprocess.Popen(["bash", ROOT / "tests" / "one_node_slurm.sh", folder, "2"], stderr=log)
        deadline = time.monotonic() + 60
        while subprocess.run(["sinfo", "--noheader", "--states=idle"], capture_output=True, text=True).stdout == "":
            assert time.monotonic() < deadline, (folder / "log").read_text()
            assert cluster.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield
        cluster.terminate()
        cluster.wait(60)


@pytest.fixture
def folder(tmp_path):
    """The folder that scripts are submitted from, with what they expect there."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name, script in SCRIPTS:
        (tmp_path / name).write_text(script)
    return tmp_path


def plain(folder, *arguments):
    """A run without a cluster, on a single core, as Slurm and mpirun give one to each process."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    done = launch.run(["run", *TINY, *LONG, *arguments, f"--workdir={folder}/plain"], ROOT)
    os.sched_setaffinity(0, cores)
    assert done.returncode == 0, done.stderr
    return run_folder.load(folder / "plain")


def check_same(run, expected):
    """All numbers are bit-identical."""
    for name in (run_folder.METRICS, run_folder.PREDICTIONS):
        assert (run / name).read_bytes() == (expected.folder / name).read_bytes(), name


def submit(folder, *command):
    """Submits a script with its arguments, after options of sbatch; returns the job's number."""
    return ask("sbatch", "--parsable", f"--chdir={folder}", *command).strip()


def job(number):
    """The fields of a job, or of a task of an array as JOB_TASK."""
    return dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "show", "job", number, "--oneliner")))


def wait_for(condition, seconds=240):
    """Waits until a condition holds, and returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def end_of(number):
    """The fields of a job that has ended."""
    running = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")
    return wait_for(lambda: (found := job(number))["JobState"] not in running and found)


def saved(run, arm="*"):
    """Whether an arm in training has a checkpoint."""
    return any(run.glob(f"checkpoints/{arm}/tested-*/states/[0-9]*/commit_success.txt"))


LONG = ["--config.epochs=20", "--save-every=0"]
NAMES = [
    f"loss={loss},activation={activation}" for loss in ("mse", "cross_entropy") for activation in ("sigmoid", "tanh")
]


@needs_slurm
def test_an_array_of_arms_that_are_stopped_killed_and_requeued_equals_a_plain_run(slurm, folder):
    array = submit(
        folder,
        "--array=1-4",
        "--cpus-per-task=1",
        f"--output={folder}/arm-%a.log",
        "arms.sh",
        *TINY,
        *LONG,
        f"--workdir={folder}/run",
    )
    # 1 is stopped by SIGTERM, as before the time limit: it saves, and its script requeues it.
    wait_for(lambda: saved(folder / "run", NAMES[0]))
    ask("scancel", "--signal=TERM", f"{job(f'{array}_1')['JobId']}.0")
    # 2 is killed, as when memory runs out: the job fails, and is requeued by hand.
    wait_for(lambda: saved(folder / "run", NAMES[1]))
    wanted = {f"--workdir={folder}/run", "--only-arm=2"}
    started = [one for one in psutil.process_iter(["exe", "cmdline"]) if wanted <= set(one.info["cmdline"] or [])]
    (killed,) = [one for one in started if "python" in one.info["exe"]]  # the others are shell and srun
    killed.send_signal(signal.SIGKILL)
    assert end_of(f"{array}_2")["JobState"] == "FAILED"
    ask("scontrol", "requeue", f"{array}_2")
    # 3 is requeued while it runs, as by an administrator.
    wait_for(lambda: saved(folder / "run", NAMES[2]))
    ask("scontrol", "requeue", f"{array}_3")
    for task, restarts in enumerate("1110", 1):
        found = end_of(f"{array}_{task}")
        assert (found["JobState"], found["Restarts"]) == ("COMPLETED", restarts), found
    said = {task: (folder / f"arm-{task}.log").read_text() for task in range(1, 5)}
    assert "rerun the same command to resume" in said[1]
    assert "Killed" in said[2]
    assert "DUE TO JOB REQUEUE" in said[3]
    check_same(folder / "run", plain(folder))


ONE = ["--config.sweep.activation=('tanh',)", "--config.sweep.loss=('cross_entropy',)"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The plain run that the two processes are compared with."""
    return plain(tmp_path_factory.mktemp("alone"), *ONE)


@needs_slurm
def test_two_processes_that_slurm_starts_stops_and_requeues_are_one_run(slurm, folder, alone):
    sizes = "--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=0"
    number = submit(
        folder, *sizes, f"--output={folder}/job.log", "processes.sh", *TINY, *ONE, *LONG, f"--workdir={folder}/run"
    )
    wait_for(lambda: saved(folder / "run"))
    ask("scancel", "--signal=TERM", f"{number}.0")
    found = end_of(number)
    assert (found["JobState"], found["Restarts"]) == ("COMPLETED", "1"), found
    check_same(folder / "run", alone)
    assert run_folder.load(folder / "run").provenance["processes"] == 2


@pytest.mark.skipif(not shutil.which("mpirun"), reason="needs openmpi-bin")
def test_two_processes_that_open_mpi_starts_are_one_run(folder, alone):
    command = ["mpirun", "-n", "2", ".venv/bin/lenet-jax", "run", *TINY, *ONE, *LONG, "--workdir=run", "--distributed"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with (folder / "mpirun.log").open("w") as log:
        subprocess.run(command, cwd=folder, env=os.environ | root, stdout=log, stderr=log, check=True)
    check_same(folder / "run", alone)
    assert run_folder.load(folder / "run").provenance["processes"] == 2


def store(made):
    """Stores what the tests left in a folder: output of all jobs, the configuration, versions and the date."""
    STORED.mkdir(exist_ok=True)
    for path in [*made.glob("test_*0/*.log"), *made.glob("daemons0/slurm.conf")]:
        text = path.read_text().replace(str(path.parent), "FOLDER").replace(str(few_digits.FOLDER), "DIGITS")
        (STORED / path.name).write_text(re.sub(r"\x1b\[[0-9;]*m", "", text))  # mpirun's terminal shows bold letters
    versions = {name: run_folder.describe_environment("")["versions"][name] for name in ("lenet_jax", "jax", "jaxlib")}
    commands = {"slurm": ["slurmctld", "-V"], "munge": ["munged", "--version"], "open_mpi": ["mpirun", "--version"]}
    os.environ["PATH"] = SBIN
    versions |= {name: ask(*command).splitlines()[0] for name, command in commands.items()}
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python tests/test_slurm.py",
        "commit": ask("git", "-C", str(ROOT), "rev-parse", "HEAD").strip(),
        "versions": versions,
        "cores": os.cpu_count(),
        "compared": {
            "arm-1.log to arm-4.log": "an array of four --only-arm jobs; 1 is stopped by SIGTERM and requeued by its "
            "script, 2 is killed and requeued by hand, 3 is requeued in training: bit-identical to a plain run",
            "job.log": "two processes, stopped by SIGTERM and requeued by the script: bit-identical to a plain run",
            "mpirun.log": "two processes by mpirun -n 2: bit-identical to a plain run",
        },
    }
    (STORED / "cluster.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder_of_all:
        failed = pytest.main([__file__, "-m", "slow", "-rs", f"--basetemp={folder_of_all}/tests"])
        if not failed:
            store(Path(folder_of_all) / "tests")
    sys.exit(failed)
