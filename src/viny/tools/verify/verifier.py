"""Check a study's results: recompute every hash, and hold every file against those that it belongs to.

Nothing is written. A damaged file is a finding, never an exception. Figures, logs and benchmarks, on which
nothing depends, are left out.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from tqdm import tqdm

from viny.data.pack import Pack, open_pack, verify_pack
from viny.data.splits import read_split
from viny.evidence.metrics import summarise
from viny.evidence.tables import read_metrics, write_tables
from viny.learning.progress import PROGRESS
from viny.runtime.errors import InputError
from viny.runtime.files import digest, read_json
from viny.runtime.fingerprint import code_fingerprint
from viny.study import grid, layout, specs
from viny.study.grid import Cell
from viny.study.layout import Training
from viny.study.saved import saved_study, study_file
from viny.tools.verify.report import MISSING, NOTE, SHORT, WRONG, Finding, Report, differences

CELL = re.compile(r"pre-(\d+)_mid-([A-Za-z0-9_]+)_fine-(\d+)_seed-(\d+)")
UNCHECKED = ("figures", "logs", "benchmarks", "report.html")  # of a study, not looked into
EVIDENCE = (*layout.STATISTICS_TABLES, *layout.REPRESENTATIONS_TABLES, *layout.SCORECARD_TABLES)  # not worked out again
RUN_KEYS = ("code", "device", "precision", "threads", "seed", "started", "ended", "seconds", "packages")
AGAIN = "delete it and rerun the workflow"


def cells_of_files(root: Path) -> list[Cell]:
    """The cells that a study's files speak of, where its settings are not known."""
    names = [path.name for path in (root / "finetune").glob("*")]
    names += [path.stem for path in (root / "metrics").glob("*.json")]
    found = [m.groups() for name in names if (m := CELL.fullmatch(name))]
    return sorted({Cell(int(size), task, int(labels), int(seed)) for size, task, labels, seed in found})


def _short(sha256: Any) -> str:
    return sha256[:12] if isinstance(sha256, str) else repr(sha256)


class _Verifier:
    """The checks of one study; each file is read and hashed once."""

    def __init__(self, root: Path, config: Mapping[str, Any] | None, store: Path | None) -> None:
        self.root, self.config, self.store = root, config, store
        self.report = Report()
        self._hashes: dict[str, str | None] = {}
        self._values: dict[Path, dict[str, Any] | None] = {}
        self._packs: dict[str, Pack | None] = {}
        self._verified: set[tuple[str, str]] = set()
        self._splits: dict[tuple[str, str], dict[str, np.ndarray]] = {}
        self._expected: set[Path] = set()  # files that belong to the study
        self._unclear: list[Path] = []  # metrics whose settings cannot be told from the code that made them
        self._codes: dict[str, list[tuple[Path, str]]] = {}  # by stage: files and the code that made them

    # Findings

    def add(self, severity: str, file: Path, message: str) -> None:
        shown = os.path.relpath(file, self.root) if file.is_absolute() == self.root.is_absolute() else str(file)
        message = " ".join(message.removeprefix(f"{file}: ").split())
        # A name or a value from a damaged file may hold what a terminal cannot show.
        clean = (text.encode("utf-8", "backslashreplace").decode() for text in (shown, message))
        self.report.findings.append(Finding(severity, *clean))

    @contextmanager
    def about(self, file: Path) -> Iterator[None]:
        """Turns what goes wrong inside into a finding about a file."""
        try:
            yield
        except InputError as error:
            self.add(WRONG, file, str(error))
        except Exception as error:  # a mutated file can make any reader stumble in a way of its own
            self.add(WRONG, file, f"not what it should be ({type(error).__name__}: {error}); {AGAIN}")

    def same(self, file: Path, what: str, expected: Any, found: Any, advice: str) -> bool:
        """Compares two hashes; True if they are the same."""
        if expected == found:
            return True
        self.add(WRONG, file, f"{what}: expected {_short(expected)}, found {_short(found)}; {advice}")
        return False

    def agree(self, file: Path, what: str, expected: Any, found: Any, advice: str) -> None:
        """Compares two JSON values; names the first three differences."""
        found_all = list(differences(expected, found, what))
        if found_all:
            more = f" and {len(found_all) - 3} more" if len(found_all) > 3 else ""
            self.add(WRONG, file, f"{'; '.join(found_all[:3])}{more}; {advice}")

    # Files

    def count(self, path: Path) -> None:
        self.report.files += 1
        self.report.bytes += path.stat().st_size

    def there(self, path: Path, what: str) -> bool:
        """Whether a file that belongs to the study is there; a finding if not."""
        self._expected.add(path)
        if path.is_file():
            return True
        self.add(MISSING, path, f"expected {what}, found no such file; rerun the workflow")
        return False

    def sha256(self, path: Path) -> str | None:
        """Hash of a file's content; None if there is no such file."""
        key = os.path.realpath(path)
        if key not in self._hashes:
            self._hashes[key] = None
            if path.is_file():
                with open(path, "rb") as f:
                    self._hashes[key] = hashlib.file_digest(f, "sha256").hexdigest()
                self.count(path)
        return self._hashes[key]

    def json(self, path: Path, what: str) -> dict[str, Any] | None:
        """A JSON object; None, and a finding the first time, if it is missing or something else."""
        if path not in self._values:
            self._values[path] = None
            if self.there(path, what):
                with self.about(path):
                    self.count(path)
                    value = read_json(path, what)
                    if not isinstance(value, dict):
                        raise InputError(f"expected {what}, found a JSON {type(value).__name__}; {AGAIN}")
                    self._values[path] = value
        return self._values[path]

    def manifest(self, name: str) -> dict[str, Any] | None:
        return self.json(self.root / "packs" / name / "manifest.json", "a pack manifest")

    def split_record(self, part: str, subset: str) -> dict[str, Any] | None:
        return self.json(self.root / "splits" / part / f"{subset}.json", "a split record")

    def made_by(self, stage: str, file: Path, code: Any) -> None:
        """Remembers which code made a file."""
        if isinstance(code, str):
            self._codes.setdefault(stage, []).append((file, code))

    # Checks

    def settings(self) -> None:
        """The study's own settings: taken where none were given, else compared with those."""
        path = study_file(self.root)
        self._expected.add(path)
        if not path.is_file():
            if self.config is None:
                self.add(
                    MISSING,
                    path,
                    "expected the study's settings, found no such file; whether the results are those of the "
                    "settings, and all of them, is not checked; name the study's file with --study, or rerun the "
                    "workflow",
                )
            return
        with self.about(path):
            self.count(path)
            config = saved_study(self.root)
            if self.config is None:
                self.config = config
            # What stood in the user's folders is the run's own note, which a study file does not hold.
            elif found := list(differences(self.config, {k: v for k, v in config.items() if k != "listings"})):
                self.add(NOTE, path, f"holds other settings than those given, which were used ({'; '.join(found[:3])})")

    def pack(self, name: str) -> None:
        """A pack's manifest against the settings, its source in the store, and its arrays."""
        path = self.root / "packs" / name / "manifest.json"
        link = path.parent / "images.npy"
        self._expected.add(link)
        self._packs[name] = None
        manifest = self.manifest(name)
        if manifest is None:
            return
        with self.about(path):
            if self.config is not None:
                spec = specs.pack_spec(self.config, name)
                expected = {"source": spec["source"], "resolution": spec["size"]}
                if "count" in spec:
                    expected["count"] = spec["count"]
                found = {key: manifest.get(key) for key in expected}
                self.agree(path, "", expected, found, "rerun the workflow with the settings that are meant")
            folder = self._arrays(name, manifest, link)
            if folder is None:
                return
            stored = folder / "manifest.json"
            if stored.is_file() and not os.path.samefile(stored, path):
                self.agree(path, "", read_json(stored, "a pack manifest"), manifest, f"as {stored} has it; {AGAIN}")
            linked = link.exists() and os.path.realpath(link) == os.path.realpath(folder / "images.npy")
            source = path if linked else stored
            key = (os.path.realpath(folder), digest(manifest))
            if key not in self._verified:
                self._verified.add(key)
                verify_pack(source)
                for file in (*folder.glob("*.npy"), *folder.glob("names.txt")):
                    self.count(file)
            self._packs[name] = open_pack(source)

    def _arrays(self, name: str, manifest: Mapping[str, Any], link: Path) -> Path | None:
        """Folder of a pack's arrays: where images.npy leads to, else, for a study that was moved, in a store."""

        def whole(folder: Path) -> bool:
            return all((folder / f"{array}.npy").is_file() for array in manifest["arrays"])

        folder = Path(os.path.realpath(link)).parent
        if self.store is None and link.exists() and whole(folder):
            return folder
        for store in self._stores():
            for other in sorted(store.glob("*/manifest.json")):
                try:
                    same = read_json(other, "a pack manifest")["sha256"] == manifest["sha256"]
                except Exception:  # another pack of the store, which is no matter of this study
                    continue
                if same and whole(other.parent):
                    if not link.exists():
                        self.add(NOTE, link, f"leads to no arrays here; those of {other.parent} were checked instead")
                    return other.parent
        if link.exists():
            return folder  # the reader says which array is lost
        target = os.readlink(link) if link.is_symlink() else "nothing"
        self.add(
            MISSING,
            link,
            f"expected a link to the arrays of pack '{name}', found one to {target}, where none are; name the folder "
            "of packs with --store, or rerun the workflow to pack again",
        )
        return None

    def _stores(self) -> list[Path]:
        if self.store is not None:
            return [self.store]
        named = self.config.get("pack_store", "packs") if self.config is not None else "packs"
        # From the working folder, and from the one that results/<study> was made in.
        return [Path(named), Path(os.path.abspath(self.root)).parents[1] / named] if isinstance(named, str) else []

    def split(self, part: str, subset: str) -> None:
        """A split's record against the settings, its index lists and its pack."""
        path = self.root / "splits" / part / f"{subset}.json"
        indices = path.with_suffix(".npz")
        here = self.there(indices, "index lists")
        record = self.split_record(part, subset)
        if record is None:
            return
        name = layout.pack_of_split(part, subset)
        with self.about(path):
            spec = {k: v for k, v in record["spec"].items() if k != "code"}
            if self.config is not None:
                expected = specs.split_spec(self.config, part, subset)
                self.agree(path, "spec", expected, spec, "rerun the workflow with the settings that are meant")
            self.made_by("split", path, record["spec"].get("code"))
            manifest, pack = self.manifest(name), self._packs.get(name)
            if manifest is not None and pack is None:  # the lists cannot be read without their pack
                self.same(path, "pack", manifest.get("sha256"), record["pack_sha256"], AGAIN)
            if pack is not None and here:
                self.count(indices)
                lists = read_split(path, indices, pack)
                for which in ("train", "test"):
                    count, last = record["parts"][which]["count"], max(lists[which], default=-1)
                    if count != len(lists[which]):
                        raise InputError(f"parts.{which}.count: expected {len(lists[which])}, found {count}; {AGAIN}")
                    if last >= len(pack) or min(lists[which], default=0) < 0:
                        raise InputError(f"{which}: expected indices of {len(pack)} images, found {last}; {AGAIN}")
                self._splits[part, subset] = lists

    def training(self, job: Training) -> None:
        """A training job's record against the settings, its weights, curve and provenance, data and parent."""
        folder = job.folder(self.root)
        weights, path, curve, run = (job.file(self.root, what) for what in layout.TRAINED[job.stage])
        files = {path, weights, curve, run}
        if not any(file.exists() for file in files):
            self._expected |= files
            self.add(MISSING, folder, f"expected {job.stage} weights, found none; run the workflow")
            return
        present = self.there(weights, "the weights")
        curve_present = self.there(curve, "a learning curve")
        record, provenance = self.json(path, "a weights record"), self.json(run, "the job's provenance")
        again = f"delete {folder.name}/ and rerun the workflow"
        if record is None:
            return
        with self.about(path):
            self.agree(path, "stage", job.stage, record["stage"], again)
            self.agree(path, "spec.cell", job.cell, record["spec"]["cell"], again)
            if self.config is not None:
                spec = {k: v for k, v in record["spec"].items() if k != "code"}
                self.agree(
                    path,
                    "spec",
                    specs.training_spec(self.config, job),
                    spec,
                    "rerun the workflow with the settings meant",
                )
            self.made_by(job.stage, path, record["spec"].get("code"))
            self._inputs(job, record, again)
        if present:
            with self.about(weights):
                found = self.sha256(weights)
                if self.same(weights, f"sha256, by {path.name}", record["weights_sha256"], found, again):
                    with safe_open(weights, framework="np") as f:
                        inner = json.loads((f.metadata() or {})["viny"])
                    outer = {k: v for k, v in record.items() if k != "weights_sha256"}
                    self.agree(path, "", inner, outer, f"as {weights.name} has it inside; {again}")
        if curve_present:
            with self.about(curve):
                self.count(curve)
                self._curve(curve, record)
        if provenance is not None:
            with self.about(run):
                self._provenance(run, provenance, record)

    def _inputs(self, job: Training, record: Mapping[str, Any], again: str) -> None:
        """The hashes of what a training job started from against the files beside it."""
        path = job.file(self.root, "record")
        if (manifest := self.manifest(job.pack)) is not None:
            self.same(path, f"pack '{job.pack}'", manifest.get("sha256"), record["pack_sha256"], again)
        if (split := self.split_record(*job.split)) is not None:
            mine = split["parts"]["train"]
            self.same(path, f"split {'/'.join(job.split)}", mine["sha256"], record["split_sha256"], again)
            self.agree(path, "images", mine["count"], record["images"], again)
        if job.parent is None:
            self.same(path, "parent weights", None, record["parent_sha256"], again)
        elif (
            parent := self.sha256(job.parent.file(self.root, "weights"))
        ) is not None:  # a missing one has its finding
            name = f"weights of {job.parent.folder(Path())}"
            self.same(path, name, parent, record["parent_sha256"], again)

    def _curve(self, path: Path, record: Mapping[str, Any]) -> None:
        with open(path, newline="", encoding="utf-8") as f:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f, strict=True)]
        epochs = record["spec"]["train"]["epochs"]
        if len(rows) != epochs or any(row["epoch"] != i for i, row in enumerate(rows, 1)):
            raise InputError(f"expected a row for each of {epochs} epochs, found {len(rows)} rows; {AGAIN}")
        for row in rows:
            for key, value in row.items():
                if not math.isfinite(value):
                    raise InputError(f"{key} of epoch {row['epoch']:.0f}: expected a number, found {value}; {AGAIN}")
        if rows[-1]["loss"] != record["final_loss"]:
            raise InputError(
                f"expected the last loss to be {record['final_loss']}, as the record has it, found "
                f"{rows[-1]['loss']}; {AGAIN}"
            )

    def _provenance(self, path: Path, provenance: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        lost = [key for key in RUN_KEYS if key not in provenance]
        if lost:
            raise InputError(f"expected the key {', '.join(lost)}, found none; {AGAIN}")
        if "hashes" in provenance:  # the first version's runs have none
            expected = {
                "spec": digest(record["spec"]),
                "pack": record["pack_sha256"],
                "split": record["split_sha256"],
                "weights": record["weights_sha256"],
                "parent_weights": record["parent_sha256"],
            }
            self.agree(path, "hashes", expected, provenance["hashes"], f"as the record beside it has them; {AGAIN}")

    def metrics(self, cell: Cell, job: Training) -> None:
        """A cell's metrics against the settings, its model, its data and its confusion matrices."""
        path = layout.metrics_file(self.root, cell)
        confusion = path.with_suffix(".npz")
        self._expected.add(confusion)
        if not path.exists() and not confusion.exists():
            self._expected.add(path)
            self.add(MISSING, path, "expected the cell's metrics, found no such file; run the workflow")
            return
        present = self.there(confusion, "confusion matrices")
        value = self.json(path, "the metrics of an evaluated cell")
        if value is None:
            return
        with self.about(path):
            read_metrics([path])
            self.agree(path, "cell", cell.as_dict(), value["cell"], AGAIN)
            hashes, record = value["hashes"], self.json(job.file(self.root, "record"), "a weights record")
            weights = self.sha256(job.file(self.root, "weights"))
            if weights is not None:
                self.same(path, "weights of the model", weights, hashes["weights"], AGAIN)
            if job.parent is None:
                self.same(path, "parent weights", None, hashes["parent_weights"], AGAIN)
            elif (parent := self.sha256(job.parent.file(self.root, "weights"))) is not None:
                name = f"weights of {job.parent.folder(Path())}"
                self.same(path, name, parent, hashes["parent_weights"], AGAIN)
            if (manifest := self.manifest(job.pack)) is not None:
                self.same(path, f"pack '{job.pack}'", manifest.get("sha256"), hashes["pack"], AGAIN)
            if (split := self.split_record(*job.split)) is not None:
                name = f"split {'/'.join(job.split)}"
                self.same(path, name, split["parts"]["train"]["sha256"], hashes["split"], AGAIN)
            if record is not None:
                expected = {"train": record["spec"]["train"], "parameters": record["parameters"]}
                self.agree(path, "", expected, {key: value[key] for key in expected}, f"as the model's record; {AGAIN}")
            lost = [key for key in RUN_KEYS if key not in value["provenance"]]
            if lost:
                raise InputError(f"provenance: expected the key {', '.join(lost)}, found none; {AGAIN}")
            self._evaluated(path, cell, value)
        if present:
            with self.about(confusion):
                self.count(confusion)
                self._confusion(confusion, path, job, value)

    def _evaluated(self, path: Path, cell: Cell, value: Mapping[str, Any]) -> None:
        """What a cell's evaluation was asked for, against the settings."""
        made_by = value["provenance"].get("fingerprint")
        self.made_by("evaluate", path, made_by)
        if self.config is None:
            return
        spec = specs.evaluate_spec(self.config, cell)
        meant = "rerun the workflow with the settings that are meant"
        expected = {key: spec[key] for key in ("study", "note", "protocol", "switches")}
        found = {key: value[key] for key in expected}
        if expected != found:
            self.agree(path, "", expected, found, meant)
            return  # and its hash cannot fit
        stated = value["hashes"]["spec"]
        code = code_fingerprint("evaluate")
        # What has no fingerprint was made by a tool that gives none, or before they were written down.
        candidates = [made_by] if made_by else [code, None]
        if stated in [digest({**spec, "code": c} if c else spec) for c in candidates]:
            return
        if made_by:
            self.same(path, "spec", digest({**spec, "code": made_by}), stated, meant)
        else:
            self._unclear.append(path)

    def _confusion(self, path: Path, metrics_path: Path, job: Training, value: Mapping[str, Any]) -> None:
        """Confusion matrices against the metrics that follow from them and the split's test images."""
        with np.load(path, allow_pickle=False) as f:
            confusion, indices = f["confusion"].astype(np.int64), f["indices"]
        if len(confusion) != len(indices) or len(indices) != value["test_images"]:
            raise InputError(
                f"expected matrices of {value['test_images']} images, found {len(confusion)} for {len(indices)} "
                f"indices; {AGAIN}"
            )
        lists = self._splits.get(job.split)
        if lists is not None and not np.array_equal(indices, lists["test"]):
            raise InputError(f"expected the test images of split {'/'.join(job.split)}, found others; {AGAIN}")
        manifest = self.manifest(job.pack)
        if manifest is None:
            return
        expected = summarise(confusion, manifest["mask_classes"], manifest.get("border_class"))
        expected["miou"] = expected[f"miou_{value['miou_is']}"]
        self.agree(metrics_path, "metrics", expected, value["metrics"], f"as {path.name} gives them; {AGAIN}")
        self.agree(metrics_path, "miou_is", value["switches"]["miou"], value["miou_is"], AGAIN)

    def unclear(self, folder: Path) -> None:
        """Files of which only the settings could tell whether they belong to the study."""
        self._expected |= set(folder.glob("*"))

    def geometry(self, encoder: grid.Encoder) -> None:
        """An encoder's geometry against the weights and the images that it was measured on."""
        path = layout.geometry_file(self.root, encoder)
        arrays = path.with_suffix(".npz")
        self._expected |= {path, arrays}
        if not path.exists() and not arrays.exists():
            self.add(MISSING, path, "expected the encoder's geometry, found no such file; run the workflow")
            return
        if self.there(arrays, "arrays of the encoder's geometry"):
            self.count(arrays)
        value = self.json(path, "an encoder's geometry")
        if value is None:
            return
        with self.about(path):
            self.agree(path, "encoder", encoder.as_dict(), value["encoder"], AGAIN)
            hashes = value["hashes"]
            of = {"weights": layout.training_of(encoder), "reference_weights": layout.reference_of(encoder)}
            for key, training in of.items():
                found = self.sha256(training.file(self.root, "weights")) if training else None
                if training is None or found is not None:
                    self.same(path, key.replace("_", " "), found, hashes[key], AGAIN)
            if (manifest := self.manifest("segmentation")) is not None:
                self.same(path, "pack 'segmentation'", manifest.get("sha256"), hashes["pack"], AGAIN)
            self.made_by("geometry", path, value["provenance"].get("fingerprint"))

    def tables(self, cells: Iterable[Cell]) -> None:
        """Every table of the metrics alone against the one that they give."""
        folder = self.root / "tables"
        self._expected |= {folder / name for name in EVIDENCE}
        paths = [layout.metrics_file(self.root, cell) for cell in cells]
        self._expected |= set(folder.glob("duplicates.*"))  # of packs and splits, not of metrics
        with tempfile.TemporaryDirectory() as made:
            try:
                write_tables(paths, made)
            except Exception as error:  # a fault of the metrics, which have findings of their own
                self._expected |= set(folder.glob("*"))
                reason = str(error).replace(f"{self.root}{os.sep}", "")
                self.add(NOTE, folder, f"not compared with the metrics, which are not whole ({reason})")
                return
            for fresh in sorted(Path(made).iterdir()):
                path = folder / fresh.name
                if not self.there(path, "a table of the metrics"):
                    continue
                with self.about(path):
                    self.count(path)
                    expected, found = fresh.read_bytes().splitlines(), path.read_bytes().splitlines()
                    if expected != found:
                        pairs = zip([*expected, b""], [*found, b""], strict=False)
                        line, (want, got) = next((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1])
                        raise InputError(
                            f"line {line}: expected {SHORT.repr(want.decode())}, as the metrics have it, found "
                            f"{SHORT.repr(got.decode(errors='replace'))}; {AGAIN}"
                        )

    def codes(self) -> None:
        """One note a stage for what other code made: it may well be sound, but the workflow would make it anew."""
        for stage, made in self._codes.items():
            now = code_fingerprint(stage)
            others = [(file, code) for file, code in made if code != now]
            if others:
                file, code = others[0]
                which = "this file was" if len(made) == 1 else f"this and {len(others) - 1} more of {len(made)} were"
                self.add(
                    NOTE,
                    file,
                    f"{stage}: {which} made by another version of the code (fingerprint {code}, here {now}); the "
                    "workflow would make it anew",
                )

        if self._unclear:
            self.add(
                NOTE,
                self._unclear[0],
                f"spec: {len(self._unclear)} metrics files were made by another version of the code or with other "
                "settings of evaluation, and do not say which; rerun the workflow to be sure",
            )

    def strays(self, folder: Path | None = None) -> None:
        """Notes on what no cell of the study has asked for: a line for a folder of which nothing belongs here."""
        folder = self.root if folder is None else folder
        wanted = {parent for path in self._expected for parent in path.parents}
        for path in sorted(folder.iterdir()):
            if path in self._expected or (folder == self.root and path.name in UNCHECKED):
                continue
            if path.is_dir() and not path.is_symlink() and path in wanted:
                self.strays(path)
            elif folder == self.root and path.name == "checkpoints":
                for file in sorted(p for p in path.rglob("*") if not p.is_dir() and p.name != PROGRESS):
                    self.add(NOTE, file, "a checkpoint: a job was interrupted; the next run goes on from it")
            elif path.name.startswith(".") and ".tmp" in path.name:
                self.add(NOTE, path, "left by a write that was interrupted; may be deleted")
            elif not path.is_dir() or any(path.iterdir()):
                self.add(NOTE, path, "not of the study's grid; nothing here uses it")


def verify_study(root: Path, config: Mapping[str, Any] | None = None, store: Path | None = None) -> Report:
    """Check a study's results.

    Args:
        root: the study's folder, wherever it stands now.
        config: resolved settings; None for those of the study's own study.json, if it has one.
        store: folder of packs; None for where the study's links lead, else the place that the settings name.

    Returns:
        Findings, in the order packs, splits, trainings, metrics, tables, strays.

    Raises:
        InputError: `root` is no folder, or holds no study.
    """
    began = time.monotonic()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a study's, such as results/demo")
    if store is not None and not store.is_dir():
        raise InputError(f"{store}: no such folder; expected one of packs")
    verifier = _Verifier(root, config, store)
    verifier.settings()
    cells = grid.cells(verifier.config) if verifier.config is not None else cells_of_files(root)
    if not cells and not study_file(root).is_file():
        raise InputError(f"{root}: holds neither study.json nor cells; expected a study's folder, such as results/demo")
    jobs = layout.trainings(cells)
    checks: list[tuple[Path, Callable[[], None]]] = []
    for name in dict.fromkeys(job.pack for job in jobs):
        checks.append((root / "packs" / name / "manifest.json", partial(verifier.pack, name)))
    for part, subset in dict.fromkeys(job.split for job in jobs):
        checks.append((root / "splits" / part / f"{subset}.json", partial(verifier.split, part, subset)))
    checks += [(job.file(root, "record"), partial(verifier.training, job)) for job in jobs]
    for cell in cells:
        checks.append((layout.metrics_file(root, cell), partial(verifier.metrics, cell, layout.chain(cell)[-1])))
    if verifier.config is not None:
        for encoder in grid.encoders(verifier.config):
            checks.append((layout.geometry_file(root, encoder), partial(verifier.geometry, encoder)))
    else:
        verifier.unclear(root / "geometry")
    checks.append((root / "tables", partial(verifier.tables, cells)))
    checks.append((root, verifier.codes))
    checks.append((root, verifier.strays))
    for file, check in tqdm(checks, desc="verify", unit="check", mininterval=1.0, disable=None):
        with verifier.about(file):
            check()
    verifier.report.seconds = round(time.monotonic() - began, 3)
    return verifier.report
