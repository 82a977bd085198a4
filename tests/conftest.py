"""Set-up of all tests: two CPU devices, strict ranks, and shapes checked at run time."""

import jax
import jaxtyping
from beartype import BeartypeConf, beartype


def check_types(function):
    """The type checker of every function in lenet_jax; an int is a float, as static type checkers have it.

    Constructors are left alone: JAX calls those of parameter trees with stacked members, shapes and other placeholders.
    """
    if function.__name__ == "__init__":
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)


jaxtyping.install_import_hook("lenet_jax", "conftest.check_types")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
