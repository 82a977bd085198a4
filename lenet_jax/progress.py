"""What a person sees while an experiment runs."""

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
        self._arms = arms
        self._arm = 0
        self._chunks = 1

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def start(self, arm: str, members: int, chunks: int) -> None:
        """An arm begins: it is compiled first. Its members are trained in chunks, one after the other."""
        self._arm += 1
        self._chunks = chunks
        description = f"arm {self._arm}/{self._arms} {arm} x {members} seeds" + f" in {chunks} chunks" * (chunks > 1)
        self._bar.update(self._task, description=description, state="compiling")

    def compiled(self, memory: int) -> None:
        """An arm is compiled; `memory` is the predicted peak in bytes."""
        self._bar.update(self._task, state=f"training, {memory / 2**20:.0f} MiB")

    def epoch(self, samples_per_second: float, train_error: float, test_error: float) -> None:
        """An epoch of a chunk is done; errors are fractions, means over the members."""
        state = f"{samples_per_second:,.0f} samples/s, train {train_error:.2%}, test {test_error:.2%}"
        self._bar.update(self._task, advance=1 / self._chunks, state=state)

    def finish(self, row: dict[str, Any]) -> None:
        """An arm is done; `row` is its row of the summary."""
        mean = row["test_error"]["mean"]
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        self._console.print(
            f"arm {self._arm}/{self._arms} {row['name']}: test error {mean:.2%} over {row['seeds']} seeds{diverged}, "
            f"{row['seconds']:.1f} s, {row['samples_per_second']:,.0f} samples/s, "
            f"{row['predicted_memory'] / 2**20:,.0f} MiB",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
