"""A study's report on one page: the question, the answer with its uncertainty, figures, scorecard, cost, provenance.

It is made from the study's tables and figures and embeds its pictures, so that it can be sent as one file.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from viny.evidence.paper.words import CONTRADICTED, REPRODUCED, UNTESTABLE
from viny.evidence.report import CAPTIONS
from viny.evidence.statistics.crossed import ALPHA
from viny.evidence.summary import Summary
from viny.evidence.tables import ABSENT, absent_words
from viny.runtime.errors import InputError
from viny.runtime.files import read_sealed, write_text
from viny.study.grid import cells
from viny.study.layout import metrics_file, trainings

STAGES = {"pretrain": "pre-training", "intermediate": "intermediate tasks", "finetune": "fine-tuning"}
QUESTION = (
    "What do unlabelled images, an intermediate task and labels each buy a small vision transformer, how fast do the "
    "returns diminish, and when does the intermediate task hurt?"
)
CLASSES = {REPRODUCED: "reproduced", CONTRADICTED: "contradicted", UNTESTABLE: "open"}
# The columns that the page shows of each table, all but `WORDS` numbers.
READ = {
    "metrics": ("cell", "miou_is", *ABSENT),
    "summary": ("pretrain_size", "intermediate", "finetune_size", "miou_mean"),
    "transfer": ("pretrain_size", "intermediate", "finetune_size", "miou", "verdict"),
    "marginal_gains": (
        *("along", "intermediate", "pretrain_size", "finetune_size", "smaller", "larger", "mean", "low", "high"),
    ),
    "effects_overall": ("intermediate", "over", "mean", "low", "high", "p_sign_flip"),
    "harm_correlation": ("metric", "n", "rho", "verdict"),
    "scorecard": ("kind", "what", "verdict", "reason", "paper_verdict"),
    "duplicates": ("kind",),
}
WORDS = ("intermediate", "verdict", "along", "over", "metric", "kind", "what", "reason", "paper_verdict")
WORDS += READ["metrics"]
AGAIN = "delete it and run the workflow, which writes it anew"


@dataclass
class Section:
    """A part of the page."""

    heading: str
    lines: list[str] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)


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
    text = environment.get_template("page.html.j2").render(
        title=f"Study {spec['study']}: what pre-training, an intermediate task and labels buy",
        question=QUESTION,
        setting=page.setting(),
        note=spec["note"],
        answers=page.answers(),
        sections=page.sections(),
        provenance=page.provenance(),
        verdicts=CLASSES,
    )
    write_text(out, text)
    summary.write(record, [out])


def percent(value: float, sign: bool = False) -> str:
    """A fraction in percent or, with its sign, in percentage points."""
    return f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def interval(row: Mapping[str, Any], sign: bool = True) -> str:
    """A 95 % interval in words, for a mean of fractions, or that there is none."""
    if pd.isna(row["low"]):
        return "no interval"
    return f"95 % interval {percent(row['low'], sign)} to {percent(row['high'], sign)}"


def table(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame of text and numbers in the template's form; columns that hold only numbers are right-aligned."""
    columns = [{"name": name, "number": pd.api.types.is_numeric_dtype(frame[name])} for name in frame]
    rows = [["" if pd.isna(value) else str(value) for value in row] for row in frame.itertuples(index=False)]
    return {"columns": columns, "rows": rows}


class _Page:
    def __init__(self, spec: Mapping[str, Any], root: Path, record: Summary) -> None:
        self.spec, self.root, self.record = spec, root, record
        self.grid = spec["grid"]
        self.cells = cells(spec)
        self.sizes = sorted(size for size in self.grid["pretrain_sizes"] if size)
        self.tasks = [task for task in self.grid["intermediates"] if task != "none"]
        self.summary = self._read("summary")
        self.runs = [
            (training.stage, self._json(training.file(root, "run"), "the provenance of a training"))
            for training in trainings(self.cells)
        ]

    def _json(self, path: Path, what: str) -> Any:
        self.record.reads(path)
        return read_sealed(path, what)

    def _read(self, name: str) -> pd.DataFrame:
        path = self.root / "tables" / f"{name}.csv"
        if not path.is_file():
            raise InputError(f"{path}: no such table; run the workflow, which writes it before the report")
        self.record.reads(path)
        try:
            table = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(WORDS, str))
            numbers = [column for column in READ[name] if column not in WORDS]
            return table.assign(**{column: pd.to_numeric(table[column]) for column in numbers})[[*READ[name]]]
        except (ValueError, KeyError, OverflowError) as error:
            raise InputError(f"{path}: not the table that the workflow writes ({error}); {AGAIN}") from error

    def _figure(self, name: str) -> list[dict[str, Any]]:
        """A figure in the template's form; nothing if the study has none of that name."""
        path = self.root / "figures" / f"{name}.png"
        if not path.is_file():
            return []
        self.record.reads(path)
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG") or len(content) < 24:
            raise InputError(f"{path}: not a PNG file; {AGAIN}")
        width, height = struct.unpack(">II", content[16:24])
        caption = (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip()
        return [
            {
                "name": name,
                "data": base64.b64encode(content).decode(),
                "alt": name.replace("_", " "),
                "caption": caption,
                "width": width,
                "height": height,
            }
        ]

    def setting(self) -> str:
        """What was run, in one sentence."""
        first = self._json(metrics_file(self.root, self.cells[0]), "the metrics of an evaluated cell")
        grid, model = self.grid, self.spec["model"]
        labels = f"{_listed(grid['finetune_sizes'])} labelled images of {_origin(self.spec['segmentation'])}"
        unlabelled = f"pre-training on {_listed(grid['pretrain_sizes'])} images of {_origin(self.spec['pretrain'])}"
        absent = "".join(f" {line}" for line in absent_words(self._read("metrics")))
        return (
            f"{len(self.cells)} cells: {unlabelled}; intermediate task {_listed(grid['intermediates'])}; {labels}; "
            f"{len(grid['seeds'])} seed{'s' * (len(grid['seeds']) > 1)}. A transformer of "
            f"{first['parameters']:,} parameters at {model['image_size']} px, tested on "
            f"{first['test_images']:,} images; protocol {self.spec['protocol']}. Values are mIoU in percent, "
            f"differences percentage points, intervals of 95 %.{absent}"
        )

    def answers(self) -> list[dict[str, Any]]:
        """The study's answers, each a heading and lines that state their uncertainty."""
        found = {
            "What pre-training is worth": self._pretraining(),
            "What further labels bring": self._labels(),
            "What the intermediate task does": self._tasks(),
            "Where the next hour or the next labels go": self._next_steps(),
        }
        return [{"heading": heading, "lines": lines} for heading, lines in found.items() if lines]

    def _pretraining(self) -> list[str]:
        if not self.sizes:
            return ["No cell is pre-trained."]
        worth = self._read("transfer")
        gains = self._read("marginal_gains")
        lines = []
        for size in self.sizes:
            mine = worth[(worth["pretrain_size"] == size) & (worth["intermediate"] == "none")]
            for row in _ends(mine, "finetune_size"):
                without = self._miou(0, "none", row["finetune_size"])
                against = f" against {percent(without)} from a random start" if without is not None else ""
                reached = f"{percent(row['miou'])}{against}"
                lines.append(f"{size:,} images, {row['finetune_size']:,} labels: {reached}; {row['verdict']}.")
        steps = gains[(gains["along"] != "labels") & (gains["intermediate"] == "none") & (gains["smaller"] > 0)]
        for row in _ends(steps, "larger"):
            lines.append(
                f"From {row['smaller']:,.0f} to {row['larger']:,.0f} images, {row['finetune_size']:,.0f} labels: "
                f"{percent(row['mean'], sign=True)} for each doubling ({interval(row)})."
            )
        return lines

    def _labels(self) -> list[str]:
        gains = self._read("marginal_gains")
        gains = gains[(gains["along"] == "labels") & (gains["intermediate"] == "none")]
        lines = []
        for size, mine in gains.groupby("pretrain_size"):
            steps = [
                f"{percent(row['mean'], sign=True)} ({interval(row)}) up to {row['larger']:,.0f}"
                for row in _ends(mine, "larger")
            ]
            start = f"{size:,.0f} pre-training images" if size else "No pre-training"
            lines.append(f"{start}: a doubling of the labels brings {', and '.join(steps)}.")
        return lines or ["The study has one number of labels."]

    def _tasks(self) -> list[str]:
        if not self.tasks:
            return ["The study has no intermediate task."]
        table = self._read("effects_overall")
        lines = []
        for row in table[table["over"] == "all sizes"].to_dict("records"):
            means = percent(row["mean"], sign=True)
            tested = "" if pd.isna(row["p_sign_flip"]) else f", p = {row['p_sign_flip']:.2g} by sign flips"
            said = _harm(row)
            lines.append(f"{row['intermediate']}: {said}; {means} on average over the grid ({interval(row)}{tested}).")
        harm = self.root / "tables" / "harm_correlation.csv"
        if self.spec["geometry"]["encoders"] != "none" and harm.is_file():
            lines.append(self._foretold())
        return lines

    def _foretold(self) -> str:
        """Which property of the patch tokens goes with the harm."""
        table = self._read("harm_correlation").dropna(subset="rho")
        if table.empty:
            return (
                "Whether the patch tokens' geometry foretells the effect, this study cannot say: it has too few cells."
            )
        row = table.loc[table["rho"].abs().idxmax()]
        return (
            f"Of {len(table)} properties of the patch tokens, the change of {row['metric'].replace('_', ' ')} goes "
            f"with the effect most: rank correlation {row['rho']:+.2f} over {row['n']} cells; {row['verdict']}."
        )

    def _next_steps(self) -> list[str]:
        path = self.root / "tables" / "next_steps.md"
        if not path.is_file():
            raise InputError(f"{path}: no such table; run the workflow, which writes it before the report")
        self.record.reads(path)
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line[2:] for line in text.splitlines() if line.startswith("- ")]
        if not lines:
            return []
        start = [line.split("%)", 1)[0] for line in lines]  # the cell that a step starts from, cheapest first
        return [line for line, cell in zip(lines, start, strict=True) if cell == start[-1]]

    def _miou(self, size: int, task: str, labels: int) -> float | None:
        rows = self.summary.query("pretrain_size == @size and intermediate == @task and finetune_size == @labels")
        return float(rows["miou_mean"].iloc[0]) if len(rows) else None

    def sections(self) -> list[Section]:
        """Figures and tables in reading order; a section with neither is left out."""
        pictures = {
            "Labels and pre-training": ["miou_curves", "returns", "transfer"],
            "The intermediate task": ["effects", "miou_difference"],
            "The geometry of the patch tokens": [
                "geometry_harm",
                "geometry_layers",
                "geometry_similarity",
                "geometry_heat_maps",
            ],
            "What it looks like": ["segmentation", "reconstructions"],
        }
        found = [
            Section(heading, figures=[figure for name in names for figure in self._figure(name)])
            for heading, names in pictures.items()
        ]
        found.insert(2, self._cost())
        if self.spec["segmentation"]["source"] != "folder":  # own data cannot be compared with the paper
            found.append(self._scorecard())
        return [section for section in found if section.figures or section.tables]

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
                for stage, run in self.runs
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
        return Section("Cost", [line], [table(shown)], self._figure("costs"))

    def _scorecard(self) -> Section:
        """The paper's claims, and how many of its numbers were reproduced."""
        card = self._read("scorecard")
        claims, numbers = card[card["kind"] == "claim"], card[card["kind"] == "number"]
        counts = numbers["verdict"].value_counts()
        counted = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in CLASSES)
        lines = [f"Of the paper's {len(numbers)} numbers: {counted}. All of them stand in tables/scorecard.md."]
        reasons = numbers.loc[numbers["verdict"] == UNTESTABLE, "reason"].value_counts()
        if len(reasons):
            lines.append(f"Why most of those cannot be tested: {reasons.index[0]}.")
        shown = pd.DataFrame(
            {
                "The paper's claim": claims["what"],
                "This study": claims["verdict"],
                "Why": claims["reason"],
                "The paper's own numbers": claims["paper_verdict"],
            }
        )
        return Section("Against the paper", lines, [table(shown)])

    def provenance(self) -> list[tuple[str, str]]:
        """Where the results come from: code, versions, machines, time."""
        runs = [run for _, run in self.runs]

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


def _harm(row: Mapping[str, Any]) -> str:
    """Whether a mean effect is help, harm or neither: its interval and its test must agree."""
    if pd.isna(row["low"]):
        return "cannot be told"
    clear = row["low"] > 0 or row["high"] < 0
    if clear and row["p_sign_flip"] <= ALPHA:
        return "helps" if row["low"] > 0 else "hurts"
    if clear:
        return f"may {'help' if row['low'] > 0 else 'hurt'}, by the interval; by the sign flips it cannot be told"
    return "cannot be told from no effect"


def _ends(frame: pd.DataFrame, by: str) -> list[dict[str, Any]]:
    """The first and the last row when sorted by a column."""
    rows = frame.sort_values(by).to_dict("records")
    return rows if len(rows) < 2 else [rows[0], rows[-1]]


def _origin(section: Mapping[str, Any]) -> str:
    """What to call a section's images: by their folder if they are the user's own, otherwise by the data set."""
    return section["path"] if section["source"] == "folder" else section["source"]


def _listed(values: Iterable[Any]) -> str:
    """A list in words."""
    words = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
