"""Tests of the figures, on known numbers."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_runs import write_run
from matplotlib.figure import Figure

from lenet_jax.analysis import figures, metrics, report
from lenet_jax.run import folder


def test_learning_curves_draw_every_seed_and_the_mean(tmp_path):
    run = folder.load(write_run(tmp_path / "run"))
    axes = figures.learning_curves(metrics.curves(run, "test_error"), "test_error", Figure().add_subplot())
    lines = [line.get_ydata() for line in axes.get_lines()]
    assert len(lines) == 2 * (3 + 1)
    np.testing.assert_allclose(lines[3], [0.12, 0.06])
    assert axes.get_ylabel() == "test error (%)"
    assert axes.get_legend().get_texts()[0].get_text() == "loss=mse,activation=tanh"
    assert axes.get_title() == "Test error: mean and 95 % interval over 3 seeds, every seed"


def test_learning_curves_leave_out_what_diverged():
    curve = pd.DataFrame({0: [0.9, np.nan], 1: [0.9, np.nan]}, index=[0, 1])
    axes = figures.learning_curves({"arm": curve}, "test_loss", Figure().add_subplot())
    assert [len(line.get_xdata()) for line in axes.get_lines()] == [1, 1, 1]
    curve[1] = [0.9, 0.5]
    axes = figures.learning_curves({"arm": curve}, "test_loss", Figure().add_subplot())
    np.testing.assert_allclose(axes.get_lines()[-1].get_ydata(), [0.9, 0.5])


def test_final_values_show_every_seed(tmp_path):
    arms = {"a": ([0.1, 0.2], (0.08, 0.22), (0.1, 0.2)), "b": ([0.3], None, None)}
    axes = figures.final_values(arms, "test_error", "a title", Figure().add_subplot())
    points = [line.get_xdata() for line in axes.get_lines() if line.get_marker() == "o"]
    assert [list(values) for values in points] == [[0.1, 0.2], [0.3]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    assert [text.get_text() for text in axes.texts] == ["15.00", "30.00"]
    # The interval over seeds and images has caps; that over seeds alone is a thicker bar within it.
    bars = {tuple(line.get_xdata()): line for line in axes.get_lines() if len(set(line.get_ydata())) == 1}
    assert bars[0.08, 0.22].get_marker() == "|"
    assert bars[0.08, 0.22].get_linewidth() < bars[0.1, 0.2].get_linewidth()
    assert axes.get_title(loc="left") + axes.get_title() == "a title"


def test_reject_curves_show_the_mean():
    curve = pd.DataFrame({0: [0.02, 0.01], 1: [0.04, 0.03]}, index=[0.0, 0.1])
    axes = figures.reject_curves({"one": curve}, Figure().add_subplot())
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [0, 10])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [3, 2])
    assert axes.get_title() == "Reject curves: mean and 95 % interval over 2 seeds"


def test_digits_are_drawn_with_captions():
    made = figures.digits([np.eye(4)] * 5, list("abcde"), columns=3)
    assert len(made.axes) == 6
    assert [axes.get_title() for axes in made.axes] == [*"abcde", ""]
    np.testing.assert_array_equal(made.axes[0].images[0].get_array(), np.eye(4))


def test_many_arms_leave_their_seeds_out():
    curve = pd.DataFrame({0: [0.9, 0.5], 1: [0.9, 0.6]}, index=[0, 1])
    arms = {str(arm): curve for arm in range(figures.MAX_DETAILED_ARMS + 1)}
    axes = figures.learning_curves(arms, "test_error", Figure().add_subplot())
    assert len(axes.get_lines()) == len(arms)
    assert "every seed" not in axes.get_title(loc="left") + axes.get_title()


def test_a_forest_fills_what_is_shown():
    rows = {
        "first": figures.ForestRow(-0.01, (-0.02, -0.005), (-0.012, -0.008), True),
        "second": figures.ForestRow(0.0, (-0.01, 0.01), (-0.01, 0.01), False),
    }
    axes = figures.forest(rows, "title", "difference", 0.0, (-0.001, 0.001), Figure().add_subplot(), percent=True)
    dots = [line for line in axes.get_lines() if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == [-0.01, 0.0]
    assert [line.get_markerfacecolor() for line in dots] == [figures.COLORS[0], "white"]
    thin, thick = (
        [tuple(line.get_xdata()) for line in axes.get_lines() if line.get_linewidth() == width] for width in (1.5, 5)
    )
    thin = [ends for ends in thin if len(ends) == 2]
    assert thin == [(-0.02, -0.005)]  # the second's intervals are the same: a bar
    assert thick == [(-0.012, -0.008), (-0.01, 0.01)]
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_width()) == (-0.001, 0.002)
    assert axes.xaxis.get_major_formatter()(-0.01, 0) == "-1"


def test_tuning_curves_mark_the_choice():
    curve = pd.DataFrame({0: [0.3, 0.1, 0.2], 1: [0.5, 0.1, 0.4]}, index=pd.Index([0.01, 0.1, 1.0]))
    axes = figures.tuning_curves({"arm": (curve, 0.1)}, "learning_rate", Figure().add_subplot())
    star = next(line for line in axes.get_lines() if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (0.1, pytest.approx(0.1))
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [0.4, 0.1, 0.3])
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert axes.get_xscale() == "log"


def test_a_tuned_zero_makes_the_axis_linear():
    curve = pd.DataFrame({0: [0.3, 0.1]}, index=pd.Index([0.0, 0.9]))
    axes = figures.tuning_curves({"arm": (curve, 0.9)}, "momentum", Figure().add_subplot())
    assert axes.get_xscale() == "linear"


def test_confusions_show_percent_and_hide_zeros():
    matrix = pd.DataFrame([[0.9, 0.1], [0.0, 1.0]])
    made = figures.confusions({"arm": matrix})
    assert [text.get_text() for text in made.axes[0].texts] == ["90", "10", "", "100"]


SEEDS = {"$a$ < b": ([0.1, 0.2], None, None)}


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_is_the_same_file_each_time(tmp_path, kind):
    for name in "ab":
        made = figures.figure(lambda axes: figures.final_values(SEEDS, "test_error", "$x$", axes))
        figures.save(made, tmp_path / f"{name}.{kind}")
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    assert matplotlib.rcParams["text.parse_math"]  # only our own figures are drawn otherwise


def test_the_error_of_a_class_is_in_percent():
    axes = figures.final_values(SEEDS, "test_error_class_3", "title", Figure().add_subplot())
    assert axes.texts[0].get_text() == "15.00"
    assert axes.get_xlabel() == "test error class 3 (%)"


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_the_value_axis_has_ticks_at_any_scale(scale):
    curve = pd.DataFrame({0: [scale, 1.3 * scale], 1: [scale, 0.5 * scale]}, index=[0, 1])
    axes = figures.learning_curves({"arm": curve}, "test_loss", Figure().add_subplot())
    low, high = axes.get_ylim()
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 1
    assert axes.get_yscale() == "log"
    texts = axes.yaxis.get_major_formatter().format_ticks([0.001, 0.2, 5])
    assert texts == ["0.001", "0.2", "5"]  # not formulas of TeX, which figures show as they stand


def test_values_of_zero_have_a_linear_axis():
    curve = pd.DataFrame({0: [0.0, 0.0], 1: [0.0, 0.0]}, index=[0, 1])
    axes = figures.learning_curves({"arm": curve}, "train_error", Figure().add_subplot())
    assert axes.get_yscale() == "linear"


def test_an_arm_without_a_finite_value_is_left_out():
    curves = {"broken": pd.DataFrame({0: [np.nan], 1: [np.nan]}), "fine": pd.DataFrame({0: [0.1], 1: [0.2]})}
    axes = figures.learning_curves(curves, "test_loss", Figure().add_subplot())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fine"]


CURVE = pd.DataFrame({0: [0.9, 0.5], 1: [0.9, 0.6]}, index=[0, 1])


def drawn(name):
    """A figure of two arms, of which one has this name."""
    arms = {name: CURVE, "other": CURVE}
    return figures.figure(lambda axes: figures.learning_curves(arms, "test_error", axes), arms)


def legend_of(made):
    return [text.get_text() for text in made.axes[0].get_legend().get_texts()]


def test_a_figure_holds_its_legend_and_is_laid_out_once():
    made = drawn("a long name of an arm")
    legend = made.axes[0].get_legend().get_window_extent()
    assert made.axes[0].get_window_extent().x1 < legend.x0 < legend.x1 < made.bbox.x1
    assert made.get_layout_engine() is None, "it would arrange the axes at each save"


def test_an_arm_whose_name_begins_with_an_underscore_is_in_the_legend():
    assert legend_of(drawn("_x")) == [" _x", "other"]
    curve = pd.DataFrame({0: [0.1, 0.2]}, index=pd.Index([0.01, 0.1], name="rate"))
    axes = figures.tuning_curves({"_x": (curve, 0.1)}, "rate", Figure().add_subplot())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [" _x"]


def test_the_users_matplotlibrc_changes_no_figure():
    """`text.usetex` would need LaTeX."""
    rc = {"text.usetex": True, "image.origin": "lower", "font.size": 30, "lines.linewidth": 9, "savefig.bbox": "tight"}
    expected = [figures.rendered(drawn("arm_1"), kind) for kind in ("png", "svg")]
    image = report.data_uri(np.tri(4, dtype=np.uint8))
    with matplotlib.rc_context(
        rc | {"svg.fonttype": "none", "savefig.dpi": 20, "axes.prop_cycle": "cycler('lw', [9])"}
    ):
        assert [figures.rendered(drawn("arm_1"), kind) for kind in ("png", "svg")] == expected
        assert report.data_uri(np.tri(4, dtype=np.uint8)) == image
        assert matplotlib.rcParams["text.usetex"]


def test_characters_that_no_font_has_are_escaped(monkeypatch):
    """Without warnings, which would fail this test, and without boxes."""
    own = [entry for entry in figures.font_manager.fontManager.ttflist if entry.name == figures.FONT]
    monkeypatch.setattr(figures.font_manager.fontManager, "ttflist", own)
    figures.font_of.cache_clear()
    made = drawn("größe 中\x1b")
    figures.rendered(made, "png")
    assert legend_of(made)[0] == "größe \\u4e2d\\x1b"
    figures.font_of.cache_clear()


def test_characters_that_another_installed_font_has_are_drawn_with_it():
    """A circle that combines with a letter, which Matplotlib's second own font has."""
    lacking = "\u20dd"
    assert figures.font_of(lacking) != figures.FONT
    made = drawn(f"a{lacking}")
    figures.rendered(made, "png")
    assert legend_of(made)[0] == f"a{lacking}"
