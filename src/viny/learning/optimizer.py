"""Adam and AdamW by PyTorch's fused kernel.

The same bits as `torch.optim.Adam` and `AdamW` with `fused=True`, which load PyTorch's compiler: a second of each job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from viny.learning.settings import TrainSettings

BETAS, EPSILON = (0.9, 0.999), 1e-8  # PyTorch's defaults


class Adam:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980), with weight decay as in L2 or, for 'adamw', in AdamW.

    Args:
        model: whose parameters it updates, in their order.
        settings: optimiser, rate and weight decay.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings) -> None:
        self.parameters = list(model.parameters())
        self.lr, self.weight_decay = settings.lr, settings.weight_decay
        self._update = {"adam": torch._fused_adam_, "adamw": torch._fused_adamw_}[settings.optimizer]
        # Of each parameter that was updated, by its place: how often, and the means of its gradients and their squares.
        self.state: dict[int, dict[str, Tensor]] = {}

    def step(self, share: Callable[[Callable[[list[int]], None], list[int]], None] | None = None) -> None:
        """Update the parameters that have a gradient.

        Args:
            share: calls a function with parts of a list, each part in a thread; none: with the list itself, here.
        """
        places = [place for place, parameter in enumerate(self.parameters) if parameter.grad is not None]
        for place in places:
            if place not in self.state:
                parameter = self.parameters[place]
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                means = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.state[place] = {"step": step, **means}
        if share is None:
            self._step(places)
        else:
            share(self._step, places)

    @torch.no_grad()
    def _step(self, places: list[int]) -> None:
        if not places:
            return
        kept = {key: [self.state[place][key] for place in places] for key in ("step", "exp_avg", "exp_avg_sq")}
        torch._foreach_add_(kept["step"], 1)
        self._update(
            [self.parameters[place] for place in places],
            [self.parameters[place].grad for place in places],
            kept["exp_avg"],
            kept["exp_avg_sq"],
            [],
            kept["step"],
            lr=self.lr,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def load(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Take over a state like `state`, where the parameters are."""
        self.state = {}
        for place, values in state.items():
            device = self.parameters[place].device
            self.state[place] = {key: torch.as_tensor(value).to(device) for key, value in values.items()}
