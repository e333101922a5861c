"""Classes that training or test masks lack are said before anything is packed, and what is said is what packs hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.data.splits import finetune_split
from viny.evidence.metrics import classes_lacking
from viny.study import absent
from viny.study.absent import absent_report
from viny.study.config import merge, resolve
from viny.study.reading import read_config
from viny.study.specs import finetune_split_spec, pack_spec

TINY = Path(__file__).parents[1] / "tiny.yaml"
CLASSES = {"0": "ground", "1": "cat", "2": "dog"}
SIDE = 24


def made(folder: Path, count: int, shown: Any, side: int = SIDE) -> dict[str, Any]:
    """Images with masks in which `shown(at)` says which classes each has besides ground; the section of a study."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    for at in range(count):
        mask = np.zeros((side, side), np.uint8)
        for value in shown(at):
            mask[8 * value - 6 : 8 * value, 2:20] = value
        Image.new("RGB", (side, side), (at, 0, 0)).save(folder / "images" / f"{at:03d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{at:03d}.png")
    return {"source": "folder", "images": str(folder / "images"), "masks": str(folder / "masks"), "classes": CLASSES}


def study(section: dict[str, Any], **more: Any) -> dict[str, Any]:
    return resolve(merge(read_config(TINY), merge({"segmentation": {"test_size": 12} | section}, more)))


@pytest.mark.parametrize(
    "more",
    [
        {"switches": {"subsets": "shared"}},
        {"split_seed": 3},
        {"switches": {"subsets": "per_seed"}, "grid": {"seeds": [0, 1]}},
        {"switches": {"test_set": "moving", "subsets": "shared"}},
    ],
    ids=["shared", "another seed", "per seed", "moving"],
)
@pytest.mark.parametrize("only", range(3, 60, 8))
def test_what_is_said_is_what_the_splits_of_the_pack_lack(tmp_path: Path, more: dict[str, Any], only: int) -> None:
    config = study(made(tmp_path, 60, lambda at: [1, 2] if at == only else [1]), **more)
    (tmp_path / "pack").mkdir()
    build_pack(pack_spec(config, "segmentation"), tmp_path / "pack", threads=1)
    pack, grid = open_pack(tmp_path / "pack" / "manifest.json"), config["grid"]
    specs = [finetune_split_spec(config, size, seed) for size in grid["finetune_sizes"] for seed in grid["seeds"]]
    splits = [finetune_split(pack, **{k: v for k, v in spec.items() if k != "kind"}) for spec in specs]
    lines = absent_report(config)
    for part, key in (("training", "train"), ("test", "test")):
        rows = np.unique(np.concatenate([split[key] for split in splits]))
        expected = classes_lacking(pack, rows)
        assert expected in (["dog"], [])
        said = [line for line in lines if f"no pixel of dog in the {len(rows)} {part} masks" in line]
        assert len(said) == len(expected)
    assert len(lines) in (1, 2)


def test_masks_are_read_until_every_class_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = made(tmp_path, 300, lambda at: [1, 2])
    read: list[Path] = []
    real = absent.decode_mask
    monkeypatch.setattr(absent, "decode_mask", lambda path, *rest: (read.append(path), real(path, *rest))[1])
    assert absent_report(study(section)) == []
    assert len(read) <= 2 * absent.AT_ONCE
    read.clear()
    config = study({**section, "classes": CLASSES | {"9": "yak"}, "test_size": 200}, grid={"finetune_sizes": [100]})
    assert [line.partition(" in ")[0] for line in absent_report(config)] == ["segmentation: no pixel of yak"] * 2
    assert len(read) == 300


def test_a_class_that_packing_loses_is_absent(tmp_path: Path) -> None:
    section = made(tmp_path, 30, lambda at: [1], side=SIDE * 5)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[0, 0] = 2  # between the pixels that nearest neighbour takes
        Image.fromarray(mask).save(path)
    lines = absent_report(study(section))
    assert len(lines) == 2 and all("no pixel of dog" in line for line in lines)


def test_ignored_pixels_and_unreadable_masks_show_no_class(tmp_path: Path) -> None:
    section = made(tmp_path, 30, lambda at: [1, 2] if at == 7 else [1])
    (tmp_path / "masks" / "007.png").write_bytes(b"none")
    assert len(absent_report(study(section))) == 2
    section = made(tmp_path, 30, lambda at: [1, 2])
    lines = absent_report(study({**section, "classes": {"0": "ground", "1": "cat", "5": "dog"}, "ignore": [2]}))
    assert len(lines) == 2


def test_a_class_of_a_task_without_images_in_a_part_is_said(tmp_path: Path) -> None:
    lines = []
    for at in range(12):
        (tmp_path / "kinds" / f"k{at % 3}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "kinds" / f"k{at % 3}" / f"{at}.png")
        lines.append(f"{at}.png,{'train' if at % 3 == 1 or (at < 6 and at % 3) else 'test'}\n")
    (tmp_path / "split.csv").write_text("".join(lines))
    task = {"source": "folder", "path": str(tmp_path / "kinds"), "split": str(tmp_path / "split.csv")}
    grid = {"intermediates": ["none", "kinds"]}
    assert absent_report(resolve(merge(read_config(TINY), {"intermediate": {"kinds": task}, "grid": grid}))) == [
        "kinds: no image of k0 in the training part; move some there",
        "kinds: no image of k1 in the test part; move some there",
    ]


def test_masks_of_the_project_are_not_read() -> None:
    assert absent_report(resolve(read_config(TINY))) == []


def test_check_and_init_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    made(tmp_path, 60, lambda at: [1, 2] if at >= 30 else [1])
    (tmp_path / "split.csv").write_text("".join(f"{at:03d}.png,{'test' if at < 20 else 'train'}\n" for at in range(60)))
    command = ["init", "mine", "--images", "images", "--masks", "masks", "--classes", "0=ground,1=cat,2=dog"]
    assert main([*command, "--split", "split.csv"]) == 0
    line = "segmentation: no pixel of dog in the 20 test masks as packed"
    assert f"note     {line}" in capsys.readouterr().out
    assert main(["check", "studies/mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert line in said and "training masks" not in said
    (tmp_path / "split.csv").write_text("".join(f"{at:03d}.png,{'test' if at < 40 else 'train'}\n" for at in range(60)))
    assert main([*command, "--split", "split.csv", "--force"]) == 0
    assert "no pixel of" not in capsys.readouterr().out
