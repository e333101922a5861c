"""The forecast of each job: seconds and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viny.learning import unet_settings
from viny.learning.settings import TRAINING, ModelSettings
from viny.runtime.errors import InputError
from viny.study.graph import TRAININGS, TRAINS, Job, Key
from viny.study.inventory import Images
from viny.study.specs import mask_class_count, on_segmentation_data
from viny.study.workload import UNKNOWN, pack_bytes, parameters
from viny.tools.forecast.rates import START, Rates, is_stored, kind, kind_of_forward, operations_a_pass

SNAKEMAKE_JOB = 0.03  # seconds to choose a job and start it
AROUND = 0.1  # before and after such a job: shell, the end of the process
ALONE = {
    **{"pack": 0.4, "start": 2.2, "split": 0.2, "duplicates": 0.2, "tables": 0.3, "figures": 4.4},
    **{"statistics": 2.5, "representations": 3.7, "scorecard": 0.9, "report": 1.0},
}
PROBES = 1.6e-7  # of the geometry, for each number in the tokens of all layers
PACKING = 220.0  # photographs per second and thread; only if there is no file to try
# Bytes of a job's results besides weights: records, curve, confusion matrices, arrays, tables, figures.
RESULTS = {"split": 13e3, **dict.fromkeys((*TRAINS, "start"), 5e3), "evaluate": 20e3, "geometry": 60e3}
RESULTS |= {"figures": 2e6, "statistics": 1e6, "representations": 1e6, "report": 2e6}


class Forecast:
    """Seconds and bytes of a study's jobs.

    Args:
        config: resolved settings.
        images: from `viny.study.inventory.count_images`.
        rates: how fast jobs run.
        store: folder of packs.
    """

    def __init__(self, config: Mapping[str, Any], images: Images, rates: Rates, store: Path) -> None:
        self.config, self.images, self.rates, self.store = config, images, rates, store

    def packed(self, job: Job) -> int:
        """Images of a pack."""
        found = self.images.packed[job.name]
        if found is not None:
            return found
        most = max(self.config["grid"]["pretrain_sizes"]) + self.config["pretrain"].get("held_out", 0)
        wanted = dict.fromkeys(self.images.unlabelled, most)
        wanted["segmentation"] = max(self.config["grid"]["finetune_sizes"]) + self.images.tested
        return wanted.get(job.name, UNKNOWN)

    def spent(self, some: Iterable[Job]) -> dict[Key, float]:
        """Seconds of each of some jobs, with those that Snakemake takes to start it."""
        return {job.key: self.seconds(job) + SNAKEMAKE_JOB for job in some}

    def seconds(self, job: Job) -> float:
        """Seconds of one job, from its start to its end."""
        rates, pace = self.rates, self.rates.start / START
        if kind(job) in rates.whole:
            return rates.whole[kind(job)]
        if job.stage in TRAINS:
            beside = pace * (START + AROUND) if rates.beside is None else rates.beside
            tested = self._held_out(job) * operations_a_pass(job) / TRAINING
            return beside + (job.work.operations + tested) / self._speed(job)
        if job.stage == "evaluate":
            return pace * (START + AROUND) + job.work.operations / self._speed(job)
        if job.stage == "geometry":
            probes = self._tokens(job) * PROBES
            a_pass = rates.a_pass.get(kind_of_forward(job), job.work.forward)
            return pace * (START + AROUND + probes) + job.work.passes * a_pass / self._speed(job)
        if job.stage == "pack" and not is_stored(job, self.store):
            a_second = rates.images.get(kind(job), PACKING) * self.config["compute"]["pack_threads"]
            return ALONE["pack"] + self.packed(job) / a_second
        return pace * ALONE[job.stage]

    def _held_out(self, job: Job) -> int:
        """Images that an intermediate task is tested on at its end."""
        if job.stage != "intermediate":
            return 0
        task = job.name.split("/")[0]
        return max(0, (self.images.packed[task] or 0) - (self.images.trained[task] or 0))

    def _tokens(self, job: Job) -> int:
        """Numbers in the tokens of all layers that a geometry looks at."""
        model = ModelSettings(**job.spec["model"])
        return job.work.passes * (model.depth + 2) * model.patches * model.dim

    def _speed(self, job: Job) -> float:
        """Operations per second."""
        found = self.rates.operations_a_second(job)
        if found:
            return found
        raise InputError(f"no rate is known for {job.label}; give one with --rate")

    def weights(self, job: Job) -> float:
        """Bytes of the weights that a job writes."""
        if job.stage == "reference":
            return 4 * unet_settings.parameters(job.spec["image_size"], mask_class_count(self.config))
        kept = job.stage in (*TRAININGS, "start")
        return 4 * parameters(ModelSettings(**job.spec["model"])) if kept else 0

    def bytes(self, job: Job) -> float:
        """Bytes that a job leaves on the disk."""
        if job.stage == "pack":
            task = self.config["intermediate"].get(job.name)
            masks = job.spec["source"] == "synthetic" or job.name == "segmentation"
            masks |= task is not None and (task["target"] != "image" or on_segmentation_data(self.config, job.name))
            of_files = job.spec["source"] != "synthetic"
            return pack_bytes(self.packed(job), job.spec["size"], masks, of_files, job.spec.get("tiles", 1))
        return RESULTS.get(job.stage, 5e4) + self.weights(job)

    def all_bytes(self, some: Iterable[Job]) -> float:
        """Bytes of several jobs; a pack that two of them share counts once."""
        each = {kind(job) if job.stage == "pack" else job.key: self.bytes(job) for job in some}
        return sum(each.values())
