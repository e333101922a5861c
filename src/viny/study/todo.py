"""Which jobs of a study are done, which are out of date, and which a run would do."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.data.pack import stored_at
from viny.learning.rates import content_sha256
from viny.runtime.differences import differences
from viny.runtime.errors import InputError
from viny.runtime.files import digest, file_sha256, read_sealed
from viny.runtime.fingerprint import code_fingerprint
from viny.study.graph import SUMMARIES, TRAININGS, Job, Key, jobs
from viny.study.inventory import Images
from viny.study.layout import IMAGES
from viny.study.specs import source_of

SETTINGS, CODE, INPUTS, DAMAGED = "other settings", "other code", "other images or weights", "a damaged record"
# Settings that metrics and geometry state besides the hash of all.
STATED = ("study", "note", "protocol", "switches", "cell", "encoder", "normalise", "class_token")
SMALL = 1_000_000  # bytes; larger files are hashed by `viny verify` alone


class JsonCache:
    """The JSON files in a study's folder and hashes of small files; each is read again only if it was rewritten."""

    def __init__(self) -> None:
        self._read: dict[tuple[Callable, Path], tuple[tuple[int, int], Any]] = {}

    def __call__(self, path: Path) -> dict[str, Any] | None:
        """What a file holds; empty if there is no such file, None if it is damaged."""
        return self._cached(_read_record, path, {})

    def sha256(self, path: Path) -> str | None:
        """Hex sha256 of a small file's bytes; None for a large one, or if there is no such file."""
        return self._cached(_small_sha256, path, None)

    def source_sha256(self, path: Path) -> str | None:
        """Hex sha256 of a file of any size; None if there is no such file."""
        return self._cached(_file_sha256, path, None)

    def weights_metadata(self, path: Path) -> dict[str, Any] | None:
        """The record that a weights file holds itself; empty if there is no such file, None if it is damaged."""
        return self._cached(_weights_metadata, path, {})

    def _cached(self, read: Callable[[Path], Any], path: Path, missing: Any) -> Any:
        try:
            about = path.stat()
        except OSError:
            return missing
        version = (about.st_mtime_ns, about.st_size)
        if (read, path) not in self._read or self._read[read, path][0] != version:
            self._read[read, path] = version, read(path)
        return self._read[read, path][1]


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        found = read_sealed(path, "a record")
    except (OSError, InputError):
        return None
    return found if isinstance(found, dict) else None


def _small_sha256(path: Path) -> str | None:
    if not path.is_file():  # a record of somebody else's may name a device, which has no end
        return None
    try:
        return None if path.stat().st_size > SMALL else file_sha256(path)
    except OSError:
        return None


def _file_sha256(path: Path) -> str | None:
    try:
        return file_sha256(path) if path.is_file() else None
    except OSError:
        return None


def _weights_metadata(path: Path) -> dict[str, Any] | None:
    """Reads the header alone, which begins with its length; a library would map the whole file."""
    try:
        with open(path, "rb") as f:
            length = int.from_bytes(f.read(8), "little")
            found = json.loads(json.loads(f.read(min(length, SMALL)))["__metadata__"]["viny"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Todo:
    """What a run of a study has to do.

    Attributes:
        jobs: all of the study's.
        stale: those whose outputs exist but do not belong to the study as it is now, and why.
        left: those that a run does.
    """

    jobs: list[Job]
    stale: dict[Key, str]
    left: list[Job]


def what_to_do(
    config: Mapping[str, Any],
    images: Images,
    root: Path,
    store: Path | None = None,
    records: JsonCache | None = None,
) -> Todo:
    """Which jobs a run would do: the one answer for the workflow and for the commands.

    Args:
        config: resolved settings with `listings`, see `viny.study.inventory.with_listings`.
        images: from `viny.study.inventory.count_images`.
        root: the study's folder, results/<study>, which need not exist.
        store: folder of packs; None for the study's.
        records: those read before, if this is called again and again.
    """
    all_jobs = jobs(config, images)
    stale = out_of_date(all_jobs, root, store or Path(config["pack_store"]), records)
    return Todo(all_jobs, stale, to_do(all_jobs, root, stale))


def out_of_date(all_jobs: Iterable[Job], root: Path, store: Path, records: JsonCache | None = None) -> dict[Key, str]:
    """The jobs whose outputs say that they do not belong to the study as it is now, and why.

    That is, those of other settings or other code than the study's, a pack made from other files, a job that read
    other packs, splits, weights or results than those in the study's folder, and one whose record cannot be read or
    differs from the weights beside it. Snakemake's own records are not asked, so it holds when they are lost, or when
    results are older than they, as after a backup was restored. Jobs that depend on these are not included.

    Args:
        all_jobs: what `jobs` returns for settings with `listings`, see `viny.study.inventory.with_listings`.
        root: the study's folder.
        store: folder of packs.
        records: those read before, if this is called again and again.

    Returns:
        SETTINGS (and which), CODE, INPUTS or DAMAGED, by the job's key.
    """
    records = records or JsonCache()
    by_key = {job.key: job for job in all_jobs}
    found = ((key, _reason(job, by_key, root, store, records)) for key, job in by_key.items())
    return {key: reason for key, reason in found if reason}


def explain(stale: Mapping[Key, str]) -> list[str]:
    """The same in words, a line for each stage and reason."""
    counts = Counter((stage, reason) for (stage, _), reason in stale.items())
    first = {}
    for (stage, name), reason in stale.items():
        first.setdefault((stage, reason), name)
    return [
        f"{stage} {first[stage, reason]}".strip() + (f" and {n - 1} more" if n > 1 else "") + f": made with {reason}"
        for (stage, reason), n in counts.items()
    ]


def _reason(job: Job, by_key: Mapping[Key, Job], root: Path, store: Path, records: JsonCache) -> str:
    """Why a job's outputs do not belong to the study; empty if they do, or if there are none."""
    record = records(root / job.record)
    if record is None:
        return DAMAGED
    if not record:
        return ""
    try:
        reason = _pack_reason(job, record, root, store) if job.stage == "pack" else _spec_reason(job, record)
        if reason:
            return reason
        if job.stage in (*TRAININGS, "start"):
            inner = records.weights_metadata(root / job.outputs[0])
            outer = {key: value for key, value in record.items() if key not in ("weights_sha256", "sha256")}
            if inner not in ({}, outer):
                return f"{DAMAGED} or weights"
        if any(None not in (was, now) and was != now for was, now in _sources(job, record, by_key, root, records)):
            return INPUTS
    except (AttributeError, KeyError, TypeError, ValueError):  # JSON of another shape
        return DAMAGED
    return ""


def stored_pack(job: Job, store: Path) -> Path:
    """A pack's folder in the store, where the workflow's job puts it."""
    return stored_at({**job.spec, "code": code_fingerprint("pack")}, store)


def _pack_reason(job: Job, record: Mapping[str, Any], root: Path, store: Path) -> str:
    if job.spec.get("listing", record.get("contents")) != record.get("contents"):
        return INPUTS
    link = root / IMAGES.format(pack=job.name)
    if not link.is_symlink():
        return ""  # copied without links; its arrays are checked when it is opened
    name = Path(os.readlink(link)).parent.name
    if name == stored_pack(job, store).name:
        return ""
    spec = {"source": record["source"], "size": record["resolution"]}
    return _difference({key: job.spec[key] for key in spec}, spec) or f"{SETTINGS} or code"


def _spec_reason(job: Job, record: Mapping[str, Any]) -> str:
    """Why a job was not what the study asks for now, by the settings in its record or by their hash."""
    now = code_fingerprint(job.stage)
    if "spec" in record:
        asked = {key: value for key, value in record["spec"].items() if key != "code"}
        return _difference(job.spec, asked) or ("" if record["spec"].get("code", now) == now else CODE)
    stated = record["hashes"]["spec"]
    code = record["provenance"].get("fingerprint")
    if stated in (digest({**job.spec, "code": now}), digest(dict(job.spec))):
        return ""
    if isinstance(code, str) and stated == digest({**job.spec, "code": code}):
        return CODE
    said = {key: record[key] for key in STATED if key in job.spec and key in record}
    return _difference({key: job.spec[key] for key in said}, said) or SETTINGS


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """SETTINGS and the first difference; empty if there is none."""
    # As JSON has it: a record cannot tell a tuple from a list.
    first = next(differences(json.loads(json.dumps(expected)), found), "")
    return first and f"{SETTINGS} ({textwrap.shorten(first, 160, placeholder=' ...')})"


def _sources(
    job: Job, mine: Mapping[str, Any], by_key: Mapping[Key, Job], root: Path, records: JsonCache
) -> Iterator[tuple[str | None, str | None]]:
    """What a job's record says that it was made from, and what is there now; None if unknown."""
    if job.stage in SUMMARIES:
        for name, was in mine["inputs"].items():
            yield was, records.sha256(root / name)
        return
    if job.stage == "start" and (source := source_of(job.spec)) is not None:
        yield mine["source_sha256"], records.source_sha256(source)
    if tunings := [records(root / by_key[key].record) for key in job.needs if key[0] == "tune"]:
        yield _together(mine["tuned"]["tunings"]), _together(content_sha256(one) if one else None for one in tunings)
    hashes = mine.get("hashes", {})  # of metrics and geometry
    for key in job.needs:
        of = records(root / by_key[key].record) or {}
        if key[0] == "pack":
            yield mine.get("pack_sha256", hashes.get("pack")), of.get("sha256")
        elif key[0] == "split":
            part = "test" if job.stage == "geometry" else "train"
            was = mine.get("split_sha256", hashes.get("split"))
            yield was, of.get("parts", {}).get(part, {}).get("sha256")
        elif key[0] != "tune":
            # A geometry job's last need is its encoder; the other is that encoder's reference.
            name = "weights" if key == job.needs[-1] else "reference_weights"
            yield mine.get("parent_sha256", hashes.get(name)), of.get("weights_sha256")


def _together(hashes: Iterable[str | None]) -> str | None:
    """Several hashes as one, in any order; None if one is unknown."""
    found = list(hashes)
    return None if None in found else " ".join(sorted(found))


def to_do(all_jobs: Iterable[Job], root: Path, stale: Iterable[Key] = ()) -> list[Job]:
    """The jobs that a run would do, as far as the existing files tell.

    A job is done again if an output that the study or another job wants is missing, if it is out of date, or if a
    job that it needs is done.

    Args:
        all_jobs: what `jobs` returns.
        root: the study's folder, results/<study>.
        stale: keys of jobs that are out of date, from `out_of_date`.
    """
    in_order = list(all_jobs)
    missing = {job.key for job in in_order if not job.is_done(root)}
    wanted = {job.key for job in in_order if job.target and job.key in missing} | set(stale)
    while True:
        before = len(wanted)
        for job in reversed(in_order):
            if job.key in wanted:
                wanted |= missing.intersection(job.needs)
        for job in in_order:
            # A remade file is newer than what was made from it.
            if wanted.intersection(job.needs):
                wanted.add(job.key)
        if len(wanted) == before:
            return [job for job in in_order if job.key in wanted]
