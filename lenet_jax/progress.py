"""What a person sees while an experiment runs."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Progress:
    """A bar on a terminal: arm, epochs, time left, samples a second, errors. A line an arm, wherever output goes."""

    def __init__(self, arms: int, epochs: int) -> None:
        """Counts `epochs` over all `arms`."""
        self._console = Console(stderr=True)
        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=epochs, state="")
        self._total = epochs
        self._arms = arms
        self._arm = 0
        self._name = ""
        self._chunks = 1

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, arm: str) -> None:
        """An arm begins."""
        self._arm += 1
        self._name = arm

    def stage(self, doing: str, members: int, chunks: int) -> None:
        """Members of the arm are compiled, then trained in chunks, one after the other."""
        self._chunks = chunks
        description = f"arm {self._arm}/{self._arms} {self._name}: {doing}{members} networks"
        description += f" in {chunks} chunks" * (chunks > 1)
        self._bar.update(self._task, description=description, state="compiling")

    def more(self, epochs: int) -> None:
        """There is more to do than was counted."""
        self._total += epochs
        self._bar.update(self._task, total=self._total)

    def compiled(self, memory: int) -> None:
        """The members are compiled; `memory` is the predicted peak in bytes."""
        self._bar.update(self._task, state=f"training, {memory / 2**20:.0f} MiB")

    def epoch(self, samples_per_second: float, errors: Mapping[str, float]) -> None:
        """An epoch of a chunk is done; errors by split are fractions, means over the members."""
        shown = [f"{samples_per_second:,.0f} samples/s", *(f"{split} {error:.2%}" for split, error in errors.items())]
        self._bar.update(self._task, advance=1 / self._chunks, state=", ".join(shown))

    def chosen(self, values: Mapping[str, float], tried: int, error: float, edges: Sequence[str]) -> None:
        """An arm is tuned: its choice among so many, the mean validation error of it, and what is at a grid's edge."""
        settings = ", ".join(f"{name} {value:g}" for name, value in values.items())
        flagged = f"; {', '.join(edges)} at the edge of what was tried" if edges else ""
        self._say(f"{self._name}: {settings} of {tried} tried (validation error {error:.2%}){flagged}")

    def finish(self, row: dict[str, Any]) -> None:
        """An arm is done; `row` is its row of the summary."""
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        self._say(
            f"{row['name']}: test error {row['test_error']['mean']:.2%} over {row['seeds']} seeds{diverged}, "
            f"{row['seconds']:.1f} s, {row['samples_per_second']:,.0f} samples/s, "
            f"{row['predicted_memory'] / 2**20:,.0f} MiB"
        )

    def _say(self, text: str) -> None:
        """A line that stays."""
        line = f"arm {self._arm}/{self._arms} {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)
