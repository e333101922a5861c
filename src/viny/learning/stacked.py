"""Several runs of equal shape as one: every tensor has a leading dimension M, a run each.

What a stack computes for a run is what `viny.learning.objectives` computes for it alone, up to rounding. A small
transformer's products are too small for a large GPU; those of M runs are as fast as one product M times the size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from viny.data.masks import IGNORE
from viny.learning.model import patchify
from viny.learning.objectives import Classification, PatchClassification, Segmentation, SimMIM, majority_class
from viny.learning.optimizer import BETAS, EPSILON, Adam
from viny.learning.settings import ModelSettings, TrainSettings

Views = Mapping[str, Tensor]
Attention = Callable[[Tensor], Tensor]  # [B, N, 3, H, W] to [B, N, H, W]
CONTIGUOUS = torch.contiguous_format
ALIGNED = 64  # elements, so that each parameter of each run starts where a GPU reads it at full width
# Of polynomials in 2 (x / REACH) ** 2 - 1 that, times x, come closest to the normal distribution's function less one
# half, and to that plus x times its density; by weighted least squares, with more weight where the error was large.
REACH = 5.0
SHARE = (
    *(0.1413636, -0.07029769, 0.05153485, -0.04040977, 0.03125852, -0.02347896),
    *(0.01725615, -0.01062323, 0.004627744, -0.003287092, 0.003428224, -0.001372563),
)
SLOPE = (
    *(0.1421306, -0.07512277, 0.06682618, -0.07154209, 0.07708938, -0.08535455),
    *(0.09512005, -0.06845016, 0.02122794, -0.02771936, 0.04651477, -0.02072104),
)


def wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[M, T, I] to [M, T, O] by weights [M, I, O] and biases [M, 1, O], in the weights' type."""
    y = torch.bmm(x.to(weight.dtype), weight)
    # `baddbmm` would write the bias out to the result's size and read it back; a compiled kernel adds it in passing.
    return y if bias is None else y + bias


class Gelu(torch.autograd.Function):
    """GELU of bfloat16, whose value and slope are polynomials within REACH: 1e-6 and 1.3e-5 off at most, before x.

    PyTorch's error function takes a GPU longer than reading and writing the values does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x.float() * _sigmoid(x.float(), SHARE)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (gradient.float() * _sigmoid(x.float(), SLOPE)).to(x.dtype)


def _sigmoid(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """One half and an odd polynomial of x, the same beyond REACH as there."""
    x = x.clamp(-REACH, REACH)
    t = x * x * (2 / REACH**2) - 1  # from -1 to 1, for the sake of rounding
    y = t * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        y = y * t + coefficient
    return x * y + 0.5


def gelu(x: Tensor) -> Tensor:
    # Uncompiled, PyTorch's is one kernel and this would be twenty.
    return Gelu.apply(x) if x.dtype == torch.bfloat16 and torch.compiler.is_compiling() else F.gelu(x)


def norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Layer norm of [M, T, D] by weights and biases [M, 1, D]."""
    return F.layer_norm(wide(x), x.shape[-1:], eps=epsilon) * weight + bias


def widened(x: Tensor, p: Views, settings: ModelSettings, tokens: int, attend: Attention) -> tuple[Tensor, Tensor]:
    """A transformer block up to its last product: [M, B * N, D] to [M, B * N, D] and [M, B * N, MLP].

    Args:
        x: tokens of M runs with B images each.
        p: the block's parameters.
        settings: the model's dimensions.
        tokens: N.
        attend: softmax attention.

    Returns:
        What the last product's result is added to, and what it multiplies.
    """
    m, t, _ = x.shape
    e = settings.epsilon
    qkv = linear(norm(x, p["norm1.weight"], p["norm1.bias"], e), p["attn.qkv.weight"], p.get("attn.qkv.bias"))
    heads = attend(qkv.view(m * t // tokens, tokens, 3, settings.heads, settings.head_dim))
    x = x + linear(heads.reshape(m, t, -1), p["attn.proj.weight"], p["attn.proj.bias"])
    hidden = linear(norm(x, p["norm2.weight"], p["norm2.bias"], e), p["mlp.fc1.weight"], p["mlp.fc1.bias"])
    return x, gelu(hidden)


def narrowed(x: Tensor, hidden: Tensor, p: Views) -> Tensor:
    """The rest of a transformer block, compiled by itself: as one, the compiler would compute `hidden` twice.

    Both are bound by memory: a backward pass that computes it anew has to write it anew.
    """
    return x + linear(hidden, p["mlp.fc2.weight"], p["mlp.fc2.bias"])


def embed(
    images: Tensor, p: Views, settings: ModelSettings, class_token: bool, mask: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Tokens of images before the first block: [M * B, 3, S, S] to [M, B * N, D].

    Args:
        images: of M runs with B images each.
        p: the model's parameters.
        settings: the model's dimensions.
        class_token: whether a class token comes first in the sequence.
        mask: bool [M * B, L], True where the patch token is replaced; None for nowhere.
        dtype: of the tokens.
    """
    m = p["encoder.pos_embed"].shape[0]
    e = "encoder.patch_embed."
    x = patchify(images, settings.patch_size).view(m, -1, 3 * settings.patch_size**2)
    if not settings.plain:
        x = norm(x, p[e + "norm_in.weight"], p[e + "norm_in.bias"], settings.epsilon)
    x = linear(x, p[e + "proj.weight"], p[e + "proj.bias"])
    if not settings.plain:
        x = norm(x, p[e + "norm_out.weight"], p[e + "norm_out.bias"], settings.epsilon)
    x = x.view(m, -1, settings.patches, settings.dim)
    if mask is not None:
        x = torch.where(mask.view(m, -1, settings.patches, 1), p["mask_token"].unsqueeze(1), x)
    x = x + p["encoder.pos_embed"][:, None, 1:]
    if class_token:
        first = p["encoder.cls_token"] + p["encoder.pos_embed"][:, :1]
        x = torch.cat([first.unsqueeze(1).expand(-1, x.shape[1], -1, -1), x], dim=2)
    return x.reshape(m, -1, settings.dim).to(dtype)


def _classes(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [..., C] against classes [...], 0 where they are IGNORE.

    In sums over the classes, whose gradient needs no one-hot targets in memory, as that of `F.cross_entropy` does.
    """
    hit = targets.unsqueeze(-1).long() == torch.arange(logits.shape[-1], device=logits.device)
    loss = logits.logsumexp(-1) - torch.where(hit, logits, 0).sum(-1)
    return torch.where(targets == IGNORE, 0, loss)


class Masked(torch.autograd.Function):
    """Tokens of the masked patches; its gradient is a selection too, where that of `gather` would add one by one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """[B, N, D] at places [B, K], in ascending order, to [B, K, D]; `mask` bool [B, N] is True there alone."""
        ctx.save_for_backward(mask)
        return x.gather(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        rank = (mask.cumsum(1) - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, gradient.shape[2])
        return torch.where(mask.unsqueeze(2), gradient.gather(1, rank), 0), None, None


def simmim_loss(x: Tensor, p: Views, batch: Views, kind: Kind) -> Tensor:
    """Each image's loss [M, B]; norm and head are computed for the masked patches alone."""
    m, d = x.shape[0], x.shape[2]
    places, mask = batch["places"], batch["mask"]  # [M * B, K], [M * B, L]
    x = x.view(len(places), kind.tokens, d)
    x = Masked.apply(x, places + 1, F.pad(mask, (1, 0))) if kind.class_token else Masked.apply(x, places, mask)
    x = norm(x.view(m, -1, d), p["encoder.norm.weight"], p["encoder.norm.bias"], kind.settings.epsilon)
    predicted = wide(linear(x, p["head.weight"], p["head.bias"])).view(m, len(places) // m, -1)
    pixels = patchify(batch["images"], kind.settings.patch_size)
    pixels = pixels.gather(1, places.unsqueeze(2).expand(-1, -1, pixels.shape[2])).view(predicted.shape)
    return (predicted - pixels).abs().mean(2)


def classification_loss(x: Tensor, p: Views, batch: Views, kind: Kind) -> Tensor:
    """Each image's loss [M, B]."""
    m, n = x.shape[0], kind.tokens
    x = x.view(m, -1, n, x.shape[2])
    w, b, e = p["encoder.norm.weight"], p["encoder.norm.bias"], kind.settings.epsilon
    if kind.pooling == "mean":
        x = norm(x, w.unsqueeze(1), b.unsqueeze(1), e)[:, :, int(kind.class_token) :].mean(2)
    else:
        x = norm(x[:, :, 0], w, b, e)
    logits = wide(linear(x, p["head.weight"], p["head.bias"]))
    targets = batch["targets"].view(m, -1, logits.shape[2])
    return -(targets * F.log_softmax(logits, 2)).sum(2)


def patch_loss(x: Tensor, p: Views, batch: Views, kind: Kind) -> Tensor:
    """Each image's loss [M, B] against its patches' majority classes."""
    m = x.shape[0]
    x = _patch_tokens(x, p, kind)
    logits = wide(linear(x, p["head.weight"], p["head.bias"]))  # [M, B * L, C]
    targets = majority_class(batch["targets"], kind.settings.patch_size, kind.classes).view(
        m, -1, kind.settings.patches
    )
    return _classes(logits.view(*targets.shape, -1), targets).mean(2)


def segmentation_loss(x: Tensor, p: Views, batch: Views, kind: Kind) -> Tensor:
    """Each image's loss [M, B] over its pixels."""
    m = x.shape[0]
    x = _patch_tokens(x, p, kind)
    logits = wide(linear(x, p["head.weight"], p["head.bias"]))  # [M, B * L, P * P * C]
    targets = patchify(batch["targets"].unsqueeze(1), kind.settings.patch_size).flatten(1)  # [M * B, L * P * P]
    logits = logits.view(*targets.shape, kind.classes)
    if kind.pixel_softmax:
        logits = F.log_softmax(logits, dim=1)
    return _classes(logits, targets).mean(1).view(m, -1)


def _patch_tokens(x: Tensor, p: Views, kind: Kind) -> Tensor:
    """Normalised patch tokens [M, B * L, D], without the class token."""
    if kind.class_token:
        m, _, d = x.shape
        x = x.view(m, -1, kind.tokens, d)[:, :, 1:].reshape(m, -1, d)
    return norm(x, p["encoder.norm.weight"], p["encoder.norm.bias"], kind.settings.epsilon)


LOSSES: dict[type[nn.Module], Callable[[Tensor, Views, Views, Kind], Tensor]] = {
    SimMIM: simmim_loss,
    Classification: classification_loss,
    PatchClassification: patch_loss,
    Segmentation: segmentation_loss,
}


def stackable(objective: nn.Module) -> bool:
    """Whether runs with this objective can be stacked: it is one of those here, not one derived from them."""
    return type(objective) in LOSSES


@dataclass(frozen=True)
class Kind:
    """What the runs of a stack have in common, as read off one of their objectives.

    Attributes:
        objective: its class.
        settings: the model's dimensions.
        class_token: whether a class token is in the sequence.
        classes: of a segmentation or of patches.
        pooling: of a classification.
        pixel_softmax: of a segmentation.
    """

    objective: type[nn.Module]
    settings: ModelSettings
    class_token: bool
    classes: int = 0
    pooling: str = ""
    pixel_softmax: bool = False

    @classmethod
    def of(cls, objective: Any) -> Kind:
        return cls(
            type(objective),
            objective.encoder.settings,
            objective.class_token,
            getattr(objective, "classes", 0),
            getattr(objective, "pooling", ""),
            getattr(objective, "loss_kind", "") == "pixel_softmax",
        )

    @property
    def tokens(self) -> int:
        """N, in a sequence."""
        return self.settings.patches + int(self.class_token)

    def losses(self, x: Tensor, p: Views, batch: Views) -> Tensor:
        """Each image's loss [M, B], from the last block's tokens [M, B * N, D].

        A batch has 'images' [M * B, 3, S, S] and 'targets', or 'mask' bool [M * B, L] and 'places' int64 [M * B, K] of
        the masked patches in ascending order.
        """
        return LOSSES[self.objective](x, p, batch, self)


@dataclass(frozen=True)
class Entry:
    """Where a parameter of shape [..] stands in a row of a stack's parameters."""

    name: str
    shape: torch.Size
    product: bool  # whether it is a linear layer's, used in the products' type
    start: int
    stop: int
    end: int  # of what follows it to align the next one

    @property
    def stacked(self) -> tuple[int, ...]:
        """Its shape behind the leading M: linear weights [I, O], vectors [1, D], tokens as they are."""
        if len(self.shape) == 2:
            return self.shape[1], self.shape[0]
        return tuple(self.shape[1:]) if len(self.shape) == 3 else (1, *self.shape)

    def from_module(self, tensor: Tensor) -> Tensor:
        """A run's parameter, or whatever has its shape, as it stands in a row."""
        return (tensor.t() if len(self.shape) == 2 else tensor).reshape(-1)

    def to_module(self, row: Tensor) -> Tensor:
        values = row[self.start : self.stop]
        return values.view(self.stacked).t() if len(self.shape) == 2 else values.view(self.shape)


class Parameters:
    """The parameters of M runs and their Adam state: two tensors [M, P] each, one for products, one for the rest.

    Args:
        objective: one of the runs'; says names and shapes.
        kind: what the runs have in common.
        runs: M.
        device: where they are.
        product_dtype: the type that products are computed in; parameters are kept as the objective's.
    """

    def __init__(
        self, objective: nn.Module, kind: Kind, runs: int, device: torch.device, product_dtype: torch.dtype
    ) -> None:
        linears = {name for name, module in objective.named_modules() if isinstance(module, nn.Linear)}
        self.entries: list[Entry] = []
        ends = {True: 0, False: 0}
        self.indices: dict[str, int] = {}  # in the optimiser's order
        for index, (name, parameter) in enumerate(objective.named_parameters()):
            if name == "encoder.cls_token" and not kind.class_token:
                continue  # the loss does not use it: it has no gradient, and does not decay either
            product = name.rpartition(".")[0] in linears
            start = ends[product]
            stop = start + parameter.numel()
            ends[product] = -(-stop // ALIGNED) * ALIGNED
            self.entries.append(Entry(name, parameter.shape, product, start, stop, ends[product]))
            self.indices[name] = index
        dtype = next(objective.parameters()).dtype
        self.product_dtype = product_dtype
        new = {product: torch.zeros(runs, end, device=device, dtype=dtype) for product, end in ends.items()}
        self.values = new
        # What products are computed with.
        self.products = new[True] if product_dtype == dtype else new[True].to(product_dtype)
        self.means = {product: torch.zeros_like(x) for product, x in new.items()}
        self.squares = {product: torch.zeros_like(x) for product, x in new.items()}

    def leaves(self) -> dict[str, Tensor]:
        """Views [M, ...] by name, which gradients can be taken of; those of products in the products' type."""
        rows = {True: self.products, False: self.values[False]}
        found = {}
        for entry in self.entries:
            row = rows[entry.product].detach()[:, entry.start : entry.stop]
            found[entry.name] = row.view(-1, *entry.stacked).requires_grad_()
        return found

    def gathered(self, gradients: Mapping[str, Tensor]) -> dict[bool, Tensor]:
        """Gradients by name as two tensors [M, P]."""
        pieces: dict[bool, list[Tensor]] = {True: [], False: []}
        for entry in self.entries:
            gradient = gradients[entry.name].flatten(1)
            pieces[entry.product].append(gradient)
            if entry.end > entry.stop:
                pieces[entry.product].append(gradient.new_zeros(len(gradient), entry.end - entry.stop))
        return {product: torch.cat(found, 1) for product, found in pieces.items()}

    def load(self, row: int, objective: nn.Module, optimizer: Adam) -> int:
        """Take in a run's parameters and Adam state; returns how many steps it has taken."""
        tensors = dict(objective.named_parameters())
        state = optimizer.state
        taken = 0
        for entry in self.entries:
            place = row, slice(entry.start, entry.stop)
            self.values[entry.product][place] = entry.from_module(tensors[entry.name].detach())
            kept = state.get(self.indices[entry.name], {})
            for store, key in ((self.means, "exp_avg"), (self.squares, "exp_avg_sq")):
                store[entry.product][place] = entry.from_module(kept[key]) if kept else 0.0
            taken = max(taken, int(kept["step"])) if kept else taken
        self.products[row] = self.values[True][row]
        return taken

    def save(self, row: int, objective: nn.Module, optimizer: Adam, taken: int) -> None:
        """Give a run its parameters and Adam state back, after `taken` steps."""
        tensors = dict(objective.named_parameters())
        state = {}
        with torch.no_grad():
            for entry in self.entries:
                tensors[entry.name].copy_(entry.to_module(self.values[entry.product][row]))
                state[self.indices[entry.name]] = {
                    "step": torch.tensor(float(taken)),
                    # Copies: a view would keep the whole stack's state in memory, and change with it.
                    "exp_avg": entry.to_module(self.means[entry.product][row]).clone(memory_format=CONTIGUOUS),
                    "exp_avg_sq": entry.to_module(self.squares[entry.product][row]).clone(memory_format=CONTIGUOUS),
                }
        optimizer.load(state)

    def update(self, gradients: Mapping[str, Tensor], scalars: Tensor, adam: Callable[..., None]) -> None:
        """Take a step of Adam, by `adam` or that compiled.

        Args:
            gradients: by name.
            scalars: [M, 4], each run's `adam_scalars`.
            adam: see there.
        """
        flat = self.gathered(gradients)
        copies = {True: None if self.products is self.values[True] else self.products, False: None}
        for group, copy in copies.items():
            adam(self.values[group], self.means[group], self.squares[group], flat[group], scalars, copy)

    def sound(self) -> list[bool]:
        """Whether each run's parameters are finite."""
        return (self.values[True].isfinite().all(1) & self.values[False].isfinite().all(1)).tolist()

    def tensors(self) -> Iterator[Tensor]:
        """All that training changes."""
        yield self.products
        for group in (self.values, self.means, self.squares):
            yield from group.values()


def adam_scalars(settings: TrainSettings, rate: float, step: int) -> tuple[float, float, float, float]:
    """What Adam's update of a step needs besides the gradients; see `adam`.

    Args:
        settings: optimiser and weight decay.
        rate: of this step.
        step: counted from 1.

    Returns:
        What is left of a weight after decay, decay that is added to the gradient, the step's size over the first
        bias correction, and the root of the second.
    """
    decay = settings.weight_decay
    kept, added = (1 - rate * decay, 0.0) if settings.optimizer == "adamw" else (1.0, decay)
    return kept, added, rate / (1 - BETAS[0] ** step), (1 - BETAS[1] ** step) ** 0.5


def adam(
    values: Tensor, means: Tensor, squares: Tensor, gradients: Tensor, scalars: Tensor, copy: Tensor | None = None
) -> None:
    """Adam's update (Kingma and Ba 2015, arXiv 1412.6980) of M runs in place, with decay as in L2 or in AdamW.

    Args:
        values: parameters [M, P].
        means: of the gradients [M, P].
        squares: means of their squares [M, P].
        gradients: [M, P].
        scalars: [M, 4], each run's `adam_scalars`.
        copy: of the parameters, in another type; None for none.
    """
    kept, added, size, root = scalars.unsqueeze(2).unbind(1)  # [M, 1]
    g = gradients.to(values.dtype) + added * values
    means.lerp_(g, 1 - BETAS[0])
    squares.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
    values.mul_(kept).sub_(size * means / (squares.sqrt() / root + EPSILON))
    if copy is not None:
        copy.copy_(values)
