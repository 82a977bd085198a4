"""The command line, as `python -m lenet_jax`."""

from lenet_jax.cli import main

if __name__ == "__main__":
    main()
