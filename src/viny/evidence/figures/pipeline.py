"""The figure of a study's pipeline: what is trained on what, how often, and what is tested."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from viny.evidence.figures import kit
from viny.runtime.units import counted, listed

LINE, GAP, PAD = 0.155, 0.26, 0.09  # inches: per line of text, between boxes, within a box
LEFT, RIGHT = 0.08, 4.06  # inches, of the boxes; to their right, the ways around them
LETTERS = 60  # that fit within a box
FILL = "#F3F5F9"
SOURCES = {
    "imagenet": "images of ImageNet",
    "intel": "images of Intel's scenes",
    "pets": "images of Oxford-IIIT Pet",
    "synthetic": "synthetic images",
    "folder": "images of one's own",
    "segmentation": "of the labelled images",
}


@dataclass(frozen=True)
class Step:
    """A box: its heading, what is in it, and whether some cells go around it."""

    heading: str
    lines: Sequence[str]
    optional: bool = False


def steps(spec: Mapping[str, Any], trained: Mapping[str, int], images: Mapping[str, int], tested: str) -> list[Step]:
    """The steps of a study.

    Args:
        spec: see `viny.study.specs.figures_spec`.
        trained: number of trainings of each stage.
        images: number of images that each intermediate task learns from.
        tested: the test images, in words.
    """
    grid, about = spec["grid"], spec["pipeline"]
    sizes, labels = sorted(grid["pretrain_sizes"]), sorted(grid["finetune_sizes"])
    tasks = [task for task in grid["intermediates"] if task in images]  # a study's first arm may leave some out
    data = [f"labelled: {labels[-1]:,} {SOURCES[about['segmentation']['source']]}, and {tested}"]
    found = []
    if sizes[-1]:
        data.insert(0, f"unlabelled: {sizes[-1]:,} {SOURCES[about['pretrain']['source']]}")
        masked = f"{100 * spec['mask_ratio']:.0f} % of the patches masked"
        epochs = counted(about["pretrain"]["epochs"], "epoch")
        lines = [f"{listed([size for size in sizes if size])} images, {epochs}, {masked}"]
        lines.append(counted(trained["pretrain"], "training"))
        found.append(Step(f"SimMIM pre-training{' (or a random start)' * (not sizes[0])}", lines, not sizes[0]))
    if tasks:
        data += [f"task {task}: {images[task]:,} {SOURCES[about['tasks'][task]['source']]}" for task in tasks]
        optional = "none" in grid["intermediates"]
        lines = [f"{task}: {counted(about['tasks'][task]['epochs'], 'epoch')}" for task in tasks]
        lines = ["; ".join(lines), counted(trained["intermediate"], "training")]
        found.append(Step(f"Intermediate task{' (or none)' * optional}", lines, optional))
    lines = [
        f"segmentation: {listed(labels)} labels, {counted(about['finetune']['epochs'], 'epoch')}",
        f"{counted(trained['finetune'], 'training')}: every cell with {counted(len(grid['seeds']), 'seed')}",
    ]
    found.append(Step("Fine-tuning", lines))
    found.append(Step("Evaluation", [f"mIoU of {counted(trained['finetune'], 'model')} on {tested}"]))
    return [Step("Data", data), *found]


@kit.in_style
def pipeline(steps: Sequence[Step], note: str = "") -> Figure:
    """Boxes from data to evaluation, with an arrow around each step that some cells leave out.

    Args:
        steps: in their order.
        note: printed under the figure.
    """
    texts = [[line for piece in step.lines for line in textwrap.wrap(piece, LETTERS)] for step in steps]
    heights = [LINE * (len(lines) + 1) + 2 * PAD for lines in texts]
    total = sum(heights) + GAP * (len(steps) - 1) + 0.1
    figure = kit.new_figure(total)
    axes = figure.subplots()
    axes.set(xlim=(0, kit.WIDTH), ylim=(0, total), aspect="equal")
    axes.set_axis_off()
    top, middles = total - 0.05, []
    for step, lines, height in zip(steps, texts, heights, strict=True):
        bottom = top - height
        edge = {"edgecolor": kit.GREY, "linewidth": 1.0, "linestyle": "--" if step.optional else "-"}
        box = FancyBboxPatch(
            (LEFT, bottom), RIGHT - LEFT, height, boxstyle="round,pad=0,rounding_size=0.06", facecolor=FILL, **edge
        )
        axes.add_patch(box)
        axes.text(LEFT + PAD, top - PAD, step.heading, va="top", weight="bold", size=8.5)
        for i, line in enumerate(lines, 1):
            axes.text(LEFT + PAD, top - PAD - LINE * i - 0.02, line, va="top", parse_math=False)
        if middles:
            _arrow(axes, [((LEFT + RIGHT) / 2, top + GAP), ((LEFT + RIGHT) / 2, top)])
        middles.append((top + bottom) / 2)
        top = bottom - GAP
    for i, step in enumerate(steps):
        if step.optional:
            out = RIGHT + (0.2 if i % 2 else 0.4)
            start, end = middles[i - 1] - 0.07, middles[i + 1] + 0.07
            _arrow(axes, [(RIGHT, start), (out, start), (out, end), (RIGHT, end)])
    kit.add_note(figure, note)
    return figure


def _arrow(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """A line through some points with a head at its end."""
    if len(points) > 2:
        axes.plot(*zip(*points[:-1], strict=True), color=kit.GREY, linewidth=1.0, solid_joinstyle="round")
    style = {"arrowstyle": "-|>", "color": kit.GREY, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=style)
