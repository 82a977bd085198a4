"""The examples in docstrings (`>>>`) run, and show what the code returns."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = {path: path.read_text().count(">>> ") for path in sorted((ROOT / "lenet_jax").rglob("*.py"))}

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("path", [path for path, count in EXAMPLES.items() if count], ids=lambda path: path.stem)
def test_examples(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    # Unwrapped, because conftest.py wraps every function to check shapes.
    things = [inspect.unwrap(thing) for thing in vars(module).values() if inspect.isroutine(thing)]
    things += [thing for thing in vars(module).values() if inspect.isclass(thing)]
    for thing in things:
        if thing.__module__ == module.__name__:
            for example in finder.find(thing, globs=dict(vars(module))):
                runner.run(example)
    assert runner.tries == EXAMPLES[path]
    assert not runner.failures
