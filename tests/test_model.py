"""The network against its specification: counts, values, gradients, initial parameters."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from covering import pairwise

from lenet_jax import model
from lenet_jax.errors import InputError
from lenet_jax.initializers import INITIALIZERS
from lenet_jax.layers import ACTIVATIONS
from lenet_jax.losses import LOSSES, Loss
from lenet_jax.model import CONNECTIVITIES, SUBSAMPLINGS, WINDOWS, Architecture

pytestmark = pytest.mark.usefixtures("quick_compilation")

LAYERS = ("c1", "s2", "c3", "s4", "c5", "f6", "output")

# Draws every number; other initializers leave biases at 0, or derive them from the weights.
ALL_RANDOM = Architecture(initializer="lecun1998")

FULL, SEVEN = (dataclasses.replace(ALL_RANDOM, **change) for change in ({"connectivity": "full"}, {"classes": 7}))

# By layer, as `Start` bounds them: a unit's inputs (C3's by output map), and the units that see an input.
FAN_IN = {"c1": 25, "s2": 4, "c3": np.repeat([75, 100, 150], [6, 9, 1]), "s4": 4, "c5": 400, "f6": 120, "output": 84}
FAN_OUT = {"c1": 150, "s2": 1, "c3": 250, "s4": 1, "c5": 120, "f6": 84, "output": 10}


def weights_of(layer):
    """A layer's kernel, or its coefficients."""
    return layer.kernel if hasattr(layer, "kernel") else layer.coefficient


def of_connections(values):
    """C3's numbers by output map -> by connection."""
    return np.repeat(values, [len(sources) for sources in model.C3_TABLE])


@functools.partial(jax.jit, static_argnames="architecture")
def states_and_output(params, image, architecture):
    """Of `activations` and `forward`, in one program: two may round differently."""
    states = model.activations(params, image, architecture)
    assert tuple(states) == LAYERS  # in order: JAX sorts what it returns
    return states, model.forward(params, image, architecture)


predict_scores = jax.jit(model.predict_scores, static_argnames="architecture")
log_probabilities = jax.jit(model.log_probabilities, static_argnames="architecture")


@pytest.fixture(scope="module")
def draw():
    """() -> by architecture, the initial parameters of 40 keys, stacked, as NumPy arrays."""
    keys = jax.random.split(jax.random.key(7), 40)
    pairs = itertools.product(BOUNDS, ("sigmoid", "tanh"))
    usual = [Architecture(activation, initializer=name) for name, activation in pairs]
    starts = jax.tree.map(lambda *each: np.stack(each), *map(model.starts_of, usual))

    # They are millions of numbers: here, unlike elsewhere in this file, optimization takes less time than it saves.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    @jax.vmap
    def program(key):
        others = [model.init(key, architecture) for architecture in (FULL, SEVEN)]
        return others, jax.vmap(lambda start: model.init(key, usual[0], start))(starts)

    def drawn():
        others, together = jax.tree.map(np.asarray, program(keys))
        each = [jax.tree.map(lambda leaf, at=at: leaf[:, at], together) for at in range(len(usual))]
        return dict(zip([FULL, SEVEN, *usual], [*others, *each], strict=True))

    return drawn


@pytest.fixture(scope="module")
def many(draw):
    return draw()


def test_parameter_counts():
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), Architecture()))
    counts = model.count_parameters(params)
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "output": 850}
    assert sum(counts.values()) == 60850
    assert sum(counts.values()) - counts["output"] == 60000


def test_counts_of_1998():
    """PAPER_1998.md, "Counts": the RBF units train nothing."""
    architecture = Architecture(output="rbf")
    parameters = {name: count for name, _, count in model.parameter_table(architecture)}
    assert parameters == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164, "output": 0}
    assert sum(parameters.values()) == 60000
    connections = model.connection_table(architecture)
    expected = {"c1": 122304, "s2": 5880, "c3": 151600, "s4": 2000, "c5": 48120, "f6": 10164, "output": 840}
    assert connections == expected
    assert sum(connections.values()) == 340908


def test_connections_of_other_architectures():
    connections = model.connection_table(Architecture(connectivity="full", subsampling="average"))
    assert connections["c3"] == 100 * (96 * 25 + 16)
    assert (connections["s2"], connections["s4"]) == (4 * 6 * 14**2, 4 * 16 * 5**2)
    assert connections["output"] == 850


def test_parameter_shapes():
    assert model.parameter_table(Architecture()) == [
        ("c1", "kernel [6, 5, 5], bias [6]", 156),
        ("s2", "coefficient [6], bias [6]", 12),
        ("c3", "kernel [60, 5, 5], bias [16]", 1516),
        ("s4", "coefficient [16], bias [16]", 32),
        ("c5", "kernel [16, 5, 5, 120], bias [120]", 48120),
        ("f6", "kernel [120, 84], bias [84]", 10164),
        ("output", "kernel [84, 10], bias [10]", 850),
    ]


@pytest.mark.parametrize("subsampling", ["average", "max"])
def test_plain_pooling_has_no_parameters(subsampling):
    rows = {name: rest for name, *rest in model.parameter_table(Architecture(subsampling=subsampling))}
    assert rows["s2"] == rows["s4"] == ["-", 0]


def test_full_connectivity_and_classes_change_the_counts():
    counts = {name: count for name, _, count in model.parameter_table(Architecture(connectivity="full", classes=7))}
    assert counts["c3"] == 96 * 25 + 16
    assert counts["output"] == 84 * 7 + 7


def test_c3_table_is_the_papers():
    assert model.C3_TABLE == (
        (0, 1, 2),
        (1, 2, 3),
        (2, 3, 4),
        (3, 4, 5),
        (0, 4, 5),
        (0, 1, 5),
        (0, 1, 2, 3),
        (1, 2, 3, 4),
        (2, 3, 4, 5),
        (0, 3, 4, 5),
        (0, 1, 4, 5),
        (0, 1, 2, 5),
        (0, 1, 3, 4),
        (1, 2, 4, 5),
        (0, 2, 3, 5),
        (0, 1, 2, 3, 4, 5),
    )


@pytest.mark.parametrize("connectivity", CONNECTIVITIES)
def test_connectivity_equals_the_references(connectivity):
    assert [list(sources) for sources in CONNECTIVITIES[connectivity]] == reference.CONNECTED[connectivity]


@pytest.mark.parametrize(
    ("activation", "connectivity", "subsampling"), pairwise(ACTIVATIONS, CONNECTIVITIES, SUBSAMPLINGS)
)
def test_activations_equal_the_reference(activation, connectivity, subsampling, random_params):
    architecture = Architecture(activation, connectivity, subsampling)
    with jax.enable_x64(True):
        params = jax.tree.map(np.asarray, random_params(architecture, seed=1))
        image = np.random.default_rng(2).normal(size=(32, 32))
        states, output = states_and_output(params, image, architecture)
    expected = reference.activations(params, image, activation, connectivity, subsampling)
    for name, state in states.items():
        assert state.dtype == np.float64
        np.testing.assert_allclose(state, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
    np.testing.assert_array_equal(output, states["output"])


@pytest.mark.parametrize("window", WINDOWS)
def test_activations_of_1998_equal_the_reference(window, random_params):
    architecture = Architecture("scaled_tanh", subsampling_window=window, output="rbf")
    with jax.enable_x64(True):
        params = jax.tree.map(np.asarray, random_params(architecture, seed=4))
        image = np.random.default_rng(5).normal(size=(32, 32))
        states, _ = states_and_output(params, image, architecture)
        scores = np.asarray(predict_scores(states["output"], architecture))
    expected = reference.activations(params, image, "scaled_tanh", "table", "trainable", window)
    for name, state in states.items():
        np.testing.assert_allclose(state, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)
    assert scores.argmax() == np.argmin(expected["output"])


def test_rbf_outputs_are_for_ten_classes():
    with pytest.raises(InputError, match="output: 'rbf' has 10 bitmaps, one per digit; the data set has 26"):
        Architecture(output="rbf", classes=26)


@functools.partial(jax.jit, static_argnames="architecture")
def forward_and_back(params, image, slopes, architecture):
    """The output, and the gradient of `slopes` x output: one program serves all losses."""
    output, back = jax.vjp(lambda params: model.forward(params, image, architecture), params)
    return output, back(slopes)[0]


@functools.partial(jax.jit, static_argnames=("architecture", "loss"))
@jax.value_and_grad
def loss_and_slopes(output, architecture, loss):
    return loss(model.logits_of(output[None], architecture), jnp.array([3]))


@pytest.mark.parametrize(
    ("activation", "output", "subsampling", "loss"),
    pairwise([*((name, "softmax") for name in ACTIVATIONS), ("scaled_tanh", "rbf")], SUBSAMPLINGS, LOSSES),
)
def test_gradients_equal_finite_differences(activation, output, subsampling, loss, random_params):
    architecture = Architecture(activation, subsampling=subsampling, output=output)
    settings = Loss(loss, mse_point="softmax" if output == "softmax" else "linear", map_constant=1000.0)
    head = Architecture(output=output)  # all that a loss depends on
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        params, image = jax.tree.map(np.asarray, random_params(architecture, seed=3)), rng.normal(size=(32, 32))

        def evaluate(params):
            output, _ = forward_and_back(params, image, np.zeros(10), architecture)
            return loss_and_slopes(output, head, settings)

        _, slopes = evaluate(params)
        _, gradient = forward_and_back(params, image, slopes, architecture)
        # One direction per layer: an error in a small layer's gradient can't hide behind C5's 48,120 numbers.
        for name, layer in vars(params).items():
            if layer is None:
                continue
            direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), layer)
            step = 1e-6
            (ahead, _), (behind, _) = (
                evaluate(params.replace(**{name: jax.tree.map(lambda leaf, d, by=by: leaf + by * d, layer, direction)}))
                for by in (step, -step)
            )
            numerical = (float(ahead) - float(behind)) / (2 * step)
            analytic = sum(map(np.vdot, jax.tree.leaves(getattr(gradient, name)), jax.tree.leaves(direction)))
            np.testing.assert_allclose(analytic, numerical, rtol=1e-5, atol=1e-8, err_msg=name)
            assert abs(analytic) > 1e-6, f"{name}: no gradient to check"


def test_squashed_outputs_are_linear_ones_squashed(random_params):
    linear, squashed = (Architecture("scaled_tanh", output=output) for output in ("linear", "squashed"))
    with jax.enable_x64(True):
        params, image = random_params(linear), np.random.default_rng(6).normal(size=(32, 32))
        (_, scores), (_, found) = (states_and_output(params, image, one) for one in (linear, squashed))
    np.testing.assert_allclose(found, 1.7159 * np.tanh(2 / 3 * np.asarray(scores)), rtol=1e-10)


@pytest.mark.parametrize("output", ["softmax", "linear"])
def test_predict_scores(output):
    outputs = np.log(np.array([[1, 2, 1]], np.float32))
    expected = [[0.25, 0.5, 0.25]] if output == "softmax" else outputs
    np.testing.assert_allclose(predict_scores(outputs, Architecture(output=output)), expected, rtol=1e-6)


@pytest.mark.parametrize("output", model.PROBABILISTIC)
def test_log_probabilities(output):
    outputs = np.random.default_rng(8).normal(scale=30, size=(4, 10)).astype(np.float32)
    likelihoods = np.exp(np.float64(-outputs if output == "rbf" else outputs))
    expected = np.log(likelihoods / likelihoods.sum(axis=1, keepdims=True))
    found = log_probabilities(outputs, Architecture(output=output))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    scores = predict_scores(outputs, Architecture(output=output))
    np.testing.assert_array_equal(np.argmax(found, axis=1), np.argmax(scores, axis=1))


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("activation", "'sigmoid', 'tanh', 'scaled_tanh', 'relu'"),
        ("connectivity", "'table', 'full'"),
        ("subsampling", "'trainable', 'average', 'max'"),
        ("subsampling_window", "'mean', 'sum'"),
        ("output", "'softmax', 'linear', 'squashed', 'rbf'"),
        ("initializer", "'lecun1998', 'lecun1998_sqrt', 'glorot', 'bengio2012', 'glorot_centered'"),
    ],
)
def test_unknown_setting_is_refused(field, choices):
    with pytest.raises(InputError) as refusal:
        Architecture(**{field: "huge"})
    assert str(refusal.value) == f"{field}: 'huge' is not one of {choices}"


BOUNDS = {
    "lecun1998": lambda fan_in, fan_out, activation: 2.4 / fan_in,
    "lecun1998_sqrt": lambda fan_in, fan_out, activation: 2.4 / fan_in**0.5,
    "glorot": lambda fan_in, fan_out, activation: (6 / (fan_in + fan_out)) ** 0.5,
    "bengio2012": lambda fan_in, fan_out, activation: (
        (4 if activation == "sigmoid" else 1) * (6 / (fan_in + fan_out)) ** 0.5
    ),
}
BOUNDS["glorot_centered"] = BOUNDS["bengio2012"]


def test_every_initializer_is_tested():
    assert set(BOUNDS) == set(INITIALIZERS)


@pytest.mark.parametrize(("initializer", "activation"), list(itertools.product(BOUNDS, ["sigmoid", "tanh"])))
def test_initial_bounds(initializer, activation, many):
    params = many[Architecture(activation, initializer=initializer)]
    for name in LAYERS:
        weights, bias = np.abs(weights_of(getattr(params, name))), np.asarray(getattr(params, name).bias)
        bound = BOUNDS[initializer](FAN_IN[name], FAN_OUT[name], activation)
        bias_bound = bound
        if name == "c3":
            bound = of_connections(bound)[:, None, None]
        assert (weights <= bound * (1 + 1e-6)).all(), name
        largest = (weights / bound).max(axis=(0, 2, 3) if name == "c3" else None)
        assert (largest > 0.95).all(), f"{name}: the bound isn't nearly reached"
        if initializer.startswith("lecun1998"):
            assert (np.abs(bias) <= bias_bound * (1 + 1e-6)).all(), name
            largest = np.abs(bias / bias_bound).max(axis=0 if name == "c3" else None)
            assert (largest > 0.85).all(), f"{name}: the biases' bound isn't nearly reached"
        elif initializer != "glorot_centered" or activation != "sigmoid" or name == "c1":
            np.testing.assert_array_equal(bias, 0, err_msg=name)


def test_lecun1998_bounds_of_c3_by_output_map(many):
    largest = np.abs(many[ALL_RANDOM].c3.kernel).max(axis=(0, 2, 3))
    np.testing.assert_allclose(largest[:18], 0.032, rtol=0.01)
    np.testing.assert_allclose(largest[18:54], 0.024, rtol=0.01)
    np.testing.assert_allclose(largest[54:], 0.016, rtol=0.01)


def test_glorot_centered_biases(many):
    params = many[Architecture("sigmoid", initializer="glorot_centered")]
    for name in ("s2", "s4"):
        layer = getattr(params, name)
        np.testing.assert_allclose(layer.bias, -layer.coefficient / 2, rtol=1e-6)
    for name in ("c5", "f6", "output"):
        layer = getattr(params, name)
        sums = np.asarray(layer.kernel).reshape(40, -1, layer.bias.shape[-1]).sum(axis=1)
        np.testing.assert_allclose(layer.bias, -sums / 2, atol=1e-5)
    output = of_connections(np.arange(16))
    sums = np.stack([np.asarray(params.c3.kernel)[:, output == i].sum(axis=(1, 2, 3)) for i in range(16)], axis=1)
    np.testing.assert_allclose(params.c3.bias, -sums / 2, atol=1e-5)


SIGMOID, TANH = (
    {subsampling: Architecture(activation, subsampling=subsampling) for subsampling in SUBSAMPLINGS}
    for activation in ("sigmoid", "tanh")
)
# One program for both networks of each subsampling: their random numbers are the same.
start = jax.jit(lambda key: {name: [model.init(key, SIGMOID[name]), model.init(key, TANH[name])] for name in SIGMOID})


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_glorot_centered_sigmoid_starts_as_tanh(subsampling):
    """Every hidden state is 1/2 + 1/2 x that of the tanh network whose C1 kernels are doubled; the logits are twice."""
    sigmoid, tanh = SIGMOID[subsampling], TANH[subsampling]
    assert sigmoid.initializer == tanh.initializer == "glorot_centered"
    image = np.random.default_rng(4).normal(size=(32, 32))
    with jax.enable_x64(True):
        own, params = jax.tree.map(np.asarray, start(jax.random.key(5))[subsampling])
        doubled = params.replace(c1=params.c1.replace(kernel=2 * params.c1.kernel))
        states, _ = states_and_output(own, image, sigmoid)
        (expected, _), (undoubled, _) = (states_and_output(one, image, tanh) for one in (doubled, params))
    for name in LAYERS[:-1]:
        np.testing.assert_allclose(states[name], 0.5 + 0.5 * np.asarray(expected[name]), rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(states["output"], 2 * np.asarray(expected["output"]), rtol=1e-10)
    assert not np.allclose(states["c1"], 0.5 + 0.5 * np.asarray(undoubled["c1"]), rtol=1e-3)


def test_init_depends_on_the_key_alone(draw, many, assert_close):
    params = many[ALL_RANDOM]
    assert_close(draw()[ALL_RANDOM], params, 0)
    for leaf in jax.tree.leaves(params):
        assert (leaf[0] != leaf[1]).all()


def test_layers_draw_from_streams_of_their_own(many):
    draws = [np.ravel(leaf[0] / abs(leaf).max())[:6] for leaf in jax.tree.leaves(many[ALL_RANDOM])]
    for one, other in itertools.combinations(draws, 2):
        assert abs(one - other).max() > 0.05


@pytest.mark.parametrize(("architecture", "changed"), [(FULL, "c3"), (SEVEN, "output")], ids=["full", "seven"])
def test_other_layers_keep_their_numbers(architecture, changed, many, assert_close):
    usual, other = many[ALL_RANDOM], many[architecture]
    for name in LAYERS:
        if name == changed:
            assert weights_of(getattr(usual, name)).shape != weights_of(getattr(other, name)).shape
        else:
            assert_close(getattr(other, name), getattr(usual, name), 0)
