# What a run does again is said by the library, as for `viny plan` and `viny status`: results that are not of the study as
# it is now, by what they say themselves. Snakemake would go by its own records below .snakemake, which may be lost, not
# fit results that were restored from a backup, or be of the job before the one that a kill cut off.
import functools

from viny.study.graph import up_to
from viny.study.inventory import changed_files
from viny.study.todo import explain, what_to_do


@functools.cache
def redo():
    """Have Snakemake make again what does not belong to the study, once its graph is being built."""
    root = Path(ROOT)
    todo = what_to_do(STUDY, IMAGES, root)
    # 9.27.1: the files whose jobs are forced, and what may cause a job to be done again. Without either, or if
    # --rerun-triggers lets changed settings cause nothing, what does not belong is named but kept.
    forced = inside("dag.forcefiles", None)
    asked = {one.name: one for one in inside("dag_settings.rerun_triggers", ())}
    free = forced is not None and "PARAMS" in asked
    if free:
        by_time = {one for name, one in asked.items() if name == "MTIME"}
        set_inside("dag_settings.rerun_triggers", frozenset(by_time or asked.values()))
        # 9.27.1: whether it minds that a job was cut off. All files of a job go before it starts, and each appears whole,
        # so a job whose files are all there has ended. Without this, such jobs are done again.
        set_inside("dag.ignore_incomplete", True)
    stale = todo.stale
    # 9.27.1: the command line's targets and --until. Without them, everything is taken to be meant.
    for meant in (inside("dag_settings.targets", ()), inside("dag_settings.until", ())):
        wanted = up_to(todo.jobs, {*meant, *(os.path.relpath(one, root) for one in meant)} if meant else {"all"})
        stale = {key: reason for key, reason in stale.items() if key in wanted}
    if not stale:
        return
    changed = changed_files(STUDY, root, FILES)
    lines = [*(f"{pack}: {how}" for pack, how in changed.items()), *explain(stale)]
    said = "\n".join(f"  {line}" for line in lines)
    if not free:
        say(f"Not of the study as it is now, but kept; delete what is to be made again:\n{said}")
        return
    say(f"Not of the study as it is now, so a run makes it again:\n{said}")
    forced |= {str(root / output) for job in todo.jobs if job.key in stale for output in job.outputs}


def belongs(wildcards):
    """No input: the first call has `redo` done. Every graph has a pack's job, and Snakemake asks for its inputs first."""
    if IS_DRIVER:
        redo()
    return []
