"""Every field of a config, with its default and what it means.

An experiment starts from here::

    from lenet_jax.experiments import base

    def get_config():
        config = base.get_config()
        config.activation = "tanh"
        config.sweep.loss = ("mse", "cross_entropy")
        return config
"""

from ml_collections import ConfigDict


def get_config(arg: str | None = None) -> ConfigDict:
    """The defaults: the specification's network, trained on the embedded digits."""
    del arg  # config_flags hands over what follows a colon in --config=FILE:ARG; there is nothing to choose here
    # Unsorted: arms are named in the order in which their axes stand in the sweep.
    config = ConfigDict(sort_keys=False)

    # --- Data
    # mnist10k (embedded), mnist, fashion_mnist, kmnist (downloaded once), idx:FOLDER (four IDX files), tfds:NAME.
    config.dataset = "mnist10k"
    # Where TFDS keeps data sets; empty: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    config.data_dir = ""
    # How 28 x 28 becomes 32 x 32: background (0 all round) or edge (the outermost pixels repeated).
    config.padding = "background"
    # unit (0 to 1), lecun1998 (-0.1 to 1.175), standard (mean 0, deviation 1 over the training set),
    # hundredth (0 to 2.55).
    config.normalization = "standard"
    # So many images are taken off the training set's end and evaluated as split "validation".
    config.validation_size = 0

    # Only so many of the training images that are left are trained on; 0: all.
    config.train_size = 0
    # Share of the training split's labels that are wrong, each another class at random; the same ones for all members.
    config.label_noise = 0.0

    # --- Distortions of training images, drawn for each presentation
    # none, affine, or elastic (affine, and every pixel moved by a smooth random field).
    config.augmentation = "none"
    # Of the presentations; the others show the image as it is.
    config.distorted_share = 0.9
    # Pixels, each way.
    config.max_translation = 2.0
    # 0.1: between 1/1.1 and 1.1 times the size.
    config.max_scaling = 0.1
    # 0.1: one axis up to 1.1 times as long, the other as many times shorter.
    config.max_squeezing = 0.1
    # Columns that a row is moved by, for each row from the middle.
    config.max_shear = 0.2
    # Of elastic: pixels, each way, root mean square.
    config.elastic_displacement = 1.4

    # --- Network
    # sigmoid, tanh, scaled_tanh (1.7159 tanh(2a/3)), relu.
    config.activation = "sigmoid"
    # C3's connections: table (60, as in 1998) or full (96).
    config.connectivity = "table"
    # S2 and S4: trainable (coefficient, bias, squashing), average or max (plain pooling).
    config.subsampling = "trainable"
    # What trainable subsampling's coefficient multiplies: mean or sum (1998) of the four inputs.
    config.subsampling_window = "mean"
    # softmax, linear, squashed (as hidden states are), or rbf (1998: distances from fixed bitmaps of the ten digits).
    config.output = "softmax"
    # lecun1998 (U(+-2.4/F)), lecun1998_sqrt (U(+-2.4/sqrt(F))), glorot, bengio2012 (glorot, 4 times as wide for
    # sigmoid), glorot_centered (bengio2012 with centred inputs: the one that makes the sigmoid network trainable).
    config.initializer = "glorot_centered"

    # --- Loss
    # mse, cross_entropy, map (1998, eq. 9) or correct_penalty (1998, eq. 8).
    config.loss = "mse"
    # Where MSE is taken: softmax (after it, the specification) or linear (on the outputs before any softmax).
    config.mse_point = "softmax"
    # MSE's targets: 0/1 or +-1.
    config.target_code = "0/1"
    # MSE over the classes: sum (the specification) or mean.
    config.mse_reduction = "sum"
    # MSE's factor: 1.0 (the specification), or 0.5 as some write it.
    config.mse_factor = 1.0
    # Of loss "map", j: the larger, the further penalties of wrong classes are still pushed up.
    config.map_constant = 1.0

    # --- Optimizer
    # sgd, momentum, adam, adamw, sdlm (1998: stochastic diagonal Levenberg-Marquardt).
    config.optimizer = "momentum"
    config.learning_rate = 0.03
    # Of momentum; beta_1 of adam and adamw; sgd doesn't use it.
    config.momentum = 0.9
    # Decoupled with adamw, else added to the gradient.
    config.weight_decay = 0.0
    # Of sdlm: bounds the rate of a weight without curvature.
    config.mu = 0.02
    # Of sdlm: training images that the curvature is measured on, how often a pass (at equal distances from its start
    # on), and the share of the last estimate in the next one: above 0, a running mean.
    config.curvature_patterns = 500
    config.curvature_estimates = 1
    config.curvature_memory = 0.0
    # Of sdlm with RBF outputs, where the curvature starts: target (the right class's penalty) or full (the criterion).
    config.curvature_start = "target"
    # Of the learning rate: constant, cosine or linear (both to 0), lecun1998 (1, 0.4, 0.2, 0.1, 0.02 times the first
    # from pass 1, 3, 6, 9, 13 on), thirds (1, 0.1, 0.01 times).
    config.schedule = "cosine"
    config.batch_size = 32
    # Images in another random order each pass (fresh), in one for all passes (constant, as in 1998), or as stored.
    config.order = "fresh"
    config.epochs = 10

    # --- Experiment
    # Members of each arm, seeded first_seed, first_seed + 1, ...
    config.seeds = 8
    config.first_seed = 0
    # Whether predictions.parquet says what every network, at its end, makes of each test image.
    config.store_predictions = True
    # Whether the test images are evaluated after each epoch, for curves; if not, at the end only. Curves are then
    # those of the validation split or, without one, of the error while training.
    config.test_curve = False
    # Field -> values to compare; the arms are the product. Any field but tune can be an axis. Under several names stand
    # fields that change together: config.sweep["batch_size,epochs"] = ((16, 5), (32, 10)). Under any other name stand
    # groups of fields: config.sweep.pooling = {"lenet": {}, "now": {"subsampling": "max"}}; under "arm", alone, groups
    # that are the arms themselves. Names of groups have no dots: ConfigDict takes those for paths.
    config.sweep = ConfigDict(sort_keys=False)

    # --- Tuning: every arm picks by its mean validation error, then trains anew with its own seeds
    # learning_rate, momentum, weight_decay, mu -> values to try (all combinations), or a set drawn uniformly in the
    # logarithm: {"low": 0.001, "high": 1.0, "count": 8}. Needs a validation_size.
    config.tune = ConfigDict(sort_keys=False)
    # Members that try each value, seeded tune_first_seed, tune_first_seed + 1, ...
    config.tune_seeds = 3
    config.tune_first_seed = 1_000_000
    # So often an arm whose choice is at the edge of a grid tries one more value beyond it.
    config.tune_widenings = 0
    # Whether the chosen values train on training and validation images together.
    config.refit = False

    return config
