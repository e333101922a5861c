"""What a job asks for: operations compared with PyTorch's count, memory and time with what they must cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from viny.learning.model import VINY, ViNy
from viny.learning.objectives import Segmentation, SimMIM
from viny.learning.settings import TRAINING, ModelSettings, forward_operations
from viny.study import workload
from viny.study.config import resolve


@pytest.mark.parametrize("settings", [VINY, replace(VINY, patch_size=8, depth=3, heads=3, head_dim=20, mlp_dim=100)])
def test_operations_are_those_that_pytorch_counts(settings: ModelSettings) -> None:
    encoder = ViNy(settings)
    encoder.set_fused_attention(False)
    with FlopCounterMode(display=False) as forward:
        encoder.encode(torch.zeros(1, 3, settings.image_size, settings.image_size), class_token=False)
    assert forward_operations(settings) == pytest.approx(forward.get_total_flops(), rel=1e-6)


def test_a_training_step_is_three_forward_passes() -> None:
    encoder = ViNy()
    encoder.set_fused_attention(False)
    objective = SimMIM(encoder)
    batch = torch.rand(2, 3, 128, 128), torch.arange(64).expand(2, -1) < 32
    with FlopCounterMode(display=False) as step:
        objective.loss(batch).backward()
    assert 2 * TRAINING * forward_operations(VINY) == pytest.approx(step.get_total_flops(), rel=0.15)


@pytest.mark.parametrize("classes", [3, 100])
def test_fine_tuning_counts_the_scores_of_every_class(classes: int) -> None:
    own = {"source": "folder", "images": "a", "masks": "b", "classes": classes, "test_size": 10}
    config = resolve({"study": "x", "segmentation": own, "finetune": {"epochs": 1, "milestones": [], "batch_size": 2}})
    encoder = ViNy()
    encoder.set_fused_attention(False)
    objective = Segmentation(encoder, classes)
    batch = torch.rand(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.uint8)
    with FlopCounterMode(display=False) as step:
        objective.loss(batch).backward()
    found = workload.finetune_workload(config, 2)
    assert found.operations == pytest.approx(step.get_total_flops(), rel=0.15)
    few = {**config, "segmentation": {**config["segmentation"], "classes": 2}}
    grown = found.memory_mb - workload.finetune_workload(few, 2).memory_mb
    assert grown == pytest.approx(2 * (classes - 2) * 4 * 4 * 128**2 / 1e6, abs=2)  # scores, in float32, four times
    assert workload.evaluate_workload(config).memory_mb < 4000


@pytest.mark.parametrize("settings", [VINY, replace(VINY, patch_size=8, depth=3)])
def test_activations_cover_what_a_forward_pass_saves(settings: ModelSettings) -> None:
    encoder = ViNy(settings)
    encoder.set_fused_attention(False)
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        tokens = encoder.encode(torch.zeros(4, 3, settings.image_size, settings.image_size), class_token=False)
    held = sum(saved.values()) / 4
    assert tokens.requires_grad
    assert 0.8 * held <= workload.activation_bytes(settings) <= 2 * held


@pytest.fixture(scope="module")
def paper() -> dict[str, Any]:
    return resolve({"study": "x", "compute": {"device": "cpu", "train_threads": 2, "images_per_second": 100}})


def test_passes_are_those_of_the_paper(paper: dict[str, Any]) -> None:
    assert workload.pretrain_workload(paper, 200_000).passes == 20_000_000
    assert workload.finetune_workload(paper, 250).passes == 25_000
    assert workload.intermediate_workload(paper, "intel", 14_034).passes == 2_806_800
    assert workload.evaluate_workload(paper).passes == 1000


def test_time_follows_work_rate_and_attempt(paper: dict[str, Any]) -> None:
    job = workload.pretrain_workload(paper, 45_000)
    seconds = 4_500_000 / 100
    assert job.minutes(paper) == pytest.approx(workload.START + workload.HEAD_ROOM * seconds / 60, abs=1)
    assert job.minutes(paper, 2) == pytest.approx(2 * job.minutes(paper), abs=2)
    faster = {**paper, "compute": {**paper["compute"], "images_per_second": 1000}}
    assert job.minutes(faster) == pytest.approx(workload.START + workload.HEAD_ROOM * seconds / 600, abs=1)
    smaller = resolve({"study": "x", "model": {"depth": 6}, "compute": {"images_per_second": 100}})
    assert workload.pretrain_workload(smaller, 45_000).minutes(smaller) < 0.6 * job.minutes(paper)


@pytest.mark.parametrize(
    ("device", "threads", "rate"),
    [("cpu", 4, 4 * workload.CPU_RATE), ("cuda", 4, workload.GPU_RATE), ("auto", 1, workload.GPU_RATE)],
)
def test_a_rate_that_is_not_stated_is_the_device_s(device: str, threads: int, rate: float) -> None:
    config = resolve({"study": "x", "compute": {"device": device, "train_threads": threads}})
    expected = rate * TRAINING * forward_operations(VINY)
    assert workload.operations_a_second(config) == pytest.approx(expected)


def measured(stage: str) -> tuple[Callable[[dict[str, Any]], workload.Workload], float]:
    """A job's forecast and its peak memory in MB, bfloat16 on one thread: the study `mini`, and 1,000 test images."""
    return {
        "pretrain": (lambda c: workload.pretrain_workload(c, 8000), 2199.4),
        "intermediate": (lambda c: workload.intermediate_workload(c, "intel", 17_034), 2904.1),
        "finetune": (lambda c: workload.finetune_workload(c, 400), 1508.7),
        "evaluate": (workload.evaluate_workload, 817.3),
    }[stage]


@pytest.mark.parametrize("stage", ["pretrain", "intermediate", "finetune", "evaluate"])
def test_memory_covers_what_was_measured_and_not_thrice_that(stage: str) -> None:
    forecast, peak = measured(stage)
    found = forecast(resolve({"study": "x"})).memory_mb
    assert 1.1 * peak <= found <= 3 * peak
