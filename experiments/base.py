"""All config fields, with their defaults and meanings.

An experiment starts from this config::

    from lenet_jax.experiments import base

    def get_config():
        config = base.get_config()
        config.activation = "tanh"
        config.sweep.loss = ("mse", "cross_entropy")
        return config
"""

from ml_collections import ConfigDict

from lenet_jax.config import Config


def get_config(arg: str | None = None) -> ConfigDict:
    """Default config: the specification's network, trained on the embedded digits."""
    del arg  # config_flags passes the ARG of --config=FILE:ARG; this config does not use it
    # Unsorted: the name of an arm lists the axes in the order of the sweep.
    config = Config(sort_keys=False)

    # --- Data
    # mnist10k (embedded), mnist, fashion_mnist, kmnist, qmnist, emnist, usps (downloaded once), idx:FOLDER (four IDX
    # files), tfds:NAME.
    config.dataset = "mnist10k"
    # Folder of downloads and TFDS data sets; empty: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    config.data_dir = ""
    # Padding from 28 x 28 to 32 x 32: background (zeros) or edge (the outermost pixels repeated).
    config.padding = "background"
    # Pixel values: unit (0 to 1), lecun1998 (-0.1 to 1.175), standard (mean 0, standard deviation 1 over the training
    # set), hundredth (0 to 2.55).
    config.normalization = "standard"
    # Number of images held out from the end of the training set and evaluated as the split "validation".
    config.validation_size = 0

    # Number of the remaining training images to train on, from the first on; 0: all.
    config.train_size = 0
    # Fraction of training labels replaced by a random wrong class; the same labels for all members.
    config.label_noise = 0.0

    # --- Distortions of training images, drawn for each presentation
    # none, affine, or elastic (affine, and every pixel displaced by a smooth random field).
    config.augmentation = "none"
    # Fraction of presentations that are distorted; the others show the original image.
    config.distorted_share = 0.9
    # Largest translation in each direction, in pixels.
    config.max_translation = 2.0
    # Largest change of size; 0.1: between 1/1.1 and 1.1 times the original size.
    config.max_scaling = 0.1
    # Largest squeezing; 0.1: one axis is stretched by a factor of up to 1.1, the other shrinks by the same factor.
    config.max_squeezing = 0.1
    # Largest horizontal shear: the shift of a row, in columns, per row of distance from the middle.
    config.max_shear = 0.2
    # Elastic only: root mean square displacement in each direction, in pixels.
    config.elastic_displacement = 1.4

    # --- Network
    # sigmoid, tanh, scaled_tanh (1.7159 tanh(2a/3)), relu.
    config.activation = "sigmoid"
    # Connections of C3: table (60, as in 1998) or full (96).
    config.connectivity = "table"
    # S2 and S4: trainable (coefficient, bias, squashing), average or max (plain pooling).
    config.subsampling = "trainable"
    # What the coefficient of trainable subsampling multiplies: the mean or the sum (1998) of the four inputs.
    config.subsampling_window = "mean"
    # softmax, linear, squashed (like the hidden units), or rbf (1998: distances from fixed bitmaps of the ten digits).
    config.output = "softmax"
    # lecun1998 (U(+-2.4/F)), lecun1998_sqrt (U(+-2.4/sqrt(F))), glorot, bengio2012 (glorot, 4 times as wide for
    # sigmoid), glorot_centered (bengio2012 with centred inputs, which makes the sigmoid network trainable).
    config.initializer = "glorot_centered"

    # --- Loss
    # mse, cross_entropy, map (1998, eq. 9) or correct_penalty (1998, eq. 8).
    config.loss = "mse"
    # Where MSE is computed: softmax (after it, the specification) or linear (on the outputs before any softmax).
    config.mse_point = "softmax"
    # Targets of MSE: 0/1 or +-1.
    config.target_code = "0/1"
    # Reduction of MSE over the classes: sum (the specification) or mean.
    config.mse_reduction = "sum"
    # Factor of MSE: 1.0 (the specification), or 0.5, another common convention.
    config.mse_factor = 1.0
    # Of loss "map", j: the larger, the further penalties of wrong classes are still pushed up.
    config.map_constant = 1.0

    # --- Optimizer
    # sgd, momentum, adam, adamw, sdlm (1998: stochastic diagonal Levenberg-Marquardt).
    config.optimizer = "momentum"
    config.learning_rate = 0.03
    # Coefficient of momentum; beta_1 of adam and adamw; unused by sgd.
    config.momentum = 0.9
    # Decoupled with adamw, otherwise added to the gradient.
    config.weight_decay = 0.0
    # sdlm only: bounds the rate of weights without curvature.
    config.mu = 0.02
    # sdlm only: the number of training images used to measure the curvature; the number of estimates per epoch, at
    # equal intervals from its start on; and the weight of the previous estimate in the next (above 0: a running mean).
    config.curvature_patterns = 500
    config.curvature_estimates = 1
    config.curvature_memory = 0.0
    # sdlm with RBF outputs: where the curvature starts, target (the right class's penalty) or full (the criterion).
    config.curvature_start = "target"
    # Learning rate over time: constant, cosine or linear (both to 0), lecun1998 (1, 0.4, 0.2, 0.1, 0.02 times the
    # initial rate from epochs 1, 3, 6, 9, 13 on, counted from 1), thirds (1, 0.1, 0.01 times, for a third each).
    config.schedule = "cosine"
    config.batch_size = 32
    # Order of the images: fresh (a new random order each epoch), constant (one random order for all epochs, as in
    # 1998), or stored (the order of the data set).
    config.order = "fresh"
    config.epochs = 10

    # --- Experiment
    # Number of networks per arm, with the seeds first_seed, first_seed + 1, ...
    config.seeds = 8
    config.first_seed = 0
    # Names of your own metrics (evaluate.METRICS), measured metrics_per_epoch times per epoch.
    config.metrics = ()
    config.metrics_per_epoch = 1
    # Whether to store the predictions of every trained network for each test image, in predictions.parquet.
    config.store_predictions = True
    # Whether to evaluate the test images after each epoch, for learning curves. If not, they are evaluated only at the
    # end, and the curves show the validation split or, without one, the running training error.
    config.test_curve = False
    # Field -> values to compare; the arms are the Cartesian product. Any field except tune can be an axis. A key with
    # several fields changes them together: config.sweep["batch_size,epochs"] = ((16, 5), (32, 10)). Any other key holds
    # named groups of fields: config.sweep.pooling = {"lenet": {}, "now": {"subsampling": "max"}}. A sweep with a single
    # axis named "arm" defines the arms directly. Names of groups contain no dots, which ConfigDict reads as paths.
    config.sweep = ConfigDict(sort_keys=False)

    # --- Tuning: each arm chooses values by mean validation error, then trains new networks with its own seeds
    # learning_rate, momentum, weight_decay, mu -> values to try (all combinations), or a log-uniform random sample:
    # {"low": 0.001, "high": 1.0, "count": 8}. Requires a validation_size.
    config.tune = ConfigDict(sort_keys=False)
    # Number of networks per candidate, with the seeds tune_first_seed, tune_first_seed + 1, ...
    config.tune_seeds = 3
    config.tune_first_seed = 1_000_000
    # How many times an arm may extend its grid by one value when the best value is at an edge.
    config.tune_widenings = 0
    # Whether to train with the chosen values on the training and validation images together.
    config.refit = False

    return config
