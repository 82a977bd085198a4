"""A user's own parts: which of them a run uses, and the experiment file that defines them."""

import dataclasses
import hashlib
import os
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lenet_jax.errors import InputError, one_line
from lenet_jax.registry import REGISTRIES
from lenet_jax.run.arms import Arm
from lenet_jax.run.files import open_file, partials_of, replace_file, seal_of

EXPERIMENT = "experiment.py"
"""Copy of the experiment file in the run folder, for the record; nothing executes it by itself."""


def own_parts(settings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Config field -> names of the user's own parts in the settings of arms; empty if they use none."""
    used: dict[str, set[str]] = {}
    for fields in settings:
        for field, registry in REGISTRIES.items():
            values = fields[field] if isinstance(fields[field], tuple) else (fields[field],)
            if names := set(values) & set(registry.own):
                used.setdefault(field, set()).update(names)
    return {field: sorted(names) for field, names in used.items()}


@dataclasses.dataclass(frozen=True)
class Definitions:
    """The own parts that a run uses (see `own_parts`), with the path and text of their file; None for a notebook's.

    The text is read once: what is checked, stored and executed by workers is the same. `imported` are modules beside
    the file, or below it, that it imports: path relative to its folder -> SHA-256.
    """

    names: Mapping[str, list[str]]
    file: tuple[Path, str] | None
    imported: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, arms: Iterable[Arm], experiment: Path | None) -> "Definitions":
        """The definitions of arms whose config comes from an experiment file."""
        names = own_parts(arm.settings for arm in arms)
        if not names or not experiment:
            return cls(names, None)
        return cls(names, (experiment, read(experiment)), imported_from(experiment.resolve().parent))

    @property
    def digest(self) -> str:
        """SHA-256 of their file and of what it imports; "" without one."""
        return seal_of({"file": self.file[1], "imported": dict(self.imported)}) if self.file else ""

    def describe(self) -> dict[str, Any]:
        """What provenance says of them."""
        found: dict[str, Any] = {"own_parts": dict(self.names)} if self.names else {}
        if self.file:
            digest = hashlib.sha256(self.file[1].encode()).hexdigest()
            found["experiment"] = {"file": str(self.file[0]), "sha256": digest, "imported": dict(self.imported)}
        return found

    def check_unchanged(self, workdir: Path) -> None:
        """Raises InputError if the experiment file differs from the copy in the run folder, if there is one."""
        copy = workdir / EXPERIMENT
        if self.file and os.path.lexists(copy) and not holds(copy, self.file[1]):
            raise InputError(
                f"experiment: {str(self.file[0])!r} differs from {str(copy)!r}, with which the run began; use that "
                "version, or start a new run"
            )

    def store(self, workdir: Path) -> None:
        """Copies the file into the run folder, unless another job did so; raises InputError if its file differs."""
        self.check_unchanged(workdir)
        for left in partials_of(workdir / EXPERIMENT):
            left.unlink(missing_ok=True)
        if self.file and not (workdir / EXPERIMENT).exists():
            text = self.file[1]
            replace_file(workdir / EXPERIMENT, lambda partial: partial.write_bytes(text.encode()))


def imported_from(folder: Path) -> dict[str, str]:
    """Imported modules in a folder, but for this package and what is installed: path within the folder -> SHA-256."""
    modules = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    files = {
        Path(file).resolve()
        for name, file in modules.items()
        if file and name.partition(".")[0] not in ("lenet_jax", "__main__")
    }
    installed = [Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix)]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_relative_to(folder) and file.is_file() and not any(map(file.is_relative_to, installed))
    }


def holds(copy: Path, text: str) -> bool:
    """Whether a file of a run folder contains a text; raises InputError if it is not a regular file."""
    content = text.encode()
    with open_file(copy) as stream:
        return stream.read(len(content) + 1) == content


def read(file: Path) -> str:
    """The text of an experiment file; raises InputError if it can't be read."""
    try:
        return file.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"experiment: {str(file)!r} can't be read ({one_line(error)})") from error


def define(file: Path, text: str) -> None:
    """Executes an experiment file, which adds parts to this process's registries; raises InputError if it fails."""
    name = f"lenet_jax_experiment_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    sys.modules[name] = module = types.ModuleType(name)
    module.__file__ = str(file)
    try:
        exec(compile(text, str(file), "exec"), vars(module))  # not imported: bytecode files may be older
    except InputError:
        raise
    except Exception as error:  # whatever a user's file raises
        raise InputError(f"experiment: {str(file)!r} can't be executed ({one_line(error)})") from error
