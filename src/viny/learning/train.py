"""The training loop of a run that has the machine to itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.gradients import Gradients
from viny.learning.machine import Machine
from viny.learning.run import BatchMaker, Run, rate
from viny.learning.settings import TrainSettings
from viny.runtime.signals import on_stop


def fit(
    objective: nn.Module,
    batches: BatchMaker,
    count: int,
    settings: TrainSettings,
    machine: Machine,
    seed: int,
    stage: str,
    curve_path: Path,
    checkpoints: Checkpoints | None = None,
) -> Progress:
    """Train an objective in place, from its newest checkpoint if it has one; see `Run` for the arguments.

    On SIGTERM, SIGINT or SIGHUP, the current step is finished and a checkpoint written.

    Returns:
        The curve, the seconds spent training, and the earlier attempts.

    Raises:
        TrainingError: the loss or the weights became NaN or infinite.
        Stopped: a signal arrived.
    """
    objective.to(machine.device).train()
    objective.encoder.set_fused_attention(machine.fused_attention)
    run = Run(objective, batches, count, settings, seed, stage, curve_path, checkpoints)
    with on_stop(run.stop), run.report, Gradients(objective, machine, settings.batch_size) as gradients:
        run.end_epoch()  # a run resumed after an epoch's very last step
        for step in run.steps():
            for group in run.optimizer.param_groups:
                group["lr"] = rate(settings, step.epoch)
            run.took(step, _step(gradients, batches, run.optimizer, step.positions, run.draws(step)))
            run.look()
            run.end_epoch()
    return run.finish()


def _step(
    gradients: Gradients,
    batches: BatchMaker,
    optimizer: torch.optim.Optimizer,
    positions: Tensor,
    draws: torch.Generator,
) -> Tensor:
    loss = gradients.compute(batches(positions, draws))
    optimizer.step()
    return loss
