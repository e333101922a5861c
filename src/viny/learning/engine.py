"""Training steps of a stack of runs: drawn ahead, computed by compiled kernels, and on a GPU replayed as one graph.

A small transformer's step is hundreds of short kernels. Here, a step from the gathering of its images to the update of
its weights is one CUDA graph; between two replays there is neither a draw nor a copy nor any Python. What many
steps draw is made ahead on the CPU, the same numbers as for a run alone, and copied at once.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from viny.learning.attention import few_token_attention, plain_attention, usable
from viny.learning.batches import Batches, Tensors
from viny.learning.machine import Machine
from viny.learning.run import Run, Step, rate
from viny.learning.settings import IN_MEMORY
from viny.learning.stacked import Attention, Kind, Parameters, adam, adam_scalars, embed, narrowed, stackable, widened

MOST_AHEAD = 64  # steps drawn ahead
AHEAD = 0.3  # seconds of work drawn ahead
HELD = 0.7  # share of a GPU's free memory that images may take
WARM_UP = 2  # steps before a graph is captured
COMPILER = "inductor"
MODE: str | None = None  # of torch.compile
# Of a gradient, relative to its norm. In bfloat16 a ViNy's differ from float32's by up to 0.03.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3, torch.bfloat16: 0.2}
NEGLIGIBLE = 0.01  # a parameter's gradient, relative to that of all, below which it is held against this share of all


class UnsoundError(RuntimeError):
    """What was computed is not what plain PyTorch computes."""


@dataclass
class Slot:
    """A place in a stack, and the run that has it; nobody if it has ended."""

    run: Run | None = None
    steps: Iterator[Step] = field(default_factory=lambda: iter(()))
    updates: int = 0  # of its weights, those that are queued included
    last: Step | None = None  # taken, those that are queued included

    def next(self) -> Step | None:
        """The step to take; None if there is none left."""
        step = next(self.steps, None)
        self.last = step or self.last
        return step

    @property
    def waits(self) -> bool:
        """Whether its run's weights are to be looked at before it takes another step."""
        return self.run is not None and self.last is not None and self.run.waits(self.last)


class Queued(NamedTuple):
    """Steps given to the device: who takes which of them, and the losses [K, M] to come."""

    steps: list[list[tuple[Run, Step] | None]]
    losses: Tensor
    ready: Any  # a CUDA event; None on a CPU
    began: float


class Images:
    """What a stack reads of a pack: on the device if it fits, otherwise row by row.

    Args:
        batches: each run's.
        device: where they are wanted.
    """

    def __init__(self, batches: Sequence[Batches], device: torch.device) -> None:
        subsets = batches[0].subsets
        self.pack = subsets["images"].pack
        if len({b.subsets["images"].pack.sha256 for b in batches}) > 1:
            raise ValueError("runs of a stack read different packs")
        rows = np.unique(np.concatenate([b.subsets["images"].indices for b in batches]))
        self._where = np.full(len(self.pack), -1, np.int64)
        self._where[rows] = np.arange(len(rows))
        self.names = tuple(subsets)
        size = len(rows) * sum(subset.bytes_each for subset in subsets.values())
        limit = int(HELD * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else IN_MEMORY
        self.shapes = {name: getattr(self.pack, name).shape[1:] for name in subsets}
        self.held: dict[str, Tensor] = {}  # a row an image, of as wide elements as fit: a GPU gathers these faster
        for name in subsets if size <= limit else ():
            made = torch.from_numpy(self.pack.rows(name, rows)).flatten(1)
            self.held[name] = (made.view(torch.int64) if made.shape[1] % 8 == 0 else made).to(device)

    def hold(self, batches: Batches) -> bool:
        """Whether a further run's images are among these."""
        subset = batches.subsets["images"]
        if not self.held:
            return False
        return subset.pack.sha256 == self.pack.sha256 and bool((self._where[subset.indices] >= 0).all())

    def at(self, rows: Tensor) -> dict[str, Tensor]:
        """Held images, by name, at rows [B] of `held`: uint8 [B, ...]."""
        found = {name: held.index_select(0, rows).view(torch.uint8) for name, held in self.held.items()}
        return {name: values.view(-1, *self.shapes[name]) for name, values in found.items()}

    def look_up(self, batches: Batches, positions: Tensor) -> dict[str, Tensor]:
        """Where a step's images are in `held`, or the images themselves."""
        rows = batches.subsets["images"].indices[positions.numpy()]
        if self.held:
            return {"rows": torch.from_numpy(self._where[rows])}
        return {name: torch.from_numpy(self.pack.rows(name, rows)) for name in self.names}


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._dynamo
    import torch._functorch.config

    # A stack that changes its size has its kernels made anew.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # Else what contains `stacked.Masked` is traced anew in each job.
    if hasattr(torch._functorch.config, "autograd_cache_allow_custom_autograd_functions"):
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    return torch.compile(function, dynamic=False, fullgraph=True, backend=COMPILER, mode=MODE)


class Engine:
    """The steps of runs that have equal shapes.

    Args:
        runs: one for each place; their objectives are on the machine's device, in training mode.
        machine: device and precision.
        compiled: whether to compile; None: on a GPU.
        residual: type of the tokens between the blocks; None: that of the products.
        images: of an earlier engine, which hold all runs' images; None: they are read.

    Raises:
        UnsoundError: the runs' objective is none that `viny.learning.stacked` knows.
        torch.OutOfMemoryError: the images of several runs do not fit on the GPU together.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        machine: Machine,
        compiled: bool | None = None,
        residual: torch.dtype | None = None,
        images: Images | None = None,
    ) -> None:
        self.machine, self.device = machine, machine.device
        self.on_gpu = self.device.type == "cuda"
        first = runs[0]
        for run in runs:
            if not stackable(run.objective):
                raise UnsoundError(f"it knows no loss of {type(run.objective).__name__}")
        self.settings, self.kind = first.settings, Kind.of(first.objective)
        self.make = first.batches.make
        self.slots = [Slot() for _ in runs]
        self.batch = min(self.settings.batch_size, max(run.count for run in runs))
        self.dtype = next(first.objective.parameters()).dtype
        product = torch.bfloat16 if machine.precision == "bfloat16" else self.dtype
        self.residual = residual or product
        self.parameters = Parameters(first.objective, self.kind, len(self.slots), self.device, product)
        self.images = Images([run.batches for run in runs], self.device) if images is None else images
        if self.on_gpu and not self.images.held and len(runs) > 1:
            raise torch.OutOfMemoryError("the images of so many runs")
        self._sound = [True] * len(self.slots)
        for place, run in enumerate(runs):
            self._seat(place, run)
        self.attend: Attention = plain_attention
        self.compiled = self.on_gpu if compiled is None else compiled
        self.most = MOST_AHEAD if self.images.held else 4
        self.ahead = 1
        self.pending: deque[Queued] = deque()
        self.busy = True  # whether steps can still be queued
        self.graph: Any = None
        self.ring: dict[str, Tensor] = {}  # what is drawn, on the device, [K, M, B, ...]
        self.cursor = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.out = torch.zeros(self.most, len(self.slots), device=self.device, dtype=self.dtype)

    # Who is in the stack

    def _seat(self, place: int, run: Run) -> None:
        updates = self.parameters.load(place, run.objective, run.optimizer)
        self.slots[place] = Slot(run, run.steps(), updates)
        self._sound[place] = True  # whatever became of who had the place before

    def seat(self, run: Run) -> bool:
        """Give a further run a free place, if there is one for it; the engine is idle.

        Its gradients come from the kernels that were held against PyTorch's at the start.
        """
        free = [place for place, slot in enumerate(self.slots) if slot.run is None]
        if not free or not stackable(run.objective):
            return False
        if not self.images.hold(run.batches) or min(run.count, self.settings.batch_size) > self.batch:
            return False
        self._seat(free[0], run)
        return True

    def place_of(self, run: Run) -> int:
        return next(place for place, slot in enumerate(self.slots) if slot.run is run)

    def give_back(self, run: Run) -> None:
        """Write a run's weights and optimiser's state back into it; the engine is idle."""
        place = self.place_of(run)
        self.parameters.save(place, run.objective, run.optimizer, self.slots[place].updates)

    def look(self) -> None:
        """See which runs' weights are finite; the engine is idle."""
        self._sound = self.parameters.sound()

    def sound(self, run: Run) -> bool:
        """Whether a run's weights were finite at the last look."""
        return self._sound[self.place_of(run)]

    def dismiss(self, run: Run) -> None:
        """Free a run's place."""
        self.slots[self.place_of(run)] = Slot()

    # What is drawn

    def _next(self) -> list[tuple[Run, Step] | None]:
        taken = [slot.next() for slot in self.slots]
        return [None if step is None else (slot.run, step) for slot, step in zip(self.slots, taken, strict=True)]

    def _draw(self, steps: list[list[tuple[Run, Step] | None]]) -> None:
        """Make what these steps draw, and copy it to the device."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for a few square roots, MKL's threads take longer to wake than to work
        try:
            drawn = self._drawn(steps)
        finally:
            torch.set_num_threads(threads)
        for name, values in drawn.items():
            if name not in self.ring:
                self.ring[name] = torch.zeros(self.most, *values.shape[1:], dtype=values.dtype, device=self.device)
            self.ring[name][: len(values)].copy_(values, non_blocking=True)
        self.cursor.zero_()

    def _drawn(self, steps: list[list[tuple[Run, Step] | None]]) -> dict[str, Tensor]:
        """What these steps draw, by name: [K, M, B, ...] on the CPU."""
        host: dict[str, Tensor] = {}
        shape = (len(steps), len(self.slots))
        for k, places in enumerate(steps):
            for m, taken in enumerate(places):
                if taken is None:
                    continue
                run, step = taken
                drawn = run.batches.draw(step.positions, run.draws(step))
                drawn |= self.images.look_up(run.batches, step.positions)
                count = len(step.positions)
                if "mask" in drawn:
                    drawn["places"] = drawn["mask"].nonzero()[:, 1].view(count, -1)
                if "order" in drawn:
                    drawn["order"] = drawn["order"] + m * self.batch
                drawn["weights"] = torch.full((count,), 1 / count, dtype=self.dtype)
                for name, values in drawn.items():
                    if name not in host:  # zeros, so that places without an image hold something finite
                        whole = (*shape, self.batch, *values.shape[1:])
                        host[name] = torch.zeros(whole, dtype=values.dtype, pin_memory=self.on_gpu)
                    host[name][k, m, :count] = values
                slot = self.slots[m]
                slot.updates += 1
                if "scalars" not in host:
                    made = torch.zeros(*shape, 4, dtype=self.dtype, pin_memory=self.on_gpu)
                    made[:, :, 0] = made[:, :, 3] = 1  # no run, no update
                    host["scalars"] = made
                scalars = adam_scalars(run.settings, rate(run.settings, step.epoch), slot.updates)
                host["scalars"][k, m] = torch.tensor(scalars, dtype=self.dtype)
        return host

    # What is computed

    def _part(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return _compiled(function) if self.compiled else function

    def _now(self) -> dict[str, Tensor]:
        """What the step at the cursor draws: [M, 4] scalars, [M, B] weights, and the rest [M * B, ...]."""
        now = {name: values.index_select(0, self.cursor)[0] for name, values in self.ring.items()}
        return {name: x if name in ("scalars", "weights") else x.flatten(0, 1) for name, x in now.items()}

    def _read(self, now: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.images.at(now["rows"]) if self.images.held else {name: now[name] for name in self.images.names}

    def _gradients(self, now: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Each run's loss [M], and the gradients by name."""
        kind, leaves = self.kind, self.parameters.leaves()
        inner = {name: leaf for name, leaf in leaves.items() if ".blocks." not in name}
        read = self._read(now)
        batch = self._part(_augment)(self.make, read, now, self.dtype)
        mask = now.get("mask")
        x = self._part(embed)(batch["images"], inner, kind.settings, kind.class_token, mask, self.residual)
        for number in range(kind.settings.depth):
            start = f"encoder.blocks.{number}."
            own = {name.removeprefix(start): leaf for name, leaf in leaves.items() if name.startswith(start)}
            x, hidden = self._part(widened)(x, own, kind.settings, kind.tokens, self.attend)
            x = self._part(narrowed)(x, hidden, own)
        losses = self._part(_weighted_losses)(kind, x, inner, batch, now["weights"])
        gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
        return losses.detach(), dict(zip(leaves, gradients, strict=True))

    def _step(self) -> None:
        now = self._now()
        losses, gradients = self._gradients(now)
        self.parameters.update(gradients, now["scalars"], self._part(adam))
        self.out.index_copy_(0, self.cursor, losses.unsqueeze(0))
        self.cursor.add_(1)

    # Whether it is right

    def start(self) -> None:
        """Hold the first step's gradients against plain PyTorch's, and make the graph; call it before `queue`.

        What does not compile, or computes something else, is left out, with a line that says so.

        Raises:
            UnsoundError: even without compiling, the gradients are others.
        """
        steps = self._next()
        self._draw([steps])
        settings = self.kind.settings
        why = usable(self.kind.tokens, settings.head_dim, self.device, self.parameters.product_dtype, settings.heads)
        if why is not None and self.on_gpu:
            print(f"the project's attention kernels not used: {why}", flush=True)
        own = few_token_attention if why is None else plain_attention
        ways = [
            ("compiled kernels", True, own),
            ("the project's attention kernels", False, own),
            ("the stacked engine", False, plain_attention),
        ]
        ways = ways[0 if self.compiled else 1 :]
        for what, self.compiled, self.attend in [way for way in ways if why is None or "attention" not in way[0]]:
            try:
                self._check(steps)
                break
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # compilers raise errors of many types
                if what == ways[-1][0]:
                    raise
                said = (str(error) or type(error).__name__).splitlines()[0][:300]
            print(f"{what} not used: {said}", flush=True)
        if self.on_gpu:
            self._capture()
        self._run([steps])

    def _check(self, steps: list[tuple[Run, Step] | None]) -> None:
        now = self._now()
        losses, gradients = self._gradients(dict(now))
        for place, taken in enumerate(steps):
            if taken is None:
                continue
            run, step = taken
            count = len(step.positions)
            here = slice(place * self.batch, place * self.batch + count)
            drawn = {name: x[here] for name, x in now.items() if name not in ("scalars", "weights")}
            if "order" in drawn:
                drawn["order"] = drawn["order"] - place * self.batch
            read = self._read(drawn)
            objective = run.objective
            batch = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in run.batches.make(read, drawn))
            # In float32, from which PyTorch's own gradients in bfloat16 are farther away than these.
            loss = objective.loss(batch)
            found = _plain_gradients(objective, loss)
            try:
                self._compare(place, loss.detach(), losses[place], found, gradients)
            except UnsoundError:
                if self.parameters.product_dtype == self.dtype:
                    raise
                # Of a run that has nearly fitted its images, rounding may be most of the gradient in PyTorch too.
                with self.machine.autocast():
                    rounded = _plain_gradients(objective, objective.loss(batch))
                self._compare(place, loss.detach(), losses[place], found, gradients, rounded)

    def _compare(
        self,
        place: int,
        loss: Tensor,
        ours: Tensor,
        expected: dict[str, Tensor | None],
        found: dict[str, Tensor],
        rounded: dict[str, Tensor | None] | None = None,
    ) -> None:
        tolerance = TOLERANCE[self.parameters.product_dtype]
        if not torch.isfinite(loss):
            return  # the run's own fault, which it will be told of
        if not abs(float(ours - loss)) <= tolerance * abs(float(loss)) + 1e-6:
            raise UnsoundError(f"loss {float(ours):g}, not {float(loss):g}")
        if missing := {name for name, x in expected.items() if x is not None} ^ set(found):
            raise UnsoundError(f"gradients of {', '.join(sorted(missing))} on one side only")
        rows = {e.name: (e.from_module(expected[e.name]), found[e.name][place]) for e in self.parameters.entries}
        norms = torch.stack([a.float().norm() for a, _ in rows.values()])
        least = NEGLIGIBLE * norms.square().sum().sqrt()
        errors = torch.stack([(a.float() - b.reshape(-1).float()).norm() for a, b in rows.values()])
        allowed = norms.maximum(least)
        if rounded is not None:
            # As far from the expected ones as PyTorch's own in the products' type, a few times over.
            pairs = [(expected[name], rounded[name]) for name in rows]
            apart = torch.stack([(a.float() - b.float()).norm() for a, b in pairs])
            allowed = allowed.maximum(4 * apart / tolerance)
        shares = (errors / allowed).tolist()
        worst = max(range(len(shares)), key=lambda at: shares[at] if shares[at] == shares[at] else float("inf"))
        if not shares[worst] <= tolerance:
            raise UnsoundError(f"the gradient of {list(rows)[worst]} differs by {shares[worst]:.2g} of its norm")

    # How it runs

    def _capture(self) -> None:
        """Make a graph of the step; parameters and cursor stay as they are."""
        changed = [*self.parameters.tensors(), self.cursor]
        kept = [tensor.clone() for tensor in changed]
        collecting = gc.isenabled()
        try:
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self.cursor.zero_()
                    self._step()
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            gc.collect()
            gc.disable()  # what is collected during the capture may free memory, which would end it
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
            self.graph = graph
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"no CUDA graph ({error}); each operation is launched by itself", flush=True)
        finally:
            if collecting:
                gc.enable()
            for tensor, was in zip(changed, kept, strict=True):
                tensor.copy_(was)

    def _run(self, steps: list[list[tuple[Run, Step] | None]]) -> None:
        """Have steps computed, whose draws are on the device."""
        began = time.monotonic()
        for _ in steps:
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()
        ready, losses = None, self.out[: len(steps)].clone()
        if self.on_gpu:
            host = torch.empty(losses.shape, dtype=losses.dtype, pin_memory=True)
            losses = host.copy_(losses, non_blocking=True)
            ready = torch.cuda.Event(blocking=True)  # waiting leaves the processor to other jobs
            ready.record()
        self.pending.append(Queued(steps, losses, ready, began))

    def queue(self) -> None:
        """Draw some steps and give them to the device, none beyond one after which weights are to be looked at."""
        steps = []
        for _ in range(self.ahead):
            # All wait for one: a step that it does not take would still move its optimiser's means.
            if any(slot.waits for slot in self.slots):
                break
            taken = self._next()
            if not any(taken):
                break
            steps.append(taken)
        self.busy = bool(steps)
        if steps:
            self._draw(steps)
            self._run(steps)

    def collect(self) -> list[tuple[Run, Step, Tensor]]:
        """Wait for the steps queued first; returns who took which, and its loss."""
        queued = self.pending.popleft()
        if queued.ready is not None:
            queued.ready.synchronize()
        each = (time.monotonic() - queued.began) / len(queued.steps) / (1 + len(self.pending))
        self.ahead = min(2 * self.ahead if 2 * self.ahead * each < AHEAD else self.ahead, self.most)
        return [
            (*taken, row[place])
            for places, row in zip(queued.steps, queued.losses.unbind(0), strict=True)
            for place, taken in enumerate(places)
            if taken is not None
        ]


def _plain_gradients(objective: Any, loss: Tensor) -> dict[str, Tensor | None]:
    found = torch.autograd.grad(loss, list(objective.parameters()), allow_unused=True)
    return dict(zip((name for name, _ in objective.named_parameters()), found, strict=True))


def _augment(
    make: Callable[[Tensors, Tensors], tuple[Tensor, ...]], read: Tensors, now: Tensors, dtype: torch.dtype
) -> dict[str, Tensor]:
    """What the losses take of a step, of all runs' images one after the other."""
    images, second = make(read, now)
    if "places" in now:
        return {"images": images.to(dtype), "mask": now["mask"], "places": now["places"]}
    return {"images": images.to(dtype), "targets": second.to(dtype) if second.is_floating_point() else second}


def _weighted_losses(kind: Kind, x: Tensor, p: Tensors, batch: Tensors, weights: Tensor) -> Tensor:
    """Each run's loss [M]: the mean over its images."""
    return (kind.losses(x, p, batch).to(weights.dtype) * weights).sum(1)
