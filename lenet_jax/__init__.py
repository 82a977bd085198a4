"""lenet_jax: LeNet-5 as a laboratory.

The modules in the order in which data flows through them: `data`, `layers`, `model`, `blocked`, `losses`, `optim`,
`train`, `population`, `results`, `experiment`, `plots`, `compare`, `cli`. Import the ones you use; this package imports
none of them by itself, so that the command line answers at once.
"""

__version__ = "0.1.0"
