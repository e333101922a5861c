# What the study expands to, and where each rule's files are: the library's patterns below results/<study>.
from viny.evidence.report import CAPTIONS
from viny.study import grid, layout
from viny.study.arms import settings_of
from viny.study.inventory import pack_names
from viny.study.specs import is_tuned

ALL_CELLS = {cell.name: cell for cell in grid.cells(STUDY)}
CELLS = list(ALL_CELLS)
ALL_ENCODERS = {encoder.name: encoder for encoder in grid.encoders(STUDY)}
ENCODERS = list(ALL_ENCODERS)
TASKS = list(STUDY["intermediate"])
GROUPS = grid.by_group(ALL_CELLS.values())
ALL_REFERENCES = {reference.name: reference for reference in grid.references(STUDY)}
ALL_TRAININGS = {str(one.folder(Path())): one for one in layout.trainings(ALL_CELLS.values())}
STARTS = layout.published(ALL_CELLS.values())


def below(pattern, **known):
    """A pattern below the study's folder, with the known wildcards filled in."""
    return f"{ROOT}/{pattern}".format_map({**{name: f"{{{name}}}" for name in WILDCARDS}, **known})


WILDCARDS = "pack part subset size seed arm task start cell encoder reference name kind job".split()
MANIFEST = below(layout.MANIFEST)
PACKED = below(layout.IMAGES)
SPLIT = below(layout.SPLIT)
INDICES = below(layout.INDICES)
TRAINED = {stage: {what: below(pattern) for what, pattern in files.items()} for stage, files in layout.TRAINED.items()}
METRICS = below(layout.METRICS)
CONFUSION = below(layout.CONFUSION)
SCORES = below(layout.SCORES)
GEOMETRY = below(layout.GEOMETRY)
ARRAYS = below(layout.GEOMETRY_ARRAYS)
REPORT = below(layout.REPORT)


SPLITS = [f"{ROOT}/{path}" for path in layout.split_files(STUDY)]
TRAININGS = [f"{ROOT}/{path}" for one in ALL_TRAININGS.values() for path in one.files()]
TUNINGS = [
    below(layout.TUNING, cell=cell.name) for cell in ALL_CELLS.values() if is_tuned(settings_of(STUDY, cell.arm))
]
REFERENCES = expand([below(pattern) for pattern in layout.REFERENCE.values()], reference=ALL_REFERENCES)


def tables(names):
    return expand(below(layout.TABLE), name=names)


def drawn(names):
    return expand(below(layout.FIGURE), name=names, kind=layout.FIGURE_KINDS)


TABLES, FIGURES = tables(layout.TABLES), drawn(layout.figure_names(STUDY))
DUPLICATES = tables(layout.DUPLICATES_TABLES)
STATISTICS, STATISTICS_FIGURES = tables(layout.statistics_tables(STUDY)), drawn(layout.statistics_figures(STUDY))
REPRESENTATIONS, REPRESENTATIONS_FIGURES = [], []  # empty if the study measures no encoder
if ENCODERS:
    REPRESENTATIONS = tables(layout.REPRESENTATIONS_TABLES)
    REPRESENTATIONS_FIGURES = drawn(layout.REPRESENTATIONS_FIGURES)
SCORECARD = tables(layout.SCORECARD_TABLES)


def summary_of(stage):
    """The record of a rule that summarises the study."""
    return below(layout.SUMMARY, stage=stage)


SUMMARIES = [summary_of(stage) for stage in layout.SUMMARIES if ENCODERS or stage != "representations"]


def log_of(stage, *name):
    return below(layout.LOG, job="/".join([stage, *name]))


def benchmark_of(stage, *name):
    return below(layout.BENCHMARK, job="/".join([stage, *name]))


def checkpoints_of(stage):
    return below(layout.CHECKPOINTS, job=layout.FOLDERS[stage])


def in_report(paths, category):
    """Flag those of a rule's files that have a caption, for `snakemake --report`: figures as PNG, tables as CSV."""

    def flagged(path):
        stem, kind = Path(path).stem, Path(path).suffix
        caption = CAPTIONS / f"{stem}.rst"
        if kind not in (".png", ".csv") or not caption.is_file():
            return path
        what = {"figure" if kind == ".png" else "table": stem.replace("_", " ")}
        return report(path, caption=str(caption), category=category, labels=what)

    return [flagged(path) for path in paths]


wildcard_constraints:
    size=r"\d+",
    seed=r"\d+",
    arm=grid.START + grid.VARIANT,
    start="|".join(STARTS) or "none",
    task="|".join(TASKS) or "none",
    cell=grid.CELL_NAME.pattern,
    reference=grid.REFERENCE_NAME.pattern,
    encoder=r"(random|pretrained|intermediate|finetuned)_pre-[A-Za-z0-9_-]+",
    pack="|".join(pack_names(STUDY)),
    part="pretrain|finetune|intermediate",
    subset=r"[A-Za-z0-9_-]+",
