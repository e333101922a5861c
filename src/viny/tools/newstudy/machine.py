"""What studies of other sizes take on this machine, by one measurement of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.runtime.gpus import visible_gpus
from viny.study.graph import jobs
from viny.study.inventory import Images
from viny.study.workload import CPU_RATE, GPU_RATE
from viny.tools.forecast.forecast import Forecast
from viny.tools.forecast.rates import Rates, kind, rates_measured, rates_seen, rates_stated
from viny.tools.forecast.schedule import Resources

SECONDS = 8.0  # of a measurement, besides the start of its processes: `viny plan` measures for longer


class Machine:
    """This machine, and how fast it runs what a study does.

    Args:
        images: from `count_images`; sizes of a grid do not change them.
        rate: training images of ViNy (128 px) per second in one job, as `viny plan` has it; None to measure.
        results: folder of all results, whose finished jobs tell rates too; None if there are none.
    """

    def __init__(self, images: Images, rate: float | None, results: Path | None = None) -> None:
        self.images, self.rate, self.results = images, rate, results
        self.rates = Rates()

    def guess(self, config: Mapping[str, Any]) -> Rates:
        """Rates as they are stated, or else as a machine of this kind is known to have them."""
        threads = config["compute"]["train_threads"]
        return rates_stated(
            jobs(config, self.images), self.rate or (GPU_RATE if visible_gpus() else CPU_RATE * threads)
        )

    def learn(self, config: Mapping[str, Any]) -> None:
        """Measure what is not known yet of the jobs of a study, unless the rate is stated."""
        if self.rate is not None:
            self.rates = self.guess(config)
            return
        every, place, known = jobs(config, self.images), Resources.of(config, None, None), self.rates
        if self.results is not None:
            root = self.results / config["study"]
            self.rates = rates_seen(every, root, place.train_threads, place.device(config))
        for job in every:
            if kind(job) in known.images:  # learnt of other settings
                self.rates.learn(job, known.images[kind(job)])
        self.rates = rates_measured(config, every, place.beside, SECONDS, Path(config["pack_store"]), self.rates)

    def hours(self, config: Mapping[str, Any]) -> float:
        """Hours of a whole study from start to end, as `viny plan` forecasts them."""
        every, place = jobs(config, self.images), Resources.of(config, None, None)
        rates = self.rates if self.rates.images else self.guess(config)
        forecast = Forecast(config, self.images, rates, Path(config["pack_store"]))
        return place.hours(every, forecast.spent(every), config)
