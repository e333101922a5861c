"""What a grid costs: the time of its jobs, as `viny plan` works it out, for other numbers of seeds and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from viny.evidence.power.simulate import more_seeds
from viny.runtime.errors import InputError
from viny.study.graph import jobs
from viny.study.inventory import Images, count_images
from viny.study.saved import saved_study
from viny.tools.forecast.forecast import Forecast
from viny.tools.forecast.rates import Rates, kind, rates_seen, rates_stated

NOT_KNOWN = "not known; `--rate` states one, and `viny plan` measures it"


class Costs:
    """The time that grids take.

    Args:
        config: resolved settings.
        images: from `count_images`.
        results: folder of all results; those of the study itself tell how fast its jobs run.
        like: the folder of an earlier study, whose jobs do so too; None if there is none.
        rate: training images of ViNy (128 px) per second in one job; None if nobody has said.
    """

    def __init__(
        self, config: Mapping[str, Any], images: Images, results: Path, like: Path | None, rate: float | None
    ) -> None:
        self.config, self.images = config, images
        self.rates, self.said = self._rates(results, like, rate)

    def _rates(self, results: Path, like: Path | None, rate: float | None) -> tuple[Rates | None, str]:
        every, compute = jobs(self.config, self.images), self.config["compute"]
        for stated, said in ((rate, "--rate"), (compute["images_per_second"], "compute.images_per_second")):
            if stated:
                return rates_stated(every, stated), f"{said}: {stated:g} ViNy images/s a job"
        sources = [(self.config, results / self.config["study"])]
        if like is not None and like.resolve() != sources[0][1].resolve():
            sources.append((saved_study(like), like))
        wanted = {kind(job) for job in every}
        for config, root in sources:
            theirs = every if config is self.config else jobs(config, count_images(config, root))
            seen = rates_seen(theirs, root, compute["train_threads"], compute["device"])
            images, a_pass = (
                {name: found for name, found in known.items() if name in wanted} for known in (seen.images, seen.a_pass)
            )
            if images:
                return Rates(images, beside=seen.beside, a_pass=a_pass), f"the finished jobs of {root}"
        return None, NOT_KNOWN

    def hours(self, seeds: int, tested: int) -> float | None:
        """Hours of all jobs, one after the other, with so many seeds and test images; None if not known."""
        if self.rates is None:
            return None
        grid = {**self.config["grid"], "seeds": more_seeds(self.config["grid"]["seeds"], seeds)}
        config = {**self.config, "grid": grid}
        images = replace(self.images, tested=tested)
        forecast = Forecast(config, images, self.rates, Path(self.config["pack_store"]))
        try:
            return sum(map(forecast.seconds, jobs(config, images))) / 3600
        except InputError:  # a kind of job that no finished one tells of
            return None
