# What a job needs: functions of its wildcards that return inputs, settings and cluster requests.
from viny.runtime.files import canonical_json
from viny.runtime.fingerprint import code_fingerprint
from viny.study import specs, workload
from viny.study.arms import settings_of


def spec(stage, make):
    """A rule's one parameter: the settings that it depends on and a fingerprint of its code, as canonical JSON.

    Without <, since `snakemake --report` puts it into a script of its page, where "</script>" would end that.
    """

    def of(wildcards):
        return canonical_json({**make(wildcards), "code": code_fingerprint(stage)}).replace("<", r"\u003c")

    return of


def request(of):
    """What a job asks a cluster for: minutes and MB for its own work, and more with each further attempt."""
    return {
        "runtime": lambda wildcards, attempt: of(wildcards).minutes(STUDY, attempt),
        "mem_mb": lambda wildcards, attempt: attempt * (of(wildcards).memory_mb + workload.LAUNCHER_MB),
    }


def images_in(pack):
    """How many images a pack's data set has; None if it is not here, or in a job, whose request is settled."""
    return IMAGES.packed[pack] if IMAGES else None


def pack_minutes(wildcards, threads, attempt):
    return workload.pack_minutes(images_in(wildcards.pack), threads, attempt)


def file_of(training, what):
    """A file of a training, as a list; empty for a random start."""
    return [str(training.file(Path(ROOT), what))] if training else []


def split_of(training):
    """Record of a training's split."""
    return str(layout.split_record(Path(ROOT), *training.split))


def indices_of(record):
    return record.removesuffix(".json") + ".npz"


def pack_of_split(wildcards):
    return below(layout.MANIFEST, pack=layout.pack_of_split(wildcards.part, wildcards.subset))


def training_at(wildcards):
    """The pre-training or the training on a task whose folder the wildcards name."""
    stage = "intermediate" if hasattr(wildcards, "task") else "pretrain"
    return ALL_TRAININGS[layout.FOLDERS[stage].format(**dict(wildcards))]


def split_of_reference(wildcards):
    """Record of a reference's split."""
    return str(layout.split_record(Path(ROOT), *layout.reference_split(ALL_REFERENCES[wildcards.reference])))


def of_references(what):
    """One file of every reference, none if the study has none: 'record' or 'confusion'."""
    return expand(below(layout.REFERENCE[what]), reference=ALL_REFERENCES)


def tuning_of(wildcards):
    return layout.chain(ALL_CELLS[wildcards.cell])[-1]


def labels_of(wildcards):
    """A cell's label size and arm."""
    return ALL_CELLS[wildcards.cell].finetune_size, ALL_CELLS[wildcards.cell].arm


def origin_of(training, what):
    """A file of the weights that a training starts from, as a list; empty if they are drawn."""
    path = training.origin(Path(ROOT), what)
    return [str(path)] if path else []


def tunings_of(wildcards):
    """The scored rates of a cell and of its other seeds; none if it takes the study's rate."""
    cell = ALL_CELLS[wildcards.cell]
    if not specs.is_tuned(settings_of(STUDY, cell.arm)):
        return []
    return [below(layout.TUNING, cell=one.name) for one in GROUPS[cell.group]]


def brought(wildcards, of, what):
    """A file of the encoder that is measured, or of its reference, as a list; empty if it is drawn.

    `of` finds the training that made it.
    """
    encoder = ALL_ENCODERS[wildcards.encoder]
    path = layout.made_of(encoder, of(encoder), Path(ROOT), what)
    return [str(path)] if path else []


def probe_split(wildcards):
    """Record of the split that the probes learn from."""
    subset = layout.subset(grid.probe_size(STUDY), ALL_ENCODERS[wildcards.encoder].seed)
    return str(layout.split_record(Path(ROOT), "finetune", subset))


SEARCH = specs.duplicates_spec(STUDY)  # the search for duplicates
SEARCHED_PACKS = layout.searched_packs(SEARCH)
SEARCHED_SPLITS = [str(layout.split_record(Path(ROOT), *split)) for split in layout.searched_splits(SEARCH)]


def other_study(wildcards):
    """Metrics of a finished study under the other protocol, for the scorecard."""
    name = STUDY["scorecard"]["other_study"]
    return sorted(map(str, Path("results", name).glob("metrics/*.json"))) if name else []


def of_all_trainings(what):
    """One file of every training that the cells need: its curve, or its run (when, where and how long it ran)."""
    return [path for training in ALL_TRAININGS.values() for path in file_of(training, what)]


def of_pretrainings(what):
    return [
        path for training in ALL_TRAININGS.values() if training.stage == "pretrain" for path in file_of(training, what)
    ]


SHOWN_MODELS = [layout.chain(cell)[-1] for cell in grid.shown_cells(STUDY)]  # whose predictions are shown
BASE_MODELS = [layout.chain(cell)[-1] for cell in grid.base_cells(STUDY)]
RECONSTRUCTED = grid.reconstructed(STUDY)
SHOWN_ENCODER = layout.reference_of(RECONSTRUCTED) if RECONSTRUCTED else None  # whose reconstructions are shown
