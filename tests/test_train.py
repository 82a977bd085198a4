"""Training and evaluating a single network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import blocked, model, optim, train
from lenet_jax import evaluate as evaluation
from lenet_jax.curvature import diagonal
from lenet_jax.distortions import Augmentation, distort, draw
from lenet_jax.experiments import base
from lenet_jax.losses import Loss
from lenet_jax.model import Architecture
from lenet_jax.optim import Hyperparameters
from lenet_jax.train import Images, Recipe

pytestmark = pytest.mark.usefixtures("quick_compilation")

RECIPE = Recipe(
    architecture=Architecture("tanh", initializer="glorot"),
    loss=Loss("cross_entropy"),
    optimizer="momentum",
    schedule="constant",
    batch_size=20,
    epochs=3,
    train_size=400,
)
HYPER = Hyperparameters(*np.float32([0.05, 0.9, 0.0, 0.02]))  # JAX, used here, would miss the flags that conftest sets
# Few recipes, so that tests share programs.
ONE_STEP = dataclasses.replace(RECIPE, train_size=20, losses=(Loss("cross_entropy"), Loss("mse")))
DISTORTED = dataclasses.replace(
    RECIPE, batch_size=50, microbatches=2, augmentation=Augmentation("affine", distorted_share=0.5)
)
SDLM = dataclasses.replace(
    RECIPE,
    architecture=Architecture("scaled_tanh", output="rbf", initializer="lecun1998_sqrt"),
    loss=Loss("map", map_constant=20.0),
    optimizer="sdlm",
    batch_size=1,
    train_size=40,
    curvature_patterns=20,
    curvature_estimates=2,
    augmentation=Augmentation("affine", distorted_share=0.7),
)
SDLM_HYPER = dataclasses.replace(HYPER, learning_rate=np.float32(2.5e-4))

# One step of seed 0 on the first 20 digits: loss and error before it, and the norm of the change of all parameters.
GOLDEN = {"loss": 2.305263, "error": 0.95, "moved": 0.02067186}


@pytest.fixture(scope="module")
def images(digits):
    pixels, labels = digits
    return Images(jnp.asarray(pixels), jnp.asarray(labels), jnp.float32(1 / 255), jnp.float32(0))


# Compiled once for all tests: operation by operation, or in each test, takes longer.
init = jax.jit(train.init, static_argnames="recipe")
train_epoch = jax.jit(train.train_epoch, static_argnames="recipe")
predict = jax.jit(evaluation.predict, static_argnames="recipe")
with_curvature = jax.jit(train.with_curvature, static_argnames="recipe")
batch_indices = jax.jit(train.batch_indices, static_argnames="recipe")
answer = jax.jit(evaluation.answer, static_argnames="recipe")


@functools.partial(jax.jit, static_argnames="architecture")
def outputs_of(params, images, architecture):
    """What the network of the specification makes of all images, [images, classes]."""
    pixels = images.pixels / jnp.float32(255)
    return jax.lax.map(lambda image: model.forward(params, image, architecture), pixels)


@pytest.fixture(scope="module")
def start():
    return init(jnp.uint32(0), HYPER, recipe=RECIPE)


def check_golden_step(recipe, start, images, loss_number=0):
    # An epoch of one batch is one step.
    state = dataclasses.replace(start, optimizer=jax.jit(recipe.optimizer_of(HYPER).init)(start.params))
    hyper = dataclasses.replace(HYPER, loss_number=loss_number)
    after, metrics = train_epoch(state, hyper, images, recipe=recipe)
    moved = jax.tree.map(
        lambda new, old: np.sum(np.square(np.float64(new) - np.float64(old))), after.params, start.params
    )
    step = {"loss": metrics.loss, "error": metrics.error, "moved": np.sqrt(sum(jax.tree.leaves(moved)))}
    assert {name: float(value) for name, value in step.items()} == pytest.approx(GOLDEN, rel=1e-5)


def test_defaults_are_those_of_the_config():
    """Fields of dataclasses that are config fields too: what a notebook builds is what a config trains."""
    config, compared = base.get_config(), 0
    for kind in (Architecture, Loss, Augmentation, Recipe):
        for field in dataclasses.fields(kind):
            name = "loss" if (kind, field.name) == (Loss, "name") else field.name
            if name in config and field.default is not dataclasses.MISSING:
                default = field.default
                assert (default.augmentation if name == "augmentation" and kind is Recipe else default) == config[name]
                compared += 1
    assert compared == 27


def test_golden_step(start, images):
    check_golden_step(ONE_STEP, start, images)


@pytest.mark.parametrize(
    ("change", "loss_number"),
    [
        ({}, 1),
        pytest.param({"architecture": Architecture("scaled_tanh", initializer="glorot")}, 0, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adam"}, 0, marks=pytest.mark.slow),
    ],
    ids=["mse", "scaled_tanh", "adam"],
)
def test_golden_step_fails_for_another_recipe(change, loss_number, start, images):
    with pytest.raises(AssertionError):
        check_golden_step(dataclasses.replace(ONE_STEP, **change), start, images, loss_number)


def test_training_learns(start, images):
    state, errors, losses = start, [], []
    for _ in range(RECIPE.epochs):
        state, metrics = train_epoch(state, HYPER, images, recipe=RECIPE)
        errors.append(float(metrics.error))
        losses.append(float(metrics.loss))
    assert losses == sorted(losses, reverse=True)
    assert errors[-1] < 0.3 < errors[0]
    assert state.step == RECIPE.epochs * RECIPE.epoch_steps


@functools.partial(jax.jit, static_argnames="recipe")
def presentations(start, images, recipe):
    """All inputs of the epoch that begins, and their labels, in order."""
    epoch = start.step // recipe.epoch_steps
    streams = train.Stream.ORDER, train.Stream.AUGMENTATION
    keys = [jax.random.fold_in(jax.random.fold_in(start.key, stream), epoch) for stream in streams]
    order = jax.random.permutation(keys[0], recipe.train_size)
    inputs = images.pixels[order] * images.scale + images.shift
    if recipe.augmentation.augmentation != "none":
        affine = draw(keys[1], recipe.train_size, recipe.augmentation)
        inputs = jax.vmap(distort, in_axes=(0, 0, None))(inputs, affine, images.shift)
    return inputs, images.labels[order]


@functools.partial(jax.jit, static_argnames="recipe")
def plain_gradient(params, inputs, labels, recipe):
    """Mean loss and gradient of a batch from `model.forward`, one image at a time, which is compiled the fastest."""

    def of_one(example):
        def objective(params):
            outputs = model.forward(params, example[0], recipe.architecture)
            return recipe.loss((-outputs if recipe.architecture.output == "rbf" else outputs)[None], example[1][None])

        return jax.value_and_grad(objective)(params)

    return jax.tree.map(lambda leaf: leaf.mean(axis=0), jax.lax.map(of_one, (inputs, labels)))


def plain_epoch(start, images, recipe):
    """`train.train_epoch` written plainly, as a Python loop."""
    inputs, labels = jax.device_get(presentations(start, images, recipe=recipe))
    params = jax.device_get(start.params)
    velocity, losses = jax.tree.map(np.zeros_like, params), []
    for batch in np.arange(recipe.train_size).reshape(-1, recipe.batch_size):
        loss, gradient = jax.device_get(plain_gradient(params, inputs[batch], labels[batch], recipe=recipe))
        velocity = jax.tree.map(lambda v, g: HYPER.momentum * v + g, velocity, gradient)
        params = jax.tree.map(lambda w, v: w - HYPER.learning_rate * v, params, velocity)
        losses.append(loss)
    return params, np.mean(losses)


@pytest.mark.parametrize("recipe", [RECIPE, DISTORTED], ids=["plain", "distorted, in microbatches"])
def test_an_epoch_equals_plain_training(recipe, start, images, assert_close):
    params, loss = plain_epoch(start, images, recipe)
    state, metrics = train_epoch(start, HYPER, images, recipe=recipe)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert_close(state.params, params, 1e-4)


@pytest.mark.parametrize(
    ("batch_size", "microbatches"),
    [(1, 1), (64, 1), (65, 1), (100, 2), (128, 2), (192, 3), (127, 1), (512, 8), (1000, 20)],
)
def test_microbatches_of_a_batch(batch_size, microbatches):
    assert train.microbatches_for(batch_size) == microbatches


def evaluate(params, images, begin, end, recipe):
    """The evaluation on these images, predicted together."""
    predictions = predict(params, images, np.arange(begin, end), recipe=recipe)
    return evaluation.evaluate([(predictions, np.asarray(images.labels)[begin:end])])


@pytest.mark.parametrize(("begin", "end"), [(0, 64), (20, 320), (100, 110)], ids=str)
def test_evaluate_equals_numpy(begin, end, start, images):
    assert evaluation.EVALUATION_BATCH_SIZE == 64, "the ranges hold one batch, several and a part, and a part"
    metrics = evaluate(start.params, images, begin, end, recipe=RECIPE)
    labels = np.asarray(images.labels)[begin:end]
    outputs = np.float64(outputs_of(start.params, images, RECIPE.architecture))[begin:end]
    probabilities = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(metrics.loss, -np.log(probabilities[np.arange(end - begin), labels]).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics.error, (outputs.argmax(axis=1) != labels).mean(), rtol=1e-6)


def calibration_error(probabilities, labels):
    """Expected calibration error with the 15 bins (k / 15, (k + 1) / 15]."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total, filled = 0.0, 0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            filled += 1
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert filled >= 8, "confidences are spread"
    return total


@pytest.mark.parametrize(("output", "loss", "sign", "spread"), [("softmax", "mse", 1, 25), ("rbf", "map", -1, 2)])
def test_probabilities_are_measured_as_by_numpy(output, loss, sign, spread, start, images):
    recipe = dataclasses.replace(
        RECIPE, architecture=Architecture("tanh", output=output, initializer="glorot"), loss=Loss(loss)
    )
    params = start.params if output == "softmax" else start.params.replace(output=None)
    # Larger weights in the last layer with weights make the network more confident.
    last = "output" if output == "softmax" else "f6"
    params = params.replace(**{last: jax.tree.map(lambda leaf: spread * np.asarray(leaf), getattr(params, last))})
    outputs = sign * np.float64(outputs_of(params, images, recipe.architecture))[17:380]
    metrics = evaluate(params, images, 17, 380, recipe=recipe)
    assert 363 % evaluation.EVALUATION_BATCH_SIZE, "the last batch isn't full"
    weights = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    probabilities, labels = weights / weights.sum(axis=1, keepdims=True), np.asarray(images.labels)[17:380]
    of_right = probabilities[np.arange(363), labels]
    np.testing.assert_allclose(metrics.nll, -np.log(of_right).mean(), rtol=1e-4)
    brier = np.mean([((row - np.eye(10)[label]) ** 2).sum() for row, label in zip(probabilities, labels, strict=True)])
    np.testing.assert_allclose(metrics.brier, brier, rtol=1e-4)
    np.testing.assert_allclose(metrics.ece, calibration_error(probabilities, labels), rtol=1e-4)
    assert metrics.ece > 0.05


@pytest.mark.parametrize("output", ["linear", "squashed"])
def test_scores_that_are_not_probabilities_have_no_measures_of_calibration(output):
    recipe = dataclasses.replace(
        RECIPE, architecture=Architecture("tanh", output=output), loss=Loss("mse", mse_point="linear")
    )
    answers = answer(np.eye(10, dtype=np.float32)[:4], np.arange(4), recipe=recipe)
    assert np.isfinite(answers.loss).all()
    found = evaluation.evaluate([(answers, np.arange(4))])
    assert found.error == 0
    assert all(np.isnan(values) for values in (found.nll, found.brier, found.ece))


@pytest.mark.parametrize(("right", "expected"), [(8, 0.0), (10, 0.2), (3, 0.5)])
def test_a_network_that_is_right_as_often_as_it_says_is_calibrated(right, expected):
    """Ten samples, each given 80 % for class 3."""
    outputs = np.log([np.where(np.arange(10) == 3, 0.8, 0.2 / 9)] * 10).astype(np.float32)
    labels = np.where(np.arange(10) < right, 3, 4)
    found = evaluation.evaluate([(answer(outputs, labels, recipe=RECIPE), labels)])
    assert found.ece == pytest.approx(expected, abs=1e-6)
    assert found.error == pytest.approx(1 - right / 10)


def test_bins_of_confidence_that_err_in_opposite_ways_do_not_make_up_for_each_other():
    """Also when the images are predicted one by one; the upper end of a bin belongs to it."""
    sure, unsure = (np.log(np.where(np.arange(10) == 3, p, (1 - p) / 9)).astype(np.float32) for p in (0.9, 0.5))
    answers = [answer(outputs[None], np.array([label]), recipe=RECIPE) for outputs, label in ((sure, 4), (unsure, 3))]
    found = evaluation.evaluate(zip(answers, np.array([[4], [3]]), strict=True))
    assert found.ece == pytest.approx((0.9 + 0.5) / 2)
    ends = dataclasses.replace(answers[0], confidence=np.float32([14 / 15]))
    lower = dataclasses.replace(answers[1], confidence=np.float32([0.95]))
    apart = evaluation.evaluate([(ends, np.array([4])), (lower, np.array([3]))])
    assert apart.ece == pytest.approx((14 / 15 + 0.05) / 2), "14/15 isn't in the bin above it"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_diverged_network_classifies_none_right(value, start, images):
    bias = np.where(np.arange(10) == 0, np.float32(value), start.params.output.bias)
    params = start.params.replace(output=start.params.output.replace(bias=bias))
    metrics = evaluate(params, images, 20, 320, recipe=RECIPE)
    assert metrics.error == 1
    assert not any(np.isfinite(value) for value in (metrics.loss, metrics.nll, metrics.brier, metrics.ece))


@pytest.fixture(scope="module")
def presented():
    """(seed, epochs) -> the indices of the images in the order of presentation, for 4 batches of 5 out of 23 images."""
    images = Images(np.zeros((40, 32, 32), np.uint8), np.arange(40), np.float32(1), np.float32(0))
    seen = []

    def note(params, grid, labels, *_):
        jax.debug.callback(lambda indices: seen.append(np.array(indices)), labels, ordered=True)
        return jax.tree.map(jnp.zeros_like, params), train.Metrics(jnp.float32(0), jnp.float32(0))

    def run(seed, epochs, order="fresh"):
        recipe = dataclasses.replace(RECIPE, batch_size=5, train_size=23, order=order)
        seen.clear()
        state = init(jnp.uint32(seed), HYPER, recipe=RECIPE)
        with pytest.MonkeyPatch.context() as patch:  # while the function is traced; other tests train
            patch.setattr(train, "gradient_of", note)
            for _ in range(epochs):
                state, _ = epoch(state, HYPER, images, recipe=recipe)
        jax.effects_barrier()
        return np.array(seen).reshape(epochs, 4, 5)

    epoch = jax.jit(lambda *arguments, recipe: train.train_epoch(*arguments, recipe), static_argnames="recipe")
    return run


def test_order_differs_by_epoch_and_seed(presented):
    first, again, other = presented(0, 2), presented(0, 2), presented(1, 2)
    np.testing.assert_array_equal(first, again)
    orders = [order.ravel().tolist() for run in (first, other) for order in run]
    assert len({tuple(order) for order in orders}) == 4
    assert sorted(orders[0]) != orders[0]


def test_a_constant_order_is_another_one_for_each_seed(presented):
    first, other = presented(0, 2, "constant"), presented(1, 2, "constant")
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], presented(0, 1)[0])
    assert (first != other).any()


def test_the_stored_order(presented):
    np.testing.assert_array_equal(presented(0, 2, "stored").reshape(2, 20), [range(20)] * 2)


def test_an_incomplete_batch_is_left_out(presented):
    epochs = presented(0, 3).reshape(3, 20)
    for order in epochs:
        assert len(set(order)) == 20
        assert set(order) <= set(range(23))
    assert len({frozenset(order) for order in epochs}) > 1, "other images are left out each epoch"


@functools.partial(jax.jit, static_argnames="recipe")
def swept(params, images, indices, recipe):
    """The curvature from one sweep over all these patterns."""
    inputs, labels = images.take(indices)
    return diagonal(params, blocked.to_grid(inputs), labels, recipe.architecture, recipe.loss, "target")


@functools.partial(jax.jit, static_argnames="recipe")
def patterns_of(key, number, recipe):
    """The indices of the patterns of an estimate of the curvature."""
    key = jax.random.fold_in(jax.random.fold_in(key, train.Stream.CURVATURE), number)
    return jax.random.choice(key, recipe.train_size, (recipe.curvature_patterns,), replace=False)


def test_curvature_is_the_mean_over_patterns(images):
    """Microbatches, gathering and the mean, against sweeps over other parts of the patterns."""
    params, indices = init(jnp.uint32(0), SDLM_HYPER, recipe=SDLM).params, np.arange(100)
    assert train.microbatches_for(len(indices)) == 2
    parts = [swept(params, images, part, recipe=SDLM) for part in indices.reshape(5, 20)]
    found = jax.jit(train.curvature, static_argnames="recipe")(params, images, indices, recipe=SDLM)
    jax.tree.map(
        lambda one, *others: np.testing.assert_allclose(one, np.mean(others, axis=0), rtol=1e-4),
        *jax.device_get((found, *parts)),
    )


def test_a_running_mean_of_curvatures(images):
    """Two estimates per epoch: the first is used unchanged, the second is averaged with it."""
    recipe = dataclasses.replace(SDLM, curvature_memory=0.75)
    state = init(jnp.uint32(0), SDLM_HYPER, recipe=SDLM)
    first = with_curvature(state, images, recipe=recipe)
    half = jnp.int32(recipe.epoch_steps // 2)
    second = with_curvature(dataclasses.replace(first, step=half), images, recipe=recipe)
    found = [optim.curvature_of(state.optimizer) for state in (first, second)]
    alone = [swept(state.params, images, patterns_of(state.key, number, recipe=SDLM), recipe=SDLM) for number in (0, 1)]
    for one, two, old, new in zip(*map(jax.tree.leaves, jax.device_get((*found, *alone))), strict=True):
        np.testing.assert_allclose(one, old, rtol=1e-4)
        np.testing.assert_allclose(two, 0.75 * old + 0.25 * new, rtol=1e-4)
        assert (one > 0).any()


@pytest.mark.parametrize(
    ("estimates", "segments"),
    [(0, 4), pytest.param(1, 4, marks=pytest.mark.slow), pytest.param(8, 4, marks=pytest.mark.slow)],
    ids=["momentum", "fewer estimates than segments", "more estimates"],
)
def test_an_epoch_in_segments_is_the_same_epoch(estimates, segments, images):
    """Parameters, optimizer state and metrics, with distortions: two epochs in one call each, or in segments."""
    changes = {"batch_size": 10, "train_size": 400, "curvature_patterns": 100, "curvature_memory": 0.5}
    recipe = dataclasses.replace(SDLM, curvature_estimates=estimates, **changes) if estimates else DISTORTED
    whole = dataclasses.replace(recipe, augmentation=DISTORTED.augmentation)
    cut = dataclasses.replace(whole, segments=segments)
    assert whole.epoch_steps % 8 == 0
    hyper = SDLM_HYPER if estimates else HYPER
    state = other = init(jnp.uint32(4), hyper, recipe=SDLM if estimates else RECIPE)
    part = jax.jit(train.train_segment, static_argnames="recipe")
    for _ in range(2):
        state, expected = train_epoch(state, hyper, images, recipe=whole)
        for number in range(1, segments + 1):
            other, metrics = part(other, hyper, images, recipe=cut)
            assert int(other.step) % whole.epoch_steps == whole.epoch_steps // segments * number % whole.epoch_steps
        np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(state), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5 * np.abs(two).max())


@pytest.mark.parametrize(
    ("steps", "members", "changes", "segments"),
    [
        (1875, 8, {}, 1),
        (1875, 100, {}, 15),  # six would do, but 1,875 = 3 x 5 x 5 x 5 x 5
        (1875, 10_000, {}, 15),
        (1876, 40, {}, 4),
        (1877, 10_000, {}, 1),  # a prime
        (1875, 50, {"optimizer": "sdlm", "curvature_estimates": 25}, 5),
    ],
)
def test_long_epochs_are_split(steps, members, changes, segments):
    recipe = dataclasses.replace(RECIPE, batch_size=32, train_size=32 * steps, **changes)
    assert train.segments_for(recipe, members) == segments


def plain_epoch_of_1998(start, images, recipe):
    """`train.train_epoch` with SDLM, written plainly: parameters, and the last estimate of the curvature."""
    inputs, labels = jax.device_get(presentations(start, images, recipe=recipe))
    params, rate, mu = jax.device_get(start.params), SDLM_HYPER.learning_rate, SDLM_HYPER.mu
    number = int(start.step) // recipe.epoch_steps * recipe.curvature_estimates
    for part in np.arange(recipe.train_size).reshape(recipe.curvature_estimates, -1):
        patterns = patterns_of(start.key, number, recipe=recipe)
        curvatures = jax.device_get(swept(params, images, patterns, recipe=recipe))
        for index in part[:, None]:
            _, gradient = jax.device_get(plain_gradient(params, inputs[index], labels[index], recipe=recipe))
            params = jax.tree.map(lambda w, g, h: w - rate / (mu + h) * g, params, gradient, curvatures)
        number += 1
    return params, curvatures


@pytest.fixture(scope="module")
def epochs_of_1998(images):
    """Two epochs: the states before, between and after, and what plain training makes of the first two."""
    images = dataclasses.replace(images, scale=jnp.float32(1.275 / 255), shift=jnp.float32(-0.1))
    states = [init(jnp.uint32(5), SDLM_HYPER, recipe=SDLM)]
    for _ in range(2):
        state, metrics = train_epoch(states[-1], SDLM_HYPER, images, recipe=SDLM)
        assert np.isfinite(metrics.loss)
        states.append(state)
    return states, [plain_epoch_of_1998(state, images, SDLM) for state in states[:2]]


def test_sdlm_measures_the_curvature_before_each_pass(epochs_of_1998):
    (_, *states), plain = epochs_of_1998
    for state, (_, expected) in zip(states, plain, strict=True):
        jax.tree.map(
            lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3),
            optim.curvature_of(state.optimizer),
            expected,
        )


def test_an_epoch_of_1998_equals_plain_training(epochs_of_1998, assert_close):
    (start, *states), plain = epochs_of_1998
    for state, (expected, _) in zip(states, plain, strict=True):
        assert_close(state.params, expected, 1e-3)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max() / np.abs(new).max(), states[0].params, start.params)
    assert max(jax.tree.leaves(moved)) > 0.05, "far more than the tolerance"


def test_distortions_are_drawn_for_each_presentation(images):
    recipe = dataclasses.replace(RECIPE, augmentation=Augmentation("affine", distorted_share=1.0))
    state, other = (init(jnp.uint32(seed), HYPER, recipe=RECIPE) for seed in (0, 1))
    later = dataclasses.replace(state, step=jnp.int32(RECIPE.epoch_steps))
    drawn = [np.asarray(batch_indices(of, recipe=recipe)[1].shift).reshape(-1, 2) for of in (state, later, other)]
    assert all(len(np.unique(shifts, axis=0)) == 400 for shifts in drawn)
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 1200


def test_predict_equals_evaluate(start, images):
    found = predict(start.params, images, np.arange(20, 320), recipe=RECIPE)
    assert found.predicted.shape == found.margin.shape == (300,)
    error = np.mean(np.asarray(found.predicted) != np.asarray(images.labels)[20:320])
    assert error == pytest.approx(float(evaluate(start.params, images, 20, 320, recipe=RECIPE).error))
    exponentials = np.exp(np.float64(outputs_of(start.params, images, RECIPE.architecture))[20:320])
    best = np.sort(exponentials / exponentials.sum(axis=1, keepdims=True), axis=1)
    np.testing.assert_allclose(found.margin, best[:, -1] - best[:, -2], rtol=1e-3, atol=1e-6)


def test_a_diverged_network_predicts_nothing(start, images):
    params = start.params.replace(output=jax.tree.map(lambda leaf: np.asarray(leaf) * np.nan, start.params.output))
    assert (predict(params, images, np.arange(20, 320), recipe=RECIPE).predicted == -1).all()
