"""Output on stderr while an experiment runs."""

import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from lenet_jax import distributed
from lenet_jax.output import printable, unfailing
from lenet_jax.run.folder import ArmSummary
from lenet_jax.stats import percent


class Bar(RichProgress):
    """A progress bar below a line that says what is being done: long names of arms would push it off the terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line and the bar."""
        for task in self.tasks:
            if task.description:
                yield Text(printable(f"{task.description}: {task.fields['state']}"))
        yield self.make_tasks_table(self.tasks)


class Progress:
    """Progress of a run: on a terminal a bar with epochs, remaining time and errors; everywhere a line per arm."""

    def __init__(self, arms: int, epochs: int, hidden: bool = False) -> None:
        """Starts at zero of `epochs`, the epochs of all `arms`; prints nothing if `hidden`."""
        self._console = Console(file=unfailing(sys.stderr), quiet=hidden, markup=False, emoji=False)
        shown = not hidden and self._console.is_terminal
        epochs_done = SpinnerColumn(), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} epochs")
        times = TimeElapsedColumn(), TextColumn("remaining"), TimeRemainingColumn()
        self._bar = Bar(*epochs_done, *times, console=self._console, disable=not shown)
        self._task = self._bar.add_task("", total=epochs, state="")
        self._total = float(epochs)
        self._arms, self._arm, self._name = arms, 0, ""
        self._share, self._rate = 1.0, ""

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, arm: str, number: int) -> None:
        """Starts an arm; `number` counts from 1."""
        self._arm, self._name = number, arm

    def phase(self, doing: str, members: int, chunk: int) -> None:
        """Starts to compile and train `chunk` of the arm's `members`; `doing` is a prefix, such as "tuning, "."""
        self._share = chunk / members
        description = f"arm {self._arm}/{self._arms} {self._name}: {doing}{members} networks"
        description += f", {chunk} at a time" * (chunk < members)
        self._bar.update(self._task, description=description, state="compiling")

    def more(self, epochs: float) -> None:
        """Adds epochs to the total."""
        self._total += epochs
        self._bar.update(self._task, total=self._total)

    def skip(self, epochs: float) -> None:
        """Removes epochs of the chunk from the total, because they were trained before."""
        self.more(-self._share * epochs)

    def compiled(self, memory: int) -> None:
        """Starts training, after compiling; `memory` is the predicted peak in bytes."""
        self._bar.update(self._task, state=f"training, {memory / 2**20:.0f} MiB")

    def trained(self, epochs: float, samples_per_second: float) -> None:
        """Counts epochs that the chunk has trained."""
        self._rate = f"{samples_per_second:,.0f} samples/s"
        self._bar.update(self._task, advance=self._share * epochs)

    def measured(self, errors: Mapping[str, float]) -> None:
        """Shows mean errors over the members, by split, as fractions."""
        state = ", ".join([self._rate, *(f"{split} {percent(error)}%" for split, error in errors.items())])
        self._bar.update(self._task, state=state)

    def chosen(self, values: Mapping[str, float], tried: int, error: float, edges: Sequence[str]) -> None:
        """Prints the values chosen for an arm from `tried` candidates, their error, and which are at a grid's edge."""
        settings = ", ".join(f"{name} {value:g}" for name, value in values.items())
        flagged = f"; {', '.join(edges)} at the edge of the grid" if edges else ""
        self._say(f"{self._name}: {settings}, best of {tried} candidates (validation error {percent(error)}%){flagged}")

    def finish(self, row: ArmSummary, when: str = "") -> None:
        """Prints the result of an arm, from its row of the summary; `when` is a prefix."""
        diverged = f", {row.diverged} diverged" if row.diverged else ""
        self._say(
            f"{row.name}: {when}test error {percent(row.test_error.mean)}% over {row.seeds} seeds{diverged}, "
            f"{row.seconds:.1f} s, {row.samples_per_second:,.0f} samples/s, {row.predicted_memory / 2**20:,.0f} MiB"
        )

    def _say(self, text: str) -> None:
        self._console.print(printable(f"arm {self._arm}/{self._arms} {text}"), highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Prints a line on stderr, in process 0 only."""
    if distributed.primary():
        print(printable(text), file=unfailing(sys.stderr), flush=True)
