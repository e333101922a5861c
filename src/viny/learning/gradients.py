"""Gradients of a batch: by a CUDA graph on a GPU, by shards of the batch on a CPU."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor, nn

from viny.learning.machine import Machine

LEAST_SHARD = 8  # fewest images that are worth a thread of their own


class _Loss(nn.Module):
    """An objective's loss as a module of its own, so that PyTorch can make a CUDA graph of it."""

    def __init__(self, objective: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.objective, self.machine = objective, machine

    def forward(self, *batch: Tensor) -> Tensor:
        bfloat16 = self.machine.precision == "bfloat16"
        with torch.autocast(self.machine.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            return self.objective.loss(batch)


def capture(objective: nn.Module, machine: Machine, batch: tuple[Tensor, ...]) -> nn.Module | None:
    """A CUDA graph of an objective's forward and backward pass for batches of this shape.

    A small transformer's step is hundreds of short kernels that take longer to launch than to run; a graph launches
    them all at once. The graph's loss is compared with the plain loss of the same batch. If they differ, or no graph
    can be made, a line says why and None is returned.
    """
    plain = _Loss(objective, machine)
    with torch.no_grad():
        expected = float(plain(*batch))
    try:
        graph = torch.cuda.make_graphed_callables(plain, tuple(part.clone() for part in batch), allow_unused_input=True)
        found = float(graph(*batch).detach())
    except RuntimeError as error:
        print(f"no CUDA graph ({error}); each operation is launched by itself", flush=True)
        return None
    if not math.isclose(found, expected, rel_tol=0.01, abs_tol=1e-4):
        print(f"a CUDA graph gives loss {found:g}, not {expected:g}; each operation is launched by itself", flush=True)
        return None
    return graph


class Gradients:
    """Gradients of a batch's loss: on a GPU by a CUDA graph, on a CPU from one shard of the batch per thread.

    A small transformer's matrix products are too small to be worth splitting among threads one by one; a thread
    that takes some images through the whole model waits for the others only once per step. Every objective's loss
    is a mean over images, so the shards' gradients add up to the batch's, in the same order every time.
    """

    def __init__(self, objective: nn.Module, machine: Machine, batch_size: int) -> None:
        self.objective, self.machine = objective, machine
        self.parameters = list(objective.parameters())
        threads = torch.get_num_threads() if machine.device.type == "cpu" else 1
        self.batch_size = batch_size
        self._graph: nn.Module | None = None
        self._to_capture = machine.device.type == "cuda"
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
            if self._to_capture:
                self._to_capture = False
                if len(batch[0]) == self.batch_size:
                    self._graph = capture(self.objective, self.machine, batch)
            if self._graph is not None and len(batch[0]) == self.batch_size:
                loss = self._graph(*batch)
                loss.backward()
                return loss.detach().clone()  # the next step overwrites this one's loss
            with self.machine.autocast():
                loss = self.objective.loss(batch)
            loss.backward()
            return loss.detach()
        shards = list(zip(*(part.chunk(self.shards) for part in batch), strict=True))
        losses, gradients = zip(*self._pool.map(partial(self._of_shard, count=len(batch[0])), shards), strict=True)
        # None for parameters that the loss does not use, such as an unused class token: they do not decay either.
        used = [at for at, gradient in enumerate(gradients[0]) if gradient is not None]
        total = [gradients[0][at] for at in used]
        for other in gradients[1:]:
            torch._foreach_add_(total, [other[at] for at in used])
        for at, gradient in zip(used, total, strict=True):
            self.parameters[at].grad = gradient
        return torch.stack(losses).sum()

    def _of_shard(self, shard: tuple[Tensor, ...], count: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with self.machine.autocast():
            loss = self.objective.loss(shard) * (len(shard[0]) / count)
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)
