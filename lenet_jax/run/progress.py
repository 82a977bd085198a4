"""What a person sees while an experiment runs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from lenet_jax import distributed
from lenet_jax.run.folder import ArmSummary


class Bar(RichProgress):
    """What is being done, on lines of its own, and the bar below it: names of arms would push it off a terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The lines and the bar."""
        for task in self.tasks:
            if task.description:
                yield Text(f"{task.description}: {task.fields['state']}")
        yield self.make_tasks_table(self.tasks)


class Progress:
    """A bar on a terminal: arm, epochs, time left, samples a second, errors. A line an arm, wherever output goes."""

    def __init__(self, arms: int, epochs: int, hidden: bool = False) -> None:
        """Counts `epochs` over all `arms`; says nothing if `hidden`."""
        self._console = Console(stderr=True, quiet=hidden)
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=hidden or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=epochs, state="")
        self._total = float(epochs)
        self._arms = arms
        self._arm = 0
        self._name = ""
        self._share = 1.0
        self._rate = ""

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, arm: str, number: int) -> None:
        """An arm begins, by its number from 1."""
        self._arm = number
        self._name = arm

    def stage(self, doing: str, members: int, chunk: int) -> None:
        """So many of the arm's members are compiled, then trained."""
        self._share = chunk / members
        description = f"arm {self._arm}/{self._arms} {self._name}: {doing}{members} networks"
        description += f", {chunk} at a time" * (chunk < members)
        self._bar.update(self._task, description=description, state="compiling")

    def more(self, epochs: int) -> None:
        """There is more to do than was counted."""
        self._total += epochs
        self._bar.update(self._task, total=self._total)

    def skip(self, epochs: float) -> None:
        """The chunk has these epochs behind it: there is less to do."""
        self._total -= self._share * epochs
        self._bar.update(self._task, total=self._total)

    def compiled(self, memory: int) -> None:
        """The members are compiled; `memory` is the predicted peak in bytes."""
        self._bar.update(self._task, state=f"training, {memory / 2**20:.0f} MiB")

    def trained(self, epochs: float, samples_per_second: float) -> None:
        """The chunk is so many epochs further."""
        self._rate = f"{samples_per_second:,.0f} samples/s"
        self._bar.update(self._task, advance=self._share * epochs)

    def measured(self, errors: Mapping[str, float]) -> None:
        """Errors by split are fractions, means over the members."""
        state = ", ".join([self._rate, *(f"{split} {error:.2%}" for split, error in errors.items())])
        self._bar.update(self._task, state=state)

    def chosen(self, values: Mapping[str, float], tried: int, error: float, edges: Sequence[str]) -> None:
        """An arm is tuned: its choice among so many, the mean validation error of it, and what is at a grid's edge."""
        settings = ", ".join(f"{name} {value:g}" for name, value in values.items())
        flagged = f"; {', '.join(edges)} at the edge of what was tried" if edges else ""
        self._say(f"{self._name}: {settings} of {tried} tried (validation error {error:.2%}){flagged}")

    def finish(self, row: ArmSummary, when: str = "") -> None:
        """Reports an arm that is finished; `when` says how."""
        diverged = f", {row.diverged} diverged" if row.diverged else ""
        self._say(
            f"{row.name}: {when}test error {row.test_error.mean:.2%} over {row.seeds} seeds{diverged}, "
            f"{row.seconds:.1f} s, {row.samples_per_second:,.0f} samples/s, {row.predicted_memory / 2**20:,.0f} MiB"
        )

    def _say(self, text: str) -> None:
        """A line that stays."""
        line = f"arm {self._arm}/{self._arms} {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def say(text: str) -> None:
    """A line for the user, from the process that talks."""
    if distributed.primary():
        print(text, file=sys.stderr, flush=True)
