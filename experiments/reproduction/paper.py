"""The values of LeCun et al. 1998, and ours beside them: the paper's are of one network each, ours of ten."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from lenet_jax import stats
from lenet_jax.analysis import metrics
from lenet_jax.run import folder
from lenet_jax.run.folder import Run

# Numbers from LeCun et al. 1998, in percent; the curves and the errors by size are read from its figures 5 and 6.
READING_ERROR = 0.03
"""Of values read from the paper's figures, in percentage points."""
TEST_CURVE = [2.66, 2.24, 1.48, 1.43, 1.43, 1.09, 1.04, 1.07, 0.99, 0.96, 0.96, 0.99]
TRAIN_CURVE = [4.90, 3.05, 1.77, 1.48, 1.22, 0.91, 0.78, 0.70, 0.57, 0.49, 0.47, 0.44, 0.41, 0.39]
SIZES = {15000: (1.68, 0.05), 30000: (1.14, 0.31), 60000: (0.94, 0.35)}
"""Training digits -> test and training error."""
DISTORTED = 0.82
LENET4_REJECTS = (1.8, 0.5)
"""Rejection rate, and error on the remaining digits; the paper reports none for LeNet-5."""
TEST, TRAINING = 0.95, 0.35
DEMONSTRATION = 0.82
"""Error of the authors' Lush demonstration according to the QMNIST page, +-0.2."""
COUNTS = (60_000, 340_908)
"""Numbers of trainable parameters and connections."""
EFFECTIVE_RATES = (7e-5, 0.016)


def percent(values: Mapping[str, Any]) -> str:
    """Mean and interval of a summary, in percent."""
    low, high = values["ci95"]
    return f"{stats.percent(values['mean'])} ({stats.percent(low)} - {stats.percent(high)})"


def arm_of(run: Run, **axes: Any) -> dict[str, Any]:
    """The arm with the given values of the axes."""
    found: dict[str, Any] = next(arm for arm in run.summary["arms"] if axes.items() <= arm["axes"].items())
    return found


def difference(first: Mapping[str, Any], second: Mapping[str, Any], metric: str = "test_error") -> dict[str, Any]:
    """Mean, interval and values of the paired differences of the first arm minus the second."""
    values = np.subtract(first[metric]["per_seed"], second[metric]["per_seed"])
    low, high = map(float, stats.t_interval(values))
    return {"mean": float(values.mean()), "ci95": [low, high], "per_seed": values}


class Compared(NamedTuple):
    """A value of the paper, which is of one network, and ours.

    Attributes:
      name: of what was measured.
      paper: in percent; None if the paper has no such value.
      ours: [seeds], as fractions.
      shown: our mean, as text; with its interval where the page has one.
    """

    name: str
    paper: float | None
    ours: np.ndarray
    shown: str

    @property
    def z(self) -> float | None:
        """Distance of the paper's value from our mean, in standard errors of one more run."""
        return None if self.paper is None else stats.prediction_z(self.paper / 100, self.ours)

    @property
    def p(self) -> float:
        """Probability that one more run of ours is as far from our mean as the paper's."""
        return float(2 * scipy.stats.t.sf(abs(self.z or 0.0), len(self.ours) - 1))

    def cells(self) -> list[str]:
        """The paper's value, ours, where one run of ours would lie, and z of the paper's value."""
        low, high = (stats.percent(float(end)) for end in stats.prediction_interval(self.ours))
        paper, z = ("-", "-") if self.paper is None or self.z is None else (f"{self.paper:.2f}", f"{self.z:+.1f}")
        return [paper, self.shown, f"{low} to {high}", z]


def of_summary(name: str, paper: float, summary: Mapping[str, Any]) -> Compared:
    """A value of the paper beside the summary of one of our metrics."""
    return Compared(name, paper, np.asarray(summary["per_seed"], float), percent(summary))


def errors(runs: Path) -> list[Compared]:
    """The paper's errors of final networks, and ours."""
    plain, distorted = arm_of(folder.load(runs / "lenet5_1998")), arm_of(folder.load(runs / "lenet5_1998_distorted"))
    sizes, demonstration = folder.load(runs / "training_set_size"), arm_of(folder.load(runs / "lush_demo"))
    found = [
        of_summary("test error, 60,000 digits", TEST, plain["test_error"]),
        of_summary("training error, 60,000 digits", TRAINING, plain["train_error"]),
        of_summary("test error, with distorted digits", DISTORTED, distorted["test_error"]),
        of_summary("what distortions gain", TEST - DISTORTED, difference(plain, distorted)),
    ]
    for size in (30000, 15000):
        arm = arm_of(sizes, train_size=size)
        for paper, split, name in zip(SIZES[size], ("test", "train"), ("test", "training"), strict=True):
            found.append(of_summary(f"{name} error, {size:,} digits", paper, arm[f"{split}_error"]))
    name = "test error, the authors' later demonstration (QMNIST's page, +-0.2)"
    return [*found, of_summary(name, DEMONSTRATION, demonstration["test_error"])]


def passes(runs: Path) -> dict[str, list[Compared]]:
    """The paper's errors after each pass, and ours: of the test set, and of the training set during the pass."""
    run = folder.load(runs / "lenet5_1998")
    found: dict[str, list[Compared]] = {}
    for name, metric, paper in (("test", "test_error", TEST_CURVE), ("training", "running_error", TRAIN_CURVE)):
        table = metrics.rows(run, metric).pivot(index="epoch", columns="seed", values="value")
        found[name] = []
        for epoch in range(1, run.config["epochs"] + 1):
            ours = stats.round_errors(table.loc[epoch].to_numpy())
            value = paper[epoch - 1] if epoch <= len(paper) else None
            shown = stats.percent(float(ours.mean()))
            found[name].append(Compared(f"{name} error of pass {epoch}", value, ours, shown))
    return found


def outside_of(values: Sequence[Compared], level: float = stats.ALPHA) -> list[Compared]:
    """Those that one run of ours would not show at this level, the farthest first."""
    return sorted((one for one in values if one.p < level), key=lambda one: one.p)
