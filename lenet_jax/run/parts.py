"""A user's own parts: which of them a run uses, and the experiment file that defines them."""

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lenet_jax import distributed
from lenet_jax.errors import InputError, one_line
from lenet_jax.registry import REGISTRIES
from lenet_jax.run.arms import Arm
from lenet_jax.run.files import replace_file

EXPERIMENT = "experiment.py"
"""Copy of the experiment file in the run folder, for the record; it is never executed."""


def own_parts(arms: Iterable[Arm]) -> dict[str, list[str]]:
    """Config field -> names of the user's own parts that arms use; empty if they use none."""
    used: dict[str, list[str]] = {}
    for field, registry in REGISTRIES.items():
        values = [arm.settings.get(field, ()) for arm in arms]
        named = {name for value in values for name in ([value] if isinstance(value, str) else value)}
        if names := sorted(named & set(registry.own)):
            used[field] = names
    return used


@dataclasses.dataclass(frozen=True)
class Definitions:
    """The own parts that a run uses (see `own_parts`), and the experiment file; None if they are a notebook's."""

    names: Mapping[str, list[str]]
    source: Path | None

    @property
    def file(self) -> Path | None:
        """The experiment file, if the run needs it."""
        return self.source if self.names else None

    @property
    def text(self) -> str:
        """Content of the file; empty if the run doesn't need one."""
        return self.file.read_text() if self.file else ""

    def describe(self) -> dict[str, Any]:
        """What provenance says of them."""
        if not self.names:
            return {}
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"own_parts": dict(self.names), "experiment": {"file": str(self.file), "sha256": digest}}

    def check_unchanged(self, workdir: Path) -> None:
        """Refuses an experiment file that differs from the copy in the run folder.

        Raises:
          InputError: it differs.
        """
        copy = workdir / EXPERIMENT
        if self.names and copy.is_file() and copy.read_text() != self.text:
            raise InputError(
                f"experiment: {str(self.file)!r} differs from {str(copy)!r}, with which this run began; choose another "
                "--workdir, or pass --fresh to move the old run aside"
            )

    def store(self, workdir: Path) -> None:
        """Copies the file into the run folder."""
        if self.file and distributed.primary():
            replace_file(workdir / EXPERIMENT, lambda partial: partial.write_text(self.text))


def define(file: Path) -> None:
    """Executes an experiment file, so that the parts that it adds to registries are defined in this process.

    Raises:
      InputError: the file can't be read, or it fails.
    """
    try:
        digest = hashlib.sha256(f"{file.resolve()}\n{file.read_text()}".encode()).hexdigest()
        name = f"lenet_jax_experiment_{digest[:16]}"
        if name in sys.modules:  # the same content was executed before
            return
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise InputError(f"experiment: {str(file)!r} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    except InputError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"experiment: {str(file)!r} can't be executed ({one_line(error)})") from error
