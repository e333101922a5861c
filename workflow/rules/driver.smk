# The study, and everything that touches Snakemake's internals: reads the settings, claims the study for a run, tells
# jobs about their driver, says what failed. Whatever Snakemake does not guarantee is looked up with `inside`; each
# was tried with Snakemake 9.27.1, and if a later version lacks one, the run goes on without it.
import atexit
import os
import shlex
import sys
from functools import reduce
from pathlib import Path

import snakemake.common

try:
    import viny
except ModuleNotFoundError:
    sys.exit("The package viny is not installed; run 'pip install -e .' in the clone, or 'make setup'.")
from viny.runtime.claims import Claim
from viny.runtime.environment import UNSET_FOR_JOBS, of_jobs, take_names_for_utf8
from viny.runtime.errors import InputError
from viny.runtime.files import last_lines
from viny.runtime.gpus import SHORT_JOBS, claims_folder, job_environment, visible_gpus
from viny.runtime.slurm import complaint, name_file, wait_for_jobs
from viny.runtime.text import visible
from viny.study import workload
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve, typed
from viny.study.inventory import check_starts, count_images, read_files, with_listings
from viny.study.reading import read_config
from viny.study.saved import export_settings, is_written, submitted_settings, write_study

take_names_for_utf8()
if int(snakemake.common.__version__.partition(".")[0]) > 9:
    sys.exit(f"Snakemake {snakemake.common.__version__} is newer than this workflow knows; pip install 'snakemake<10'")
if {*"{}"} & {*os.getcwd()}:  # Snakemake looks for its own locks by a pattern that the folder's path is part of
    sys.exit(
        f"{os.getcwd()}: Snakemake takes braces in a path for wildcards; rename that folder, or run in another one"
    )


def inside(path, default):
    """An attribute of the workflow by its dotted path, or `default` if this Snakemake does not have it."""
    try:
        return reduce(getattr, path.split("."), workflow)
    except AttributeError:
        return default


def set_inside(path, value):
    """Set an attribute of the workflow by its dotted path, unless this Snakemake does not have it."""
    of, _, name = path.rpartition(".")
    holder = inside(of, None)
    if hasattr(holder, name):
        setattr(holder, name, value)


def say(text):
    """Print a message to standard error; what a terminal would obey in it is written out."""
    print(visible(text), file=sys.stderr)


# 9.27.1: false in jobs that parse the workflow again, as Slurm's do. Without it, each job checks the settings again.
IS_DRIVER = inside("is_main_process", True)


def settings():
    """The resolved study, how many images it has, and their files; any error ends the run with one message."""
    try:
        # 9.27.1: paths of the study's files. Without them, a duplicate key goes unnoticed, as in Snakemake's own reader.
        for path in inside("configfiles", []) if IS_DRIVER else []:
            read_config(path)
        # 9.27.1: what --config says, where all that is nested is text. Without it, only --config of plain values works.
        study = resolve(merge(config, typed(inside("config_settings.config", {}))))
        if not IS_DRIVER:
            return submitted_settings(study), None, {}
        root = Path("results", study["study"])
        images = count_images(study, root)
        check_sizes(study, images.limits)
        check_starts(study, root)
        for note in images.notes:
            say(f"Note: {note}")
        files = read_files(study, images)
        study = with_listings(study, root, files)
    except InputError as error:
        sys.exit(f"The study's settings are at fault.\n{visible(str(error))}")
    export_settings(root, study)
    return study, images, files


STUDY, IMAGES, FILES = settings()
ROOT = f"results/{STUDY['study']}"
for folder in (".", ".snakemake", "results", ROOT) if IS_DRIVER else ():
    if os.path.lexists(folder) and not os.access(folder, os.W_OK | os.X_OK):  # even a dry run writes to .snakemake
        why = "read-only, or not yours" if os.path.exists(folder) else "a link that leads nowhere"
        sys.exit(
            f"{os.path.abspath(folder)}: cannot be written ({why}). The viny commands that look at results need not."
        )
GPUS = 0 if STUDY["compute"]["device"] == "cpu" else 1  # for each job that computes
MY_GPUS = visible_gpus() if GPUS and IS_DRIVER else []  # local jobs get one each; Slurm assigns its own
# Trainings that one process runs at once. 9.27.1: whether jobs run here. Without it, each training is on its own.
STACK = workload.stack_of(STUDY) if MY_GPUS and inside("local_exec", False) else 1


def begin():
    """Claim the study for this run, and write its settings beside its results."""
    root = Path(ROOT)
    claim = Claim(root / ".claim")
    holder = claim.acquire()
    if holder is not None:
        sys.exit(
            f"The study '{STUDY['study']}' is being run by {holder}. Wait until that has ended, or stop it; "
            f"if that machine is off for good, delete {claim.path}. Nothing was started."
        )
    atexit.register(claim.release)
    if wait_for_jobs(root):  # what they did is not in this run's plan yet
        claim.release()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    write_study(root, STUDY)
    share_gpus_out()
    name_slurm_jobs(root)


def settle():
    """Write the settings of a run that had nothing to do, if they are not there or were changed."""
    root = Path(ROOT)
    # 9.27.1: whether this is a dry run, the scheduler, which is there once the graph is, and the jobs that are left.
    # Without them, the settings are written by the next run that has something to do.
    if (
        inside("dryrun", True)
        or inside("scheduler", None) is None
        or len(inside("dag", "?"))
        or is_written(root, STUDY)
    ):
        return
    claim = Claim(root / ".claim")
    if claim.acquire() is None:
        write_study(root, STUDY)
        claim.release()


def share_gpus_out():
    """Let as many local jobs compute at once as the GPUs have slots, unless --resources gpu=N says how many."""
    # 9.27.1: whether jobs run here, and the command line's limits. Without either, jobs wait for a GPU themselves.
    if not MY_GPUS or not inside("local_exec", False):
        return
    places = len(MY_GPUS) * STUDY["compute"]["jobs_per_gpu"]
    most = {"gpu": places}
    if STACK > 1:
        most = {"stacked": places * STACK, "short": len(MY_GPUS) * SHORT_JOBS}
        most["gpu"] = sum(most.values())
    # 9.27.1: the limits and what is left of them; the workflow's own `resources:` would also apply on a cluster.
    for name in most:
        for limits in ("scheduler.global_resources", "scheduler.resources"):
            if name not in inside("global_resources", most):
                inside(limits, {})[name] = most[name]


def computing(kind):
    """Resources of a job that computes: a GPU, and where trainings are stacked a place of its kind, 'stacked' or 'short'."""
    return {"gpu": GPUS, **({kind: 1} if STACK > 1 else {})}


def name_slurm_jobs(root):
    """Give this run's Slurm jobs a name that contains the study's, and note it for the next run."""
    # 9.27.1 with the Slurm plugin 2.8.0: the name of all jobs. Without it, the next run cannot wait for jobs that
    # outlive this one.
    executor = inside("scheduler._executor", None)
    if inside("executor_plugin.name", "") != "slurm" or not hasattr(executor, "run_uuid"):
        return
    prefix, _, number = executor.run_uuid.rpartition("_")
    executor.run_uuid = "_".join(filter(None, [prefix, STUDY["study"], number]))
    name_file(root).write_text(f"{executor.run_uuid}\n", encoding="utf-8")


def failures():
    """A line for each job that failed of itself: the last line of its log, what Slurm says, and where the log is."""
    # 9.27.1: the jobs, and groups of jobs, that failed. Without them, the logs are still there to look at.
    for failed in inside("scheduler.failed", []):
        members = [job for level in failed.toposorted for job in level] if failed.is_group() else [failed]
        job = next((job for job in members if not all(map(os.path.exists, job.output))), members[-1])
        if stop_of(job.log):
            continue
        log = Path(str(job.log[0]))
        said = last_lines(log) if log.is_file() else []
        last = next((line.strip() for line in reversed(said) if line.strip()), "nothing said")
        named = "_".join(map(str, job.wildcards))
        kind = f"group_{failed.name}" if failed.is_group() else f"rule_{failed.name}/{named}"
        slurm = complaint(Path(".snakemake", "slurm_logs", kind))
        yield f"{title(job.rule.name, job.log)}: {last[:300]} (log: {log}{slurm and '; Slurm: '}{slurm})"


if IS_DRIVER:
    atexit.register(settle)


onstart:
    begin()
    say(f"Ctrl-C, once, stops it; the same command goes on. How far it is: viny status {ROOT}")


onsuccess:
    if Path(REPORT).is_file():
        say(f"Done: {REPORT}; viny advise {ROOT}")


onerror:
    failed = sorted(failures())
    say("\n".join([f"Not done{':' if failed else '.'}", *failed, "The same command goes on from here."]))


# What a driver tells its jobs; no result depends on it. A job ends when its driver does, after a checkpoint.
JOB_ENVIRONMENT = {
    "VINY_PARENT": "$PPID",
    "VINY_CHECKPOINT_MINUTES": STUDY["compute"]["checkpoint_minutes"],
}
JOB_ENVIRONMENT |= {name: shlex.quote(value) for name, value in of_jobs().items()}
JOB_ENVIRONMENT |= job_environment(MY_GPUS, STUDY["compute"]["jobs_per_gpu"], claims_folder(Path("results")), STACK)
# Where trainings are stacked, most of them wait, so that they take none of the cores.
TRAIN_CORES = STUDY["compute"]["train_threads"] if STACK == 1 else 0
if not TRAIN_CORES:
    JOB_ENVIRONMENT["VINY_TRAIN_THREADS"] = STUDY["compute"]["train_threads"]
if STUDY["compute"]["node_local"]:
    JOB_ENVIRONMENT["VINY_NODE_LOCAL"] = 1
if STUDY["compute"]["container"]:
    # 9.27.1: what `container:` at the top of a Snakefile calls; the directive cannot take a value known only now. By a
    # function, since a text would be taken for a pattern.
    workflow.global_container(lambda wildcards: STUDY["compute"]["container"])


def no_pattern(text):
    """A text as Snakemake's formatting takes it for what it is: with doubled braces."""
    return text.replace("{", "{{").replace("}", "}}")


PACKAGES = no_pattern(str(Path(workflow.basedir, "envs", "viny.yaml")))
# Jobs run 'python': this one, unless --software-deployment-method gives each rule an environment.
# 9.27.1: those methods. Without them, jobs use this Python.
if not inside("deployment_settings.deployment_method", None):
    JOB_ENVIRONMENT["PATH"] = f"{shlex.quote(os.path.dirname(sys.executable))}:$PATH"
exported = " ".join(f"{name}={value}" for name, value in JOB_ENVIRONMENT.items())
shell.prefix(no_pattern(f"unset {' '.join(UNSET_FOR_JOBS)}; export {exported}; "))
