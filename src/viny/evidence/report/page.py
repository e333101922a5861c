"""A study's report on one page: the advice in short, mIoU as a figure and as a table, IoU by class, warnings, next
steps; then all else, folded.

It is made from the study's tables, metrics and figures and embeds its pictures, so that it can be sent as one file. It
runs no script: what is shown on demand is HTML's popovers and CSS.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from PIL import Image

from viny.evidence.advice.advice import Advice, Item
from viny.evidence.advice.adviser import advise, sources
from viny.evidence.figures import NOTHING
from viny.evidence.paper.words import AGAINST, IN_FAVOUR, estimate_in_words
from viny.evidence.report import CAPTIONS
from viny.evidence.report.arms import arms_answer, cell_words
from viny.evidence.report.classes import class_table
from viny.evidence.report.means import arms_table, ends, miou_table
from viny.evidence.report.words import code, images_of, percent, words
from viny.evidence.statistics.arm_pages import held_out_words
from viny.evidence.statistics.arms import COMPARED, COMPARISON, KEY, Arms
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.evidence.statistics.representations import harm_sentence
from viny.evidence.summary import Summary
from viny.evidence.tables import ARM, GROUP, OF_CLASS, absent_words, read_metrics, with_arms
from viny.runtime.errors import InputError
from viny.runtime.files import read_sealed, write_text
from viny.runtime.units import capital, counted, listed, tested_words
from viny.study.arms import settings_of
from viny.study.grid import arms, base_cells, cells, has_arms, references
from viny.study.layout import (
    FIGURE,
    SCORES,
    SUMMARIES,
    held_out_curves,
    metrics_file,
    reference_file,
    summarised,
    trainings,
)

STAGES = {
    **{"pretrain": "pre-training", "intermediate": "intermediate tasks", "finetune": "fine-tuning"},
    "reference": "U-Nets beside the study",
}
TINTS = dict.fromkeys(IN_FAVOUR, "good") | dict.fromkeys(AGAINST, "bad")
RETURNS = "Labels and pre-training"
TASKS = "The intermediate task"
GEOMETRY = "The geometry of the patch tokens"
# The figures of each section in reading order, each with what a reader who does not see it is told.
PICTURES = {
    "What was run": {
        "pipeline": "Boxes from the data over pre-training and tasks to evaluation, with images and epochs.",
    },
    RETURNS: {
        "miou_curves": "Lines of mIoU against labels, one for each pre-training, and grey ones for simple models; the "
        "table of mIoU has the means.",
        "returns": "Left, curves of mIoU against labels; right, the gain of each doubling of the labels.",
        "transfer": "Labels that a random start needs for the same mIoU, against those used.",
    },
    TASKS: {
        "effects": "The change by each task in each cell, as points with intervals on both sides of zero.",
        "miou_difference": "Lines of the change by each task against labels, with standard errors, around zero.",
    },
    GEOMETRY: {
        "geometry_harm": "For each property of the tokens, its change against that of mIoU, a point for each cell.",
        "geometry_layers": "For each property of the tokens, a line for each encoder through its layers.",
        "geometry_similarity": "Lines of the similarity of two patches against their distance, one for each encoder.",
        "geometry_heat_maps": "Test images, and for each encoder a map of all patches' similarity to a framed one.",
    },
    "What it looks like": {
        "segmentation": "Columns of a test image, its true mask and the masks that the models predict.",
        "worst": "Columns of a test image by name, its true mask, the predicted one, and its score.",
        "failures": "Columns of a test image, its true mask, and the masks predicted without and with the task.",
        "reconstructions": "Rows of a test image, its unmasked patches, and what the model paints into the rest.",
    },
}
ARMS = {"arms": "Lines of mIoU against labels, one for each arm; the table of mIoU has the means."}
HELD_OUT = {
    "held_out": "Left, the loss on held-out images against epochs; right, its last value against the gain in mIoU.",
}
COSTS = {"costs": "Points of mIoU against operations and against seconds, with a stepped line through the cheapest."}
TRAINING = {"learning_curves": "Lines of training loss against epochs, a panel for each stage."}
# The columns that the page shows of each table, all but `TEXT` numbers.
READ = {
    "decisions": ("kind", "what", "name", "words", "mean", "low", "high", "sentence"),
    "scorecard": (
        *("kind", "what", "sentence", "unit", "protocol", "verdict", "reason", "paper_verdict", "paper_seeds_needed"),
        *(f"ours_{protocol}{end}" for protocol in ("paper", "sound") for end in ("", "_low", "_high")),
    ),
    "duplicates": ("kind",),
    "harm_correlation": ("metric", "n", "rho", "low", "high", "p", "p_least", "p_holm", "verdict"),
    "tableA1": ("stage", "setting", "this_study", "the_paper"),
    "arms": (*KEY, *(f"{name}{end}" for name in COMPARED for end in COMPARISON), "rate", "rate_end", "hours", "device"),
    "arm_decisions": ("kind", "what", "name", "mean", "low", "high", "reason", "sentence"),
    "held_out": (*ARM, "pretrain_size", "words"),
    "references": ("reference", "name", "finetune_size", "mean", "low", "high"),
}
TEXT = ("kind", "what", "name", "words", "sentence", "unit", "protocol", "verdict", "reason")
TEXT += ("reference", "paper_verdict", "metric", *READ["tableA1"], *ARM, "intermediate", "device", "rate_end")
TEXT += tuple(f"{name}_words" for name in COMPARED)
AGAIN = "delete it and run the workflow, which writes it anew"


@dataclass
class Section:
    """A part of the page."""

    heading: str
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def write_page(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Write a study's report as one HTML file that needs no network.

    Args:
        spec: see `viny.study.specs.report_spec`.
        root: the study's folder, with its tables and figures.
        out: HTML file to write.
        record: JSON file to write, what was read and written.

    Raises:
        InputError: a table, a figure or the provenance of a training is missing.
    """
    summary = Summary("report", spec, root)
    page = _Page(spec, root, summary)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"words": words, "code": code}
    text = environment.get_template("page.html.j2").render(
        study=spec["study"],
        drawn=page.runs.drawn,
        lead=page.lead(),
        setting=page.setting(),
        note=spec["note"],
        arms=page.arms(),
        advice=page.advice,
        next_steps=page.proposals(),
        warnings=page.warnings(),
        classes=page.classes(),
        sentences=page.decisions["sentence"].tolist(),
        miou=page.miou(),
        others=page.others(),
        about=page.about(),
        sections=page.sections(),
        provenance=page.provenance(),
        tints=TINTS,
    )
    write_text(out, text)
    summary.write(record, [out])


def table(frame: pd.DataFrame, kind: str = "") -> dict[str, Any]:
    """A frame of text and numbers in the template's form; columns that hold only numbers are right-aligned.

    Args:
        frame: what it shows.
        kind: 'stacked' if each row becomes a block on a phone, its columns' names before what they hold; 'even' if all
            columns have the same width.
    """
    columns = [{"name": name, "number": pd.api.types.is_numeric_dtype(frame[name])} for name in frame]
    rows = [["" if pd.isna(value) else words(value) for value in row] for row in frame.itertuples(index=False)]
    return {"columns": columns, "rows": rows, "kind": kind}


class _Page:
    def __init__(self, spec: Mapping[str, Any], root: Path, record: Summary) -> None:
        self.root, self.record = root, record
        self.settings = {key: value for key, value in spec.items() if key not in ("code", "arms")}
        self.spec = settings_of(spec, arms(spec)[0])
        self.cells, self.base, self.several = cells(spec), base_cells(spec), has_arms(spec)
        self.arm_words = Arms.of(spec)
        record.reads(*sources(root, self.settings))
        self.advice: Advice = advise(root, self.settings)
        self.decisions = self._read("decisions")
        self.trained = [
            (training.stage, self._json(training.file(root, "run"), "the provenance of a training"))
            for training in trainings(self.cells)
        ]
        self.trained += [
            ("reference", self._json(reference_file(root, one, "record"), "a reference")["provenance"])
            for one in references(self.settings)
        ]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """Of every cell, as in `tables.read_metrics`."""
        paths = [metrics_file(self.root, cell) for cell in self.cells]
        self.record.reads(*paths)
        return read_metrics(paths)

    @cached_property
    def runs(self) -> Runs:
        """mIoU of every cell, seed by seed."""
        paths = [metrics_file(self.root, cell).with_suffix(".npz") for cell in self.cells]
        self.record.reads(*paths)
        return read_runs(with_arms(self.metrics), paths[0].parent, by=KEY if self.several else GROUP)

    def section(self, key: str) -> list[Item]:
        """The items of a section of the advice."""
        return next(part.items for part in self.advice.sections if part.key == key)

    def warnings(self) -> list[str]:
        """What to keep in mind; the study's own note stands elsewhere."""
        found = [item for item in self.section("summary") if "constant" in item.data] + self.section("warnings")
        return [item.text for item in found if "note" not in item.data]

    def proposals(self) -> list[str]:
        """What would settle the rest, the best first."""
        return [item.text.partition(". ")[2] for item in self.section("next") if "rank" in item.data]

    def classes(self) -> dict[str, Any]:
        """The table of IoU by class, of the best cell, and of a random start and a U-Net with as many labels."""
        best = next(item.data for item in self.section("summary") if "not_told_from_it" in item.data)
        key = tuple(best[name] for name in GROUP)
        frame = with_arms(self.metrics)
        start, variant = self.arm_words.base
        mine = frame[(frame["start"] == start) & (frame["variant"] == variant)]
        table = self._read("references", like=OF_CLASS) if self.spec.get("references") else None
        unets = None if table is None else table[table["reference"] == "unet"]
        return class_table(mine if self.several else frame, key, unets)

    def miou(self) -> dict[str, Any]:
        """The table of mIoU, of every arm where there are several."""
        if not self.several:
            return miou_table(self.runs)
        more = {tuple(row[name] for name in KEY): cell_words(row) for row in self._read("arms").to_dict("records")}
        return arms_table(self.runs, self.arm_words, self.cells, more)

    def others(self) -> list[dict[str, Any]]:
        """Rows for the table of mIoU that are not of the study's model: each reference, where it has them."""
        if not self.spec.get("references"):
            return []
        table = self._read("references")
        labels = sorted({cell.finetune_size for cell in self.cells})
        rows = []
        for _, mine in table.groupby("reference", sort=False):
            by_labels = {row["finetune_size"]: row for row in mine.to_dict("records")}
            shown = [by_labels.get(n) for n in labels]
            cells = [row and {"mean": percent(row["mean"]), "interval": ends(row["low"], row["high"])} for row in shown]
            rows.append({"name": capital(mine["name"].iloc[0]), "cells": cells})
        return rows

    def arms(self) -> dict[str, Any] | None:
        """What is told of all arms, before the rest is about the first one; None if there is one."""
        if not self.several:
            return None
        told = arms_answer(self._read("arm_decisions"), self.arm_words)
        sections = [Section("Images or steps", told["bought"])] if told["bought"] else []
        return told | {"sections": sections + self._held_out()}

    def _held_out(self) -> list[Section]:
        """The loss of pre-training on held-out images, where the study has it."""
        if not held_out_curves(self.spec):
            return []
        lines = held_out_words(self._read("held_out"), self.arm_words)
        return [Section("The loss on held-out images", lines, **self._figures(HELD_OUT))]

    def _json(self, path: Path, what: str) -> Any:
        self.record.reads(path)
        return read_sealed(path, what)

    def _read(self, name: str, like: str | None = None) -> pd.DataFrame:
        """The columns of a table that `READ` names, and all in whose names something stands, which are numbers."""
        path = self.root / "tables" / f"{name}.csv"
        if not path.is_file():
            raise InputError(f"{path}: no such table; run the workflow, which writes it before the report")
        self.record.reads(path)
        try:
            table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(TEXT, str))
            shown = [*READ[name], *(column for column in table if like and like in column)]
            numbers = [column for column in shown if column not in TEXT]
            return table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})[shown]
        except (ValueError, KeyError, OverflowError) as error:
            raise InputError(f"{path}: not the table that the workflow writes ({error}); {AGAIN}") from error

    def lead(self) -> dict[str, Any] | None:
        """The figure that stands before all tables; None if the study has none, or it shows nothing."""
        alts = ARMS if self.several else {"miou_curves": PICTURES[RETURNS]["miou_curves"]}
        return next(iter(self._figures(alts)["figures"]), None)

    def _figures(self, alts: Mapping[str, str]) -> dict[str, list[Any]]:
        """Of those names that the study has, with what they show: `figures` in the template's form, and what of those
        that show nothing is told, `left_out`."""
        every = [self._figure(name, alt) for name, alt in alts.items() if self._path(name).is_file()]
        return {
            "figures": [figure for figure in every if not figure["nothing"]],
            "left_out": [f"Figure {one['name']} is left out. {one['nothing']}" for one in every if one["nothing"]],
        }

    def _path(self, figure: str) -> Path:
        return self.root / "figures" / f"{figure}.png"

    def _figure(self, name: str, alt: str) -> dict[str, Any]:
        path = self._path(name)
        self.record.reads(path)
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                (width, height), (dpi, _) = picture.size, picture.info["dpi"]
                nothing = picture.info.get(NOTHING, "")
        except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: not a figure that the workflow draws ({error}); {AGAIN}") from error
        caption = (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip()
        return {
            "name": name,
            "nothing": nothing,
            "data": base64.b64encode(path.read_bytes()).decode(),
            "alt": alt,
            "pdf": FIGURE.format(name=name, kind="pdf"),
            "caption": caption,
            "width": width,
            "height": height,
            "inches": f"{width / dpi:.2f}",
        }

    def setting(self) -> str:
        """What was run, in one sentence."""
        grid = self.spec["grid"]
        tasks = [task for task in grid["intermediates"] if task != "none"]
        arms = [f"{axis} {listed(grid[axis])}, " for axis in ("starts", "variants") if axis in grid]
        before = f"pre-training on {listed(grid['pretrain_sizes'])} {images_of(self.spec['pretrain'])}"
        if not max(grid["pretrain_sizes"]):
            before = "no pre-training"
        return (
            f"{capital(''.join([*arms, before]))}, {f'task {listed(tasks)}' if tasks else 'no task'}, "
            f"{listed(grid['finetune_sizes'])} labelled {images_of(self.spec['segmentation'])}, "
            f"{counted(len(grid['seeds']), 'seed')}."
        )

    def about(self) -> list[str]:
        """What the table of mIoU is of: the model, its test images, and the classes that are not there."""
        arms = {cell.arm: cell for cell in reversed(self.cells)}  # the first cell of each
        found = [
            self._json(metrics_file(self.root, cell), "the metrics of an evaluated cell") for cell in arms.values()
        ]
        first, parameters = found[-1], sorted({one["parameters"] for one in found})
        tested = (
            f"{counted(len(self.cells), 'model')} of {listed(parameters)} parameters at "
            f"{self.spec['model']['image_size']} px, tested on "
            f"{tested_words([first['test_images']], self.runs.groups)}; protocol {self.spec['protocol']}."
        )
        return [tested, *absent_words(self.metrics)]

    def _next_steps(self) -> list[str]:
        """What the next hour or the next labels add to the last cell of the Pareto front."""
        path = self.root / "tables" / "next_steps.md"
        if not path.is_file():
            raise InputError(f"{path}: no such table; run the workflow, which writes it before the report")
        self.record.reads(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line[2:] for line in text.splitlines() if line.startswith("- ")]
        start = [line.split("%)", 1)[0] for line in lines]  # the cell that a step starts from, cheapest first
        return [line for line, cell in zip(lines, start, strict=True) if cell == start[-1]]

    def _goes_with_harm(self) -> list[str]:
        """Which changes of the patch tokens go with a task's effect; nothing for a study without tasks or geometry."""
        if not self._has_tasks or not (self.root / "tables" / "harm_correlation.csv").is_file():
            return []
        return [harm_sentence(self._read("harm_correlation"))]

    @property
    def _has_tasks(self) -> bool:
        return self.spec["grid"]["intermediates"] != ["none"]

    def sections(self) -> list[Section]:
        """Figures and tables in reading order; a section with neither is left out."""
        found = [
            Section(
                heading,
                self._goes_with_harm() if heading == GEOMETRY else [],
                **self._figures({name: alt for name, alt in alts.items() if self.several or name != "miou_curves"}),
            )
            for heading, alts in PICTURES.items()
            if heading != TASKS or self._has_tasks
        ]
        if self.spec["segmentation"]["source"] != "folder":  # own data cannot be compared with the paper
            found.append(self._scorecard())
        if not self.several:
            found[2:2] = self._held_out()  # after labels and pre-training
        found += [self._cost(), self._training(), self._files()]
        return [one for one in found if one.figures or one.tables or one.files or one.left_out]

    def _files(self) -> Section:
        """The files behind the page, from the study's folder."""
        names = [path for stage in SUMMARIES if stage != "report" for path in summarised(stage, self.settings)]
        names += [Path(SCORES.format(cell=cell.name)) for cell in self.cells]
        shown = [path.as_posix() for path in names if path.suffix in (".csv", ".md")]
        line = "Links work where this page lies in the study's folder. Each figure has its PDF beneath it."
        return Section("Files", [line], files=[name for name in shown if (self.root / name).is_file()])

    def _cost(self) -> Section:
        """What the trainings took, by stage, and the figure of cost against benefit."""
        frame = pd.DataFrame(
            [
                {
                    "stage": STAGES[stage],
                    "device": f"{run['device_name']}, {run['precision']}",
                    "trainings": 1,
                    "passes": run["image_passes"],
                    "seconds": run["training_seconds"],
                }
                for stage, run in sorted(self.trained, key=lambda one: [*STAGES].index(one[0]))
            ]
        )
        sums = frame.groupby(["stage", "device"], sort=False).sum().reset_index()
        shown = pd.DataFrame(
            {
                "Stage": sums["stage"],
                "Device": sums["device"],
                "Trainings": sums["trainings"],
                "Image passes, thousands": (sums["passes"] / 1e3).round().astype(int),
                "Hours": (sums["seconds"] / 3600).round(2),
            }
        )
        line = "Sums of the trainings' own time; those that ran beside each other count each for itself."
        return Section("Cost", [line, *self._next_steps()], [table(shown)], **self._figures(COSTS))

    def _scorecard(self) -> Section:
        """The paper's claims, and how many of its numbers were reproduced."""
        card = self._read("scorecard")
        claims, numbers = card[card["kind"] == "claim"], card[card["kind"] == "number"]
        found = ", ".join(f"{count} {verdict}" for verdict, count in numbers["verdict"].value_counts().items())
        lines = [f"Of the paper's {len(numbers)} numbers: {found}. All of them stand in tables/scorecard.md."]
        why = numbers.groupby(["verdict", "reason"]).size().sort_values(kind="stable")
        if len(why) and why.iloc[-1] > len(numbers) / 2:  # one reason for most
            verdict, reason = why.index[-1]
            lines.append(f"{capital(verdict)}: {reason}.")
        shown = pd.DataFrame(
            {
                "The paper's claim": claims["what"],
                "In its words": claims["sentence"],
                "This study": claims["verdict"],
                "Estimate": [
                    estimate_in_words(
                        row["unit"], *(row[f"ours_{row['protocol']}{end}"] for end in ("", "_low", "_high"))
                    )
                    for row in claims.to_dict("records")
                ],
                "Why": claims["reason"],
                "The paper's own numbers": claims["paper_verdict"],
                "Runs they needed": [f"{n:.0f}" if n == n else "" for n in claims["paper_seeds_needed"]],
            }
        )
        return Section("Against the paper", lines, [table(shown, "stacked")])

    def _training(self) -> Section:
        """The settings of every stage, and its loss by epoch."""
        stages = self._read("tableA1").groupby("stage", sort=False)
        names = {"this_study": "This study", "the_paper": "The paper"}
        tables = [
            table(rows.drop(columns="stage").rename(columns={"setting": stage, **names}), "even")
            for stage, rows in stages
        ]
        return Section("How it was trained", [], tables, **self._figures(TRAINING))

    def provenance(self) -> list[tuple[str, str]]:
        """Where the results come from: code, versions, machines, time."""
        runs = [run for _, run in self.trained]

        def several(key: str) -> str:
            return ", ".join(sorted({str(run[key]) for run in runs if run.get(key)})) or "unknown"

        versions = {
            name: sorted({run["packages"].get(name) for run in runs} - {None}) for name in ("torch", "snakemake")
        }
        edited = any(run.get("dirty") for run in runs)
        spent = sum(run["training_seconds"] for run in runs)
        return [
            ("Study", f"{self.spec['study']}, results in {self.root.as_posix()}"),
            ("Code", several("code") + (" (with changes that were not committed)" if edited else "")),
            ("Python", several("python")),
            *((name, ", ".join(found) or "unknown") for name, found in versions.items()),
            ("Processor", several("processor")),
            ("Device of the trainings", f"{several('device_name')}; {several('precision')}"),
            ("Run", f"{min(run['started'] for run in runs)} to {max(run['ended'] for run in runs)}"),
            ("Time of all trainings", f"{spent / 3600:.1f} hours"),
            ("Settings", f"study.json, sha256 {several('study_sha256')[:200]}"),
            ("Training images like test images", f"{len(self._read('duplicates')):,} pairs, in tables/duplicates.csv"),
            ("To check all of it", f"viny verify {self.root.as_posix()}"),
        ]
