# The study, its paths, and the settings that each rule depends on; imports the library, defines no rule.
import atexit
import os
import shlex
import sys
from pathlib import Path

try:
    import viny
except ModuleNotFoundError:
    sys.exit("The package viny is not installed; run 'pip install -e .' in the clone, or 'make setup'.")
from viny import cells as grid
from viny import work
from viny.config import check_sizes, differences_from_paper, read_config, resolve
from viny.errors import InputError
from viny.files import canonical_json
from viny.gpus import surroundings, visible_gpus
from viny.listings import images_here, with_listings
from viny.processes import Claim
from viny.provenance import code_fingerprint
from viny.slurm import complaint, name_file, wait_for_jobs
from viny.study import announce, as_submitted, write_study

IMAGES = {}  # of each pack; None where its source is not here


def settings():
    """The resolved study; a fault in it ends the run with one message."""
    try:
        for path in workflow.configfiles if workflow.is_main_process else []:
            read_config(path)  # Snakemake's own reader lets a key that stands twice pass
        study = resolve(config, workflow.source_path("../schemas/config.schema.yaml"))
        if not workflow.is_main_process:
            return as_submitted(study)
        IMAGES.update(images_here(study))
        check_sizes(study, IMAGES)
        study = with_listings(study, Path("results", study["study"]))
    except InputError as error:
        sys.exit(f"The study's settings are at fault.\n{error}")
    announce(Path("results", study["study"]), study)
    return study


def begin():
    """Claim the study for this run, and write its settings down beside its results."""
    claim = Claim(Path(ROOT) / ".claim")
    holder = claim.acquire()
    if holder is not None:
        sys.exit(
            f"The study '{STUDY['study']}' is being run by {holder}. Wait until that has ended, or stop it; "
            f"if that machine is off for good, delete {claim.path}. Nothing was started."
        )
    atexit.register(claim.release)
    if wait_for_jobs(Path(ROOT)):  # what they have done is not in this run's plan yet
        claim.release()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    write_study(Path(ROOT), STUDY)
    if MY_GPUS and workflow.local_exec and "gpu" not in workflow.global_resources:
        places = len(MY_GPUS) * STUDY["compute"]["jobs_per_gpu"]
        workflow.scheduler.global_resources["gpu"] = workflow.scheduler.resources["gpu"] = places
    if workflow.executor_plugin.name == "slurm":
        jobs = workflow.scheduler._executor
        prefix, _, number = jobs.run_uuid.rpartition("_")
        jobs.run_uuid = "_".join(filter(None, [prefix, STUDY["study"], number]))
        name_file(Path(ROOT)).write_text(f"{jobs.run_uuid}\n")


def failures():
    """A line for each job that failed: its log's last word, what Slurm says, and where its log is."""
    for failed in workflow.scheduler.failed:
        inside = [job for level in failed.toposorted for job in level] if failed.is_group() else [failed]
        job = next((job for job in inside if not all(map(os.path.exists, job.output))), inside[-1])
        log = Path(str(job.log[0]))
        said = log.read_text(errors="replace").splitlines() if log.is_file() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing said")
        named = "_".join(map(str, job.wildcards))
        kind = f"group_{failed.name}" if failed.is_group() else f"rule_{failed.name}/{named}"
        slurm = complaint(Path(".snakemake", "slurm_logs", kind))
        yield f"{job.rule.name} {named}: {last[:300]} (log: {log}{slurm and '; Slurm: '}{slurm})"


onstart:
    begin()


onsuccess:
    if Path(REPORT).is_file():
        print(f"Done: {REPORT}; viny advise {ROOT}", file=sys.stderr)


onerror:
    print("\n".join(["Not done:", *sorted(failures()), "The same command goes on from here."]), file=sys.stderr)


STUDY = settings()
ALL_CELLS = {cell.name: cell for cell in grid.cells(STUDY)}
CELLS = list(ALL_CELLS)
ALL_ENCODERS = {encoder.name: encoder for encoder in grid.encoders(STUDY)}
ENCODERS = list(ALL_ENCODERS)
TASKS = list(STUDY["intermediate"])
GPUS = 0 if STUDY["compute"]["device"] == "cpu" else 1  # that a training job asks for
MY_GPUS = visible_gpus() if GPUS and workflow.is_main_process else []  # local jobs get one each; Slurm gives its own

ROOT = f"results/{STUDY['study']}"
LOG = f"{ROOT}/logs"
BENCHMARK = f"{ROOT}/benchmarks"
CHECKPOINTS = f"{ROOT}/checkpoints"  # no rule's output: Snakemake deletes those of a job that was killed
MANIFEST = f"{ROOT}/packs/{{pack}}/manifest.json"
SPLIT = f"{ROOT}/splits/{{part}}/{{subset}}.json"
INDICES = f"{ROOT}/splits/{{part}}/{{subset}}.npz"
PRETRAINED = f"{ROOT}/pretrain/size-{{size}}_seed-{{seed}}"
ADAPTED = f"{ROOT}/intermediate/{{task}}/size-{{size}}_seed-{{seed}}"
FINETUNED = f"{ROOT}/finetune/{{cell}}"
METRICS = f"{ROOT}/metrics/{{cell}}.json"
GEOMETRY = f"{ROOT}/geometry/{{encoder}}.json"
TABLES = expand(f"{ROOT}/tables/{{name}}", name=grid.TABLES)
DUPLICATES = expand(f"{ROOT}/tables/{{name}}", name=grid.DUPLICATES_TABLES)
FIGURES = expand(f"{ROOT}/figures/{{name}}.{{kind}}", name=grid.figure_names(STUDY), kind=["pdf", "png"])
STATISTICS = expand(f"{ROOT}/tables/{{name}}", name=grid.STATISTICS_TABLES)
STATISTICS_FIGURES = expand(f"{ROOT}/figures/{{name}}.{{kind}}", name=grid.STATISTICS_FIGURES, kind=["pdf", "png"])
REPRESENTATIONS, REPRESENTATIONS_FIGURES = [], []  # of a study that measures no encoder
if ENCODERS:
    REPRESENTATIONS = expand(f"{ROOT}/tables/{{name}}", name=grid.REPRESENTATIONS_TABLES)
    REPRESENTATIONS_FIGURES = expand(
        f"{ROOT}/figures/{{name}}.{{kind}}", name=grid.REPRESENTATIONS_FIGURES, kind=["pdf", "png"]
    )
SCORECARD = expand(f"{ROOT}/tables/{{name}}", name=grid.SCORECARD_TABLES)
REPORT = f"{ROOT}/report.html"


def in_report(paths, category):
    """Flag those of a rule's files that have a caption for `snakemake --report`: figures as PNG, tables as CSV."""

    def flagged(path):
        stem, kind = Path(path).stem, Path(path).suffix
        if kind not in (".png", ".csv") or not Path(workflow.basedir, "workflow", "report", f"{stem}.rst").is_file():
            return path
        what = {"figure" if kind == ".png" else "table": stem.replace("_", " ")}
        return report(path, caption=f"../report/{stem}.rst", category=category, labels=what)

    return [flagged(path) for path in paths]


# What a job learns from its driver and no result depends on: a job ends with its driver, after a checkpoint.
SURROUNDINGS = {
    "VINY_PARENT": "$PPID",
    "VINY_CHECKPOINT_MINUTES": STUDY["compute"]["checkpoint_minutes"],
}
SURROUNDINGS |= surroundings(MY_GPUS, STUDY["compute"]["jobs_per_gpu"], Path("results/.gpus"))
if STUDY["compute"]["node_local"]:
    SURROUNDINGS["VINY_NODE_LOCAL"] = 1
if STUDY["compute"]["container"]:
    workflow.global_container(STUDY["compute"]["container"])
# Jobs run 'python': this one, unless --software-deployment-method gives each rule an environment.
if not workflow.deployment_settings.deployment_method:
    SURROUNDINGS["PATH"] = f"{shlex.quote(os.path.dirname(sys.executable))}:$PATH"
shell.prefix(f"export {' '.join(f'{k}={v}' for k, v in SURROUNDINGS.items())}; ")


wildcard_constraints:
    size=r"\d+",
    seed=r"\d+",
    task="|".join(TASKS) or "none",
    cell=r"pre-\d+_mid-[A-Za-z0-9_]+_fine-\d+_seed-\d+",
    encoder=r"(random|pretrained|intermediate|finetuned)_pre-[A-Za-z0-9_-]+",
    pack="|".join(["pretrain", "segmentation", *TASKS]),
    part="pretrain|finetune|intermediate",
    subset=r"[A-Za-z0-9_-]+",


def spec(stage, make):
    """A rule's one param: the settings that it depends on and a fingerprint of its code, as canonical JSON."""

    def of(wildcards):
        return canonical_json({**make(wildcards), "code": code_fingerprint(stage)})

    return of


def request(of):
    """What a job asks a cluster for: minutes and MB from its own work, and more at every further attempt."""
    return {
        "runtime": lambda wildcards, attempt: of(wildcards).minutes(STUDY, attempt),
        "mem_mb": lambda wildcards, attempt: attempt * (of(wildcards).memory_mb + work.LAUNCHER_MB),
    }


def pack_minutes(wildcards, threads, attempt):
    return work.pack_minutes(IMAGES.get(wildcards.pack), threads, attempt)


def parent_record(task, size, seed):
    """Record of the weights that a fine-tuning starts from; empty for a random start."""
    folder = grid.encoder_folder(Path(ROOT), task, int(size), seed)
    return [str(folder / "encoder.json")] if folder else []


def weights_of(records):
    return [record.removesuffix(".json") + ".safetensors" for record in records]


def indices_of(records):
    return [record.removesuffix(".json") + ".npz" for record in records]


def images_of(manifests):
    return [manifest.replace("manifest.json", "images.npy") for manifest in manifests]


def searched_packs(wildcards):
    """Manifests of the packs that are searched for duplicates."""
    return [str(grid.pack_manifest(Path(ROOT), name)) for name in grid.searched_packs(grid.duplicates_spec(STUDY))]


def searched_splits(wildcards):
    """Records of the splits that say which images of them are trained or tested on."""
    found = grid.searched_splits(grid.duplicates_spec(STUDY))
    return [str(grid.split_record(Path(ROOT), *split)) for split in found]


def split_spec(wildcards):
    part, subset = wildcards.part, wildcards.subset
    if part == "intermediate":
        return grid.task_split_spec(STUDY, subset)
    size, seed = (int(piece.split("-")[1]) for piece in subset.split("_"))
    make = {"pretrain": grid.pretrain_split_spec, "finetune": grid.finetune_split_spec}[part]
    return make(STUDY, size, seed)


def pack_of_split(wildcards):
    named = {"pretrain": "pretrain", "finetune": "segmentation"}
    return MANIFEST.format(pack=named.get(wildcards.part, wildcards.subset))


def pretrained(wildcards):
    return parent_record("none", wildcards.size, wildcards.seed)


def finetune_subset(cell):
    return {"part": "finetune", "subset": f"size-{cell.finetune_size}_seed-{cell.seed}"}


def subset_of(wildcards):
    return finetune_subset(ALL_CELLS[wildcards.cell])


def encoder_of(wildcards):
    cell = ALL_CELLS[wildcards.cell]
    return parent_record(cell.intermediate, cell.pretrain_size, cell.seed)


def measured_encoder(wildcards):
    """Record of the encoder whose geometry is measured; empty for a random start."""
    record = grid.encoder_record(Path(ROOT), ALL_ENCODERS[wildcards.encoder])
    return [str(record)] if record else []


def reference_encoder(wildcards):
    """Record of the pre-trained encoder that it came from; empty for a random start."""
    encoder = ALL_ENCODERS[wildcards.encoder]
    return parent_record("none", encoder.pretrain_size, encoder.seed)


def probe_subset(wildcards):
    """The split that the probes learn from."""
    seed = ALL_ENCODERS[wildcards.encoder].seed
    return {"part": "finetune", "subset": f"size-{grid.probe_size(STUDY)}_seed-{seed}"}


def other_study(wildcards):
    """Metrics of a finished study under the other protocol, for the scorecard."""
    name = STUDY["scorecard"]["other_study"]
    return sorted(map(str, Path("results", name).glob("metrics/*.json"))) if name else []


def of_all_trainings(name):
    """A file of every training job that the cells need: curve.csv, or run.json, when, where and how long it ran."""
    return lambda wildcards: [
        str(folder / name) for _, _, folder in grid.training_folders(Path(ROOT), ALL_CELLS.values())
    ]


def shown_encoder(wildcards):
    """The encoder whose reconstructions are shown: most images, first seed."""
    return parent_record("none", max(STUDY["grid"]["pretrain_sizes"]), STUDY["grid"]["seeds"][0])


def shown_models(wildcards):
    """The models whose predictions are shown."""
    return [f"{FINETUNED}/model.json".format(cell=cell.name) for cell in grid.shown_cells(STUDY)]


def shown_subset():
    return finetune_subset(grid.shown_cells(STUDY)[-1])
