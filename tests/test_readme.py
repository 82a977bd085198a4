"""Tests that the README and the pages that continue it match stored results, and that their commands run.

`python tests/test_readme.py` rewrites the tables between their markers.
"""

import ast
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import few_digits
import launch
import pandas as pd
import pytest

from lenet_jax import model
from lenet_jax.analysis import caveats, compare, report, tables
from lenet_jax.analysis.arms import arm_statistics
from lenet_jax.data import datasets
from lenet_jax.run import arms
from lenet_jax.run import folder as run_folder

ROOT = Path(__file__).parent.parent
STORED = ROOT / "experiments" / "results"
PAGES = ("README.md", "docs/findings.md", "docs/experiments.md", "docs/comparing.md", "docs/running.md")
"""The README and the pages that continue it, in reading order."""

TEXTS = {page: (ROOT / page).read_text() for page in PAGES}
ALL = "\n".join(TEXTS.values())
TABLE = r"<!-- results:(\S+) -->\n(.*?)<!-- /results -->"
BLOCKS = [(page, *block) for page, text in TEXTS.items() for block in re.findall(TABLE, text, re.DOTALL)]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CROSS_ENTROPY = "loss=cross_entropy,activation={0} against loss=mse,activation={0}"
FINDINGS = (
    ("The 1998 network (paper: 0.95)", "lenet5_1998", None),
    ("The specification with tanh and weight decay", "specification", None),
    ("Modern components: ReLU, max pooling, Adam, distorted digits", "modern", None),
    ("Distorted training digits, 1998 network (paper: -0.13)", "lenet5_1998_distorted", "lenet5_1998"),
    ("Cross-entropy instead of MSE, sigmoid", "ablation", CROSS_ENTROPY.format("sigmoid")),
    ("Cross-entropy instead of MSE, tanh", "ablation", CROSS_ENTROPY.format("tanh")),
    ("tanh instead of sigmoid, mean of both losses", "ablation", "activation: tanh against sigmoid, over loss"),
    (
        "Interaction of loss and activation",
        "ablation",
        "loss (cross_entropy against mse) x activation (tanh against sigmoid)",
    ),
    (
        "MSE on linear outputs, targets ±1, instead of cross-entropy",
        "loss_function",
        "criterion=cross-entropy against criterion=MSE on linear (+-1)",
    ),
    (
        "Max pooling instead of trainable subsampling",
        "subsampling",
        "subsampling=max against subsampling=trainable",
    ),
    (
        "All 96 connections in C3 instead of the table's 60",
        "connectivity",
        "connectivity=full against connectivity=table",
    ),
    ("1998's SDLM instead of momentum", "optimizer", "optimizer=sdlm against optimizer=momentum"),
    ("Batch size 8 instead of 32", "batch_size", "batch_size=32 against batch_size=8"),
    (
        "Cross-entropy instead of MSE, 40 % wrong labels",
        "label_noise",
        "label_noise=0.4,loss=cross_entropy against label_noise=0.4,loss=mse",
    ),
    ("Sigmoid, initializer `glorot`", "initializer", "activation=sigmoid,initializer=glorot"),
    ("Sigmoid, initializer `glorot_centered`", "initializer", "activation=sigmoid,initializer=glorot_centered"),
)
"""Rows of the README's table: the choice, the run, and its contrast, the other run, or the arm (None: the only one)."""

REVERSED = {"MSE on linear outputs, targets ±1, instead of cross-entropy", "Batch size 8 instead of 32"}
"""Rows that report the stored contrast with its sign reversed."""


def effect(label, name, key):
    """Value, interval over seeds and test images, that over seeds alone, seeds, and data set of a row of the table."""
    run = run_folder.load(STORED / name)
    ((source, _),) = run.provenance["fingerprints"].items()
    dataset = {"idx": "MNIST"}.get(source.partition(":")[0], source)
    rows = {arm.arm: arm for arm in arm_statistics([run])}
    if key is None or key in rows:
        arm = rows[key or next(iter(rows))]
        assert key or len(rows) == 1
        assert arm.over == "both"
        both, seeds = ([f"{100 * end:.2f}" for end in ends] for ends in (arm.interval, arm.ci95))
        return f"{100 * arm.mean:.2f}", " to ".join(both), " to ".join(seeds), str(arm.n), dataset
    runs = [run_folder.load(STORED / key), run] if (STORED / key).exists() else [run]
    comparison = compare.compare_runs(runs, baseline="all" if len(runs) == 1 else "")
    (found,) = [one for one in comparison.judgements if one.name == key or len(runs) == 2]
    assert comparison.over == "both"
    sign = -1 if label in REVERSED else 1
    value = f"{100 * sign * found.mean:+.2f}" + " (n.s.)" * (not found.significant)
    ends = [sorted(100 * sign * end for end in pair) for pair in (found.estimate.interval(), found.seeds_interval)]
    return value, *(f"{low:+.2f} to {high:+.2f}" for low, high in ends), str(found.n), dataset


def findings():
    """The README's table of findings."""
    rows = [("choice", "error or difference", "95 % interval", "these images", "seeds", "data")]
    rows += [("---", "--:", "--:", "--:", "--:", "---")]
    rows += [(label, *effect(label, name, key)) for label, name, key in FINDINGS]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def throughput():
    """The stored benchmark, and its table of all numbers of networks."""
    spec = importlib.util.spec_from_file_location(
        "throughput_report", ROOT / "experiments" / "benchmarks" / "report.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stored = json.loads((STORED / "throughput" / "throughput.json").read_text())
    return stored, module.throughput_summary(stored).splitlines(keepends=True)


def speed_table():
    """The rows of eight networks."""
    _, (header, rule, *rows) = throughput()
    return "".join([header, rule, *(row for row in rows if row.startswith("| 8 |"))])


def speed_sentence():
    """Seconds of the whole quickstart."""
    job = json.loads((STORED / "time_to_result" / "time_to_result.json").read_text())["jobs"]["quickstart"]
    seconds = job["seconds"]
    best = min(value for name, value in seconds.items() if name.startswith("torch"))
    cold, warm = (seconds[f"lenet_jax_{caches}"] for caches in ("cold", "warm"))
    sentence = (
        f"The quickstart, from the command to the comparison, took {cold:.0f} s with empty caches and {warm:.0f} s "
        f"with filled ones on two cores. The same experiment in PyTorch took {best:.0f} s."
    )
    return textwrap.fill(sentence, 120) + "\n"


MADE = {
    ("README.md", "findings"): findings,
    ("README.md", "speed"): speed_sentence,
    ("docs/findings.md", "throughput"): speed_table,
}
"""Page and marker -> what stands between the markers."""


def filled(page):
    """The page with everything that is made from stored results."""

    def table(match):
        rows = tables.markdown(arm_statistics([run_folder.load(STORED / match[1])]), "test_error")
        return f"<!-- results:{match[1]} -->\n{rows}<!-- /results -->"

    text = re.sub(TABLE, table, (ROOT / page).read_text(), flags=re.DOTALL)
    for (where, marker), make in MADE.items():
        if where == page:
            block = f"<!-- {marker} -->\n{make()}<!-- /{marker} -->"
            pattern = rf"<!-- {marker} -->\n.*?<!-- /{marker} -->"
            text, count = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
            assert count == 1, marker
    return text


@pytest.mark.parametrize("page", PAGES)
def test_tables_equal_the_stored_results(page):
    assert TEXTS[page] == filled(page), "python tests/test_readme.py rewrites the tables"


def test_the_results_that_are_shown():
    """The quickstart's is in the README; all tuned studies are on the page of findings."""
    shown = {page: [name for where, name, _ in BLOCKS if where == page] for page in PAGES}
    assert shown["README.md"] == ["quickstart"]
    assert sorted(shown["docs/findings.md"]) == sorted([*TUNED, "initializer"])
    assert not throughput()[0]["failures"]


def test_the_readme_is_short():
    assert 9_000 <= len(TEXTS["README.md"].encode()) <= 10_240


def test_the_readme_quotes_the_network():
    """The lines from C1 to the output are those of the code."""
    quoted = [block for text in TEXTS.values() for kind, block in FENCED.findall(text) if kind == "py"]
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(model.activations)))
    *_, last = ast.parse(source).body[0].body
    lines = source.splitlines()[: last.lineno - 1]
    first = next(number for number, line in enumerate(lines) if line.startswith("    c1 = "))
    assert quoted == [textwrap.dedent("\n".join(lines[first:])) + "\n"]
    assert len(lines) - first == 7


def test_the_address_of_the_repository_is_set_in_one_file():
    """CITATION.cff has it, once there is one; the clone command is the only other place."""
    address = re.search(r"^repository-code: \"?(\S+?)\"?$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    cloned = re.search(r"git clone (<[^>]*>|\S+) lenet_jax", TEXTS["README.md"]).group(1)
    assert cloned == (address.group(1) if address else "<repository URL>")


def test_the_finding_of_the_ablation_is_stored():
    """Every number of the paragraph, in its order; gains are differences with their sign turned."""
    run = run_folder.load(ROOT / "experiments" / "results" / "ablation")
    found = {judgement.name: judgement for judgement in compare.compare_runs([run], baseline="all").judgements}
    names = [
        "loss: cross_entropy against mse, over activation",
        "activation: tanh against sigmoid, over loss",
        "loss (cross_entropy against mse) x activation (tanh against sigmoid)",
        "loss=cross_entropy,activation=sigmoid against loss=mse,activation=sigmoid",
        "loss=cross_entropy,activation=tanh against loss=mse,activation=tanh",
    ]
    expected = []
    for name in names:
        ends = (found[name].mean, *found[name].estimate.interval())
        mean, low, high = (100 * value for value in ends)
        expected += [mean, low, high] if "x" in name.split() else [-mean, -high, -low]
    text = re.search(r"<!-- finding:ablation -->\n(.*?)<!-- /finding -->", ALL, re.DOTALL).group(1)
    said = [float(number) for number in re.findall(r"-?\d\.\d\d", text)]
    unsure = found[names[-1]]
    assert said == [*(float(f"{value:.2f}") for value in expected), float(f"{unsure.p_corrected:.2f}")]
    assert len(found) == 9
    assert max(judgement.p_corrected for name, judgement in found.items() if name != names[-1]) < 0.05
    (advice,) = caveats.advice([unsure])
    seeds = re.search(r"takes about (\d+) seeds \(more test images alone do not suffice\)", advice)[1]
    assert f"about {seeds} seeds" in " ".join(text.split())
    assert "0.87 percentage" in (ROOT / "experiments" / "ablation.py").read_text()


TUNED = sorted(path.parent.name for path in STORED.glob("*/config.json") if json.loads(path.read_text()).get("tune"))


def test_all_tuned_studies_are_stored():
    names = {"activation", "batch_size", "connectivity", "label_noise", "loss_function", "optimizer", "subsampling"}
    assert set(TUNED) == names | {"ablation", "modern", "specification"}


@pytest.mark.parametrize("name", TUNED)
def test_what_a_study_says_in_its_docstring_is_stored(name):
    """Every number with two digits, with its sign turned where a difference is told from its other end."""
    run = run_folder.load(ROOT / "experiments" / "results" / name)
    stored = (run.folder / "plots" / "comparison.md").read_text()
    assert stored == report.markdown_page(compare.compare_runs([run], baseline="all"))
    result = (ROOT / "experiments" / f"{name}.py").read_text().split('"""')[1].partition("Result: ")[2]
    assert result.startswith(f"experiments/results/{name}.")
    said = set(re.findall(r"\d+\.\d\d", result))
    assert said
    assert said <= set(re.findall(r"\d+\.\d\d", stored))


def test_what_the_pages_say_of_coverage_is_stored():
    """The ranges are those of the stored pages; over seeds, of settings with 10 and 20 seeds."""
    stored = ROOT / "experiments" / "results" / "coverage"
    text, images = (stored / "coverage.md").read_text(), (stored / "images.md").read_text()
    low, high, errs = re.search(r"in ([\d.]+) to ([\d.]+) % of studies.* at most ([\d.]+) %", text).groups()
    said = " ".join(TEXTS["docs/comparing.md"].split())
    assert f"in {low} to {high} % of studies for normal values and for errors of 1 and 5 %" in said
    skewed = re.findall(r"\| skewed \| [12]0 \| ([\d.]+) ", text)
    assert f"in {min(skewed)} to {max(skewed)} % for strongly skewed values" in said
    assert f"false findings in at most {errs} % of studies" in said
    both, alone, most = re.search(
        r"in ([\d.]+ to [\d.]+) % of studies .* alone contain it in ([\d.]+ to [\d.]+) %\. At most ([\d.]+) %", images
    ).groups()
    assert f"contain it in {both} % of studies" in said
    assert f"Intervals over seeds alone contain it in {alone} %" in said
    assert f"false findings in at most {most} % of studies" in said
    cells = re.findall(r"\| skewed \| [\d]+ \| [\d,]+ \|((?: [\d.]+ to [\d.]+ \|){3})", images)
    shares = [float(share) for row in cells for share in re.findall(r"[\d.]+", row)]
    assert len(shares) == 54
    assert f"in {min(shares)} to {max(shares)} % where" in said


def test_what_the_pages_say_of_new_digits_is_stored():
    stored = json.loads((ROOT / "experiments" / "results" / "new_digits" / "new_digits.json").read_text())
    said = " ".join(TEXTS["docs/comparing.md"].split())
    for digits in ("train", "test"):
        for part in ("arms", "differences"):
            rows = [row for study in stored["studies"] for row in study[part]]
            held = {over: sum(row["new"][digits][f"{over}_holds"] for row in rows) for over in ("both", "seeds")}
            assert f"{held['both']} of {len(rows)} {part} (over seeds alone: {held['seeds']})" in said, (digits, part)


def test_notebooks_show_what_came_out_with_the_embedded_digits_as_they_are():
    outputs = [
        "".join(output.get("text", ()))
        for path in (ROOT / "notebooks").glob("*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", ())
    ]
    assert len(outputs) > 30
    assert set(re.findall(r"sha256:\w+", "".join(outputs))) == {datasets.EMBEDDED_FINGERPRINT}


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_link_leads_somewhere(page):
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) > (20 if page in ("README.md", "docs/experiments.md") else 2 if page.startswith("docs/") else -1)
    assert [path for path, _, _ in links if not (folder / path).exists()] == []
    for path, _, anchor in links:
        if anchor:
            linked = (folder / path) if path else ROOT / page
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


SMALL = [
    f"--config.dataset={few_digits.DATASET}",
    "--config.sweep.activation=('tanh',)",
    "--config.epochs=1",
    "--config.first_seed=2",
    "--config.seeds=2",
    "--config.train_size=400",
    "--config.validation_size=200",
]
"""Added to the runs of the pages; programs are those of test_cli.py."""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A folder as of somebody who has run `make quickstart`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    (folder / "experiments").symlink_to(ROOT / "experiments")
    (folder / "docs").symlink_to(ROOT / "docs")
    (mine,) = [block for kind, block in FENCED.findall(TEXTS["README.md"]) if kind == "python"]
    (folder / "mine.py").write_text(mine)
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.findall(r"^\t\$\(BIN\)/(lenet-jax [^>\n]*quickstart[^\s>]*)", makefile, re.MULTILINE)
    assert len(recipe) == 2
    said(folder, f".venv/bin/{recipe[0]}")
    return folder


def said(folder, command):
    """What a command prints."""
    # MNIST itself would be downloaded.
    parts = [f"{part}10k" if part.endswith("=mnist") else part for part in shlex.split(command)]
    if parts[1] == "run" and "stored.py" not in command:
        parts += SMALL
    if launch.FORKED:
        result = launch.run(parts[1:], folder)
    else:
        result = subprocess.run(parts, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, (command, result.stderr)
    return result.stdout


@pytest.mark.slow
def test_the_commands_of_the_pages_run(started):
    """All, in their order."""
    commands = re.findall(r"(?:^    |`)(\.venv/bin/lenet-jax [^`\n]*)", ALL, re.MULTILINE)
    printed = {command: said(started, command) for command in dict.fromkeys(commands)}
    assert len(printed) == 18
    again = [run_folder.load(started / "runs" / name).metrics for name in ("quickstart", "again")]
    pd.testing.assert_frame_equal(*again)
    assert (started / "runs" / "figures" / "report.html").exists()
    assert (started / "runs" / "mine" / "plots" / "report.html").exists()
    (classified,) = (text for command, text in printed.items() if "classify" in command)
    (row,) = [line for line in classified.splitlines() if "seven.png" in line]
    assert row.split()[1] in "0123456789"  # these networks have hardly trained


def test_targets_and_extras_of_the_pages_exist():
    for target in re.findall(r"`?make ([a-z]\S*?)[`\n]", ALL):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    extras = set(re.findall(r"\.\[(\w+)\]", ALL))
    assert extras >= {"tensorboard", "notebooks", "cuda13", "tpu"}
    for extra in extras:
        assert re.search(rf"^{extra} =$", (ROOT / "setup.cfg").read_text(), re.MULTILINE), extra


def test_the_python_of_the_pages_runs(started, monkeypatch):
    blocks = [(page, block) for page, text in TEXTS.items() for kind, block in FENCED.findall(text) if kind == "python"]
    monkeypatch.chdir(started)
    assert any("classify" in block for _, block in blocks)
    assert len(blocks) == 4
    for page, block in blocks:
        names = {}
        # The run of this test has one epoch.
        shown = block.replace("run.metrics.query", "errors = run.metrics.query").replace("epoch == 10", "epoch == 1")
        exec(compile(shown, page, "exec"), names)
        if "run" in names:
            assert set(names["errors"].index) == {arm.name for arm in names["run"].arms}
        if "get_config" in names:
            assert arms.expand(names["get_config"]())


def test_every_config_field_of_the_pages_exists():
    from lenet_jax.experiments import base

    fields = set(base.get_config())
    named = re.findall(r"config\.(\w+)", ALL)
    assert named
    assert set(named) <= fields | {"json", "get_config"}


def test_what_the_pages_say_of_learning_rates_is_stored():
    run = run_folder.load(ROOT / "experiments" / "results" / "learning_rate")
    rows = arm_statistics([run], "validation_error")
    means = {(row.axes["loss"], row.axes["activation"], row.axes["learning_rate"]): row.mean for row in rows}
    pairs = {key[:2] for key in means}
    best = {pair: min((means[key], key[2]) for key in means if key[:2] == pair)[1] for pair in pairs}
    assert best == {
        ("mse", "sigmoid"): 0.03,
        ("mse", "tanh"): 0.1,
        ("cross_entropy", "sigmoid"): 0.03,
        ("cross_entropy", "tanh"): 0.1,
    }
    for loss in ("mse", "cross_entropy"):
        for rate in (0.1, 0.03):
            assert f"{100 * means[loss, 'tanh', rate]:.2f} %" in TEXTS["docs/findings.md"]
    sigmoid = [row for row in rows if row.axes["activation"] == "sigmoid"]
    at_a_tenth = [row.values for row in sigmoid if row.axes["learning_rate"] == 0.1]
    poor = sorted(value for values in at_a_tenth for value in values if value > 0.1)
    assert (len(poor), sum(map(len, at_a_tenth))) == (5, 8)
    assert f"errors of {100 * poor[0]:.0f} to {100 * poor[-1]:.0f} %" in " ".join(TEXTS["docs/findings.md"].split())


def test_what_the_page_says_of_each_study_is_stored():
    """Every number with two digits of a study's section is in its stored comparison."""
    sections = re.split(r"^#{2,3} ", TEXTS["docs/findings.md"], flags=re.MULTILINE)[1:]
    studies = {name for name in TUNED if name not in ("ablation", "modern", "specification")}
    for section in sections:
        names = set(re.findall(r"<!-- results:(\w+) -->", section)) & studies
        if names:
            (name,) = names
            studies.remove(name)
            stored = (STORED / name / "plots" / "comparison.md").read_text()
            text = re.sub(TABLE, "", section, flags=re.DOTALL)
            numbers = set(re.findall(r"\d+\.\d\d", text))
            assert numbers
            assert numbers <= set(re.findall(r"\d+\.\d\d", stored)), name
    assert not studies


if __name__ == "__main__":
    for each in PAGES:
        (ROOT / each).write_text(filled(each))
