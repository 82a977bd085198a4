"""Coverage-guided fuzzing of the IDX reader: `make fuzz`. Arguments are libFuzzer's."""

import sys

import atheris

with atheris.instrument_imports(include=["gzip", "_compression", "lenet_jax.data.idx", "idx_oracle"]):
    import idx_oracle

if __name__ == "__main__":
    command = f"{sys.executable} {sys.argv[0]}"  # for -merge=1 libFuzzer starts itself again
    atheris.Setup([command, *sys.argv[1:]], idx_oracle.check)
    atheris.Fuzz()
