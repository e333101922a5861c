"""The advice in few words: the best cell, an answer to each question, one next step and one warning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item, Line
from viny.evidence.advice.best import Best
from viny.evidence.advice.effects import pretraining_answer, pretraining_brief, tasks_answer
from viny.evidence.advice.facts import Facts
from viny.evidence.advice.labels import LabelAdvice
from viny.evidence.advice.references import better_model
from viny.evidence.verdicts import Decision
from viny.runtime.units import capital, counted

WORDS = 127  # of all lines together; a title and a last line come on top
SHARE = {"arms": 34, "best": 28, "pre-training": 36, "labels": 30, "task": 40, "references": 36, "next": 34}
SHARE |= {"warning": 20}  # words of a line at most
LEAST, BARE = 5, 8  # words of a line that is cut, and of a warning where there is little room
TOLD = 2  # tasks that are spelled out


def brief_lines(
    facts: Facts,
    best: Best,
    labels: LabelAdvice,
    arms: Sequence[Item],
    references: Sequence[Item],
    classes: pd.Series,
    proposals: Sequence[Item],
    warnings: Sequence[Item],
) -> list[Line]:
    """The short advice, of at most `WORDS` words.

    Args:
        facts: the study's.
        best: its best cell.
        labels: the advice on labels.
        arms: what is said of all arms; of one alone there is none.
        references: how the study's models compare with simple ones.
        classes: the IoU of each class by the model to use.
        proposals: what would settle the rest, the best first.
        warnings: the most important first.
    """
    beaten = better_model(references)
    lines = []
    lacking = {"are missing": facts.missing, "were measured on other images and are left out": facts.outdated}
    if said := [f"{len(some):,} of {counted(len(facts.cells), 'cell')} {how}" for how, some in lacking.items() if some]:
        lines.append(Line("provisional", "Provisional", f"{', '.join(said)}; answers may turn."))
    lines += [Line("references", "This model", item.data["brief"]) for item in beaten]
    several = [Line("arms", "Which arm", item.data["brief"]) for item in arms if "brief" in item.data][:1]
    label = "Best of the first arm" if several else "Its best" if beaten else "Best"
    lines += [*several, Line("best", label, f"{capital(best.words)}.")]
    asked = {"pre-training": facts.sizes, "an intermediate task": facts.tasks}
    if facts.sizes:
        text = pretraining_brief(facts) or _first_sentence(pretraining_answer(facts))
        lines.append(Line("pre-training", "Its pre-training" if beaten else "Pre-training", text))
    if gain := next((item.data["gain"] for item in beaten), ""):  # of the model that is worth labels
        lines.append(Line("labels", "More labels", gain))
    else:
        lines.append(_line("labels", "More labels", labels.effects[:1], labels.answer))
    if facts.tasks:
        lines.append(Line("task", "Task", _tasks(facts.decided("task")) or tasks_answer(facts)))
    if left := [name for name, some in asked.items() if not some]:
        lines.append(Line("not asked", "Not asked", f"{capital(' and '.join(left))}."))
    if weakest := _weakest(classes, proposals):
        lines.append(Line("classes", "Weakest of the U-Net" if beaten else "Weakest classes", weakest))
    if not references and facts.study.get("references"):
        lines.append(Line("references", "Other models", "No U-Net is trained yet; one may do better."))
    elif not beaten:
        lines += [Line("references", "Other models", item.data["brief"]) for item in references[-1:]]
    ahead = [item for item in references if item.data["lead"] < 0]  # clearly or not
    if model := ahead[-1].data.get("model") if ahead else best.name:
        command = f"viny predict --root results/{facts.config['study']} --cell {model} FOLDER --out masks"
        lines.append(Line("use", "To use the U-Net" if ahead else "To use it", f"`{command}`."))
    first = next((item.data for item in proposals if "rank" in item.data), {})
    longer = "epochs" in first
    lines.append(Line("next", "Next for it" if beaten and longer else "Next", _next(first, bool(facts.short))))
    above = {"brief", "missing", "outdated", *(("steps", "falling") if longer else ())}  # what is said already
    warnings = [item for item in warnings if not above & item.data.keys()]
    for item in warnings[:1]:
        lines.append(Line("note" if "note" in item.data else "warning", "Mind", _first_sentence(item.text)))
    return fitted(lines)


def fitted(lines: Iterable[Line], most: int = WORDS) -> list[Line]:
    """Lines of no more words than `most` in all.

    First the study's own note is left out and a warning is cut, then what was not asked is left out, then the longest
    line is cut. What is said of the U-Net, and lines with code, stay whole.
    """
    lines = [Line(line.key, line.label, _cut(line.text, SHARE.get(line.key, most))) for line in lines]

    def over() -> int:
        return sum(len(f"{line.label}: {line.text}".split()) for line in lines) - most

    if over() > 0:
        lines = [line for line in lines if line.key != "note"]
        lines = [Line(x.key, x.label, _cut(x.text, BARE) if x.key == "warning" else x.text) for x in lines]
    if over() > 0:
        lines = [line for line in lines if line.key != "not asked"]
    while (more := over()) > 0:
        cuttable = (line.key != "references" and "`" not in line.text for line in lines)
        lengths = {i: len(lines[i].text.split()) for i, can in enumerate(cuttable) if can}
        at = max(lengths, key=lengths.__getitem__, default=None)
        if at is None or lengths[at] <= LEAST:
            break
        text = _cut(lines[at].text, max(LEAST, lengths[at] - min(more, LEAST)))
        lines[at] = Line(lines[at].key, lines[at].label, text)
    return lines


def _weakest(means: pd.Series, proposals: Sequence[Item]) -> str:
    """The classes with the lowest IoU, where there are more than two, and what may help those that are lost."""
    if len(means) <= 2:
        return ""
    said = ", ".join(f"{name} {100 * iou:.0f} %" for name, iou in means.sort_values(kind="stable")[:3].items())
    larger = [item.data for item in proposals if "image_size" in item.data and item.data["rank"] > 1]
    hint = f"; images of {larger[0]['image_size']} pixels may help ({_in_brief(larger[0])})" if larger else ""
    return f"{said} IoU{hint}."


def _in_brief(proposal: Mapping[str, Any]) -> str:
    """What a proposal takes, in few words."""
    return str(proposal["takes"]).partition(",")[0]


def _cut(text: str, most: int) -> str:
    """A text of so many words at most, cut outside brackets, where a part ends if one ends in its second half."""
    words = text.split()
    if len(words) <= most or "`" in text:
        return text
    kept = words[: most - 1]
    while len(kept) > 1 and (said := " ".join(kept)).count("(") > said.count(")"):
        kept.pop()
    ends = [at for at, word in enumerate(kept, 1) if word[-1] in ",;:" and 2 * at > len(kept)]
    return f"{' '.join(kept[: ends[-1]]).rstrip(',;:') if ends else ' '.join(kept)} ..."


def _line(key: str, label: str, decisions: Sequence[Decision], otherwise: str) -> Line:
    return Line(key, label, decisions[0].short if decisions else _first_sentence(otherwise))


def _tasks(decisions: Sequence[Decision]) -> str:
    """Tasks that are decided first, and how many others there are."""
    order = sorted(decisions, key=lambda one: one.verdict == "undecided")
    said = [one.short for one in order[:TOLD]]
    left = order[TOLD:]
    open_ = sum(one.verdict == "undecided" for one in left)
    if left:
        told = f"{counted(len(left), 'other task')}, {open_} of them open." if open_ else ""
        said.append(told or f"{counted(len(left), 'other task')} decided too.")
    return " ".join(said)


def _next(data: Mapping[str, Any], short: bool) -> str:
    """The first proposal, by its data; empty for none. `short` says whether pre-training is."""
    if not data:
        return "Nothing that this study asks is open that a larger grid would settle."
    command = f"`{data['command']}`" if "command" in data else capital(str(data["change"]))
    takes = f"({_in_brief(data)})"
    if "epochs" in data:
        why = "pre-training is short" if short else "losses still fall"
        return f"Train longer, as {why} {takes}: {command}."
    what = ", ".join(map(str, data["settles"]))
    return f"{command} {takes}, for {_cut(what.rstrip(','), 12)}."


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text, maxsplit=1)[0]
