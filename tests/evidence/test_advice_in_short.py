"""The short advice, its proposals and every other place that names a direction, over made studies of many shapes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from test_advice import LONG, SECONDS, confusions, folders_of, make, packed, part

from viny.cli import main
from viny.evidence.advice.advice import WORDS, Advice, Line, as_dict, as_text
from viny.evidence.advice.adviser import advise
from viny.evidence.advice.brief import GIVES, Draft, fitted
from viny.evidence.statistics.pages import write_statistics
from viny.runtime.files import write_sealed
from viny.study.changes import changed
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.grid import Cell, cells, references
from viny.study.inventory import count_images
from viny.study.layout import metrics_file, reference_file

SHAPES: dict[str, dict[str, Any]] = {
    "usual": {},
    "one cell": {"grid": {"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [8]}, "seeds": [0]},
    "no tasks": {"grid": {"intermediates": ["none"], "pretrain_sizes": [0, 6, 24], "finetune_sizes": [4, 8, 16, 32]}},
    "one seed": {"seeds": [3]},
    "no random start": {"grid": {"pretrain_sizes": [24]}},
    "few images": {"images": 12, "noise": 0.3, "synthetic": {"segmentation": 30}},
    "held out": {"synthetic": {"unlabelled": 30}, "pretrain": {"held_out": 3}},
    "many tasks": {
        "grid": {"intermediates": ["none", *(f"task_of_a_long_name_{i}" for i in range(5))]},
        "intermediate": {
            f"task_of_a_long_name_{i}": {"source": "synthetic", "epochs": 1, "milestones": []} for i in range(5)
        },
    },
}


def random_study(root: Path, shape: str, seed: int) -> dict[str, Any]:
    """A study with effects that are drawn: some are there in some cells, some are not."""
    rng = np.random.default_rng(seed)
    gain, harm, spread = rng.normal(0, 0.04), rng.normal(0, 0.04), rng.choice([0.002, 0.01, 0.03])
    noise = {}

    def truth(cell: Cell) -> float:
        key = cell.name
        noise.setdefault(key, spread * rng.normal())
        here = gain * (cell.finetune_size <= 8) * (cell.pretrain_size > 0) - harm * (cell.intermediate != "none")
        return float(np.clip(0.4 + 0.02 * np.log2(cell.finetune_size) + here + noise[key], 0, 1))

    return make(root, truth, **SHAPES[shape])


def short(advice: Advice) -> str:
    return " ".join(line.text for line in advice.short)


def commands(advice: Advice) -> list[str]:
    """Every command line of `viny plan` that the advice says, short or long."""
    return re.findall(r"`viny plan ([^`]*)`", " ".join([as_text(advice, 10**6), as_text(advice, 10**6, long=True)]))


def proposed(advice: Advice) -> list[dict[str, Any]]:
    """Every change of the settings that the advice says, as a study file would have it."""
    found = []
    for command in commands(advice):
        file, *rest = shlex.split(command)
        assert Path(file).is_dir() and set(rest[::2]) == {"--set"}
        change: dict[str, Any] = {}
        for one in rest[1::2]:
            key, value = one.split("=", 1)
            inner: Any = yaml.safe_load(value)
            for name in reversed(key.split(".")):
                inner = {name: inner}
            change = merge(change, inner)
        found.append(change)
    said = " ".join(item["text"] for part in as_dict(advice)["sections"] for item in part["items"])
    for key, value in re.findall(r"add `grid\.(\w+): (\[[^\]]*\])`", said):
        found.append({"grid": {key: yaml.safe_load(value)}})
    return found


DIRECTION = re.compile(r"\b(helps|hurts)\b(?! more)|(?<!or )\b(helps|hurts) more\b")
RATE = "a further"


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_short_true_and_what_it_proposes_passes_check(tmp_path: Path, shape: str, seed: int) -> None:
    config = random_study(tmp_path, shape, seed)
    advice = advise(tmp_path)
    # Short.
    text = as_text(advice)
    assert len(text.split()) <= WORDS
    assert text.endswith("`--long` for all.\n") and "nan" not in text.lower()
    lines = {line.key: line.text for line in advice.short}
    assert {"best", "labels", "next"} <= set(lines)
    for key, words in (("pre-training", "pre-training"), ("task", "intermediate task")):
        assert not (key in lines and words in lines.get("not asked", "").lower())
    # What is proposed is accepted, and new.
    for change in proposed(advice):
        changed = resolve(merge(config, change))
        check_sizes(changed, count_images(changed, tmp_path).limits)
        assert changed != config
        for axis, values in change.get("grid", {}).items():
            assert set(config["grid"][axis]) < set(values)
    # All say the same of an effect.
    chain = {
        cell.name: {"seconds": 3600.0 * (1 + cell.pretrain_size), "operations": 1e9 * cell.pretrain_size, "device": "d"}
        for cell in cells(config)
    }
    tables = tmp_path / "tables"
    paths = [metrics_file(tmp_path, cell) for cell in cells(config)]
    decisions = write_statistics(paths, tmp_path / "metrics", chain, tables)["decisions"]
    told = {(row["kind"], row["what"]): row for row in decisions.to_dict("records")}
    lines = {line.key: line.text for line in advice.short}
    for key, kind in (("pre-training", "pre-training"), ("task", "task")):
        if key not in lines:  # not asked
            continue
        of_kind = [row for (kind_, _), row in told.items() if kind_ == kind]
        if key == "pre-training":
            of_kind = of_kind[-1:]
        words = [row["words"] for row in of_kind]
        assert bool(DIRECTION.search(lines[key])) <= any(DIRECTION.search(word) for word in words)
        assert all(word in lines[key] for word in words[:1] if len(of_kind) == 1)
    worth = pd.read_csv(tables / "transfer.csv", keep_default_na=False)
    for row in worth.to_dict("records"):
        if row["intermediate"] == "none" and re.match("helps|hurts|worth", row["verdict"]):
            assert told["pre-training", str(row["pretrain_size"])]["words"].startswith(row["verdict"][:5])
    in_labels = [item for part in as_dict(advice)["sections"] for item in part["items"] if "labels_worth" in item]
    for item in in_labels:
        decided = told["pre-training", str(item["pretrain_size"])]["verdict"] in ("up", "down")
        assert decided or "they do what" not in item["text"]
    for line in (tables / "next_steps.md").read_text().splitlines():
        if line.startswith("- ") and RATE in line:
            move = line.split("), ", 1)[1].partition(":")[0]
            task = move.removeprefix("intermediate task ")
            if task != move:
                assert told["task", task]["verdict"] in ("up", "down")
            assert "cannot be told" not in line


def unets(
    root: Path, config: dict[str, Any], miou: dict[int, float], ious: dict[str, float] | None = None, pack: str = "new"
) -> None:
    """Records of U-Nets with some mIoU by number of labels, and of a constant answer at 20 %."""
    for one in references(config):
        if one.finetune_size not in miou:
            continue
        rng = np.random.default_rng([one.finetune_size, one.seed])
        record = reference_file(root, one, "record")
        metrics = {"miou": miou[one.finetune_size] + 0.001 * rng.normal(), **(ious or {})}
        metrics["own_size_miou_dataset"] = 0.01  # which is no class's
        write_sealed(
            record,
            {
                "metrics": metrics,
                "constant": {"class": "ground", "index": 0, "metrics": {"miou": 0.2}},
                "miou_is": "dataset",
                "parameters": 100_000,
                "pack_sha256": pack,
                "provenance": {"training_seconds": 30.0, "image_passes": 1000},
            },
        )
        np.savez(record.with_suffix(".npz"), confusion=confusions(rng, 500, 0.001), indices=np.arange(500))


def lines_of(root: Path, config: dict[str, Any] | None = None) -> dict[str, str]:
    return {line.key: line.text for line in advise(root, config).short}


def test_a_u_net_that_does_better_comes_first_and_is_the_model_to_use(tmp_path: Path) -> None:
    config = make(tmp_path, lambda cell: 0.5 + 0.001 * cell.seed, references=True, **LONG)
    assert lines_of(tmp_path)["references"].startswith("No U-Net is trained yet")
    assert "unet" not in lines_of(tmp_path)["use"]
    packed(tmp_path, config, lambda cell: False)
    unets(tmp_path, config, {8: 0.55, 16: 0.6}, {"iou_road": 0.9, "iou_pole": 0.01, "iou_car": 0.5})
    advice = advise(tmp_path)
    lines = {line.key: line.text for line in advice.short}
    assert advice.short[0].key == "references"
    said = r"Do not use it: a small U-Net has \d\d\.\d % mIoU with 16 labels, "
    said += r"(\d\.\d) points more \((\d\.\d) to (\d+\.\d)\)\."
    lead, low, high = map(float, re.fullmatch(said, lines["references"]).groups())
    assert 0 < low < lead < high
    assert f"--root {tmp_path} --cell unet_fine-16_seed-0 " in lines["use"]
    assert lines["labels"].startswith("Doubling 8 labels to 16 with the U-Net helps: +")  # not the model that loses
    assert lines["classes"].startswith("pole 1 %, car 50 %, road 90 % IoU")
    assert not lines.get("warning", "").startswith("A simple reference does better")
    text = as_text(advice, long=True)
    assert "With 16 labels every pixel called ground gives 20" in text
    assert "A simple reference does better" in text
    # One that was switched off left its record behind.
    assert "U-Net" not in as_text(advise(tmp_path, merge(config, {"references": False})), long=True)
    # One of other images says nothing.
    unets(tmp_path, config, {8: 0.55, 16: 0.6}, pack="old")
    assert lines_of(tmp_path)["references"].startswith("No U-Net is trained yet")


def test_a_u_net_that_does_worse_is_told_too(tmp_path: Path) -> None:
    config = make(tmp_path, lambda cell: 0.5 + 0.001 * cell.seed, references=True, **LONG)
    unets(tmp_path, config, {8: 0.4, 16: 0.502})  # ahead, but not clearly: its masks are the better bet
    lines = lines_of(tmp_path)
    assert not lines["references"].startswith("Do not") and "--cell unet_fine-16_seed-0 " in lines["use"]
    unets(tmp_path, config, {8: 0.4, 16: 0.48})
    lines = lines_of(tmp_path)
    assert lines["references"].startswith("This model is worth its while: a small U-Net has 47.9 %")
    assert re.search(r"points less \(\d\.\d to \d\.\d\)\.$", lines["references"]) and "unet" not in lines["use"]
    assert "U-Net" not in lines["labels"]


def test_the_u_net_is_compared_with_the_best_of_all_arms(tmp_path: Path) -> None:
    def truth(cell: Cell) -> float:
        return 0.4 + 0.3 * (cell.variant == "frozen") + 0.001 * cell.seed

    config = make(tmp_path, truth, references=True, grid={"variants": ["study", "frozen"]}, **LONG)
    unets(tmp_path, config, {8: 0.55, 16: 0.6})  # above the first arm, below the other
    lines = lines_of(tmp_path)
    assert "frozen encoder" in lines["arms"] and lines["best"].endswith("40.10 % mIoU.")
    assert "this model is worth its while" in lines["references"].lower()
    name = re.search(r"--cell (\S+) ", lines["use"])[1]
    assert name.endswith("_fine-16_seed-0_variant-frozen") and name in {cell.name for cell in cells(config)}
    # Of cells that were measured on other images nothing is said.
    packed(tmp_path, config, lambda cell: cell.variant == "frozen")
    lines = lines_of(tmp_path)
    assert "do not use it" in lines["references"].lower() and "frozen" not in lines["arms"]
    assert advise(tmp_path).evaluated == advise(tmp_path).cells / 2


def test_a_run_that_goes_on_tells_of_the_u_nets_that_are_there(tmp_path: Path) -> None:
    config = make(tmp_path, lambda cell: 0.5 + 0.001 * cell.seed, references=True, **LONG)
    unets(tmp_path, config, {8: 0.6})
    assert "provisional" not in lines_of(tmp_path)
    some = [cell for cell in cells(config) if cell.finetune_size == 16 and cell.seed == 1]
    for cell in some:
        metrics_file(tmp_path, cell).unlink()
    lines = lines_of(tmp_path)
    assert lines["provisional"] == f"{len(some)} of {len(cells(config))} cells are missing; answers may turn."
    assert "with 8 labels" in lines["references"] and "unet_fine-8_seed-0" in lines["use"]


def test_what_is_proposed_costs_the_u_nets_too(tmp_path: Path) -> None:
    alone, beside = tmp_path / "a", tmp_path / "b"
    for root, some in ((alone, False), (beside, True)):
        config = make(root, lambda cell: 0.5 + 0.001 * cell.seed, references=some, curve=np.geomspace(9, 1, 20), **LONG)
    unets(beside, config, {8: 0.4, 16: 0.48})
    one, both = (next(item for item in part(advise(root), "next") if "epochs" in item) for root in (alone, beside))
    count = len(references(config))
    times = both["epochs"]["finetune.epochs"] / config["finetune"]["epochs"]
    assert both["trainings"] - one["trainings"] == count
    assert both["seconds"] - one["seconds"] == pytest.approx(30.0 * count * times)


@pytest.mark.parametrize("side", [96, 40])
def test_larger_images_are_proposed_where_classes_are_lost_that_they_may_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr("viny.evidence.advice.facts.own_side", lambda root: side)
    lost = {"iou_road": 0.9, "iou_pole": 0.01, "iou_car": 0.5}
    for root, ious, wanted in (("a", lost, side > 48), ("b", lost | {"iou_pole": 0.3}, False)):
        config = make(tmp_path / root, lambda cell: 0.5 + 0.001 * cell.seed, ious=lambda cell, i=ious: i, **LONG)
        advice = advise(tmp_path / root)
        found = [item for item in part(advice, "next") if "image_size" in item]
        assert bool(found) == wanted
        if wanted:
            (item,) = found
            assert item["set"] == {"model.image_size": 48} and config["model"]["image_size"] == 24
            assert item["text"].endswith("`.") and "lost at 24 x 24 pixels: pole." in item["text"]
            # What follows from the size moves with it: check accepts the change.
            changed(config, {"model": {"image_size": 48}})
            # Four times the pixels take some four times as long, at least.
            spent = sum(SECONDS[stage] for stage, _ in folders_of(tmp_path / root, config))
            assert 3.5 * spent < item["seconds"] < 8 * spent
        assert ("48 pixels may help" in lines_of(tmp_path / root)["classes"]) == (wanted and found[0]["rank"] > 1)


def test_models_that_stand_for_other_images_are_said_first(tmp_path: Path) -> None:
    config = make(tmp_path, lambda cell: 0.5 + 0.01 * cell.seed, seeds=[0, 1], references=True, **LONG)
    unets(tmp_path, config, {8: 0.7, 16: 0.7})
    packed(tmp_path, config, lambda cell: cell.seed == 1 and cell.finetune_size == 8)
    lines = lines_of(tmp_path)
    assert lines["provisional"].startswith("4 of 16 cells were measured on other images and are left out")
    assert lines["next"].startswith("Finish the grid (run the workflow again)")


def words_of(lines: list[Line]) -> int:
    return sum(len(f"{line.label}: {line.text}".split()) for line in lines)


def test_lines_give_way_in_turn_and_no_sentence_is_cut() -> None:
    drafts = [
        Draft("best", "Best", ("a b c d e f", "a b")),
        Draft("task", "Task", ("a b c d e", "a b c", "a")),
        Draft("use", "To use it", ("`viny predict`.",)),
        Draft("warning", "Mind", ("a b c d", "a b", "")),
    ]
    order = [key for key in GIVES if key in ("best", "task", "warning")]
    assert order == ["best", "warning", "task", "task", "task", "best", "warning"]
    whole = words_of(fitted(drafts, 100))
    seen = []
    for most in range(whole, -1, -1):
        made = {line.key: line.text for line in fitted(drafts, most)}
        seen.append(made)
        assert all(made[draft.key] in draft.texts for draft in drafts if draft.key in made)
        assert {"best", "task", "use"} <= set(made)  # a line without an empty wording is never left out
        assert words_of(fitted(drafts, most)) <= max(most, 10)  # the fewest that there can be
    assert seen[0] == {draft.key: draft.texts[0] for draft in drafts}
    assert seen[-1] == {"best": "a b", "task": "a", "use": "`viny predict`."}
    # What was given up for little is taken back where a later line made more room.
    drafts = [Draft("best", "Best", ("a b c", "a b")), Draft("warning", "Mind", ("a b c d e f g h", "a b", ""))]
    assert [line.text for line in fitted(drafts, 9)] == ["a b c", "a b"]


@pytest.mark.parametrize("arms", [False, True], ids=["one arm", "arms"])
@pytest.mark.parametrize("unet", [0.3, 0.42, 0.9])
@pytest.mark.parametrize("seeds", [[0], [0, 1, 2]], ids=["one seed", "three seeds"])
@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_what_is_decided_stays_whole_whatever_a_study_asks(
    tmp_path: Path, tasks: int, seeds: list[int], unet: float, arms: bool
) -> None:
    names = [f"task_of_a_long_name_{i}" for i in range(tasks)]
    changes: dict[str, Any] = {
        "references": True,
        "grid": {"intermediates": ["none", *names], "finetune_sizes": [8, 16], "seeds": seeds},
        "intermediate": {name: {"source": "synthetic", "epochs": 1, "milestones": []} for name in names},
    }
    if arms:
        changes["grid"]["variants"] = ["study", "frozen"]
    ious = {f"iou_{name}": 0.01 * i for i, name in enumerate(("road", "traffic light", "traffic sign", "car"))}
    rng = np.random.default_rng(0)
    noise = {}

    def truth(cell: Cell) -> float:
        noise.setdefault(cell.name, 0.02 * rng.normal())
        return 0.4 + noise[cell.name]

    config = make(tmp_path, truth, seeds=seeds, ious=lambda cell: ious, images=40, noise=0.2, **changes)
    unets(tmp_path, config, {8: unet, 16: unet}, ious)
    advice = advise(tmp_path)
    text = as_text(advice, 10**6)
    assert len(text.split()) <= WORDS
    assert "..." not in text
    numbers = r"[+-]\d+\.\d\d points \((one seed|[+-]\d+\.\d\d to [+-]\d+\.\d\d)\)"
    for line in advice.short:
        assert line.text.endswith((".", "`.")), line
        if line.key in ("pre-training", "labels") or (line.key == "task" and tasks == 1):
            assert re.search(numbers, line.text), line
        if line.key == "references":
            assert bool(re.search(r"points (more|less) \(-?\d+\.\d to \d+\.\d\)", line.text)) == (len(seeds) > 1)
        assert line.text.count("(") == line.text.count(")")
    keys = [line.key for line in advice.short]
    assert {"best", "pre-training", "labels", "references", "use", "next"} <= set(keys)
    assert ("task" in keys) == (tasks > 0) and ("arms" in keys) == arms
    assert (keys[0] == "references") == (unet == 0.9 and len(seeds) > 1)


def test_the_command_is_short_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, lambda cell: 0.5 + 0.01 * cell.seed)
    assert main(["advise", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text == as_text(advise(tmp_path)) and len(text.split()) <= WORDS
    assert main(["advise", str(tmp_path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [line["text"] for line in value["short"]] == [line.text for line in advise(tmp_path).short]
    assert {section["key"] for section in value["sections"]} >= {"summary", "next", "warnings", "reading"}
