"""Attention's Triton kernels: in the interpreter, compiled for a GPU that is not there, and on one that is."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from viny.learning import attention
from viny.learning.attention import few_token_attention, launch_options, plain_attention, usable

CUDA_ERROR = "CUDA error: an illegal memory access was encountered"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_triton = pytest.mark.skipif(not attention.TRITON, reason="Triton is not installed")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(device, dtype)


def with_gradient(function: Callable[[Tensor], Tensor], qkv: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().clone().requires_grad_()
    out = function(qkv)
    return out.detach(), torch.autograd.grad(out, qkv, gradient)[0]


@needs_triton
def test_kernels_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    file = Path(__file__).with_name("attention_in_interpreter.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([*command, str(file)], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "skipped" not in ran.stdout, ran.stdout + ran.stderr


@needs_triton
@pytest.mark.parametrize("kernel", ["forward", "backward"])
@pytest.mark.parametrize(
    ("tokens", "width", "dtype"),
    [(16, 16, "bf16"), (36, 32, "bf16"), (64, 64, "bf16"), (65, 64, "bf16"), (128, 64, "bf16"), (65, 64, "fp32")],
)
def test_kernels_compile_for_an_h100_within_its_registers(
    kernel: str, tokens: int, width: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter takes what no compiler would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from viny.learning import attention_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = launch_options(tokens, 8, width)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    constants["precision"] = "tf32"
    function = getattr(attention_kernels, kernel)
    types = {name: "constexpr" if name in constants else f"*{dtype}" for name in function.arg_names}
    types |= {"scale": "fp32", "log_sums": "*fp32"}
    aligned = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(types) if types[name].startswith("*")}
    compiled = triton.compile(ASTSource(function, types, constants, aligned), GPUTarget("cuda", 90, 32), options)
    assert compiled.metadata.shared <= 227 * 1024
    (tmp_path / "kernel").write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"STACK:(\d+)", usage) == ["0"], usage  # the stack is where spilled registers go
    tool = triton.knobs.nvidia.nvdisasm.path
    code = subprocess.run([tool, tmp_path / "kernel"], capture_output=True, text=True, check=True).stdout
    assert "EXIT" in code
    assert not never_written(code)


def never_written(code: str) -> set[str]:
    """Uniform registers that are read though no instruction writes them: ptxas 12.8 has made addresses of such."""
    read: set[str] = set()
    written: set[str] = set()
    for operation, operands in re.findall(r"^\s*/\*\w+\*/\s+(?:@\S+ )?([A-Z]\S*) ([^;]*);", code, re.MULTILINE):
        first, _, rest = operands.partition(",")
        if target := re.fullmatch(r"UR(\d+)", first.strip()):
            wide = ".64" in operation or ".WIDE" in operation
            written |= {f"UR{int(target[1]) + more}" for more in range(1 + wide)}
        else:
            rest = operands
        read |= set(re.findall(r"\bUR\d+", re.sub(r"gdesc\[UR\d+\]", "", rest)))  # half a descriptor may be anything
    return read - written


def test_a_register_that_nothing_writes_is_found() -> None:
    code = """
        /*0030*/                   ULDC.64 UR28, c[0x0][0x210] ;
        /*0040*/              @!P0 LDG.E.128 R8, desc[UR28][R58.64+0x30000] ;
        /*0050*/                   HGMMA.64x16x16.F32.BF16 R56, gdesc[UR12].tnspA.tnspB, RZ, !UPT ;
        /*1f80*/                   UIADD3 UR18, UP0, UR34, 0x20, URZ ;
        /*1f90*/                   UIADD3.X UR19, UR29, -0x3ffffff0, URZ, UP0, !UPT ;
        /*1fa0*/                   STS.128 [R56+UR18+0x6000], R8 ;
    """
    assert never_written(code) == {"UR34"}


@pytest.mark.parametrize(
    ("tokens", "width", "device", "dtype", "reason"),
    [
        (64, 64, CPU, torch.bfloat16, "no GPU"),
        (129, 64, CUDA, torch.bfloat16, "129 tokens, of at most 128"),
        (64, 48, CUDA, torch.bfloat16, "heads 48 wide, not 16, 32, 64 or 128"),
        (64, 64, CUDA, torch.float64, "float64"),
        (64, 64, CUDA, torch.float32, "float32 products without TF32"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(
    tokens: int,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "TRITON", True)
    assert usable(tokens, width, device, dtype) == reason


def test_a_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TRITON", False)
    assert usable(64, 64, CUDA) == "Triton is not installed"


def test_the_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINY_ATTENTION", "plain")
    assert usable(64, 64, CUDA) == "VINY_ATTENTION=plain"


def test_kernels_that_end_the_use_of_the_gpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's attention could not be used either."""

    def illegal(*_: object) -> None:
        raise RuntimeError(CUDA_ERROR)

    monkeypatch.setattr(torch, "arange", lambda *_, **__: torch.zeros(64 * 17 * 3 * 2 * 16))
    monkeypatch.setattr(attention, "few_token_attention", illegal)
    attention._first_run.cache_clear()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert attention._first_run(17, 16, CUDA, torch.float32, 2) == f"RuntimeError: {CUDA_ERROR}"
    attention._first_run.cache_clear()
    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    with pytest.raises(RuntimeError, match="VINY_ATTENTION=plain"):
        attention._first_run(17, 16, CUDA, torch.float32, 2)


MOVING = itertools.cycle([0.0, 0.0, 1e-3])


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda qkv: plain_attention(qkv) * 1.2, "results off by 0.2 of the largest value"),
        (lambda qkv: plain_attention(qkv) * float("nan"), "results off by nan of the largest value"),
        (lambda qkv: exec("raise RuntimeError('no compiler\\nlong story')"), "RuntimeError: no compiler"),
        (lambda qkv: plain_attention(qkv) * (1 + next(MOVING)), "results that differ from one time to the next"),
        (plain_attention, None),
    ],
)
def test_a_first_run_is_held_against_plain_products_and_itself(
    broken: Callable[[Tensor], Tensor], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "few_token_attention", broken)
    attention._first_run.cache_clear()
    assert attention._first_run(17, 16, CPU, torch.float32, 2) == reason
    attention._first_run.cache_clear()


@pytest.mark.parametrize("shape", [(2, 65, 3, 2, 16), (1, 130, 3, 1, 16), (2, 5, 3, 3, 24)])
def test_without_kernels_pytorchs_attention_answers(shape: tuple[int, ...]) -> None:
    qkv = drawn(*shape)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    expected = (q @ k.mT / shape[-1] ** 0.5).softmax(-1) @ v
    torch.testing.assert_close(few_token_attention(qkv), expected.transpose(1, 2).float())


def test_importing_attention_imports_no_triton() -> None:
    """Jobs on a CPU start without it."""
    code = "import sys, torch; a = 'triton' in sys.modules; import viny.learning.attention; "
    code += "sys.exit(a != ('triton' in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SIZES = [(16, 16), (36, 32), (64, 64), (65, 64), (65, 16), (100, 64), (128, 64)]


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_products_of_float32_are_as_pytorchs(tf32: None) -> None:
    assert launch_options(64, 8, 64)["precision"] == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert launch_options(64, 8, 64)["precision"] == "tf32x3"


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_a_gpus_results_are_those_in_float64(tokens: int, width: int, dtype: torch.dtype, tf32: None) -> None:
    assert usable(tokens, width, CUDA, dtype, heads=8) is None
    qkv = drawn(6, tokens, 3, 8, width, dtype=dtype, device=CUDA)
    gradient = drawn(6, tokens, 8, width, dtype=dtype, device=CUDA)
    found = with_gradient(few_token_attention, qkv, gradient)
    expected = with_gradient(plain_attention, qkv.double(), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < (5e-3 if dtype == torch.float32 else 1e-2)


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("tokens", [64, 65, 128])
def test_a_gpus_results_are_the_same_every_time(tokens: int) -> None:
    """Whatever was in the memory before: nothing is added up in an order that may change."""
    qkv = drawn(512, tokens, 3, 8, 64, dtype=torch.bfloat16, device=CUDA)
    gradient = drawn(512, tokens, 8, 64, dtype=torch.bfloat16, device=CUDA)
    expected = with_gradient(few_token_attention, qkv, gradient)
    for _ in range(50):
        torch.full((64 << 20,), math.nan, device=CUDA)  # which the next results' memory may hold
        found = with_gradient(few_token_attention, qkv, gradient)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.gpu
@on_a_gpu
def test_a_gpus_strict_float32_is_nearly_exact() -> None:
    qkv, gradient = drawn(2, 65, 3, 8, 64, device=CUDA), drawn(2, 65, 8, 64, device=CUDA)
    found = with_gradient(few_token_attention, qkv, gradient)
    expected = with_gradient(plain_attention, qkv.double(), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("tokens", [64, 65])
def test_a_gpu_compiles_and_replays_it(tokens: int) -> None:
    """Between layers under torch.compile, and both passes in a CUDA graph, with values that change between replays."""
    layer = torch.nn.Linear(128, 3 * 8 * 64, bias=False, device=CUDA, dtype=torch.bfloat16)

    def step(x: Tensor) -> Tensor:
        return few_token_attention(layer(x).view(-1, tokens, 3, 8, 64)).float().square().mean()

    x = drawn(6, tokens, 128, dtype=torch.bfloat16, device=CUDA)
    compiled, graph, side = torch.compile(step, fullgraph=True), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(compiled(x), layer.weight)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        loss = compiled(x)
        (gradient,) = torch.autograd.grad(loss, layer.weight)
    for factor in (1.0, -0.5, 2.0):
        x.mul_(factor)
        graph.replay()
        (expected,) = torch.autograd.grad(step(x), layer.weight)
        torch.testing.assert_close(loss, step(x), rtol=0.01, atol=1e-5)
        assert float((gradient - expected).abs().max() / expected.abs().max()) < 0.02
