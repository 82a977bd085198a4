"""Tests of a comparison's files, the page among them in a real browser."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import launch
import numpy as np
import pandas as pd
import pytest
from made_runs import predictions, summary_row, write_run

from lenet_jax.analysis import compare, report
from lenet_jax.data import datasets
from lenet_jax.errors import InputError
from lenet_jax.output import escaped
from lenet_jax.run import files as run_files
from lenet_jax.run import folder as run_folder
from lenet_jax.run.names import format_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SCRIPT = "<script>document.title='broken'</script>"
ERRORS = {
    (loss, activation): (20 + 10 * place + np.random.default_rng(place).normal(0, 5, 8)).round() / 1000
    for place, (loss, activation) in enumerate(
        [("mse", "sigmoid"), ("mse", "tanh"), ("cross_entropy", "sigmoid"), ("cross_entropy", "tanh")]
    )
}


def tuning_table(arm):
    """Two learning rates, two seeds; 0.1 is better."""
    rows = [
        {"arm": arm, "learning_rate": rate, "seed": seed, "epoch": 2, "split": "validation", "metric": "error"}
        | {"value": 0.1 / rate + 0.01 * seed}
        for rate in (0.01, 0.1)
        for seed in (100, 101)
    ]
    return pd.DataFrame(rows)


def full_run(folder, names=None):
    """A run with tuning and predictions on the embedded digits: image 3 is always wrong, 5 in one arm.

    Other mistakes are made by few networks of an arm.
    """
    dataset = datasets.load("mnist10k")
    chosen = {values: ({"learning_rate": 0.1}, ["learning_rate"]) for values in ERRORS}
    config = {"dataset": "mnist10k", "data_dir": "", "tune": {"learning_rate": [0.01, 0.1]}}
    write_run(folder, ERRORS, chosen=chosen, config=config, fingerprint=dataset.fingerprint, names=names)
    arms, labels = [arm.name for arm in run_folder.load(folder).arms], dataset.test_labels[:1000]
    tables = []
    for place, (arm, errors) in enumerate(zip(arms, ERRORS.values(), strict=True)):
        always = [3, 5] if place == 1 else [3]
        for seed, error in enumerate(errors):
            others = 10 + np.random.default_rng([place, seed]).permutation(990)[: round(1000 * error) - len(always)]
            wrong = np.isin(np.arange(1000), [*always, *others])
            tables.append(predictions(np.ones(1000), wrong, seed, arm).assign(label=labels))
            tables[-1]["predicted"] = (tables[-1].label + wrong) % 10
    run_files.write_table(folder / run_folder.PREDICTIONS, pd.concat(tables, ignore_index=True))
    run_files.write_table(folder / run_folder.TUNING, pd.concat(map(tuning_table, arms), ignore_index=True))
    return run_folder.load(folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(comparison, its folder) of four arms, one with a script in its name."""
    folder = tmp_path_factory.mktemp("report")
    run = full_run(folder / "run", names=["first", SCRIPT, "with $dollars$ & ampersand", "last"])
    comparison = compare.compare_runs([run])
    report.write(comparison, folder / "out")
    return comparison, folder / "out"


def test_all_files_are_written(written):
    _, out = written
    figures = ["final_values", "differences", "learning_curves"]
    names = [f"test_error_{name}" for name in figures] + ["tuning_learning_rate", "confusion", "reject_curves"]
    expected = {"comparison.csv", "differences.csv", "comparison.md", "report.html"}
    expected |= {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in out.glob("*.png"))
    assert len(pd.read_csv(out / "comparison.csv")) == 4
    assert len(pd.read_csv(out / "differences.csv")) == 3


def test_a_factorial_sweep_has_effects(tmp_path):
    files = report.write(compare.compare_runs([full_run(tmp_path / "run")]), tmp_path / "deep" / "out")
    assert "test_error_effects.svg" in [file.name for file in files]
    assert pd.read_csv(tmp_path / "deep" / "out" / "differences.csv").kind.value_counts().to_dict() == {
        "difference": 3,
        "main effect": 2,
        "interaction": 1,
    }


def test_the_markdown_holds_the_whole_comparison(written):
    comparison, out = written
    text = (out / "comparison.md").read_text()
    assert "<script" not in text
    assert "| arm | learning_rate | mean | 95 % CI |" in text
    assert "p (max-T)" in text
    assert text.startswith("On mnist10k, first has the lowest test error")
    assert all(escaped(note) in text for note in comparison.notes)


def test_every_interval_says_that_it_covers_seeds(written):
    """In titles, captions and sentences; a column's caption says it for the column."""
    comparison, out = written
    texts = [
        (out / "comparison.md").read_text(),
        *re.findall(r"<caption>.*?</caption>", (out / "report.html").read_text()),
    ]
    texts += [figure.caption for figure in report.figures_of(comparison).values()]
    said = [one for text in texts for one in re.findall(r"95 % (?!CI [|]).{,30}", text)]
    assert len(said) > 8
    assert [one for one in said if "over" not in one or "seed" not in one] == []


def test_digits_that_arms_agree_and_disagree_on(written):
    agreed, disputed, missing = report.digits_of(written[0])
    labels = datasets.load("mnist10k").test_labels
    assert missing == ""
    assert [digit.image for digit in agreed] == [3]
    assert disputed[0].image == 5
    assert (agreed[0].label, agreed[0].predicted) == (labels[3], (labels[3] + 1) % 10)
    assert list(disputed[0].misclassified.values()) == [0, 1, 0, 0]


def test_digits_of_other_data_are_not_shown(tmp_path):
    run = full_run(tmp_path / "run")
    run.config["dataset"] = "idx:nowhere"
    missing = "The images of idx:nowhere are not available here; compare --dataset=NAME opens those of a data set."
    assert report.digits_of(compare.compare_runs([run])) == ([], [], missing)


def test_a_run_without_predictions_has_a_report(tmp_path):
    run = run_folder.load(write_run(tmp_path / "run"))
    report.write(compare.compare_runs([run]), tmp_path / "out")
    assert "stored no predictions" in (tmp_path / "out" / "report.html").read_text()


def test_a_metric_without_curves_has_a_report(tmp_path):
    run = run_folder.load(write_run(tmp_path / "run"))
    files = report.write(compare.compare_runs([run], "seconds"), tmp_path / "out")
    assert "seconds_learning_curves.png" not in [file.name for file in files]


@pytest.mark.parametrize(
    ("curves", "shown", "when"),
    [(("validation", "running"), "validation_error", "after"), (("running",), "running_error", "during")],
)
def test_a_run_without_a_test_curve_shows_another_one_under_its_name(tmp_path, curves, shown, when):
    run = run_folder.load(write_run(tmp_path / "run", curves=curves))
    drawn = report.figures_of(compare.compare_runs([run]))
    assert [name for name in drawn if "learning" in name] == [f"{shown}_learning_curves"]
    said = drawn[f"{shown}_learning_curves"].caption
    assert said.startswith(f"The {shown.replace('_', ' ')} {when} each epoch: ")


def test_a_mean_of_zero_has_a_power_of_its_own(tmp_path):
    errors = {("mse", "tanh"): np.arange(5, 11) / 100, ("cross_entropy", "tanh"): np.array([6, 5, 8, 7, 10, 9]) / 100}
    run = run_folder.load(write_run(tmp_path / "run", errors, shared=0.7))
    cells = report.power_cells(compare.compare_runs([run]))
    assert cells is not None
    assert cells[0][1:] == [f"{seeds} seeds, {images} images" for images in ("1,000", "4,000") for seeds in (6, 24)]
    now, more_seeds, more_images, both = map(float, cells[1][0][1:])
    assert now > max(more_seeds, more_images) > min(more_seeds, more_images) > both > 0
    assert both < 0.52 * now  # all variances are a quarter or less; to two decimals


def test_a_run_that_diverged_has_a_report(tmp_path):
    errors = {("mse", "tanh"): [np.nan, np.nan], ("cross_entropy", "tanh"): [0.05, 0.06]}
    files = report.write(
        compare.compare_runs([run_folder.load(write_run(tmp_path / "run", errors))], "test_loss"), tmp_path / "out"
    )
    assert "test_loss_learning_curves.png" in [file.name for file in files]


def test_all_pairs_of_many_arms_have_no_figure(tmp_path):
    errors = {(str(arm),): [0.01 * arm, 0.02 * arm, 0.05] for arm in range(13)}
    run = run_folder.load(write_run(tmp_path / "run", errors, axes=("loss",)))
    drawn = report.figures_of(compare.compare_runs([run], baseline="all"))
    assert "test_error_differences" not in drawn


def test_long_names_leave_room_for_the_figure():
    name = "with maximum pooling, full connectivity: " + "a whole sentence of what is changed in it " * 3
    lines = report.label_lines(name).splitlines()
    assert max(map(len, lines)) <= report.MAX_LABEL_CHARACTERS
    assert " ".join(lines).split() == name.split()
    arm = "loss=cross_entropy,activation=sigmoid,batch_size=16"
    assert report.wrapped(arm).splitlines() == ["loss=cross_entropy, activation=sigmoid,", "batch_size=16"]
    assert report.label_lines("run: loss=mse,activation=tanh").splitlines() == ["run:", "loss=mse,", "activation=tanh"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"out: .* can't be written"):
        report.write(compare.compare_runs([run_folder.load(write_run(tmp_path / "run"))]), tmp_path / "out")


def everything_in(folder):
    return sorted(path for path in folder.rglob("*"))


def test_no_string_of_a_run_names_a_file_elsewhere(tmp_path):
    """Tuned hyperparameters and metrics name figures; `folder.load` refuses the first, unless a caller changes them."""
    names = ["/../../../../h/tuning_x", "../x", "a/b", "."]
    run = run_folder.load(write_run(tmp_path / "in" / "run", {("mse",): [0.1, 0.2]}, axes=("loss",)))
    (arm,) = run.arms
    table = tuning_table(arm.name)
    table = table[table.learning_rate == 0.1].assign(**dict.fromkeys(names, 0.1))
    metrics = run.metrics.assign(metric=run.metrics.metric.astype(str).replace("loss", "/../../x"))
    run = dataclasses.replace(run, metrics=metrics, tuning=table)
    vars(run)["arms"] = (dataclasses.replace(arm, chosen=dict.fromkeys(names, 0.1)),)
    before = everything_in(tmp_path)
    for metric in ("test_error", "test_/../../x"):
        out = report.default_folder([run], metric)
        written = report.write(compare.compare_runs([run], metric), out)
        assert {path.parent for path in written} == {out}
        assert out.is_relative_to(run.folder / "plots")
        assert len([path for path in written if "tuning" in path.name]) == 2 * len(names)
    assert [path for path in everything_in(tmp_path) if run.folder / "plots" not in [path, *path.parents]] == before


def test_a_dozen_runs_have_a_folder(tmp_path):
    """Its name is as before if it is short, else short, and the same each time."""
    runs = [run_folder.load(write_run(tmp_path / f"{'a-long-name-' * 4}{index}")) for index in range(12)]
    assert report.default_folder([runs[0]], "test_error") == runs[0].folder / "plots"
    (runs[0].folder / "plots").symlink_to(tmp_path)
    for metric in ("test_error", "test_loss"):
        with pytest.raises(InputError, match=r"^out: '.*plots' is a link; name the folder that it leads to as --out"):
            report.default_folder([runs[0]], metric)
    two = report.default_folder(runs[:2], "test_loss")
    assert two == tmp_path / f"compare-{runs[0].folder.name}-{runs[1].folder.name}" / "test_loss"
    out = report.default_folder(runs, "test_error")
    assert out.parent == tmp_path
    assert len(out.name) < 255
    assert report.default_folder(runs, "test_error") == out != report.default_folder(runs[:-1], "test_error")
    out.mkdir()


def test_a_killed_comparison_leaves_nothing_that_the_next_one_does_not_remove(tmp_path):
    """Killed as soon as something is there."""
    write_run(tmp_path / "run")
    arguments, out = ["compare", "run"], tmp_path / "run" / "plots"
    process = launch.start(arguments, tmp_path, tmp_path / "said")
    while not (out.exists() and any(out.iterdir())):
        assert process.poll() is None
    process.kill()
    process.wait()
    (out / ".report.html.0123abcd").write_text("what a kill in the middle of a file leaves")
    (out / ".mine").write_text("")
    assert launch.run(arguments, tmp_path).returncode == 0
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".mine"]
    assert (out / "report.html").read_text().rstrip().endswith("</html>")


def test_output_that_is_not_utf_8_escapes_what_it_lacks(tmp_path):
    """In the names of a folder and an arm."""
    write_run(tmp_path / "größe-中", {("größe",): [0.1, 0.2], ("中",): [0.1, 0.3]}, axes=("loss",))
    before = "import sys; sys.stdout.reconfigure(encoding='ascii', errors='strict')"  # as with LC_ALL=en_US.ISO-8859-1
    output, errors = tmp_path / "output", tmp_path / "errors"
    process = launch.start(["compare", "größe-中"], tmp_path, output, errors, before=before)
    assert (process.wait(60), errors.read_text()) == (0, "")
    assert "loss=\\u4e2d" in output.read_text()
    assert "gr\\xf6\\xdfe-\\u4e2d/plots/report.html" in output.read_text()


def test_names_stay_text(written):
    text = (written[1] / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text).replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield started
        started.close()


@pytest.fixture
def page(browser, written):
    """The page, opened from disk; `page.said` are messages and errors, `page.asked` is what it asked for."""
    opened = browser.new_page(viewport={"width": 1100, "height": 900})
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto((written[1] / "report.html").as_uri())
    yield opened
    opened.close()


def test_the_page_opens_without_errors_or_requests(page, written):
    assert page.said == []
    # The page itself, and pictures that are in it.
    asked = [url for url in page.asked if not url.startswith("data:")]
    assert asked == [(written[1] / "report.html").as_uri()]
    assert page.title() == "run: test error"


def test_names_with_markup_are_text_in_the_page(page):
    assert page.locator("script").count() == 0
    assert page.get_by_role("rowheader", name=SCRIPT, exact=True).first.is_visible()


def test_the_page_is_dark_or_light(page):
    colors = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        color = "getComputedStyle(document.querySelector('figure svg')).color"
        colors[scheme] = page.evaluate(f"[getComputedStyle(document.body).backgroundColor, {color}]")
    brightness = {scheme: [sum(map(int, re.findall(r"\d+", c)[:3])) for c in pair] for scheme, pair in colors.items()}
    assert brightness["light"][0] > 700 > 100 > brightness["light"][1]
    assert brightness["dark"][0] < 150 < 600 < brightness["dark"][1]


def test_the_page_can_be_used_with_the_keyboard(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    details = page.locator("details").last
    details.locator("summary").focus()
    page.keyboard.press("Enter")
    assert details.get_attribute("open") is not None


def test_a_screen_reader_finds_its_way(page):
    """Every picture, table and region has a name, headings form an outline, and no id is there twice."""
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.locator("table:not(:has(caption))").count() == 0
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("figure:not([aria-label])").count() == 0
    assert page.locator("figure > svg:not([aria-hidden])").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(link => link.getAttribute('href').slice(1))"
    )
    assert set(links) <= set(ids)
    name = "document.getElementById(section.getAttribute('aria-labelledby'))?.textContent"
    names = page.evaluate(f"[...document.querySelectorAll('section')].map(section => {name})")
    assert all(names)


def test_the_page_fits_a_phone(page):
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def right_edges(page, section):
    """Column of a section's first table -> its right edge in pixels; checks that columns don't overlap."""
    rows = f"[...document.querySelectorAll('section[aria-labelledby={section}] .scroll')][0].querySelectorAll('tr')"
    box = "[...row.children].map(cell => [cell.getBoundingClientRect().left, cell.getBoundingClientRect().right])"
    boxes = page.evaluate(f"[...{rows}].map(row => {box})")
    assert all(left >= right for row in boxes for (_, right), (left, _) in itertools.pairwise(row))
    names = page.evaluate(f"[...{rows}[0].children].map(cell => cell.textContent)")
    return {name: max(row[index][1] for row in boxes) for index, name in enumerate(names)}


def test_verdicts_and_both_intervals_are_seen_on_a_phone_without_scrolling(page):
    """The other columns are reached by scrolling the table, not the page."""
    page.set_viewport_size({"width": 390, "height": 844})
    edges = right_edges(page, "tests")
    assert max(edges[name] for name in ("verdict", "mean", "95 % CI", "these images")) <= 390
    assert edges["n"] > 390
    region = page.locator("section[aria-labelledby=tests] .scroll").first
    region.evaluate("region => region.scrollLeft = region.scrollWidth")
    assert right_edges(page, "tests")["n"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_printed_page_holds_whole_tables(page):
    """On A4 with Chromium's margins, which shrinks what is wider; nothing is hidden in a region that scrolls."""
    page.set_viewport_size({"width": 720, "height": 1000})
    page.emulate_media(media="print")
    for section in ("arms", "tests"):
        assert max(right_edges(page, section).values()) <= 1.2 * 720
    hidden = "[...document.querySelectorAll('.scroll')].filter(one => getComputedStyle(one).overflowX != 'visible')"
    assert page.evaluate(f"{hidden}.length") == 0


def big_run(folder, arms=50, seeds=100, epochs=50):
    """5 losses x 10 learning rates."""
    rng = np.random.default_rng(0)
    tables, rows = [], []
    data = {"name": "mnist10k", "fingerprint": "sha256:0", "test": 1000}
    for arm in range(arms):
        axes = {"loss": f"loss{arm // 10}", "learning_rate": float(arm % 10)}
        name = ",".join(f"{axis}={format_value(value)}" for axis, value in axes.items())
        for split, names in (("running", ("loss", "error")), ("test", ("loss", "error", "nll", "brier", "ece"))):
            numbers = np.arange(split == "running", epochs + 1)
            places = {"epoch": np.repeat(numbers, seeds), "seed": np.tile(np.arange(seeds), len(numbers))}
            for metric in names:
                noise = rng.normal(0, 1e-3, len(places["seed"]))
                value = np.abs(0.02 + 1e-4 * arm + 0.5 * np.exp(-places["epoch"]) + noise)
                tables.append(
                    pd.DataFrame({"arm": name, **axes, **places, "split": split, "metric": metric, "value": value})
                )
        rows.append(summary_row(name, data, np.linspace(0.02, 0.03, seeds), axes=axes))
    folder.mkdir()
    run_files.write_table(folder / run_folder.METRICS, pd.concat(tables, ignore_index=True))
    run_files.write_json(folder / run_folder.SUMMARY, {"dataset": data, "arms": rows})
    for name in (run_folder.CONFIG, run_folder.PROVENANCE):
        run_files.write_json(folder / name, {})


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_fifty_arms_of_a_hundred_seeds_are_compared_in_ten_seconds(tmp_path):
    """Of the processor, which may have to be shared; that only adds, so that the quicker of two counts."""
    big_run(tmp_path / "run")
    code = (
        "import json, re, resource, sys; from lenet_jax import cli; cli.main(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_SELF);"
        # Not ru_maxrss, which begins with what the process that started this one had.
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read());"
        "print(json.dumps([used.ru_utime + used.ru_stime, 1024 * int(peak.group(1))]))"
    )
    command = [sys.executable, "-c", code, "compare", str(tmp_path / "run")]
    seconds = math.inf
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used, memory = json.loads(done.stdout.splitlines()[-1])
        assert memory < 2**30
        seconds = min(seconds, used)
        if seconds < 10:
            break
    assert seconds < 10
    assert (tmp_path / "run" / "plots" / "report.html").stat().st_size < 10 * 2**20
