"""LeNet-5 in PyTorch: the network, its initial weights, its training and its evaluation, without lenet_jax and JAX.

`peers_torch.py` times steps of the network, `job_torch.py` whole trainings. The code follows PyTorch's documentation.
Where there was a choice, it uses the alternative that was faster on the 2-core machine of the published results:

- C3's table: a full 6 -> 16 convolution whose weight is multiplied by a fixed mask. Three grouped convolutions (3, 4
  and 6 inputs per map) do fewer multiply-adds and took 4 to 5 times as long.
- channels_last: 5 to 10 % faster in eager mode, never slower.
- SGD(fused=True): as fast as the default or up to 5 % faster; foreach=True made no difference.
- Data: one tensor in memory; a batch is an index_select with a slice of a random permutation. DataLoader workers would
  only add copies between processes.
- torch.compile in its default mode, on the function from images to loss; compiling only the model, or also the
  optimizer's step, was not faster.
- No .item() in the loop: the loss stays a tensor. The accuracy is not computed, although lenet_jax computes it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

EVALUATION_BATCH_SIZE = 250
"""Images evaluated together."""

CALIBRATION_BINS = 15
"""Bins of the expected calibration error."""


class Subsampling(nn.Module):
    """S2 or S4: weight x average + bias, with one weight (the coefficient) and one bias per map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.weight = nn.Parameter(torch.ones(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [batch, maps, 2r, 2c] -> [batch, maps, r, c]."""
        return torch.addcmul(self.bias, self.pool(maps), self.weight)


class TableConvolution(nn.Conv2d):
    """C3: a convolution whose weights have an effect only where the table (bool [16, 6]) has a connection."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__(6, 16, 5)
        self.register_buffer("mask", torch.tensor(table, dtype=torch.float32)[:, :, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [batch, 6, 14, 14] -> [batch, 16, 10, 10]."""
        return self._conv_forward(maps, self.weight * self.mask, self.bias)


class LeNet5(nn.Module):
    """Images [batch, 1, 32, 32] -> logits [batch, 10]."""

    def __init__(self, table: np.ndarray, activation: str = "tanh") -> None:
        super().__init__()
        self.squash = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation]
        self.c1, self.s2 = nn.Conv2d(1, 6, 5), Subsampling(6)
        self.c3, self.s4 = TableConvolution(table), Subsampling(16)
        self.c5, self.f6, self.output = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """C1 to the output."""
        s2 = self.squash(self.s2(self.squash(self.c1(images))))
        s4 = self.squash(self.s4(self.squash(self.c3(s2))))
        c5 = self.squash(self.c5(s4.flatten(1)))
        return self.output(self.squash(self.f6(c5)))


def to_torch(weights: Mapping[str, np.ndarray], table: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of lenet_jax by name (``c1.kernel``) -> state of `LeNet5`, for C3's `table`.

    Weights of missing C3 connections are 1: they must not matter.
    """
    c3 = np.ones((16, 6, 5, 5), np.float32)
    c3[table] = weights["c3.kernel"]
    return {
        "c1.weight": weights["c1.kernel"][:, None],
        "c1.bias": weights["c1.bias"],
        "s2.weight": weights["s2.coefficient"][:, None, None],
        "s2.bias": weights["s2.bias"][:, None, None],
        "c3.weight": c3,
        "c3.bias": weights["c3.bias"],
        "s4.weight": weights["s4.coefficient"][:, None, None],
        "s4.bias": weights["s4.bias"][:, None, None],
        "c5.weight": weights["c5.kernel"].reshape(400, 120).T,
        "c5.bias": weights["c5.bias"],
        "f6.weight": weights["f6.kernel"].T,
        "f6.bias": weights["f6.bias"],
        "output.weight": weights["output.kernel"].T,
        "output.bias": weights["output.bias"],
    }


def from_torch(state: Mapping[str, Tensor], table: np.ndarray) -> dict[str, np.ndarray]:
    """Inverse of `to_torch`."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    return {
        "c1.kernel": arrays["c1.weight"][:, 0],
        "c1.bias": arrays["c1.bias"],
        "s2.coefficient": arrays["s2.weight"].ravel(),
        "s2.bias": arrays["s2.bias"].ravel(),
        "c3.kernel": arrays["c3.weight"][table],
        "c3.bias": arrays["c3.bias"],
        "s4.coefficient": arrays["s4.weight"].ravel(),
        "s4.bias": arrays["s4.bias"].ravel(),
        "c5.kernel": arrays["c5.weight"].T.reshape(16, 5, 5, 120),
        "c5.bias": arrays["c5.bias"],
        "f6.kernel": arrays["f6.weight"].T,
        "f6.bias": arrays["f6.bias"],
        "output.kernel": arrays["output.weight"].T,
        "output.bias": arrays["output.bias"],
    }


def set_weights(model: LeNet5, weights: Mapping[str, np.ndarray], table: np.ndarray) -> None:
    """Copies weights of lenet_jax into the model."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in to_torch(weights, table).items():
            parameters[name].copy_(torch.from_numpy(np.array(value)))


class Spread(NamedTuple):
    """Initial distribution of a layer: weights U(+-bound) [broadcasts to them]; biases -center x sum of the weights."""

    bound: Tensor
    center: float


def spreads(model: LeNet5) -> dict[str, Spread]:
    """The distribution ``glorot_centered`` of every layer, see `lenet_jax.initializers`."""
    sigmoid = model.squash is torch.sigmoid
    gain, center = (4, 0.5) if sigmoid else (1, 0.0)
    connections = model.c3.mask.sum(dim=1, keepdim=True)
    fans = {
        "c1": (torch.tensor(25.0), 25 * 6),
        "s2": (torch.tensor(4.0), 1),
        "c3": (25 * connections, 25 * float(connections.sum()) / 6),
        "s4": (torch.tensor(4.0), 1),
        "c5": (torch.tensor(400.0), 120),
        "f6": (torch.tensor(120.0), 84),
        "output": (torch.tensor(84.0), 10),
    }
    return {
        name: Spread(gain * torch.sqrt(6 / (fan_in + fan_out)), 0.0 if name == "c1" else center)
        for name, (fan_in, fan_out) in fans.items()
    }


def weight_sums(layer: nn.Module) -> Tensor:
    """The sum of each unit's weights, in the shape of the layer's biases."""
    weight = layer.weight * layer.mask if isinstance(layer, TableConvolution) else layer.weight
    return weight.flatten(1).sum(dim=1).view_as(layer.bias)


@torch.no_grad()
def initialize(model: LeNet5) -> None:
    """Draws initial weights."""
    for name, (bound, center) in spreads(model).items():
        layer = getattr(model, name)
        layer.weight.uniform_(-1, 1).mul_(bound)
        layer.bias.copy_(-center * weight_sums(layer))


@torch.no_grad()
def misfit(model: LeNet5) -> str:
    """How the model's weights contradict the distribution that `initialize` draws from; empty if they don't."""
    for name, (bound, center) in spreads(model).items():
        layer = getattr(model, name)
        used = layer.mask.expand_as(layer.weight) > 0 if name == "c3" else torch.ones_like(layer.weight, dtype=bool)
        largest = float((layer.weight / bound)[used].abs().max())
        # The largest of n uniform numbers is below 1 - 10/n with probability exp(-10).
        if not 1 - 10 / int(used.sum()) <= largest <= 1 + 1e-6:
            return f"the largest weight of {name} is {largest:.3f} times its bound"
        if not torch.allclose(layer.bias, -center * weight_sums(layer), atol=1e-5):
            return f"biases of {name} are not -{center:g} times the sums of weights"
    return ""


class Data(NamedTuple):
    """Normalized images [N, 1, 32, 32], their labels [N], and these as one-hot vectors [N, 10]."""

    images: Tensor
    labels: Tensor
    one_hot: Tensor


def prepared(pixels: np.ndarray, labels: np.ndarray, scale: float, shift: float) -> Data:
    """Images as `Network` takes them, from uint8 pixels [N, 32, 32] and their labels."""
    images = (torch.from_numpy(pixels).float() * scale + shift)[:, None].contiguous(memory_format=torch.channels_last)
    classes = torch.from_numpy(labels.astype(np.int64))
    return Data(images, classes, functional.one_hot(classes, 10).float())


class Network:
    """The networks of one arm, trained one after the other by the same function, which is compiled at most once."""

    def __init__(self, table: np.ndarray, activation: str, loss: str, compiled: bool) -> None:
        """`table` is C3's, bool [16, 6]; `loss` is cross_entropy or mse."""
        self.table, self.cross_entropy = table, {"cross_entropy": True, "mse": False}[loss]
        self.model = LeNet5(table, activation).to(memory_format=torch.channels_last)
        self.loss = torch.compile(self.eager_loss) if compiled else self.eager_loss

    def eager_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with labels [batch], or the squared error of the softmax with one-hot vectors [batch, 10]."""
        outputs = self.model(images)
        if self.cross_entropy:
            return functional.cross_entropy(outputs, targets)
        return (outputs.softmax(dim=1) - targets).square().sum(dim=1).mean()

    def train(self, data: Data, phase: Mapping[str, Any], rate: float, orders: Iterable[Tensor]) -> Iterator[float]:
        """Trains with the learning rate decayed by a cosine; yields the mean loss of each epoch.

        Args:
          data: all images.
          phase: ``batch_size``, ``epochs`` and ``momentum``.
          rate: the initial learning rate.
          orders: indices of the training images for each epoch. An incomplete last batch is dropped.
        """
        optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=phase["momentum"], fused=True)
        (group,) = optimizer.param_groups
        targets = data.labels if self.cross_entropy else data.one_hot
        size, step = phase["batch_size"], 0
        for order in orders:
            steps, total = len(order) // size, torch.zeros(())
            for indices in order[: steps * size].split(size):
                group["lr"] = rate * (1 + math.cos(math.pi * step / (steps * phase["epochs"]))) / 2
                optimizer.zero_grad(set_to_none=True)
                loss = self.loss(data.images.index_select(0, indices), targets.index_select(0, indices))
                loss.backward()
                optimizer.step()
                total += loss.detach()
                step += 1
            yield total.item() / steps

    @torch.inference_mode()
    def evaluate(self, data: Data, start: int, stop: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Means over images `start` to `stop` - 1, and for each image its class, margin, nll and brier.

        As `lenet_jax.evaluate` defines them.
        """
        chunks = data.images[start:stop].split(EVALUATION_BATCH_SIZE)
        logs = torch.cat([self.model(chunk) for chunk in chunks]).log_softmax(dim=1)
        labels, one_hot = data.labels[start:stop], data.one_hot[start:stop]
        probabilities = logs.exp()
        best, classes = probabilities.topk(2, dim=1)
        correct = ((classes[:, 0] == labels) & best[:, 0].isfinite()).float()
        nll = -logs.gather(1, labels[:, None])[:, 0]
        brier = (probabilities - one_hot).square().sum(dim=1)
        bins = (best[:, 0] * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
        gaps = torch.zeros(CALIBRATION_BINS).index_add(0, bins, best[:, 0] - correct)
        means = {
            "loss": (nll if self.cross_entropy else brier).mean(),
            "error": (1 - correct).mean(),
            "nll": nll.mean(),
            "brier": brier.mean(),
            "ece": gaps.abs().sum() / len(labels),
        }
        each = {"predicted": classes[:, 0], "margin": best[:, 0] - best[:, 1], "nll": nll, "brier": brier}
        return {name: float(mean) for name, mean in means.items()}, {name: t.numpy() for name, t in each.items()}
