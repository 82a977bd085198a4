"""The PyTorch peers: eager, compiled, and one process per core; `training_torch.py` says how they are written."""

import time

import numpy as np
import task
import torch
from task import Outcome, Task, Weights, Window
from torch import Tensor
from torch.nn import functional
from training_torch import LeNet5, from_torch, set_weights

from lenet_jax.model import C3_TABLE

WARM_UP_STEPS = 3

TABLE = np.array([[source in sources for source in range(6)] for sources in C3_TABLE])
"""Whether an output map of C3 sees a map of S2: bool [16, 6]."""


def configure(threads: int = 0, compiled: bool = False, seed: int = 0) -> None:
    """Sets the number of threads; 0 keeps PyTorch's default."""
    if threads:
        torch.set_num_threads(threads)


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
        self.model = LeNet5(TABLE).to(device=device, memory_format=torch.channels_last)
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
        set_weights(self.model, weights, TABLE)
        self.optimizer.state.clear()
        loss = self.step(torch.arange(self.batch_size, device=self.device))
        gradient = {name: self.optimizer.state[value]["momentum_buffer"] for name, value in parameters.items()}
        copies = [
            from_torch({k: v.detach().clone() for k, v in state.items()}, TABLE) for state in (gradient, parameters)
        ]
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
