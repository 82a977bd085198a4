"""What notebooks see inside networks, against hand computations and derivatives."""

import dataclasses
import functools

import few_digits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from lenet_jax import evaluate as evaluation
from lenet_jax import model, native
from lenet_jax.analysis import dynamics, network_figures
from lenet_jax.errors import InputError
from lenet_jax.experiments import base
from lenet_jax.layers import ACTIVATIONS, BITMAPS
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.run import arms, folder

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config_of(**fields):
    config = base.get_config()
    config.update({"dataset": few_digits.DATASET, "train_size": 100, "batch_size": 20, "epochs": 1, "seeds": 2})
    config.update({"loss": "cross_entropy"} | fields)
    return config


@pytest.fixture(scope="module")
def setting():
    return dynamics.resolve(config_of(activation="tanh"))


COUNT = native.LEAST_IMAGES


@pytest.fixture(scope="module")
def batch(setting):
    return jax.device_get(jax.jit(lambda: setting.take("train", COUNT))())


by_layer = jax.jit(dynamics.by_layer, static_argnames="recipe")


@functools.partial(jax.jit, static_argnames="architecture")
def states_of(params, images, architecture):
    return jax.vmap(model.activations, in_axes=(None, 0, None))(params, images, architecture)


def test_a_setting_is_what_the_config_says(setting):
    assert setting.seeds == [0, 1]
    assert setting.recipe.train_size == 100
    assert setting.hyper["learning_rate"] == pytest.approx(0.03)
    assert setting.recipe.native == native.preferred()
    images, labels = jax.jit(lambda: setting.take("test", 3))()
    assert images.shape == (3, 32, 32)
    np.testing.assert_array_equal(labels, setting.images.labels[600:603])


def test_a_setting_needs_one_arm():
    config = config_of()
    config.sweep.activation = ("tanh", "relu")
    with pytest.raises(InputError, match="2 arms"):
        dynamics.resolve(config)


needs_c = pytest.mark.skipif(not native.available(), reason="there is no C compiler")


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=needs_c)], ids=["blocked", "native"])
def sigmoid(setting, batch, random_params, request):
    """A sigmoid network's parameters and layers, in each form."""
    recipe = dataclasses.replace(setting.recipe, architecture=Architecture(), native=request.param)
    params = random_params(recipe.architecture)
    return params, jax.device_get(by_layer(params, *batch, recipe))


def test_layers_are_those_of_the_specification(sigmoid, batch):
    """Means, deviations and slopes from `model.activations`: sigma' = sigma (1 - sigma), at most 1/4."""
    params, found = sigmoid
    assert set(found) == set(dynamics.LAYERS)
    close = {"rtol": 1e-4, "atol": 1e-5}
    for name, states in states_of(params, batch[0], Architecture()).items():
        layer, flat = found[name], np.asarray(states).reshape(COUNT, -1)
        np.testing.assert_allclose(layer.mean, flat.mean(), **close)
        np.testing.assert_allclose(layer.spread, flat.std(), **close)
        np.testing.assert_allclose(layer.signal, np.sqrt(flat.var(axis=0).mean()), **close)
        slopes = flat * (1 - flat) if name != "output" else np.ones(1)
        np.testing.assert_allclose(layer.slope, slopes.mean(), **close)
        np.testing.assert_allclose(layer.saturated, (slopes < 0.1 * 0.25).mean(), atol=1e-6)


@pytest.mark.parametrize("allow_native", [False, pytest.param(True, marks=needs_c)])
def test_preactivations_are_before_the_activation(batch, random_params, allow_native):
    """For the dense layers also in their order; for maps in any."""
    arguments = params, *_ = random_params(Architecture()), batch[0], Architecture(), allow_native
    found = jax.jit(dynamics.preactivations, static_argnums=(2, 3))(*arguments)
    traced = jax.make_jaxpr(dynamics.preactivations, static_argnums=(2, 3))(*arguments)
    assert ("lenet_jax_forward" in str(traced)) == allow_native
    for name, states in states_of(params, batch[0], Architecture()).items():
        flat = np.asarray(states).reshape(COUNT, -1)
        expected = flat if name == "output" else np.log(flat / (1 - flat))
        order = np.sort if name in ("c1", "s2", "c3", "s4") else np.asarray
        np.testing.assert_allclose(order(found[name]), order(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_are_the_derivative_of_the_activation(activation):
    architecture, derivative = Architecture(activation=activation), jax.vmap(jax.grad(ACTIVATIONS[activation]))

    @jax.jit
    def compute(sums, grid):
        ours = dynamics.layer_of(sums, True, None, None, architecture), dynamics.largest_derivative(architecture)
        return *ours, jax.vmap(derivative)(sums), derivative(grid).max()

    sums, grid = np.linspace(-4, 4, 8, dtype=np.float32).reshape(2, 4), np.linspace(-1, 1, 101, dtype=np.float32)
    layer, largest, slopes, expected = jax.device_get(compute(sums, grid))
    np.testing.assert_allclose(layer.slope, slopes.mean(), rtol=1e-6)
    np.testing.assert_allclose(layer.saturated, (slopes < 0.1 * expected).mean(), rtol=1e-6)
    np.testing.assert_allclose(largest, expected, rtol=1e-6)


def test_gradient_norms_of_the_output_layer(sigmoid, batch):
    """dE/dW = mean over patterns of (probability - target) x F6's state."""
    params, found = sigmoid
    states = jax.device_get(states_of(params, batch[0], Architecture()))
    powers = np.exp(states["output"])
    errors = powers / powers.sum(axis=1, keepdims=True) - np.eye(10)[batch[1]]
    of_kernel = np.einsum("pj,pi->ji", states["f6"], errors) / COUNT
    expected = np.sqrt(np.square(of_kernel).sum() + np.square(errors.mean(axis=0)).sum())
    np.testing.assert_allclose(found["output"].gradient, expected, rtol=1e-4)
    weights = jax.device_get([params.output.kernel, params.output.bias])
    expected = np.sqrt(sum(np.square(leaf).sum() for leaf in weights))
    np.testing.assert_allclose(found["output"].weights, expected, rtol=1e-4)


def test_layers_without_parameters_and_rbf_outputs(setting, batch, random_params):
    architecture = Architecture(activation="tanh", subsampling="max", output="rbf")
    recipe = dataclasses.replace(setting.recipe, architecture=architecture, loss=Loss("map"))
    found = jax.device_get(by_layer(random_params(architecture), *batch, recipe))
    assert "output" not in found
    assert (found["s2"].gradient, found["s2"].weights, found["s2"].slope) == (0, 0, 1)
    assert found["c1"].gradient > 0


def test_an_epoch_is_divided_into_equal_segments(setting):
    with pytest.raises(ValueError, match="segments: 2 doesn't divide the 5 steps"):
        dynamics.record_training(setting, lambda params: params, segments=2)
    estimates = dynamics.resolve(
        config_of(optimizer="sdlm", train_size=120, curvature_estimates=3, curvature_patterns=20)
    )
    with pytest.raises(ValueError, match="segments: 2 doesn't divide the 6 steps"):  # an estimate would be lost
        dynamics.record_training(estimates, lambda params: params, segments=2)


def test_the_table_has_a_row_a_time_seed_and_layer(setting):
    numbers = np.arange(6.0).reshape(3, 2)
    layer = dynamics.Layer(**{field.name: numbers for field in dataclasses.fields(dynamics.Layer)})
    table = dynamics.layer_table({"f6": layer, "c1": layer}, setting, segments=2)
    assert list(table.layer.unique()) == ["c1", "f6"]
    row = table[(table.epoch == 0.5) & (table.seed == 1) & (table.layer == "f6")]
    assert row.signal.item() == numbers[1, 1]
    figure = network_figures.layer_figure({"one": table, "two": table}, {"signal": "signal"}, logarithmic=True)
    (line, _), (other, _) = (axes.get_lines() for axes in figure.axes)
    np.testing.assert_allclose(line.get_ydata(), [0.5, 2.5, 4.5])
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["C1", "F6"]
    assert line.get_color().tolist() == other.get_color().tolist()


@pytest.mark.parametrize("rivals", [1, 9])
def test_gradients_with_respect_to_logits(rivals):
    """Cross-entropy pulls with 1 - p, squared error with 2 p (1 - p)^2 (1 + 1 / rivals)."""
    probabilities_at = jax.jit(lambda p: jax.nn.softmax(dynamics.logits_at(p, rivals)))
    for p in (1e-4, 0.1, 1 / 3, 0.9):
        probabilities = np.asarray(probabilities_at(np.float32(p)))
        np.testing.assert_allclose(probabilities[: 1 + rivals], [p, *[(1 - p) / rivals] * rivals], rtol=1e-4)
        expected = {"cross_entropy": 1 - p, "mse": 2 * p * (1 - p) ** 2 * (1 + 1 / rivals)}
        for name, pull in expected.items():
            gradient = np.asarray(dynamics.logit_gradient(Loss(name), np.float32(p), rivals))
            np.testing.assert_allclose(gradient[0], -pull, rtol=1e-3)
            np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6)


def test_a_line_ends_at_the_two_networks(setting, random_params):
    architecture, shares = setting.recipe.architecture, jnp.array([0.0, 0.5, 1.0])
    first, second = random_params(architecture, 0), random_params(architecture, 1)
    start, middle, end = (dynamics.interpolate(first, second, share) for share in shares)
    jax.tree.map(np.testing.assert_array_equal, (start, end), (first, second))
    biases = (np.asarray(network.f6.bias) for network in (first, second))
    np.testing.assert_allclose(middle.f6.bias, sum(biases) / 2, rtol=1e-6)
    indices = range(600, 700)
    found = dynamics.along(first, second, shares, setting, indices)
    images, labels = jax.jit(setting.images.take)(np.array(indices))
    loss = jax.jit(setting.recipe.loss)
    for index, network in enumerate((first, middle, second)):
        logits = states_of(network, images, architecture)["output"]
        np.testing.assert_allclose(found.loss[index], loss(logits, labels), rtol=1e-4)
        wrong = np.argmax(logits, axis=1) != np.asarray(labels)
        np.testing.assert_allclose(found.error[index], wrong.mean(), atol=1e-6)


def test_barriers():
    shares = np.linspace(0, 1, 5)
    assert dynamics.barrier(shares, np.array([1.0, 1.5, 2.0, 2.5, 3.0])) == 0
    assert dynamics.barrier(shares, np.array([1.0, 1.0, 5.0, 2.0, 2.0])) == pytest.approx(3.5)
    assert dynamics.barrier(shares, np.array([3.0, 1.0, 1.0, 1.0, 2.0])) == 0


def test_effective_rates():
    """Of F6's biases by hand: d2y_D/dx^2 = 2, so that h is the mean of 2 f'(a)^2 over all training images."""
    fields = {"activation": "scaled_tanh", "output": "rbf", "initializer": "lecun1998_sqrt", "loss": "map"}
    setting = dynamics.resolve(config_of(**fields, optimizer="sdlm", curvature_patterns=100, mu=0.02))

    @jax.jit
    def compute():
        params, (images, _) = dynamics.initial_state(setting, 0).params, setting.take("train", 100)
        return dynamics.effective_rates(setting, 0), states_of(params, images, setting.recipe.architecture)["f6"]

    rates, states = jax.device_get(compute())
    slopes = 1.7159 * 2 / 3 * (1 - (states / 1.7159) ** 2)
    np.testing.assert_allclose(rates.f6.bias, 0.03 / (0.02 + (2 * slopes**2).mean(axis=0)), rtol=1e-3)
    by_layer = dynamics.numbers_by_layer(rates)
    assert list(by_layer) == ["c1", "s2", "c3", "s4", "c5", "f6"]
    assert sum(map(len, by_layer.values())) == 60_000
    assert all((numbers > 0).all() and (numbers <= 0.03 / 0.02 * 1.0001).all() for numbers in by_layer.values())


def test_reading_a_code(batch, random_params):
    architecture = Architecture(activation="scaled_tanh", output="rbf")
    params = random_params(architecture)
    read_code = jax.jit(dynamics.read_code, static_argnames="architecture")
    reading = jax.device_get(read_code(params, batch[0][0], architecture))
    distances = np.square(reading.code - BITMAPS).sum(axis=1)
    np.testing.assert_allclose(reading.penalties, distances, rtol=1e-4)
    np.testing.assert_array_equal(reading.order, distances.argsort())
    smallest = np.sort(distances)[:2]
    np.testing.assert_allclose(reading.margin, smallest[1] - smallest[0], rtol=1e-3)
    axes = network_figures.codes(reading, Figure().subplots(1, 3))
    shown = [one.get_images()[0].get_array() for one in axes]
    assert [picture.shape for picture in shown] == [(12, 7)] * 3
    np.testing.assert_array_equal(shown[1].ravel(), BITMAPS[distances.argmin()])
    with pytest.raises(InputError, match="softmax"):
        read_code(params, batch[0][0], Architecture())


def test_figures_of_paths_and_rates(setting, random_params):
    shares = np.linspace(0, 1, 3)
    found = evaluation.Evaluation(*[np.array([0.1, 0.5, 0.2])] * 5)
    axes = network_figures.path_curves(shares, {"a": found}, "error", Figure().add_subplot())
    np.testing.assert_allclose(axes.get_lines()[0].get_ydata(), [10, 50, 20])
    np.testing.assert_allclose(axes.get_lines()[1].get_ydata(), [10, 20])
    assert axes.get_ylabel() == "error (%)"
    axes = network_figures.rate_histogram(
        np.array([1e-9, 2e-4, 2e-3, 3e-3]), [1e-5, 1e-4, 1e-3, 1e-2], Figure().add_subplot()
    )
    assert [bar.get_height() for bar in axes.patches] == [25, 25, 50]
    assert axes.get_xscale() == "log"


def test_a_run_is_made_once_and_has_the_networks_that_are_recorded(tmp_path, monkeypatch, assert_close):
    monkeypatch.setattr(dynamics, "RUNS", tmp_path / "notebooks")
    config = config_of(train_size=40, store_predictions=False)
    made = dynamics.run(config, "one")
    assert made.folder == tmp_path / "notebooks" / "one"
    before = (made.folder / folder.SUMMARY).stat().st_mtime_ns
    assert dynamics.run(config, "one").folder == made.folder
    assert (made.folder / folder.SUMMARY).stat().st_mtime_ns == before
    setting = dynamics.resolve(config)
    recorded = dynamics.record_training(setting, lambda params: params, segments=2)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(recorded)} == {(3, 2)}
    assert_close(jax.tree.map(lambda leaf: leaf[-1], recorded), made.params(), 1e-4)
    for seed in setting.seeds:
        network = jax.tree.map(lambda leaf, seed=seed: leaf[0, seed], recorded)
        assert_close(network, dynamics.initial_state(setting, seed).params, 1e-6)


def test_another_run_in_the_folder_is_moved_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamics, "RUNS", tmp_path)
    fresh = []
    monkeypatch.setattr(dynamics.runner, "run", lambda *_, fresh, calls=fresh: calls.append(fresh))
    config = config_of()
    folder.create(tmp_path / "one", arms.describe(config), {})
    for size in (20, 10):
        config.batch_size = size
        with pytest.raises(InputError, match="is not finished"):  # nothing was run
            dynamics.run(config, "one")
    assert fresh == [False, True]
