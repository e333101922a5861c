"""Which rate a fine-tuning takes, by the scores that short trainings gave each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from viny.runtime.differences import differences
from viny.runtime.errors import InputError
from viny.runtime.files import digest, read_sealed

TIMES = ("provenance", "sha256")  # keys of a tuning that differ from run to run; so do the seconds of each rate
AGAIN = "give --tuned the tunings of this cell for all seeds, as the workflow does, or delete it and rerun"


def chosen_rate(spec: Mapping[str, Any], files: Sequence[Path], pack_sha256: str) -> dict[str, Any] | None:
    """The rate with the highest mean mIoU over seeds; of several, the lowest.

    Args:
        spec: the fine-tuning's.
        files: tunings, one a seed, which `viny.learning.tuning.tune` wrote.
        pack_sha256: of the fine-tuning's images.

    Returns:
        lr, the rate; rates, the mean mIoU of each, where one that diverged counts as 0; tunings, the hash of what each
        file says except how long it took. None if no rate is to be chosen.

    Raises:
        InputError: there are no files although a rate is to be chosen, files although none is, or a file is of other
            settings or images.
    """
    if "tune" not in spec:
        if files:
            raise InputError(f"--tuned {files[0]}: this fine-tuning's settings choose no rate; leave --tuned out")
        return None
    if not files:
        raise InputError(f"--tuned: this fine-tuning's rate is chosen (tune.lr), but no file is given; {AGAIN}")
    seeds: dict[int, Path] = {}
    records = []
    for path in files:
        record = read_sealed(path, "a tuning")
        if record["stage"] != "tune":
            raise InputError(f"{path}: is of stage '{record['stage']}', not a tuning; {AGAIN}")
        if found := next(differences(_but_for_the_seed(spec), _but_for_the_seed(record["spec"])), None):
            raise InputError(f"{path}: is of another fine-tuning: {found}; {AGAIN}")
        if record["pack_sha256"] != pack_sha256:
            raise InputError(f"{path}: was scored on other images than this fine-tuning's; {AGAIN}")
        if [rate["lr"] for rate in record["rates"]] != spec["tune"]["lr"]:
            raise InputError(f"{path}: has not the rates {spec['tune']['lr']}; {AGAIN}")
        seed = record["spec"]["cell"]["seed"]
        if seed in seeds:
            raise InputError(f"{path}: is of seed {seed}, as is {seeds[seed]}; {AGAIN}")
        seeds[seed] = path
        records.append(record)
    best, means = best_rate(records)
    said = ", ".join(f"{lr:g} {100 * mean:.2f} %" for lr, mean in means.items())
    print(f"{spec['stage']}: rate {best:g}, by mIoU on validation images, mean of {len(records)} seeds: {said}")
    return {
        "lr": best,
        "rates": {str(lr): mean for lr, mean in means.items()},
        "tunings": [content_sha256(record) for record in records],
    }


def best_rate(tunings: Sequence[Mapping[str, Any]]) -> tuple[float, dict[float, float]]:
    """The rate with the highest mean mIoU over tunings of the same rates, of several the lowest; and all means."""
    scores = [{rate["lr"]: rate["miou"] or 0.0 for rate in one["rates"]} for one in tunings]
    means = {lr: sum(one[lr] for one in scores) / len(scores) for lr in scores[0]}
    return max(means, key=lambda lr: (means[lr], -lr)), means


def content_sha256(tuning: Mapping[str, Any]) -> str:
    """Hash of what a tuning's record says, except how long it took: the same wherever it is computed identically."""
    rates = [{key: value for key, value in rate.items() if key != "seconds"} for rate in tuning["rates"]]
    return digest({**{key: value for key, value in tuning.items() if key not in TIMES}, "rates": rates})


def _but_for_the_seed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the tunings of one fine-tuning have in common with it."""
    cell = {key: value for key, value in spec["cell"].items() if key not in ("seed", "name")}
    return {**{key: value for key, value in spec.items() if key not in ("stage", "code")}, "cell": cell}
