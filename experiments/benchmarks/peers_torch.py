"""The PyTorch peers: eager, compiled, and one process per core.

The code follows PyTorch's documentation. Where there was a choice, it uses the alternative that was faster on the
2-core machine of the published results:

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

import time
from collections.abc import Mapping

import numpy as np
import task
import torch
from task import Outcome, Task, Weights, Window
from torch import Tensor, nn
from torch.nn import functional

from lenet_jax.layers import connections
from lenet_jax.model import C3_TABLE

WARM_UP_STEPS = 3

MAPS, SOURCES = connections(C3_TABLE)


def configure(threads: int = 0, compiled: bool = False, seed: int = 0) -> None:
    """Sets the number of threads; 0 keeps PyTorch's default."""
    if threads:
        torch.set_num_threads(threads)


class Subsampling(nn.Module):
    """S2 or S4: coefficient x average + bias, with one coefficient and one bias per map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2)
        self.coefficient = nn.Parameter(torch.ones(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [batch, maps, 2r, 2c] -> [batch, maps, r, c]."""
        return torch.addcmul(self.bias, self.pool(maps), self.coefficient)


class TableConvolution(nn.Conv2d):
    """C3: a convolution whose weights have an effect only where the table has a connection."""

    def __init__(self) -> None:
        super().__init__(6, 16, 5)
        mask = torch.zeros(16, 6, 1, 1)
        mask[MAPS, SOURCES] = 1
        self.register_buffer("mask", mask)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [batch, 6, 14, 14] -> [batch, 16, 10, 10]."""
        return self._conv_forward(maps, self.weight * self.mask, self.bias)


class LeNet5(nn.Module):
    """Images [batch, 1, 32, 32] -> logits [batch, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.s2 = nn.Conv2d(1, 6, 5), Subsampling(6)
        self.c3, self.s4 = TableConvolution(), Subsampling(16)
        self.c5, self.f6, self.output = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        """C1 to the output."""
        s2 = torch.tanh(self.s2(torch.tanh(self.c1(images))))
        s4 = torch.tanh(self.s4(torch.tanh(self.c3(s2))))
        c5 = torch.tanh(self.c5(s4.flatten(1)))
        return self.output(torch.tanh(self.f6(c5)))


def to_torch(weights: Weights) -> dict[str, np.ndarray]:
    """Weights of lenet_jax -> state of `LeNet5`. Weights of missing C3 connections are 1: they must not matter."""
    c3 = np.ones((16, 6, 5, 5), np.float32)
    c3[MAPS, SOURCES] = weights["c3.kernel"]
    return {
        "c1.weight": weights["c1.kernel"][:, None],
        "c1.bias": weights["c1.bias"],
        "s2.coefficient": weights["s2.coefficient"][:, None, None],
        "s2.bias": weights["s2.bias"][:, None, None],
        "c3.weight": c3,
        "c3.bias": weights["c3.bias"],
        "s4.coefficient": weights["s4.coefficient"][:, None, None],
        "s4.bias": weights["s4.bias"][:, None, None],
        "c5.weight": weights["c5.kernel"].reshape(400, 120).T,
        "c5.bias": weights["c5.bias"],
        "f6.weight": weights["f6.kernel"].T,
        "f6.bias": weights["f6.bias"],
        "output.weight": weights["output.kernel"].T,
        "output.bias": weights["output.bias"],
    }


def from_torch(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Inverse of `to_torch`."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}
    return {
        "c1.kernel": arrays["c1.weight"][:, 0],
        "c1.bias": arrays["c1.bias"],
        "s2.coefficient": arrays["s2.coefficient"].ravel(),
        "s2.bias": arrays["s2.bias"].ravel(),
        "c3.kernel": arrays["c3.weight"][MAPS, SOURCES],
        "c3.bias": arrays["c3.bias"],
        "s4.coefficient": arrays["s4.coefficient"].ravel(),
        "s4.bias": arrays["s4.bias"].ravel(),
        "c5.kernel": arrays["c5.weight"].T.reshape(16, 5, 5, 120),
        "c5.bias": arrays["c5.bias"],
        "f6.kernel": arrays["f6.weight"].T,
        "f6.bias": arrays["f6.bias"],
        "output.kernel": arrays["output.weight"].T,
        "output.bias": arrays["output.bias"],
    }


class Session:
    """One network in training. Members would train one after another, at the same samples x members per second."""

    def __init__(
        self,
        images: Task,
        batch_size: int,
        members: int,
        threads: int = 0,
        compiled: bool | str = False,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(seed)
        torch.backends.cudnn.allow_tf32 = False  # the convolutions' default on GPUs; matrix products are float32 anyway
        self.batch_size, self.device = batch_size, device
        pixels = torch.from_numpy(images.normalized)[:, None]
        self.images = pixels.to(device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(images.labels.astype(np.int64)).to(device)
        self.model = LeNet5().to(device=device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=task.LEARNING_RATE, momentum=task.MOMENTUM, fused=True
        )
        self.loss = self.eager_loss
        if compiled:
            # Each batch size is compiled from scratch: a second shape would make PyTorch generate more general code.
            torch._dynamo.reset()
            self.loss = torch.compile(self.eager_loss, mode="default" if compiled is True else compiled)
        self.order = torch.empty(0, dtype=torch.int64, device=device)

    def eager_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a batch."""
        return functional.cross_entropy(self.model(images), labels)

    def step(self, places: Tensor) -> Tensor:
        """One step on the images at the given indices."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.images.index_select(0, places), self.labels.index_select(0, places))
        loss.backward()
        self.optimizer.step()
        return loss

    def next_places(self) -> Tensor:
        """Indices of the next batch in the epoch's random order."""
        if len(self.order) < self.batch_size:
            self.order = torch.randperm(len(self.labels), device=self.device)
        places, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return places

    def check(self, weights: Weights) -> Outcome:
        """One step from these weights on the first images, with the step function that is timed."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in to_torch(weights).items():
                parameters[name].copy_(torch.from_numpy(np.array(value)))
        self.optimizer.state.clear()
        loss = self.step(torch.arange(self.batch_size, device=self.device))
        gradient = {name: self.optimizer.state[value]["momentum_buffer"] for name, value in parameters.items()}
        copies = [from_torch({k: v.detach().clone() for k, v in state.items()}) for state in (gradient, parameters)]
        return Outcome(loss.item(), *copies)

    def warm_up(self, seconds: float) -> Window:
        """A few steps; the last one is timed."""
        for _ in range(WARM_UP_STEPS):
            self.step(self.next_places())
        return self.train(0)

    def train(self, seconds: float) -> Window:
        """Trains for at least `seconds`."""
        steps, start = 0, time.perf_counter()
        while not steps or time.perf_counter() - start < seconds:
            loss = self.step(self.next_places())
            steps += 1
        last = loss.item()  # waits for a GPU
        return Window(steps * self.batch_size, time.perf_counter() - start, last)

    def close(self) -> None:
        """Does nothing: a session holds no resources."""
