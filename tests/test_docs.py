"""The documentation: its numbers are stored, its names exist, its commands work, its site builds and is whole.

`python tests/test_docs.py` rewrites the tables of docs/how_results_are_computed.md. Pages that continue the README have
their tables, commands and snippets tested in test_readme.py.
"""

import html.parser
import importlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_readme

from lenet_jax import cli, distributed, model, optim, stats
from lenet_jax import evaluate as evaluation
from lenet_jax.analysis import metrics, report, tables
from lenet_jax.analysis.arms import arm_statistics
from lenet_jax.registry import REGISTRIES
from lenet_jax.run import arms, forecast, runner
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
STORED = ROOT / "experiments" / "results"
PAGES = sorted(DOCS.glob("**/*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (?:mpirun -n 2 )?(\S*\b(?:lenet-jax|python|pytest|make) .*)$", re.MULTILINE)
EXECUTED = [ROOT / page for page in test_readme.PAGES]
EXECUTED_NAMES = [page.name for page in EXECUTED]
HOW, AXIS, PAPER = DOCS / "how_results_are_computed.md", DOCS / "new_axis.md", DOCS / "paper_to_code.md"


MKDOCS = [sys.executable, "-m", "mkdocs", "build", "--strict"]


def start(command, folder, **environment):
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process):
    """What a process said that went well."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module", autouse=True)
def building(tmp_path_factory):
    """The site's build, strict, which goes on beside the other tests."""
    if importlib.util.find_spec("mkdocs") is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("site")
    with start([*MKDOCS, "--site-dir", str(folder)], ROOT, NO_MKDOCS_2_WARNING="1") as process:
        yield folder, process
        process.kill()


@pytest.fixture(scope="module")
def site(building):
    """The folder of the site, and what its build said."""
    if building is None:
        pytest.skip("mkdocs isn't installed")
    folder, process = building
    return folder, finished(process)


def tables_in(path):
    return re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE)


def studies():
    """What provenance says of every stored run."""
    best_arm = "best arm: test error (%)", "interval over"
    rows = [("results", "data", "fingerprint", "arms", "seeds", *best_arm, "minutes", "commit", "finished")]
    for folder in sorted(path.parent for path in STORED.glob("*/summary.json")):
        run = run_folder.load(folder)
        ((name, fingerprint),) = run.provenance["fingerprints"].items()
        found = run.summary["arms"]
        seeds = " or ".join(map(str, sorted({arm["seeds"] for arm in found})))
        name, fingerprint = name.partition(":")[0], fingerprint.removeprefix("sha256:")[:8]
        commit, day = run.provenance["git_commit"][:8], run.provenance["finished"][:10]
        link = f"[{folder.name}](../experiments/results/{folder.name})"
        best = min(arm_statistics([run]), key=lambda arm: arm.mean)
        error = "{} ({} - {})".format(*(metrics.show(value, "test_error") for value in (best.mean, *best.interval)))
        covered = {"both": "seeds, images", "seeds": "seeds"}[best.over]
        minutes = f"{sum(arm['seconds'] for arm in found) / 60:.0f}"
        rows.append((link, name, fingerprint, str(len(found)), seeds, error, covered, minutes, commit, day))
    rows.insert(1, ("---", "---", "---", "--:", "--:", "--:", "---", "--:", "---", "---"))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


BLOCKS = {
    "arms": lambda: tables.markdown(arm_statistics([run_folder.load(STORED / "ablation")]), "test_error"),
    "differences": lambda: tables_in(STORED / "ablation" / "plots" / "comparison.md")[1],
    "coverage": lambda: tables_in(STORED / "coverage" / "coverage.md")[0],
    "errors": lambda: tables_in(STORED / "coverage" / "coverage.md")[1],
    "power": lambda: tables_in(STORED / "coverage" / "coverage.md")[2],
    "coverage_images": lambda: tables_in(STORED / "coverage" / "images.md")[0],
    "errors_images": lambda: tables_in(STORED / "coverage" / "images.md")[1],
    "power_images": lambda: tables_in(STORED / "coverage" / "images.md")[2],
    "studies": studies,
}


def filled(text):
    """The page with its tables."""
    for name, table in BLOCKS.items():
        block = f"<!-- {name} -->\n{table()}<!-- /{name} -->"
        text, count = re.subn(rf"<!-- {name} -->\n.*?<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)  # noqa: B023
        assert count == 1, name
    return text


def test_tables_equal_the_stored_results():
    assert HOW.read_text() == filled(HOW.read_text()), "python tests/test_docs.py rewrites them"


def test_numbers_in_sentences_are_the_codes_and_the_benchmarks():
    said = " ".join(HOW.read_text().split())
    assert f"of {stats.RESAMPLES:,} resamples" in said
    most = next(n for n in range(1, 64) if 2 ** (n + 1) > stats.RESAMPLES + 1)
    counted = f"Up to {most} seeds, all 2^n sign patterns are counted; with more seeds, {stats.RESAMPLES:,} random ones"
    assert counted in said
    assert stats.smallest_p(5) > stats.ALPHA > stats.smallest_p(6)
    assert f"{evaluation.CALIBRATION_BINS} bins of the winning probability" in said
    assert stats.POWER == 0.8
    assert stats.CONFIDENCE == 0.95
    simulated = (STORED / "coverage" / "coverage.md").read_text()
    assert "2,000 simulated studies for each row" in simulated
    assert "each with 6 comparisons" in simulated


def test_the_counts_and_the_schedule_of_the_paper_page():

    said = " ".join(PAPER.read_text().split())
    whole = sum(count for _, _, count in model.parameter_table(model.Architecture()))
    of_1998 = model.Architecture(output="rbf")
    fixed = sum(count for _, _, count in model.parameter_table(of_1998))
    edges = sum(model.connection_table(of_1998).values())
    assert f"The specification has {whole:,} trainable parameters." in said
    assert f"1998 has {fixed:,} trainable parameters and {edges:,} connections" in said
    by_layer = [f"{count:,}" for _, _, count in model.parameter_table(model.Architecture())]
    assert f"| {' | '.join(by_layer)} |" in said
    factors = ", ".join(f"{factor:g}" for factor in optim.LECUN1998_FACTORS.values())
    assert f"factors ({factors})" in said
    # The paper's rates are in passes counted from 1, the code's in passes counted from 0.
    rates = [f"{5e-4 * factor:.0e}".replace("e-0", "e-") for factor in optim.LECUN1998_FACTORS.values()]
    passes, etas = re.search(r"^    passes +(.*)\n    η +(.*)$", PAPER.read_text(), re.MULTILINE).groups()
    assert etas.split() == rates
    starts = [int(re.search(r"\d+", part)[0]) - 1 for part in re.split(r" {2,}", passes)]
    assert starts == list(optim.LECUN1998_FACTORS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_link_to_the_reference_exist(page):
    """[`losses.mse`](api/training.md#lenet_jax.losses.mse): the anchor is the name, and the page shows its module."""
    links = re.findall(r"\[`([\w.]+)`\]\((api/\w+\.md)#([\w.]+)\)", page.read_text())
    assert links or page.name not in (HOW.name, AXIS.name, PAPER.name)
    for name, reference, anchor in links:
        assert anchor.startswith("lenet_jax.")
        assert anchor.endswith(f".{name}")
        _, *path = name.split(".")
        module = anchor.removesuffix("." + ".".join(path))
        assert f"\n::: {module}\n" in (DOCS / reference).read_text()
        thing = importlib.import_module(module)
        for part in path:
            thing = getattr(thing, part)


def test_tests_and_config_fields_that_the_paper_page_names_exist():
    text = PAPER.read_text()
    named = re.findall(r"\[`(\w+\.py)::([\w:]+)`\]\(\.\./tests/(\w+\.py)\)", text)
    assert len(named) > 40
    for shown, name, file in named:
        assert shown == file
        source = (ROOT / "tests" / file).read_text()
        for part in name.split("::"):
            assert re.search(rf"^ *(?:def|class) {part}\b", source, re.MULTILINE), f"{file}::{name}"
    for sentence in re.findall(r"config\s+fields?\s+((?:`\w+`[^`]{0,6}?\s*)+)", text):
        assert set(re.findall(r"`(\w+)`", sentence)) <= set(arms.FIELDS)


def test_the_reference_shows_every_module_once():
    shown = [name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)]
    files = [path.relative_to(ROOT) for path in (ROOT / "lenet_jax").rglob("*.py") if "experiments" not in path.parts]
    modules = {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}
    assert sorted(shown) == sorted(modules), "a new module gets its line in docs/api/"


def shell_of(page):
    """The commands of a page: those of bash blocks, and indented ones. A script's "$@" is what is submitted with it."""
    text = page.read_text()
    scripts = [block for kind, block in FENCED.findall(text) if kind == "bash"]
    found = INDENTED.findall(FENCED.sub("", text))
    for script in scripts:
        joined = script.replace("\\\n", " ")
        found += re.findall(r"^(?:srun )?(\S*\b(?:lenet-jax|python|make) .*)$", joined, re.MULTILINE)
    found += [f"lenet-jax run {given}" for given in re.findall(r"^    sbatch .*\w\.sh (.*)$", text, re.MULTILINE)]
    return scripts, [shlex.split(command, comments=True) for command in found if '"$@"' not in command]


COMMANDS = [(page.name, *command) for page in PAGES for command in shell_of(page)[1]]


def test_there_are_commands_of_all_pages_that_have_some():
    pages = {"scaling.md", "experiments.md", "comparing.md", "running.md", AXIS.name, HOW.name}
    assert {command[0] for command in COMMANDS} >= pages


@pytest.mark.parametrize("script", [script for page in PAGES for script in shell_of(page)[0]])
def test_scripts_for_clusters_are_bash(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


class Accepted(Exception):  # noqa: N818
    """The command would start."""


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_are_taken(command, monkeypatch):
    """Runs are taken up to the first training; comparisons up to the first figure; files and targets exist."""

    page, program, *arguments = command
    monkeypatch.chdir(ROOT)
    if "--config=own.py" in arguments:
        assert "<!-- file:own.py -->" in (DOCS / page).read_text()
        return  # made on the page, and run with it below
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program.endswith(("python", "pytest")):
        files = [argument for argument in arguments if argument.endswith(".py")]
        assert files
        assert [file for file in files if not (ROOT / file).exists()] == []
    elif arguments[0] == "run" and ":runs/" in arguments[1]:
        assert page in EXECUTED_NAMES, "a run again of one that nothing has made"
    elif arguments[0] == "run":

        def accept(config, *_, **__):
            assert arms.expand(config)
            raise Accepted

        monkeypatch.setattr(runner, "run", accept)
        monkeypatch.setattr(forecast, "forecast", accept)
        monkeypatch.setattr(distributed, "join", lambda *_: None)
        new = re.findall(r"^\+    config\.(\w+) = ", AXIS.read_text(), re.MULTILINE)
        if any(f"sweep.{field}=" in argument for field in new for argument in arguments):
            return  # a field that the page adds; run with it below
        arguments = [argument.replace("=FILE", "=experiments/quickstart.py") for argument in arguments]
        with pytest.raises(Accepted):
            cli.dispatch(arguments)
    elif arguments[1].startswith("experiments/results"):

        def analysed(comparison, *_):
            assert comparison.judgements
            raise Accepted

        monkeypatch.setattr(report, "write", analysed)
        with pytest.raises(Accepted):
            cli.dispatch(arguments)
    else:
        assert page in (AXIS.name, *EXECUTED_NAMES), "a comparison of a run that nothing has made"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in EXECUTED], ids=lambda page: page.name)
def test_python_runs(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for kind, block in FENCED.findall(page.read_text()):
        if kind == "python":
            names = {}
            exec(compile(block, str(page), "exec"), names)
            if "get_config" in names:
                assert arms.expand(names["get_config"]())
    for table in REGISTRIES.values():
        for name in table.own:
            del table[name]


SMALL = {
    "train_size": 64,
    "refit": False,
    "epochs": 1,
    "seeds": 2,
    "tune_seeds": 2,
    "tune_widenings": 0,
}
"""Fields of a run that takes seconds."""


@pytest.mark.slow
def test_the_new_axes_are_a_file_and_a_few_patches(tmp_path):
    """In a copy, the page's file and changes are made; its tests pass, and both its studies run."""
    text = AXIS.read_text()
    ignored = shutil.ignore_patterns("results", "__pycache__", "fuzz")
    for folder in ("lenet_jax", "experiments", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored, symlinks=True)
    patches = [block for kind, block in FENCED.findall(text) if kind == "diff"]
    assert len(patches) == 3
    for patch in patches:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch, text=True, check=True)
    file, study = re.search(r"<!-- file:(\S+) -->\n```python\n(.*?)```", text, re.DOTALL).groups()
    (tmp_path / file).write_text(study)
    of_page = [command for page, *command in COMMANDS if page == AXIS.name]
    fields = [f"--config.{name}={value}" for name, value in SMALL.items()]
    fewer = ["--config.tune.learning_rate=(0.03,)"]  # of the study that tunes
    studies = [
        words + (fields + fewer * ("tuned" in words[1])) * (words[0] == "run")
        for program, *words in of_page
        if program.endswith("lenet-jax")
    ]
    assert len(studies) == 5
    tests = [words for program, *words in of_page if program.endswith("pytest")]
    assert len(tests) == 1
    code = f"from lenet_jax import cli\nfor words in {studies}:\n    cli.dispatch(words)"
    with start([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(tmp_path)) as running:
        for words in tests:
            pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *words]
            finished(start(pytest_here, tmp_path, PYTHONPATH=str(tmp_path)))
        finished(running)
    for name, axes in (
        ("smoothing", [{"smoothing": 0.0}, {"smoothing": 0.1}]),
        ("own", [{"activation": "tanh"}, {"activation": "gelu"}]),
    ):
        folder = tmp_path / "runs" / name
        assert [arm["axes"] for arm in json.loads((folder / "summary.json").read_text())["arms"]] == axes
        pages = list((folder / "plots").rglob("report.html"))
        assert pages
        assert all(name in page.read_text() for page in pages)


def test_githubs_files_are_valid():
    """Workflow, Dependabot and issue forms parse; CI calls the command that is run by hand, on pinned Pythons."""
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github"
    loaded = {path.relative_to(folder).as_posix(): yaml.safe_load(path.read_text()) for path in folder.glob("**/*.yml")}
    jobs = loaded["workflows/ci.yml"]["jobs"]
    assert {"run": ".ci/run"} in jobs["test"]["steps"]
    assert (ROOT / ".ci" / "run").exists()
    assert jobs["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert loaded["workflows/ci.yml"][True]["schedule"]  # YAML 1.1 reads the key "on" as true
    *_, install, test = (step["run"] for step in jobs["newest"]["steps"] if "run" in step)
    assert "constraint" not in install
    assert test.removeprefix(".venv/bin/") in (ROOT / "Makefile").read_text(), "the options of `make test`"
    updates = loaded["dependabot.yml"]["updates"]
    assert {update["package-ecosystem"] for update in updates} == {"pip", "github-actions"}
    forms = [form for name, form in loaded.items() if name.startswith("ISSUE_TEMPLATE/")]
    assert len(forms) == 2
    for form in forms:
        assert {"name", "description", "body"} <= set(form)
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in form["body"])


def test_the_site_is_built_without_a_warning(site):
    _, output = site
    assert "WARNING" not in output
    assert "Documentation built" in output


class Links(html.parser.HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = set(), set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])
        elif values.get("src") or (tag == "link" and values.get("href")):
            self.loads.add(values.get("src") or values["href"])


def test_everything_inside_resolves_and_nothing_is_fetched(site):
    folder, _ = site
    pages = {
        path: Links(path.read_text())
        for path in folder.glob("**/*.html")
        if path.name not in ("404.html", "report.html")
    }
    assert len(pages) > 50
    for path, page in pages.items():
        assert not [address for address in page.loads if re.match(r"(https?:)?//", address)], path
        for address in page.links | page.loads:
            if re.match(r"https?:|mailto:|data:", address):
                continue
            file, _, anchor = address.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path}: {address}"
            if anchor and target in pages and anchor != "__skip":
                assert anchor in pages[target].anchors, f"{path}: {address}"
    for sheet in folder.glob("assets/**/*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", sheet.read_text())


def test_a_link_to_nothing_is_refused(tmp_path):
    """By a site of one page with the same hook."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs isn't installed")
    (tmp_path / "docs").mkdir()
    shutil.copy(DOCS / "hooks.py", tmp_path / "docs")
    (tmp_path / "there.py").write_text("x = 1\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\nhooks: [docs/hooks.py]\nexclude_docs: hooks.py\ntheme: mkdocs\n"
    )
    for link, code in (("there.py", 0), ("gone.py", 1)):
        (tmp_path / "docs" / "index.md").write_text(f"# x\n\n[link](../{link})\n")
        process = start(MKDOCS, tmp_path, NO_MKDOCS_2_WARNING="1")
        output, _ = process.communicate()
        assert process.returncode == code, output
        assert ("WARNING" in output and "gone.py" in output) == (code == 1)


if __name__ == "__main__":
    HOW.write_text(filled(HOW.read_text()))
