"""What a job asks for: operations compared with PyTorch's count, memory and time with what they must cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from viny.learning.model import VINY, ViNy
from viny.learning.objectives import FrozenSegmentation, Segmentation, SimMIM
from viny.learning.settings import TRAINING, ModelSettings, forward_operations, timm_model
from viny.study import workload
from viny.study.config import resolve
from viny.study.grid import Arm


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


def test_a_frozen_encoder_s_head_costs_two_passes_a_step() -> None:
    config = resolve({"study": "x", "finetune": {"encoder": "frozen", "epochs": 1, "milestones": [], "batch_size": 2}})
    objective = FrozenSegmentation(ViNy(), 3)
    batch = torch.rand(2, 64, 128), torch.zeros(2, 128, 128, dtype=torch.uint8)
    with FlopCounterMode(display=False) as step:
        objective.loss(batch).backward()
    tokens = 2 * 2 * forward_operations(VINY)  # of each image as it is and mirrored
    assert workload.finetune_workload(config, 2).operations - tokens == pytest.approx(step.get_total_flops(), rel=0.15)


def test_operations_of_timm_s_models_are_those_that_pytorch_counts() -> None:
    settings = ModelSettings(**timm_model("vit_tiny_patch16_224", 64))
    encoder = ViNy(settings)
    encoder.set_fused_attention(False)
    with FlopCounterMode(display=False) as forward:
        encoder.encode(torch.zeros(1, 3, 64, 64), class_token=False)
    assert forward_operations(settings) == pytest.approx(forward.get_total_flops(), rel=1e-6)


ARM = Arm(variant="other")


def changed(study: dict[str, Any], **variant: Any) -> dict[str, Any]:
    """A study with a variant called 'other'."""
    return resolve({"study": "x", "grid": {"variants": ["study", "other"]}, **study, "variants": {"other": variant}})


def test_images_held_out_cost_a_forward_pass_at_every_look() -> None:
    pretrain = {"epochs": 20, "milestones": [7, 10]}
    plain = workload.pretrain_workload(resolve({"study": "x", "pretrain": pretrain}), 1000)
    held = workload.pretrain_workload(resolve({"study": "x", "pretrain": {**pretrain, "held_out": 300}}), 1000)
    assert held.passes == plain.passes and held.memory_mb == plain.memory_mb
    looks = 10 + 1  # each tenth of the way, and epoch 7
    assert held.looked_at == looks * 300
    assert held.operations - plain.operations == looks * 300 * forward_operations(VINY)


def test_equal_steps_cost_the_same_for_every_size() -> None:
    config = changed({"pretrain": {"batch_size": 100}}, pretrain={"budget": "steps"})
    passes = [workload.pretrain_workload(config, size, ARM).passes for size in (45_000, 100_000, 200_000)]
    assert passes == pytest.approx([20_000_000] * 3, rel=0.01)
    assert workload.pretrain_workload(config, 45_000).passes == 4_500_000  # the study's own


def test_tuning_costs_its_share_of_each_rate() -> None:
    tune = {"lr": [0.001, 0.002, 0.004, 0.008], "share": 0.25, "validation": 0.25}
    config = changed({}, tune=tune)
    whole, tuned = workload.finetune_workload(config, 1000, ARM), workload.tune_workload(config, 1000, ARM)
    assert whole.passes == 100 * 1000 and tuned.passes == 4 * 25 * 750
    # All images of each rate's epochs, and those that it is scored on.
    assert tuned.operations / whole.operations == pytest.approx((4 * 25 * 750 + 4 * 250 / 3) / 100_000)
    assert tuned.memory_mb <= whole.memory_mb
    frozen = changed({}, tune=tune, finetune={"encoder": "frozen"})
    assert workload.tune_workload(frozen, 1000, ARM).operations < 0.1 * tuned.operations


def test_a_task_of_fewer_images_costs_less() -> None:
    grid = {"intermediates": ["none", "intel"]}
    config = changed({"grid": {**grid, "variants": ["study", "other"]}}, intermediate={"intel": {"images": 500}})
    assert workload.intermediate_workload(config, "intel", 14_034, ARM).passes == 200 * 500
    assert workload.intermediate_workload(config, "intel", 14_034).passes == 200 * 14_034


def test_requests_follow_the_arm_s_model() -> None:
    config = resolve(
        {
            "study": "x",
            "grid": {"starts": ["random", "small"]},
            "starts": {"small": {"timm": "vit_small_patch16_224", "weights": "random"}},
        }
    )
    usual, small = (workload.finetune_workload(config, 1000, Arm(start)) for start in ("random", "small"))
    model = ModelSettings(**timm_model("vit_small_patch16_224", 128))
    assert small.forward == forward_operations(model) and usual.forward == forward_operations(VINY)
    assert small.operations > 3 * usual.operations and small.minutes(config) > 2 * usual.minutes(config)
    assert small.memory_mb > usual.memory_mb
    for of in (workload.evaluate_workload, workload.geometry_workload):
        assert of(config, arm=Arm("small")).operations > 3 * of(config).operations


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
