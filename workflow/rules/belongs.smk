# Results that are not of the study as it is now, by what they say themselves, are made again and named. Snakemake goes
# by its own records below .snakemake, which may be lost, or not fit results that were restored from a backup.
import functools

from viny.study.graph import jobs, up_to
from viny.study.inventory import changed_files
from viny.study.todo import explain, out_of_date


@functools.cache
def redo():
    """Have Snakemake make again what does not belong to the study, once its graph is being built."""
    root = Path(ROOT)
    all_jobs = jobs(STUDY, IMAGES)
    stale = out_of_date(all_jobs, root, Path(STUDY["pack_store"]))
    # 9.27.1: the command line's targets and --until. Without them, everything is taken to be meant.
    for asked in (inside("dag_settings.targets", ()), inside("dag_settings.until", ())):
        wanted = up_to(all_jobs, {*asked, *(os.path.relpath(one, root) for one in asked)} if asked else {"all"})
        stale = {key: reason for key, reason in stale.items() if key in wanted}
    if not stale:
        return
    changed = changed_files(STUDY, root, FILES)
    said = "\n".join(f"  {line}" for line in [*(f"{pack}: {how}" for pack, how in changed.items()), *explain(stale)])
    # 9.27.1: the files whose jobs are forced, and what may cause a job to be done again. Without either, or if
    # --rerun-triggers lets changed settings cause nothing, what does not belong is named but kept.
    forced = inside("dag.forcefiles", None)
    if forced is None or "PARAMS" not in {one.name for one in inside("dag_settings.rerun_triggers", ())}:
        print(f"Not of the study as it is now, but kept; delete what is to be made again:\n{said}", file=sys.stderr)
        return
    print(f"Not of the study as it is now, so a run makes it again:\n{said}", file=sys.stderr)
    forced |= {str(root / output) for job in all_jobs if job.key in stale for output in job.outputs}


def belongs(wildcards):
    """No input: the first call has `redo` done. Every graph has a pack's job, and Snakemake asks for its inputs first."""
    if IS_DRIVER:
        redo()
    return []
