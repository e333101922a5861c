"""Which jobs of a study are done, which are out of date, and which a run would do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study.graph import SUMMARIES, TRAININGS, Job, Key


class JsonCache:
    """The JSON files in a study's folder; each is read again only if it was rewritten."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}

    def __call__(self, path: Path) -> dict[str, Any]:
        """What a file holds; empty if it is missing or damaged, which is for `viny verify` to report."""
        try:
            about = path.stat()
            version = (about.st_mtime_ns, about.st_size)
            if path not in self._read or self._read[path][0] != version:
                found = read_json(path, "a record")
                self._read[path] = version, found if isinstance(found, dict) else {}
            return self._read[path][1]
        except (OSError, InputError):
            return {}


def out_of_date(all_jobs: Iterable[Job], root: Path, records: JsonCache | None = None) -> set[Key]:
    """Keys of the jobs whose outputs say that they were made from something other than what is there now.

    That is, a pack made from another listing of its folder than its job's; or a split, a training, an evaluation or
    a geometry made from another pack, split or weights than those in the study's folder. Jobs that depend on these
    are not included.

    Args:
        all_jobs: what `jobs` returns for settings with `listings`, see `viny.study.inventory.with_listings`.
        root: the study's folder.
        records: those read before, if this is called again and again.
    """
    records = records or JsonCache()
    by_key = {job.key: job for job in all_jobs}
    return {
        key
        for key, job in by_key.items()
        if any(None not in (was, now) and was != now for was, now in _sources(job, by_key, root, records))
    }


def _sources(
    job: Job, by_key: Mapping[Key, Job], root: Path, records: JsonCache
) -> Iterable[tuple[str | None, str | None]]:
    """What a job's outputs say they were made from, and what is there now; None if unknown."""
    if job.stage in SUMMARIES:
        return
    mine = records(root / job.outputs[1 if job.stage in TRAININGS else 0])
    if job.stage == "pack":
        if mine and "listing" in job.spec:
            yield mine.get("listing", ""), job.spec["listing"]
        return
    hashes = mine.get("hashes", {})  # of metrics and geometry
    for key in job.needs:
        of = records(root / by_key[key].outputs[1 if key[0] in TRAININGS else 0])
        if key[0] == "pack":
            yield mine.get("pack_sha256", hashes.get("pack")), of.get("sha256")
        elif key[0] == "split":
            yield mine.get("split_sha256"), of.get("parts", {}).get("train", {}).get("sha256")
        else:
            # A geometry job's last need is its encoder; the other is that encoder's reference.
            name = "weights" if key == job.needs[-1] else "reference_weights"
            yield mine.get("parent_sha256", hashes.get(name)), of.get("weights_sha256")


def to_do(all_jobs: Iterable[Job], root: Path, stale: Iterable[Key] = ()) -> list[Job]:
    """The jobs that a run would do, as far as the existing files tell.

    A job is done again if an output that the study or another job wants is missing, if it is out of date, or if a
    job that it needs is done. Changed settings, code or file times may call for more; `snakemake -n` knows them.

    Args:
        all_jobs: what `jobs` returns.
        root: the study's folder, results/<study>.
        stale: keys of jobs that are out of date, from `out_of_date`.
    """
    in_order = list(all_jobs)
    missing = {job.key for job in in_order if not job.is_done(root)}
    unseen = {job.key for job in in_order if not all((root / output).exists() for output in job.outputs[2:])}
    wanted = {job.key for job in in_order if job.target and job.key in missing} | set(stale)
    while True:
        before = len(wanted)
        for job in reversed(in_order):
            if job.key in wanted:
                wanted |= missing.intersection(job.needs) - (job.glances - unseen)
        for job in in_order:
            # A remade file is newer than what was made from it.
            if wanted.intersection(job.needs):
                wanted.add(job.key)
        if len(wanted) == before:
            return [job for job in in_order if job.key in wanted]
