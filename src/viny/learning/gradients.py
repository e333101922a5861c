"""Gradients of a batch, from one shard of it a thread on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from viny.learning.machine import Machine

LEAST_SHARD = 8  # fewest images that are worth a thread of their own


class Gradients:
    """Gradients of a batch's loss, on a CPU from one shard of the batch per thread.

    A small transformer's matrix products are too small to be worth splitting among threads one by one; a thread
    that takes some images through the whole model waits for the others only once per step. Every objective's loss
    is a mean over images, so the shards' gradients add up to the batch's, in the same order every time.
    """

    def __init__(self, objective: nn.Module, machine: Machine, batch_size: int) -> None:
        self.objective, self.machine = objective, machine
        self.parameters = list(objective.parameters())
        threads = torch.get_num_threads() if machine.device.type == "cpu" else 1
        self.shards = max(1, min(threads, batch_size // LEAST_SHARD))
        self._pool: ThreadPoolExecutor | None = None
        if self.shards > 1:
            # Each thread has its own setting for threads within an operation; this thread's stays as it is.
            self._pool = ThreadPoolExecutor(self.shards, "shard", torch.set_num_threads, (threads // self.shards,))

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def compute(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Fill in the parameters' gradients; returns the loss, detached from its graph."""
        if self._pool is None:
            for parameter in self.parameters:
                parameter.grad = None
            with self.machine.autocast():
                loss = self.objective.loss(batch)
            loss.backward()
            return loss.detach()
        shards = list(zip(*(part.chunk(self.shards) for part in batch), strict=True))
        losses, gradients = zip(*self._pool.map(partial(self._of_shard, count=len(batch[0])), shards), strict=True)
        # None for parameters that the loss does not use, such as an unused class token: they do not decay either.
        used = [at for at, gradient in enumerate(gradients[0]) if gradient is not None]

        def add(places: list[int]) -> None:
            for other in gradients[1:]:
                torch._foreach_add_([gradients[0][at] for at in places], [other[at] for at in places])

        self.share(add, used)
        for at in used:
            self.parameters[at].grad = gradients[0][at]
        return torch.stack(losses).sum()

    def share(self, work: Callable[[list[int]], None], places: list[int]) -> None:
        """Do some work on parameters, given by their places, in the shards' threads.

        Threads within an operation meet at its end, where they wait without sleeping: dozens of small operations then
        take a hundred times as long where the cores have other work too.
        """
        if self._pool is None:
            work(places)
        else:
            list(self._pool.map(work, [places[first :: self.shards] for first in range(self.shards)]))

    def _of_shard(self, shard: tuple[Tensor, ...], count: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with self.machine.autocast():
            loss = self.objective.loss(shard) * (len(shard[0]) / count)
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)
