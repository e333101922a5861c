"""Images that belong together, such as frames of one film, are all for training or all for testing, everywhere."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_study import finished_study
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from viny.cli import main
from viny.data.pack import TEST, TRAIN, open_pack
from viny.data.packing import build_pack
from viny.data.parts import ALONE, Groups, group_pattern
from viny.data.splits import finetune_split, pretrain_split, read_split, task_split, write_split
from viny.evidence.advice.trial import images_at_hand
from viny.learning.tuning import divided
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study import specs
from viny.study.config import merge, resolve
from viny.study.grid import cells
from viny.study.inventory import count_images, folder_report
from viny.study.reading import read_config
from viny.study.saved import saved_study
from viny.study.unanswered import unanswered
from viny.tools.newstudy.dialogue import init
from viny.tools.newstudy.look import Request, inspect
from viny.tools.newstudy.sequences import NUMBERED, TILED, find_sequences
from viny.tools.newstudy.study_file import study_text

FRAMES = r"(.*)_\d+$"


def frame(film: int, at: int, alike: bool = True, side: int = 24) -> np.ndarray:
    """A picture uint8 [side, side, 3]; of one film's, each is a little brighter and noisier than the one before."""
    base = np.random.default_rng(film if alike else 1000 * film + at).integers(0, 200, (4, 4, 3))
    noise = np.random.default_rng(1000 * film + at).integers(0, 12, (side, side, 3))
    return (base.repeat(side // 4, 0).repeat(side // 4, 1) + noise + 2 * at).astype(np.uint8)


def films(root: Path, count: int, frames: int, name: str = "film{film}_{at:03d}", alike: bool = True) -> None:
    for film in range(count):
        for at in range(frames):
            mask = np.zeros((24, 24), np.uint8)
            mask[4:12, 4 : 8 + at % 8] = 1
            for kind, picture in (("images", frame(film, at, alike)), ("masks", mask)):
                path = root / kind / f"{name.format(film=film, at=at)}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture).save(path)


def study_of(root: Path, **section: Any) -> dict[str, Any]:
    own = {"source": "folder", "images": str(root / "images"), "masks": str(root / "masks"), "classes": 2}
    grid = {"pretrain_sizes": [0, 20], "intermediates": ["none", "spatial"], "finetune_sizes": [5, 10], "seeds": [0, 1]}
    return resolve(
        {
            "study": "films",
            "grid": grid,
            "model": {"image_size": 16, "patch_size": 4, "dim": 16, "depth": 1, "heads": 1, "head_dim": 8},
            "pretrain": {"source": "segmentation"},
            "intermediate": {"spatial": {"source": "segmentation", "target": "patch", "mixup": 0.0}},
            "segmentation": own | {"test_size": 12, "group": FRAMES} | section,
            "pack_store": str(root / "packs"),
        }
    )


def packed(config: dict[str, Any], folder: Path, name: str = "segmentation") -> Any:
    folder.mkdir(parents=True)
    build_pack(specs.pack_spec(config, name), folder, threads=1)
    return open_pack(folder / "manifest.json")


def split_of(config: dict[str, Any], pack: Any, make: Any, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    return make(pack, **{key: value for key, value in spec.items() if key != "kind"})


@pytest.mark.parametrize(
    ("pattern", "name", "group"),
    [
        (FRAMES, "film_0001.jpg", "film"),
        (FRAMES, "a/film_0001.jpg", "a/film"),
        (FRAMES, "still.jpg", f"{ALONE}still.jpg"),
        (r"(patient\d+)", "x/patient3_slice12.png", "patient3"),
        (r"(?:a|(b))", "a.png", f"{ALONE}a.png"),
        ("folder", "scene/frame1.png", "scene"),
        ("folder", "frame1.png", ""),
        (NUMBERED, "day.1/x.tif.png", f"{ALONE}day.1/x.tif.png"),
    ],
)
def test_a_group_is_what_a_pattern_finds_in_a_name(pattern: str, name: str, group: str) -> None:
    assert Groups.read([name], pattern).of == [group]


@pytest.mark.parametrize("text", ["film", "(a)(b)", "(", "(?P<a>x)(y)"])
def test_a_pattern_has_one_group(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"segmentation\.group.*expected a regular expression with one group"):
        group_pattern(text)
    with pytest.raises(InputError, match=r"segmentation\.group"):
        study_of(tmp_path, group=text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=20), st.integers(1, 40), st.integers(0, 5))
def test_groups_are_whole_and_enough_of_them_are_for_the_test(sizes: list[int], wanted: int, seed: int) -> None:
    names = [f"g{group}_{at}.png" for group, size in enumerate(sizes) for at in range(size)]
    groups = Groups.read(names, FRAMES)
    try:
        parts = groups.parts(wanted, seed)
    except InputError:
        assert len(sizes) < 3 or sum(sizes) - max(sizes) < wanted
        return
    tested = groups.within(parts, TEST)
    assert not tested & groups.within(parts, TRAIN) and len(tested) >= 2 and len(tested) < len(sizes)
    count = parts.count(TEST)
    assert count >= wanted
    # No group less would do, unless two are needed.
    of = Counter(groups.of)
    assert len(tested) == 2 or min(count - of[group] for group in tested) < wanted
    again = Groups.read(names[::-1], FRAMES)
    assert again.within(again.parts(wanted, seed), TEST) == tested  # whatever the order of the images


def test_no_group_is_in_both_parts_of_any_split_and_all_counts_agree(tmp_path: Path) -> None:
    films(tmp_path, 9, 5)
    config = study_of(tmp_path)
    images = count_images(config, tmp_path / "none")
    pack = packed(config, tmp_path / "pack")
    groups = np.array(Groups.read(pack.names, FRAMES).of)
    assert (images.tested, images.room) == (15, 30)
    tested = set()
    for size in (5, 10):
        for seed in (0, 1):
            split = split_of(config, pack, finetune_split, specs.finetune_split_spec(config, size, seed))
            assert (len(split["train"]), len(split["test"])) == (size, images.tested)
            assert not set(groups[split["train"]]) & set(groups[split["test"]])
            tested.add(tuple(split["test"].tolist()))
    assert len(tested) == 1
    of_task = split_of(config, pack, task_split, specs.task_split_spec(config, "spatial"))
    assert len(of_task["train"]) == images.trained["spatial"] == 30
    assert not set(groups[of_task["train"]]) & set(groups[of_task["test"]])
    # The images that are pre-trained on come from the same files, packed for crops.
    other = packed(config, tmp_path / "other", "pretrain")
    unlabelled = split_of(config, other, pretrain_split, specs.pretrain_split_spec(config, 20, 0))
    assert images.unlabelled["pretrain"] == 30
    assert not {other.name(row).split("_")[0] for row in unlabelled["train"]} & set(groups[list(tested.pop())])
    assert "pretrain: the labelled images besides the test images, without their masks" in folder_report(config)
    (said,) = (line for line in folder_report(config) if "groups of" in line)
    assert "9 groups of 5 images; 3 of them are for the test, with 15 images" in said


def test_a_study_without_groups_makes_what_it_made_before(tmp_path: Path) -> None:
    films(tmp_path, 3, 5)
    config = study_of(tmp_path)
    del config["segmentation"]["group"]
    assert "group" not in specs.pack_spec(config, "segmentation")
    assert specs.finetune_split_spec(config, 5, 0)["test_size"] == 12
    assert not specs.split_is_given(config)
    assert "group" not in specs.evaluate_spec(config, cells(config)[0])


def test_a_given_split_that_parts_a_group_is_said(tmp_path: Path) -> None:
    films(tmp_path, 4, 5)
    lines = [
        f"film{film}_{at:03d},{'test' if at == 0 or film == 3 else 'train'}\n" for film in range(4) for at in range(5)
    ]
    (tmp_path / "split.csv").write_text("".join(lines))
    config = study_of(tmp_path, split=str(tmp_path / "split.csv"), test_size=0)
    said = "\n".join(folder_report(config))
    assert "3 groups are in both parts of segmentation.split: film0, film1, film2" in said
    assert count_images(config, tmp_path / "none").tested == 8


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    films(tmp_path, 2, 10)
    with pytest.raises(InputError, match=r"segmentation\.group: 20 images in 2 groups do not give 12 test images"):
        count_images(study_of(tmp_path), tmp_path / "none")


@pytest.mark.parametrize("split", ["", "split.csv"])
def test_a_pattern_that_matches_no_image_is_refused(tmp_path: Path, split: str) -> None:
    films(tmp_path, 3, 4)
    lines = [f"film{i}_{at:03d}.png,{'test' if i else 'train'}" for i in range(3) for at in range(4)]
    (tmp_path / "split.csv").write_text("\n".join(["image,part", *lines]))
    given_split = {"split": str(tmp_path / split)} if split else {}
    config = study_of(tmp_path, group=r"(scan\d)_", test_size=4, **given_split)
    with pytest.raises(InputError, match=r"segmentation\.group: .* none of the 12 images.*such as 'film0_000'"):
        folder_report(config, count_images(config, tmp_path / "results").listings)


def test_groups_do_not_go_with_a_moving_test_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"leave segmentation\.group out"):
        resolve(
            {
                "study": "x",
                "switches": {"test_set": "moving"},
                "segmentation": study_of(tmp_path)["segmentation"],
            }
        )


def test_rates_are_tuned_on_other_groups_than_trained_on() -> None:
    rows = np.arange(100, 140)
    groups = np.arange(40) // 8
    for seed in range(4):
        train, kept = divided(rows, 0.25, seed, groups)
        assert sorted([*train, *kept]) == rows.tolist() and len(kept) >= 10
        assert not set(groups[train - 100]) & set(groups[kept - 100])
    one = divided(rows, 0.25, 0, np.zeros(40, int))
    assert [part.tolist() for part in one] == [part.tolist() for part in divided(rows, 0.25, 0)]
    train, kept = divided(rows[:2], 0.5, 0, np.arange(2))
    assert len(train) == len(kept) == 1


def test_a_whole_study_keeps_groups_apart_and_verify_sees_where_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    films(tmp_path, 8, 4)
    monkeypatch.chdir(tmp_path)
    own = {"source": "folder", "images": "images", "masks": "masks", "classes": 2, "group": FRAMES, "test_size": 8}
    grid = {"pretrain_sizes": [12], "intermediates": ["none"], "finetune_sizes": [12]}
    stages = {"pretrain": {"source": "segmentation", "held_out": 6}, "tune": {"lr": [0.002, 0.004], "share": 0.4}}
    root = finished_study(tmp_path, {"grid": grid, "segmentation": own, **stages})
    assert main(["verify", str(root)]) == 0
    capsys.readouterr()
    config = saved_study(root)
    pack = open_pack(root / "packs" / "segmentation" / "manifest.json")
    groups = Groups.read(pack.names, FRAMES).indices
    # 8 films of 4: beside 12 test images 20 are left, enough for pre-training; beside 13, which take 4 films, 16 are.
    tried = [images_at_hand(config, root).refusal(config, {"segmentation": {"test_size": n}}) for n in (12, 13, 99)]
    assert [bool(refused) for refused in tried] == [False, True, True]
    cell = cells(config)[0]
    with np.load(root / "metrics" / f"{cell.name}.npz") as f:
        assert np.array_equal(f["groups"], groups[f["indices"]]) and len(np.unique(f["groups"])) == 2
        tested = f"{len(f['indices'])} test images of 2 groups"
    # The report, the advice, the tables and what a study cannot answer name what was drawn.
    assert main(["advise", str(root), "--long"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"1 seed, {tested} " in said or f"seeds, {tested} " in said
    assert f"Only {tested}" in said and "over seeds and groups of test images" in said
    for name in ("report.html", "tables/decisions.md", "tables/fits.md"):
        assert tested in (root / name).read_text()
    assert any("test images, 2 of 10 groups" in one.why for one in unanswered(config, count_images(config, root)))
    # A split by another hand, with seals and hashes of its own, that parts a film.
    record = root / "splits" / "finetune" / "size-12_seed-0.json"
    split = read_split(record, record.with_suffix(".npz"), pack)
    split["train"][0], split["test"][0] = split["test"][0], split["train"][0]
    old = read_json(record, "a record")
    write_split(record, record.with_suffix(".npz"), split, {key: old[key] for key in ("spec", "pack_sha256")})
    assert main(["verify", str(root)]) != 0
    assert "groups of segmentation.group in both lists: film" in capsys.readouterr().out


# Found by viny init


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("film{film}_{at:03d}", NUMBERED),
        ("patient{film}_slice{at}", NUMBERED),
        ("scene{film}/{at:06d}", NUMBERED),
        ("scene{film}/x{at}y", "folder"),
    ],
)
def test_frames_are_found_and_split_together(tmp_path: Path, name: str, pattern: str) -> None:
    films(tmp_path, 8, 6, name)
    found = inspect(Request("mine", tmp_path / "images", tmp_path / "masks"))
    assert found.wanted.group == pattern and found.grouped % 6 == 0
    assert "neighbours look alike" in found.about_groups and "--group none" in found.about_groups
    assert inspect(found.wanted).notes == found.notes  # as with another model, or after questions
    (tmp_path / "mine.yaml").write_text(study_text(found))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 0
    assert f"group: {pattern}" in study_text(found) or f"group: '{pattern}'" in study_text(found)
    without = inspect(Request("mine", tmp_path / "images", tmp_path / "masks", group=""))
    assert not without.wanted.group and "group:" not in study_text(without)


@pytest.mark.parametrize(
    ("name", "alike"), [("class{film}_{at}", False), ("IMG_{film}{at:03d}", True), ("{film}{at:03d}", True)]
)
def test_numbered_classes_and_a_cameras_counter_are_no_sequences(tmp_path: Path, name: str, alike: bool) -> None:
    films(tmp_path, 8, 6, name, alike)
    found = inspect(Request("mine", tmp_path / "images", tmp_path / "masks"))
    assert found.wanted.group == ""
    assert ("hardly more alike" in found.about_groups) != alike


def test_tiles_of_a_scan_belong_to_the_scan(tmp_path: Path) -> None:
    for scan in range(4):
        for at in range(12):
            path = tmp_path / f"scan{'abcd'[scan]}_x{at // 4}_y{at % 4}.png"
            Image.fromarray(frame(scan, at, alike=False)).save(path)
    paths = sorted(tmp_path.iterdir())
    found = find_sequences([path.name for path in paths], paths)
    assert found.pattern == TILED and found.decided
    assert set(Groups.read([path.name for path in paths], TILED).of) == {f"scan{letter}_x" for letter in "abcd"}


def test_groups_are_asked_about_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    films(tmp_path, 8, 6)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    own = "(film[0-9])"
    for answer, group in (
        ("", NUMBERED),
        ("yes", NUMBERED),
        ("No", None),
        ("none", None),
        ("folder", None),
        (own, own),
    ):
        asked: list[str] = []

        def reply(question: str, asked: list[str] = asked, answer: str = answer) -> str:
            asked.append(question)
            known = "images" if "images that have" in question else "masks" if "their masks" in question else ""
            if "Keep each group together" not in question:
                return known
            return answer if sum("Keep each group together" in one for one in asked) == 1 else "no"

        init({"name": "mine"}, force=True, minutes=20, rate=1000, reply=reply)
        text = next(question for question in asked if "Keep each group together" in question)
        assert "8 groups of 6 (film0, film1, " in text and text.endswith("[yes]: ") and NUMBERED not in text
        assert "neighbours" not in capsys.readouterr().out  # the question has said it
        assert read_config(Path("studies/mine.yaml"))["segmentation"].get("group") == group


# Not of groups, but of the same folders


def test_only_images_that_become_squares_in_another_way_are_said_to(tmp_path: Path) -> None:
    films(tmp_path, 3, 4)
    for at in range(4):
        path = tmp_path / "kinds" / f"kind{at % 2}" / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(0, at, True)).save(path)
    config = study_of(tmp_path, fit="pad", group=FRAMES, test_size=4)
    config = merge(config, {"pretrain": {"source": "folder", "path": str(tmp_path / "images")}})
    config = merge(config, {"intermediate": {"spatial": {"source": "folder", "path": str(tmp_path / "kinds")}}})
    config["intermediate"]["spatial"] |= {"target": "image"}
    (said,) = (line for line in folder_report(resolve(config)) if "other shapes" in line)
    assert said.startswith("segmentation.fit: pad, but spatial stretch:")  # crops for pre-training keep their shapes


@pytest.mark.parametrize(("films", "helps"), [(1, False), (2, False), (3, True)])
def test_fewer_test_images_are_advised_only_where_they_help(films: int, helps: bool) -> None:
    names = [f"{film}_{frame}.png" for film in range(films) for frame in range(5)]
    with pytest.raises(InputError, match=r"groups? do not give 15 test images in 2 or more groups") as error:
        Groups.read(names, "(.*)_").parts(15, 0)
    assert ("take a smaller segmentation.test_size, a pattern" in str(error.value)) == helps
    assert "a pattern with more groups, or none" in str(error.value)
