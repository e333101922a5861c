"""What to keep in mind when reading a study's results."""

from __future__ import annotations

import math

import pandas as pd
from scipy import stats

from viny.evidence.advice.advice import Item
from viny.evidence.advice.best import Best
from viny.evidence.advice.facts import FALLING, OFTEN, RARE, Facts, listed
from viny.evidence.statistics.crossed import LEVEL
from viny.evidence.tables import OF_CLASS, absent_classes
from viny.evidence.verdicts import bare
from viny.runtime.errors import InputError
from viny.runtime.units import tested_words
from viny.study.unanswered import FEW_GROUPS, FEW_IMAGES, LEAST_STEPS


def warning_items(facts: Facts, best: Best) -> list[Item]:
    """The weaknesses of a study's numbers, the most important first.

    Args:
        facts: the study's.
        best: its best cell.

    Returns:
        An item for each warning that applies.

    Raises:
        InputError: a damaged table of duplicates.
    """
    return [
        *outdated_items(facts),
        *_missing(facts),
        *_few_seeds(facts),
        *_short_pretraining(facts),
        *_falling(facts),
        *_duplicates(facts),
        *_small_test_set(facts, best),
        *_classes(facts),
        *_switches(facts),
        *_note(facts),
    ]


def outdated_items(facts: Facts) -> list[Item]:
    """How many cells are left out because they were measured on other images; empty if none are."""
    if not facts.outdated:
        return []
    evaluated = len(facts.outdated) + len(facts.done)
    text = f"{len(facts.outdated)} of {evaluated} cells were measured on other images and are left out; "
    return [Item(f"{text}run the study again.", {"outdated": [cell.name for cell in facts.outdated]})]


def _missing(facts: Facts) -> list[Item]:
    if not facts.missing:
        return []
    names = [cell.name for cell in facts.missing]
    text = (
        f"{len(names)} of {len(facts.cells)} cells are missing, so averages are over fewer. They are {listed(names)}."
    )
    return [Item(text, {"missing": names})]


def _few_seeds(facts: Facts) -> list[Item]:
    seeds = facts.frame["seed"].nunique()
    if seeds > 2:
        return []
    text, short = "One seed: no interval anywhere, and any difference may be chance.", "One seed: all may be chance."
    if seeds == 2:
        text = "Two seeds: their spread is hardly known, so that intervals are very wide."
        short = "Two seeds: intervals are very wide."
    return [Item(text, {"seeds": seeds}, (text, short))]


def _small_test_set(facts: Facts, best: Best) -> list[Item]:
    tests, groups = facts.test_images[0], facts.runs.groups
    if tests >= FEW_IMAGES and not 0 < groups < FEW_GROUPS:
        return []
    one = facts.runs.weights({(best.pretrain_size, best.intermediate, best.finetune_size): 1.0})
    half = stats.t.ppf((1 + LEVEL) / 2, max((groups or tests) - 1, 1)) * facts.runs.contrasts(one).se_images[0]
    text = f"Only {tested_words([tests], groups)}"
    if not math.isnan(half):
        text += f": by their draw alone a single mIoU is uncertain by ±{bare(half)} points (95 %)"
    remedy = "Neither seeds nor more images of the same groups mend that." if groups else "Seeds do not mend that."
    data = {"test_images": tests, "test_groups": groups, "half_width": half}
    return [Item(f"{text}. {remedy}", data, (f"{text}.", f"{text.partition(':')[0]}."))]


def _switches(facts: Facts) -> list[Item]:
    """What the protocol's switches do to the curves and their intervals."""
    items, switches = [], facts.config["switches"]
    if switches["test_set"] == "moving":
        text = "Each label size has test images of its own, so that curves mix test sets."
        items.append(Item(text, {"moving": True}))
    if switches["subsets"] == "shared":
        text = (
            "All seeds learn from the same labelled images of a size: intervals leave out the luck of which images "
            "were labelled (`switches.subsets: per_seed` has it in)."
        )
        short = "Intervals leave out the luck of which images were labelled."
        items.append(Item(text, {"subsets": "shared"}, (short,)))
    return items


def _duplicates(facts: Facts) -> list[Item]:
    """How many test images are also among the training images, either exactly or by their look."""
    path = facts.root / "tables" / "duplicates.csv"
    if not path.is_file():
        return []
    try:
        pairs = pd.read_csv(path, keep_default_na=False)
        found = pairs.groupby(["kind", "role"])["test_image"].nunique()
    except (ValueError, KeyError) as error:
        raise InputError(f"{path}: not a table of duplicates ({error}); delete it and run the workflow") from error
    if found.empty:
        return []
    words = [f"{n} {'in' if kind == 'exact' else 'by their look in'} {role}" for (kind, role), n in found.items()]
    text = f"Test images that are also among training images: {'; '.join(words)}. tables/duplicates.csv names them."
    short = "Some test images are also among training images."
    return [Item(text, {f"{role}, {kind}": int(n) for (kind, role), n in found.items()}, (short,))]


def _classes(facts: Facts) -> list[Item]:
    """An item for the classes that are hardly ever found or often missed, one for those that no test mask has, and
    one for those that no mask of a fine-tuning has."""
    ious = facts.metrics[[column for column in facts.metrics if column.startswith(OF_CLASS)]]
    ious = ious.rename(columns=lambda column: column.removeprefix(OF_CLASS))
    nowhere = [name for name in ious if ious[name].isna().all()]
    ious = ious.drop(columns=nowhere)
    missed = (ious < RARE).sum().sort_values(ascending=False, kind="stable")
    hardly, often = missed[2 * missed >= len(ious)], missed[missed >= OFTEN * len(ious)]
    often = often.drop(hardly.index)
    texts = []
    for words, some, share in (("hardly ever found", hardly, "half"), ("often missed", often, "a quarter")):
        if len(some):
            names = [f"{name} ({n}, at best {100 * ious[name].max():.1f} %)" for name, n in some.items()]
            texts.append(
                f"{len(some)} of {len(missed)} classes {'is' if len(some) == 1 else 'are'} {words} (IoU below "
                f"{100 * RARE:g} % in {share} of the {len(ious)} cells or more): {listed(names)}."
            )
    items = []
    if texts:
        text = f"{' '.join(texts)} Such classes hold mIoU down, and their luck moves it."
        short = f"{len(hardly) + len(often)} of {len(missed)} classes are hardly ever found or often missed."
        items.append(Item(text, {"hardly_ever_found": hardly.to_dict(), "often_missed": often.to_dict()}, (short,)))
    if nowhere:
        text = f"No test mask has a pixel of these classes, so nothing is known of them: {listed(nowhere)}."
        if facts.metrics["miou_is"].iloc[0] == "per_image":
            text += " Each counts 0 in every image's mIoU."
        else:
            text += " mIoU is a mean over the others."
        text += " Split the images anew, or leave these classes out."
        items.append(Item(text, {"nowhere": nowhere}, ("Nothing is known of classes that no test mask has.",)))
    if untrained := absent_classes(facts.metrics, "training"):
        words = [f"{name} (in {len(some)} of {len(facts.metrics)} cells)" for name, some in untrained.items()]
        text = f"No mask that a cell was fine-tuned on has a pixel of: {listed(words)}. It cannot be learnt there."
        items.append(Item(text, {"not_in_training": untrained}, ("Some cells lack a class in all training masks.",)))
    return items


def _short_pretraining(facts: Facts) -> list[Item]:
    if not facts.short:
        return []
    words = ", ".join(f"{n:,} steps on {size:,} images" for size, n in facts.short.items())
    text = (
        f"Short pre-training: {words}. Fewer than {LEAST_STEPS:,} have made results worse in this project's own "
        "studies; the paper took 35,000 or more. A longer one may turn the verdict."
    )
    may = "a longer one may turn the verdict."
    return [
        Item(text, {"steps": facts.short}, (f"Short pre-training ({words}): {may}", f"Pre-training is short: {may}"))
    ]


def _falling(facts: Facts) -> list[Item]:
    """The trainings whose loss was still falling when they ended."""
    words, data = [], []
    for (stage, what), drop in facts.falling.items():
        name = {"pretrain": f"pre-training {what}", "finetune": f"fine-tuning on {what} labels"}.get(stage)
        words.append(f"{name or what} by {100 * drop:.0f} %")
        data.append({"stage": stage, "what": what, "drop": drop})
    if not words:
        return []
    text = (
        f"The loss was still falling at the end: {'; '.join(words)} (median; from the tenth of epochs before the last "
        f"to the last tenth; the limit is {100 * FALLING:g} %). Train longer."
    )
    return [Item(text, {"falling": data}, ("Losses were still falling at the end of trainings.",))]


def _note(facts: Facts) -> list[Item]:
    note = facts.config.get("note")
    return [Item(f"The study's own note: {note}", {"note": note})] if note else []
