"""What every figure of a study has to be: whole, and readable by anybody, on a phone too."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from viny.evidence.figures import kit

PHONE = 368  # CSS pixels that a page of 400 leaves for a figure
LEAST_LETTERS = 8.5  # CSS pixels
HYPHEN = re.compile(r"(?<![\w.)])-\d")  # in place of a minus


def contrast(colour: object, alpha: float | None = None) -> float:
    """WCAG 2's contrast of a colour with white; what is transparent is laid on white first."""
    *channels, opaque = to_rgba(colour, alpha)
    channels = 1 + opaque * (np.array(channels) - 1)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05))


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure: Figure) -> str:
    """Everything a figure says outside its ticks, in one line."""
    ticks = {id(tick) for axes in figure.axes for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())}
    return " ".join(" ".join(text.get_text().split()) for text in texts(figure) if id(text) not in ticks)


def legend(of: Figure | Axes) -> list[str]:
    found = of.legends[0] if isinstance(of, Figure) else of.get_legend()
    return [text.get_text() for text in found.get_texts()]


def labelled(axes: Axes, label: str) -> list[Line2D]:
    """Lines with a label, including those of error bars."""
    lines = [line for line in axes.lines if line.get_label() == label]
    return lines + [bars.lines[0] for bars in axes.containers if bars.get_label() == label]


def drawn_lines(figure: Figure) -> list[Line2D]:
    """Lines and marks that stand for something: no grid, no tick, no frame."""
    frames = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                frames |= {id(tick.tick1line), id(tick.tick2line), id(tick.gridline)}
    return [line for line in figure.findobj(Line2D) if id(line) not in frames]


def colours(figure: Figure) -> Iterator[tuple[str, float]]:
    """What each line and mark is, and its contrast with white."""
    for line in drawn_lines(figure):
        if line.get_linestyle() not in ("None", "", " ") and line.get_linewidth() > 0:
            yield f"line {line.get_label()}", contrast(line.get_color(), line.get_alpha())
        if line.get_marker() not in ("None", "", " ", None):
            edge, face = line.get_markeredgecolor(), line.get_markerfacecolor()
            yield f"mark {line.get_label()}", max(contrast(c, line.get_alpha()) for c in (edge, face))
    for lines in figure.findobj(LineCollection):
        for colour in lines.get_colors():
            yield "bars", contrast(colour)
    frames = {id(legend.get_frame()) for legend in figure.findobj(Legend)}
    for patch in figure.findobj(lambda patch: isinstance(patch, Patch) and id(patch) not in frames):
        if patch.get_linewidth() > 0 and patch.get_edgecolor()[3] > 0 and patch is not figure.patch:
            yield f"edge of {patch}", contrast(patch.get_edgecolor())


def assert_readable(figure: Figure) -> None:
    """Colours with contrast, letters to be read on a phone, true minus signs, nothing cut, nothing on another."""
    for text in texts(figure):
        assert contrast(text.get_color()) >= 4.5, text.get_text()
        assert text.get_size() / 72 / kit.WIDTH * PHONE >= LEAST_LETTERS, text.get_text()
        assert not HYPHEN.search(text.get_text()), text.get_text()
    for what, value in colours(figure):
        assert value >= 3, what
    assert figure.get_figwidth() == kit.WIDTH
    page, inside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= page.x0
    assert inside.x1 <= page.x1
    assert inside.y0 >= page.y0
    assert inside.y1 <= page.y1
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
        told = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_visible()]
        drawn = [text.get_window_extent() for text in told if text.get_text()]
        assert not any(a.overlaps(b) for i, a in enumerate(drawn) for b in drawn[:i]), [x.get_text() for x in told]
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    for drawn in figure.legends:
        box = drawn.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1
