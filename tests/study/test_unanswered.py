"""What a study as set cannot answer: each question is open exactly while the setting behind it is too small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.study import unanswered as module
from viny.study.config import merge, resolve
from viny.study.inventory import Images, count_images
from viny.study.reading import read_config
from viny.study.unanswered import unanswered
from viny.tools.terminal import unanswered_lines

ROOT = Path(__file__).parents[2]
FULL = {
    "study": "x",
    "grid": {
        "pretrain_sizes": [0, 320, 640],
        "intermediates": ["none", "scenes"],
        "finetune_sizes": [20, 40, 80, 160],
        "seeds": [0, 1, 2],
    },
    "pretrain": {"source": "synthetic", "batch_size": 32, "epochs": 1000, "milestones": []},
    "intermediate": {"scenes": {"epochs": 2, "milestones": []}},
    "segmentation": {"source": "synthetic", "test_size": 100},
    "finetune": {"batch_size": 16, "epochs": 150, "milestones": []},
}


def questions(**changes: Any) -> list[str]:
    config = resolve(merge(FULL, changes))
    return [one.question for one in unanswered(config, count_images(config, Path("nowhere")))]


def test_a_study_with_all_that_answers_take_leaves_no_question_open() -> None:
    assert questions() == []


@pytest.mark.parametrize(
    ("changes", "question"),
    [
        ({"grid": {"pretrain_sizes": [0]}}, module.PRETRAINING),
        ({"grid": {"pretrain_sizes": [320, 640]}}, module.PRETRAINING),
        ({"grid": {"pretrain_sizes": [0, 640]}}, module.MORE_IMAGES),
        ({"pretrain": {"epochs": 999}}, module.MORE_IMAGES),  # the largest size still has enough steps
        ({"grid": {"intermediates": ["none"]}}, module.TASKS),
        ({"grid": {"intermediates": ["scenes"]}}, module.TASKS),
        ({"finetune": {"epochs": 149}}, module.FINETUNING),
        ({"grid": {"finetune_sizes": [40, 80, 160]}}, module.MORE_LABELS),
        ({"grid": {"seeds": [0, 1]}}, module.SURE),
        ({"segmentation": {"test_size": 99}}, module.SMALL),
    ],
)
def test_each_question_is_open_once_its_setting_is_too_small(changes: dict[str, Any], question: str) -> None:
    assert questions(**changes) == [question]


def test_with_few_steps_a_no_on_pretraining_does_not_count() -> None:
    assert questions(pretrain={"epochs": 499}) == [module.PRETRAINING]
    assert questions(pretrain={"epochs": 500, "budget": "steps"}) == []


def test_the_remedy_of_a_short_training_is_enough() -> None:
    config = resolve(merge(FULL, {"pretrain": {"epochs": 77}, "finetune": {"epochs": 13}}))
    found = unanswered(config, count_images(config, Path("nowhere")))
    remedies = [one.remedy.split(": ") for one in found]
    assert [key for key, _ in remedies] == ["pretrain.epochs", "finetune.epochs"]
    for by, left in ((0, [module.MORE_IMAGES]), (-1, [module.PRETRAINING, module.FINETUNING])):
        mended = {key.partition(".")[0]: {"epochs": int(value) + by} for key, value in remedies}
        assert questions(**mended) == left


@pytest.mark.parametrize(
    ("grid", "place"),
    [
        ({"pretrain_sizes": [320, 640]}, "pretrain_sizes"),
        ({"pretrain_sizes": [0, 640]}, "pretrain_sizes"),
        ({"intermediates": ["scenes"]}, "intermediates"),
        ({"finetune_sizes": [160]}, "finetune_sizes"),
        ({"finetune_sizes": [20, 160]}, "finetune_sizes"),
        ({"finetune_sizes": [50, 70, 160]}, "finetune_sizes"),
        ({"finetune_sizes": [10, 31]}, None),  # four sizes of eight and more are not there
    ],
)
def test_what_is_to_be_added_to_a_list_of_the_grid_answers(grid: dict[str, Any], place: str | None) -> None:
    config = resolve(merge(FULL, {"grid": grid, "pretrain": {"epochs": 2000}, "finetune": {"epochs": 1000}}))
    (found,) = unanswered(config, count_images(config, Path("nowhere")))
    if place is None:
        assert found.remedy == "more masks"
        return
    key, _, added = found.remedy.partition(": ")
    assert key == f"grid.{place}"
    new = added.removeprefix("add ").split(", ")
    values = [*config["grid"][place], *(int(part) if part.isdecimal() else part for part in new)]
    assert len(set(values)) == len(values)
    assert questions(grid={**grid, place: values}, pretrain={"epochs": 2000}, finetune={"epochs": 1000}) == []


def test_more_test_images_are_asked_for_only_where_they_are() -> None:
    def remedy(count: int) -> str:
        sections = {"segmentation": {"test_size": 50}, "synthetic": {"segmentation": count}}
        config = resolve(merge(FULL, sections))
        (found,) = unanswered(config, count_images(config, Path("nowhere")))
        return found.remedy

    assert remedy(260) == "segmentation.test_size: 100"
    assert remedy(259) == "1 more mask"


def test_few_images_and_few_groups_are_one_question() -> None:
    def said(tested: int, groups: int, room: int) -> list[tuple[str, str]]:
        images = Images({}, {"pretrain": 640}, {}, {}, room, tested, None, groups=groups)
        return [(one.why, one.remedy) for one in unanswered(resolve(FULL), images)]

    both = "51 of 100 test images, 9 of 10 groups"
    assert said(51, 9, 164) == [(both, "45 more masks, of other groups")]
    assert said(95, 6, 164) == [(both.replace("51", "95").replace("9 of", "6 of"), "60 more masks, of other groups")]
    assert said(51, 10, 164) == [("51 test images, not 100", "45 more masks, of other groups")]
    assert said(51, 0, 164) == [("51 test images, not 100", "45 more masks")]
    assert said(120, 9, 200) == [("test images of 9 groups, not 10", "segmentation.test_size: 134")]
    assert said(100, 10, 164) == said(100, 0, 164) == []


@pytest.mark.parametrize(
    ("count", "held_out", "remedy"),
    [
        (76, {}, "grid.pretrain_sizes: add 76"),
        (76, {"held_out": 6}, "grid.pretrain_sizes: add 70"),
        (None, {}, "pretrain.source: add images"),
    ],
)
def test_what_pre_training_lacks_is_its_images_or_their_number(
    count: int | None, held_out: dict[str, int], remedy: str
) -> None:
    grid = {"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [72]}
    config = resolve(merge(FULL, {"grid": grid, "pretrain": held_out}))
    found = unanswered(config, Images({}, {"pretrain": count}, {}, {}, 76, 51, None, groups=9))
    assert [one.remedy for one in found if one.question == module.PRETRAINING] == [remedy]
    assert len(found) == 4 and all(len(line) <= 100 for line in unanswered_lines(found))


def test_of_arms_those_are_named_whose_trainings_are_too_short() -> None:
    grid = {"variants": ["study", "quick"]}
    quick = {"quick": {"finetune": {"epochs": 3}, "pretrain": {"epochs": 3}}}
    config = resolve(merge(FULL, {"grid": grid, "variants": quick}))
    found = unanswered(config, count_images(config, Path("nowhere")))
    assert [one.question for one in found] == [module.PRETRAINING, module.FINETUNING]
    assert all("(random, quick)" in one.why and "variants.quick." in one.remedy for one in found)


def test_published_weights_answer_whether_to_pre_train() -> None:
    grid = {"pretrain_sizes": [0], "starts": ["random", "tiny"]}
    starts = {"tiny": {"timm": "vit_tiny_patch16_224"}}
    assert questions(grid=grid, starts=starts, model={"image_size": 32}) == []


def test_the_paper_s_study_leaves_nothing_open_and_the_mini_is_told_in_a_line_each() -> None:
    said = {}
    for name in ("paper", "mini"):
        config = resolve(read_config(ROOT / "studies" / f"{name}.yaml"))
        said[name] = unanswered_lines(unanswered(config, count_images(config, Path("nowhere"))))
    assert said["paper"] == []
    assert len(said["mini"]) == 6 and all(len(line) <= 100 for line in said["mini"])


def test_check_and_plan_say_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    study = str(ROOT / "studies" / "mini.yaml")
    for command in (["check", study], ["plan", study, "--rate", "100"]):
        assert main(command) == 0
        said = capsys.readouterr().out
        assert module.PRETRAINING in said and "pretrain.epochs: 40" in said
