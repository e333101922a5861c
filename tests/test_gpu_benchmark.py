"""The GPU benchmark at toy sizes on the CPU: what it measures, and what it does when a row fails or time runs out."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[1]
SCRIPT = REPOSITORY / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_part_gives_rows_and_what_follows_from_them(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    wanted = r"^product|^copy|24 x 64$|[13] x 128$|12 x 64$|own attention, 65|optimiser|bfloat16, eager|not compiled"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--profile", "--match", wanted]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    rows = results["rows"]
    assert {row["part"] for row in rows} == {"limits", "ours", "peer", "kernels", "without"}
    assert [row for row in rows if "failed" in row or "left_out" in row] == [], out.with_suffix(".log").read_bytes()
    for row in rows:
        numbers = {key: row[key] for key in ("images_per_second", "flops", "bandwidth", "step_seconds") if key in row}
        assert numbers and all(value > 0 for value in numbers.values()), row
        assert f"| {row['name']} |" in done.stdout
    ours = {(row["stage"], row["runs"]): row for row in rows if row["part"] == "ours"}
    assert all(row["finite"] and row["draws_share"] > 0 for row in ours.values())
    assert sum(ours["finetune", 2]["kernels"]["shares"].values()) == pytest.approx(1)
    behind = max(r["images_per_second"] for r in rows if r.get("loader") and r["stage"] == "pretrain")
    run = ours["pretrain", 1]
    assert run["over_best_peer"] == pytest.approx(run["images_per_second"] / behind)
    assert results["grid"]["total_minutes"] == pytest.approx(sum(results["grid"]["minutes"].values()))


def test_grid_counts_the_studys_passes_in_whole_batches(gpu: ModuleType) -> None:
    rate = 1000.0
    rows = [{"part": "ours", "stage": stage, "images_per_second": rate} for stage in gpu.NAMES]
    found = gpu.grid([*rows, {"part": "without", "stage": "pretrain", "images_per_second": 1.0}])
    assert found["passes"] == {"pretrain": 103_500_000, "intermediate": 33_681_600, "finetune": 33_000_000}
    assert found["runs_a_stack"] == {"pretrain": [3], "intermediate": [12], "finetune": [24]}
    for stage, passes in found["passes"].items():
        assert passes <= found["minutes"][stage] * 60 * rate < 1.02 * passes
    assert gpu.grid(rows[:2])["total_minutes"] is None  # without one of the stages


def child(tmp_path: Path, body: str) -> str:
    """A program that stands for the benchmark's child: `numbers` are its rows, `tell` says how it goes on."""
    path = tmp_path / "child"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\n"
        "numbers = [int(n) for n in sys.argv[sys.argv.index('--child') + 1].split(',')]\n"
        "def tell(**what):\n    print(json.dumps(what), flush=True)\n" + body,
        encoding="utf-8",
    )
    path.chmod(0o755)
    return str(path)


def measured(gpu: ModuleType, tmp_path: Path, seconds: float = 60) -> list[dict[str, Any]]:
    every = [gpu.Row("ours", f"row {n}", lambda bench: {}, 0.0, fresh=n == 3) for n in range(5)]
    found = gpu.Measured(tmp_path / "gpu.json", {}, every)
    with open(tmp_path / "log", "wb") as log:
        gpu.measure(found, list(range(5)), [], time.time() + seconds, log)
    assert json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["rows"] == found.results["rows"]
    return found.results["rows"]


DIES = """
for n in numbers:
    tell(begun=n)
    if n == 1:
        os._exit(7)
    tell(row=n, found=[{"rows": len(numbers)}])
"""


def test_a_process_that_dies_costs_one_row(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.sys, "executable", child(tmp_path, DIES))
    first, second, *others = measured(gpu, tmp_path)
    assert first["rows"] == 3
    assert second["failed"] == "its process ended with 7"
    assert [(row["name"], row["rows"]) for row in others] == [("row 2", 1), ("row 3", 1), ("row 4", 1)]  # 3 by itself


def test_a_row_that_hangs_is_given_up(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    monkeypatch.setattr(gpu.sys, "executable", child(tmp_path, DIES.replace("os._exit(7)", "time.sleep(600)")))
    rows = measured(gpu, tmp_path)
    assert [row["name"] for row in rows if "failed" in row] == ["row 1"]
    assert rows[1]["failed"] == "it took too long"
    assert len(rows) == 5


def test_what_does_not_fit_into_the_time_is_left_out(gpu: ModuleType, tmp_path: Path) -> None:
    rows = measured(gpu, tmp_path, seconds=-1)
    assert [row["left_out"] for row in rows] == ["no time left"] * 5
    assert gpu.table({"rows": rows, "grid": gpu.grid(rows)}).count("left out: no time left") == 5


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("triton_poi_fused__to_copy_add_copy_div_fma_lerp_mul_sqrt_sub_unbind_unsqueeze_0", "optimiser"),
        ("triton_poi_fused__to_copy_clamp_div_expand_flip_full_lerp_mean_stack_sub_view_where_1", "rest"),
        ("nvjet_tst_128x128_64x6_2x1_v_bz_NNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64", "products"),
        ("forward", "attention"),
        ("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "attention"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_red_fused_native_layer_norm_backward_3", "rest"),
    ],
)
def test_kernels_are_told_apart(gpu: ModuleType, kernel: str, group: str) -> None:
    assert gpu.group_of(kernel) == group
