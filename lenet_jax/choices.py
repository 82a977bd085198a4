"""The names that are values of config fields and flags, without the functions that they stand for.

Those need JAX, which takes seconds to import: by names alone, a wrong value is reported at once.
"""

from collections.abc import Collection, Mapping

CHOICES: Mapping[str, tuple[str, ...]] = {
    "padding": ("background", "edge"),
    "normalization": ("hundredth", "unit", "lecun1998", "standard"),
    "augmentation": ("none", "affine", "elastic"),
    "activation": ("sigmoid", "tanh", "scaled_tanh", "relu"),
    "connectivity": ("table", "full"),
    "subsampling": ("trainable", "average", "max"),
    "subsampling_window": ("mean", "sum"),
    "output": ("softmax", "linear", "squashed", "rbf"),
    "initializer": ("lecun1998", "lecun1998_sqrt", "glorot", "bengio2012", "glorot_centered"),
    "loss": ("mse", "cross_entropy", "map", "correct_penalty"),
    "mse_point": ("softmax", "linear"),
    "target_code": ("0/1", "+-1"),
    "mse_reduction": ("sum", "mean"),
    "optimizer": ("sgd", "momentum", "adam", "sdlm", "adamw"),
    "curvature_start": ("target", "full"),
    "schedule": ("constant", "cosine", "linear", "lecun1998", "thirds"),
    "order": ("fresh", "constant", "stored"),
    "metrics": (),
    "tune": ("learning_rate", "momentum", "weight_decay", "mu"),
    "tracker": ("none", "tensorboard", "wandb", "mlflow"),
    "over": ("both", "seeds", "images"),
    "scale": ("points", "ratio", "logit"),
}
"""Config field or flag -> the package's own values, in the order in which messages list them."""

TABLES: dict[str, Collection[str]] = {}
"""Config field or flag -> the table of its values, once its module has been imported, with what users added to it."""


def register(field: str, table: Collection[str]) -> None:
    """Makes a table that of a field's values; raises ValueError if its names are not those of `CHOICES`, in order."""
    if tuple(table) != CHOICES.get(field):
        raise ValueError(f"{field}: the table has {', '.join(table)}; its names must be those of choices.CHOICES")
    TABLES[field] = table


def values_of(field: str) -> Collection[str]:
    """The values that a field or flag can have now: the package's own, and those that a user added."""
    return TABLES.get(field, CHOICES[field])
