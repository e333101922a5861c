"""The advice in few words: the best cell, an answer to each question, one next step and one warning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item, Line
from viny.evidence.advice.best import Best
from viny.evidence.advice.effects import pretraining_answer, pretraining_brief, tasks_answer
from viny.evidence.advice.facts import Facts
from viny.evidence.advice.labels import LabelAdvice
from viny.evidence.advice.references import better_model
from viny.evidence.verdicts import Decision, bare
from viny.runtime.units import capital, counted

# Which line takes its next shorter wording, where there are too many words. Effects keep their intervals.
GIVES = (
    *("note", "classes", "best", "warning", "pre-training", "not asked", "next", "labels", "task", "pre-training"),
    *("classes", "references", "task", "classes", "arms", "provisional", "task", "best", "warning", "next"),
)
ONE_SEED = re.compile(r"\((a difference with )?one seed, no interval\)")
TOLD = 2  # tasks that are spelled out


@dataclass(frozen=True)
class Draft:
    """A line of the short advice, before it is fitted.

    Attributes:
        key, label: see `Line`.
        texts: what is said, and the same in fewer and fewer words, each a whole sentence; an empty one leaves the line
            out.
    """

    key: str
    label: str
    texts: tuple[str, ...]


def brief_lines(
    facts: Facts,
    best: Best,
    labels: LabelAdvice,
    arms: Sequence[Item],
    references: Sequence[Item],
    classes: pd.Series,
    proposals: Sequence[Item],
    warnings: Sequence[Item],
    most: int,
) -> list[Line]:
    """The short advice.

    Args:
        facts: the study's.
        best: its best cell.
        labels: the advice on labels.
        arms: what is said of all arms; of one alone there is none.
        references: how the study's models compare with simple ones.
        classes: the IoU of each class by the model to use.
        proposals: what would settle the rest, the best first.
        warnings: the most important first.
        most: words.
    """
    beaten = better_model(references)
    several = [item for item in arms if item.short][:1]
    drafts = _provisional(facts)
    drafts += [Draft("references", "This model", item.short) for item in beaten]
    drafts += [Draft("arms", "Which arm", item.short) for item in several]
    label = "Best of the first arm" if several else "Its best" if beaten else "Best"
    words = f"{capital(best.words)}."
    said = f"{words.rpartition(' (')[0]}."
    drafts.append(Draft("best", label, (words, said, *([f"{bare(best.level['mean'])} %."] if several else []))))
    asked = {"pre-training": facts.sizes, "an intermediate task": facts.tasks}
    if facts.sizes:
        texts = pretraining_brief(facts) or _unanswered(pretraining_answer(facts))
        drafts.append(Draft("pre-training", "Its pre-training" if beaten else "Pre-training", texts))
    gain = next((item.data["gain"] for item in beaten), "")  # of the model that is worth labels
    drafts.append(Draft("labels", "More labels", (gain,) if gain else _labels(labels)))
    if facts.tasks:
        drafts.append(Draft("task", "Task", _tasks(facts.decided("task")) or _unanswered(tasks_answer(facts))))
    if left := [name for name, some in asked.items() if not some]:
        drafts.append(Draft("not asked", "Not asked", (f"{capital(' and '.join(left))}.", "")))
    if weakest := _weakest(classes, proposals):
        drafts.append(Draft("classes", "Weakest of the U-Net" if beaten else "Weakest classes", weakest))
    if not references and facts.study.get("references"):
        drafts.append(Draft("references", "Other models", ("No U-Net is trained yet; one may do better.",)))
    elif not beaten:
        drafts += [Draft("references", "Other models", item.short) for item in references[-1:]]
    ahead = [item for item in references if item.data["lead"] < 0]  # clearly or not
    own = several[0].data["model"] if several else best.name
    if model := ahead[-1].data.get("model") if ahead else own:
        command = f"`viny predict --root {facts.called} --cell {model} FOLDER --out masks`."
        drafts.append(Draft("use", "To use the U-Net" if ahead else "To use it", (command,)))
    first = next((item.data for item in proposals if "rank" in item.data), {})
    longer = "epochs" in first
    drafts.append(Draft("next", "If you keep it" if beaten and longer else "Next", _next(first, bool(facts.short))))
    above = {"reference", "missing", "outdated", *(("steps", "falling") if longer else ())}  # what is said already
    for item in [item for item in warnings if not above & item.data.keys()][:1]:
        key = "note" if "note" in item.data else "warning"
        drafts.append(Draft(key, "Mind", (*(item.short or (_first_sentence(item.text),)), "")))
    drafts = [Draft(x.key, x.label, tuple(ONE_SEED.sub("(one seed)", text) for text in x.texts)) for x in drafts]
    return fitted(drafts, most)


def fitted(drafts: Sequence[Draft], most: int) -> list[Line]:
    """Lines of no more words than `most` in all, as far as their wordings allow: `GIVES` says which gives way first.

    Then what fits after all is taken back.
    """

    def made(given: Sequence[str]) -> list[Line]:
        texts = (draft.texts[min(given.count(draft.key), len(draft.texts) - 1)] for draft in drafts)
        lines = (Line(draft.key, draft.label, text) for draft, text in zip(drafts, texts, strict=True))
        return [line for line in lines if line.text]

    def fits(given: Sequence[str]) -> bool:
        return sum(len(f"{line.label}: {line.text}".split()) for line in made(given)) <= most

    given: list[str] = []
    for key in GIVES:
        if fits(given):
            break
        given.append(key)
    for at in reversed(range(len(given))):
        if fits(less := given[:at] + given[at + 1 :]):
            given = less
    return made(given)


def _provisional(facts: Facts) -> list[Draft]:
    """That answers may turn, while some cells are not in."""
    lacking = {"are missing": facts.missing, "were measured on other images and are left out": facts.outdated}
    said = [f"{len(some):,} of {counted(len(facts.cells), 'cell')} {how}" for how, some in lacking.items() if some]
    if not said:
        return []
    count = len(facts.missing) + len(facts.outdated)
    texts = (", ".join(said), f"{count:,} of {counted(len(facts.cells), 'cell')} are missing or of other images")
    return [Draft("provisional", "Provisional", tuple(f"{text}; answers may turn." for text in texts))]


def _labels(labels: LabelAdvice) -> tuple[str, ...]:
    if not labels.effects:
        return _unanswered(labels.answer)
    said = labels.effects[0]
    return said.short, f"{capital(said.name.partition(' with ')[0])} {said.words}: {said.number}."


def _weakest(means: pd.Series, proposals: Sequence[Item]) -> tuple[str, ...]:
    """The classes with the lowest IoU, where there are more than two, and what may help those that are lost."""
    if len(means) <= 2:
        return ()
    said = [f"{name} {100 * iou:.0f} %" for name, iou in means.sort_values(kind="stable")[:3].items()]
    larger = [item.data for item in proposals if "image_size" in item.data and item.data["rank"] > 1]
    hint = f"; images of {larger[0]['image_size']} pixels may help ({_in_brief(larger[0])})" if larger else ""
    return f"{', '.join(said)} IoU{hint}.", f"{', '.join(said)} IoU.", f"{said[0]} IoU.", ""


def _in_brief(proposal: Mapping[str, Any]) -> str:
    """What a proposal takes, in few words."""
    return str(proposal["takes"]).partition(",")[0]


def _tasks(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Tasks that are decided first, and how many others there are."""
    if len(decisions) == 1:
        (one,) = decisions
        return one.short, f"{one.what} {one.words}: {one.number}."
    order = sorted(decisions, key=lambda one: one.verdict == "undecided")
    texts = []
    for told in range(TOLD, 0, -1) if order else ():
        left = order[told:]
        open_ = sum(one.verdict == "undecided" for one in left)
        said = [one.short for one in order[:told]]
        if left:
            more = f"{counted(len(left), 'other task')}, {open_} of them open."
            said.append(more if open_ else f"{counted(len(left), 'other task')} decided too.")
        texts.append(" ".join(said))
    told = [f"{one.what} {one.words}" for one in order if one.verdict != "undecided"]
    rest = len(order) - len(told)
    none = f"None of {len(order)} tasks can be told to help or hurt."
    fewest = f"{', '.join(told)}{f'; {rest} cannot be told' if rest else ''}." if told else none
    return (*texts, fewest) if order else ()


def _next(data: Mapping[str, Any], short: bool) -> tuple[str, ...]:
    """The first proposal, by its data. `short` says whether pre-training is."""
    if not data:
        return ("Nothing that this study asks is open that a larger grid would settle.",)
    command = f"`{data['command']}`" if "command" in data else capital(str(data["change"]))
    takes = f"({_in_brief(data)})"
    if "epochs" in data:
        why = "pre-training is short" if short else "losses still fall"
        return f"Train longer, as {why} {takes}: {command}.", f"Train longer {takes}: {command}.", f"{command}."
    what, *others = map(str, data["settles"])
    more = f" and {len(others)} more" if others else ""
    return f"{command} {takes}, for {what.rstrip(',')}{more}.", f"{command} {takes}.", f"{command}."


def _unanswered(answer: str) -> tuple[str, ...]:
    """An answer without a number, which may go on with what to add to the grid."""
    said = _first_sentence(answer)
    return said, f"{re.split('[:;]', said)[0].rstrip('.')}."


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", text, maxsplit=1)[0]
