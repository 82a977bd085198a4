"""The robustness study in docs/findings.md equals its stored results; `python tests/test_robustness.py` rewrites it."""

import json
import re
import textwrap
from pathlib import Path

import pandas as pd

from lenet_jax.analysis import metrics, tables

ROOT = Path(__file__).parents[1]
STORED, PAGE = ROOT / "experiments" / "results" / "robustness", ROOT / "docs" / "findings.md"

SHOWN = {"translation": 2, "rotation": 30, "scale": -0.5, "squeezing": 0.4, "stroke": 2, "noise": 0.1}
"""The severities in the page's table; the stored page has all."""

BLOCK = r"<!-- robustness -->\n.*?<!-- /robustness -->"


def cells():
    arms = pd.read_csv(STORED / "robustness.csv")
    assert (arms.over == "both").all()
    wanted = [("none", arms[(arms.corruption == "rotation") & (arms.severity == 0)])]
    wanted += [
        (f"{name} {severity:g}", arms[(arms.corruption == name) & (arms.severity == severity)])
        for name, severity in SHOWN.items()
    ]
    lines = []
    for name, rows in wanted:
        shown = rows[["mean", "ci95_low", "ci95_high"]].map(lambda value: metrics.show(value, "test_error"))
        lines.append([name, *(f"{mean} ({low} - {high})" for mean, low, high in shown.itertuples(index=False))])
    return ["corruption", *wanted[0][1].arm], lines, len(wanted[0][1])


def pair(differences, new, old):
    """The differences between the two arms whose names have these parts, by severity."""
    sides = differences.name.str.split(" against ", expand=True)
    has = [
        side.str.startswith(f"{loss},activation={activation}")
        for side, (loss, activation) in zip((sides[0], sides[1]), (new, old), strict=True)
    ]
    found = differences[has[0] & has[1]]
    assert len(found) == len(differences[["corruption", "severity"]].drop_duplicates())
    return found


def sentences():
    """What the differences say."""
    differences = pd.read_csv(STORED / "differences.csv")
    differences = differences[(differences.kind == "difference") & (differences.severity != 0)]
    mse, entropy = "loss=mse", "loss=cross_entropy"
    compared = {
        "tanh than sigmoid": {
            "MSE": pair(differences, (mse, "tanh"), (mse, "sigmoid")),
            "cross-entropy": pair(differences, (entropy, "tanh"), (entropy, "sigmoid")),
        },
        "cross-entropy than MSE": {
            "sigmoid": pair(differences, (entropy, "sigmoid"), (mse, "sigmoid")),
            "tanh": pair(differences, (entropy, "tanh"), (mse, "tanh")),
        },
    }
    said = "Significantly fewer errors (p < 0.05, corrected within a severity, over seeds and test images):"
    for what, pairs in compared.items():
        for given, rows in pairs.items():
            counts = []
            for noise in (False, True):
                of = rows[(rows.corruption == "noise") == noise]
                better, worse = ((of.verdict == verdict).sum() for verdict in ("better", "worse"))
                more = f" (and more at {worse})" * bool(worse)
                counts.append(f"{better} of {len(of)} severities {'of noise' if noise else 'without noise'}{more}")
            said += f" {what} with {given} at {' and '.join(counts)};"
    ends = []
    for given, rows in compared["tanh than sigmoid"].items():
        (row,) = rows[(rows.corruption == "rotation") & (rows.severity == 30)].to_dict("records")
        low, high = -100 * row["ci95_high"], -100 * row["ci95_low"]
        ends.append(f"{-100 * row['mean']:.2f} points with {given} ({low:.2f} to {high:.2f})")
    said = f"{said[:-1]}. At 30 degrees, tanh instead of sigmoid saves {' and '.join(ends)}."
    return textwrap.fill(said, 120, break_on_hyphens=False)


def filled(text):
    block = f"<!-- robustness -->\n{tables.markdown_table(*cells())}\n{sentences()}\n<!-- /robustness -->"
    text, count = re.subn(BLOCK, lambda _: block, text, flags=re.DOTALL)
    assert count == 1
    return text


def test_the_page_has_what_is_stored():
    text = PAGE.read_text()
    assert " ".join(text.split()) == " ".join(filled(text).split()), "python tests/test_robustness.py rewrites it"


def test_the_study_is_small_and_says_how_it_was_made():
    about = json.loads((STORED / "robustness.json").read_text())
    assert about["command"].startswith("lenet-jax evaluate ")
    assert about["config"]["seeds"] >= 8
    assert about["fingerprint"].startswith("sha256:")
    assert sum(path.stat().st_size for path in STORED.iterdir()) < 2**20
    linked = re.findall(r"\]\(([^)]*)\)", (STORED / "robustness.md").read_text())
    assert len(linked) == 1 + len(SHOWN)
    assert all((STORED / name).exists() for name in linked)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
