"""The training loop of a run that has the machine to itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from viny.learning.checkpoint import Progress
from viny.learning.gradients import Gradients
from viny.learning.machine import Machine
from viny.learning.optimizer import Adam
from viny.learning.run import BatchMaker, Run, rate
from viny.runtime.signals import on_stop


def fit(run: Run, machine: Machine) -> Progress:
    """Train a run to its end, its objective in place.

    On SIGTERM, SIGINT or SIGHUP, the current step is finished and a checkpoint written.

    Args:
        run: its objective is on the machine's device.
        machine: device and precision.

    Returns:
        The curve, the seconds spent training, and the earlier attempts.

    Raises:
        TrainingError: the loss or the weights became NaN or infinite.
        Stopped: a signal arrived.
    """
    with on_stop(run.stop):
        if machine.device.type == "cuda":
            from viny.learning.stack import train_runs  # what it imports is needed on a GPU alone

            train_runs([run], machine)
        else:
            with run.report:
                step_by_step(run, machine)
    return run.finish()


def step_by_step(run: Run, machine: Machine, asked: Callable[[], int] = lambda: 0) -> None:
    """Train a run with PyTorch's own kernels, one step after the other.

    Args:
        run: its objective is on the machine's device.
        machine: device and precision.
        asked: number of a stop signal that arrived for the run elsewhere; 0 for none.

    Raises:
        TrainingError: the loss or the weights became NaN or infinite.
        Stopped: a signal arrived.
    """
    run.objective.train()
    # Those of a checkpoint, or of an engine, are on the CPU.
    run.progress.losses = [loss.to(machine.device) for loss in run.progress.losses]
    run.objective.encoder.set_fused_attention(machine.fused_attention)
    with Gradients(run.objective, machine, run.settings.batch_size) as gradients:
        run.end_epoch()  # a run resumed after an epoch's very last step
        run.measure()
        for step in run.steps():
            run.optimizer.lr = rate(run.settings, step.epoch)
            run.took(step, _step(gradients, run.batches, run.optimizer, step.positions, run.draws(step)))
            run.stop(asked())
            run.look()
            run.end_epoch()
            run.measure()


def _step(
    gradients: Gradients,
    batches: BatchMaker,
    optimizer: Adam,
    positions: Tensor,
    draws: torch.Generator,
) -> Tensor:
    loss = gradients.compute(batches(positions, draws))
    optimizer.step(gradients.share)
    return loss
