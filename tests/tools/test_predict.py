"""`viny predict`: masks for any images, mapped back onto them, from a cell in a study's folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from trained_cell import make_cell

pytest.importorskip("jsonschema", reason="the settings that a study wrote are completed by its schema")

from viny.cli import main
from viny.commands.common import cell_names
from viny.data.decoding import squared
from viny.data.masks import IGNORE
from viny.data.pack import Pack
from viny.evidence.evaluate import predict as predict_of_pack
from viny.evidence.figures.tint import seen
from viny.learning.machine import Machine
from viny.learning.weights import load_segmentation
from viny.runtime.errors import InputError
from viny.runtime.files import read_json, write_json
from viny.study.grid import Cell
from viny.study.saved import write_study
from viny.tools.trained import predict
from viny.tools.trained.cell import load_cell
from viny.tools.trained.predict import output_names, overlay, palette_image, shares

CELL = Cell(0, "none", 8, 0)
NAMES = ["object", "ground", "border"]


@pytest.fixture
def folder(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> Path:
    """A cell of three classes, in a study below results/."""
    return make_cell(tmp_path / "results" / "tiny", made_study("sound"), CELL, NAMES)


def run(folder: Path, *arguments: object) -> int:
    options = ["--cell", folder, "--device", "cpu", "--precision", "float32", "--threads", 1]
    return main(["predict", *map(str, options), *map(str, arguments)])


def picture(path: Path, height: int = 40, width: int = 60, seed: int = 0, **save: Any) -> Image.Image:
    """Write a made-up image of coarse random colours; returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(path, **save)
    return image


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_masks_are_those_of_the_evaluation(folder: Path, pack: Pack, tmp_path: Path) -> None:
    rows = np.arange(6)
    images = pack.rows("images", rows)
    for row, image in zip(rows, images, strict=True):
        path = tmp_path / "images" / f"{row}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    assert run(folder, tmp_path / "images", "--out", tmp_path / "out") == 0
    model, record = load_segmentation(folder / "model.json")
    machine = Machine.choose("cpu", "float32", 1)
    _, expected = predict_of_pack(model, pack, rows, record["spec"]["normalise"], None, machine)
    found = np.stack([pixels(tmp_path / "out" / f"{row}_mask.png") for row in rows])
    assert np.array_equal(found, expected.numpy())
    assert len(np.unique(found)) == 3  # a constant would match too easily


def test_images_of_any_form_get_masks_of_their_own_size(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    sizes = {"wide.jpg": (30, 90), "deep/er/tall.webp": (77, 25), "odd.bmp": (41, 41), "grey.tif": (33, 64)}
    for name, (height, width) in sizes.items():
        picture(images / name, height, width)
    grey = Image.open(images / "grey.tif").convert("L")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(images / "grey.tif")  # 16 bits
    clear = picture(images / "clear.png", 50, 50).convert("RGBA")
    clear.putalpha(90)
    clear.save(images / "clear.png")
    (images / "notes.txt").write_text("no image, and not taken for one")
    out = tmp_path / "out"
    assert run(folder, images, "--out", out) == 0
    for name, size in {**sizes, "clear.png": (50, 50)}.items():
        stem = out / Path(name).with_suffix("")
        mask = Image.open(f"{stem}_mask.png")
        assert mask.mode == "P"
        assert np.asarray(mask).shape == size
        shown = Image.open(f"{stem}_overlay.png")
        assert shown.width >= size[1] and shown.height > size[0]  # there is a legend below
    table, shares_of = pd.read_csv(out / "predictions.csv"), [f"share_{name}" for name in NAMES]
    assert list(table.columns) == ["image", "mask", "used_for", "height", "width", *shares_of]
    assert set(table["used_for"]) == {"unknown"}  # the study has no pack
    for row in table.to_dict("records"):
        mask = pixels(out / row["mask"])
        assert mask.shape == (row["height"], row["width"])
        for index, name in enumerate(NAMES):
            assert row[f"share_{name}"] == pytest.approx((mask == index).mean(), abs=1e-5)
    assert set(table["image"]) == {str(images / name) for name in (*sizes, "clear.png")}


def test_a_turned_photograph_is_predicted_upright(folder: Path, tmp_path: Path) -> None:
    upright = picture(tmp_path / "a.png", 40, 70)
    for tag, turn in ((6, Image.Transpose.ROTATE_90), (5, Image.Transpose.TRANSPOSE), (3, Image.Transpose.ROTATE_180)):
        exif = Image.Exif()
        exif[0x0112] = tag
        upright.transpose(turn).save(tmp_path / f"turned{tag}.png", exif=exif)
    out = tmp_path / "out"
    assert run(folder, *tmp_path.glob("*.png"), "--out", out) == 0
    for tag in (6, 5, 3):
        for kind in ("mask", "overlay"):
            assert np.array_equal(pixels(out / f"turned{tag}_{kind}.png"), pixels(out / f"a_{kind}.png"))


def test_16_bit_images_are_scaled_as_the_training_scaled_its_own(folder: Path, tmp_path: Path) -> None:
    """An image of 10 bits is predicted as the same image of 8 bits, and one beyond the training's range is refused."""
    cell = load_cell(folder)
    assert cell.white is None
    cell = replace(cell, manifest={**(cell.manifest or {}), "conventions": {"sixteen_bit": {"white": 1023}}})
    levels = np.asarray(picture(tmp_path / "a.png").convert("L")).astype(np.uint16)
    Image.fromarray(levels.astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(((levels.astype(int) * 1023 + 127) // 255).astype(np.uint16)).save(tmp_path / "b.tif")
    Image.fromarray(levels * 5).save(tmp_path / "c.tif")
    machine = Machine.choose("cpu", "float32", 1)
    frame, refused = predict.predict_files(cell, sorted(tmp_path.glob("[abc].*")), tmp_path / "out", machine, 1)
    assert [Path(image).name for image in frame["image"]] == ["a.png", "b.tif"]
    assert np.array_equal(pixels(tmp_path / "out" / "a_mask.png"), pixels(tmp_path / "out" / "b_mask.png"))
    assert [error.path.name for error in refused] == ["c.tif"]
    assert "where 1,023 is white in the images that were packed" in refused[0].reason


def test_bad_files_are_named_and_the_others_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    picture(images / "good.png")
    picture(images / "also good.jpg")
    (images / "empty.jpg").touch()
    (images / "text.png").write_text("not an image")
    whole = (images / "also good.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (2, 2)).save(images / "tiny.png")
    out = tmp_path / "out"
    assert run(folder, images, "--out", out, "--json") == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["images"] == 2
    assert {Path(bad["image"]).name for bad in found["refused"]} == {"empty.jpg", "text.png", "cut.jpg", "tiny.png"}
    for bad in found["refused"]:
        assert f"{bad['image']}: {bad['reason']}" in said.err
    names = {path.name for path in out.iterdir()}
    assert names == {
        *(f"{stem}_{kind}.png" for stem in ("good", "also good") for kind in ("mask", "overlay")),
        *("predictions.csv", "classes.json"),
    }
    assert sum(found["mean_shares"].values()) == pytest.approx(1)


def test_what_is_not_predicted_is_counted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    picture(images / "good.png")
    (images / "phone.HEIC").touch()
    (images / "gone.png").symlink_to("gone.png")  # to itself
    assert run(folder, images, "--out", tmp_path / "out", "--json") == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["images"], [Path(bad["image"]).name for bad in found["refused"]]) == (1, ["gone.png"])
    assert "1 .heic" in said.err


def test_outputs_are_replaced_only_when_told(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a_mask.png").write_text("mine")
    assert run(folder, tmp_path / "a.png", "--out", out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("a_mask.png", "mine")]
    assert run(folder, tmp_path / "a.png", "--out", out, "--overwrite") == 0
    assert pixels(out / "a_mask.png").shape == (40, 60)


def test_a_second_run_does_not_predict_the_first_ones_outputs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path / "images")
    for _ in range(2):
        assert run(folder, ".", "--overwrite") == 0
        assert len(pd.read_csv("predictions/predictions.csv")) == 1
    assert run(folder, ".", "--out", ".", "--overwrite") == 2  # masks among the images would be images next time


def test_images_of_one_stem_get_outputs_of_their_own(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "x/a.png", "x/a.jpg.bmp", "x/B.png", "x/b.webp", "x/in/a.png", "y/a.jpg", "y/c.png"):
        picture(tmp_path / name, 8, 8)
    out = tmp_path / "out"

    def named(*given: str) -> dict[str, str]:
        names = output_names([tmp_path / name for name in given], out)
        return {path.relative_to(tmp_path).as_posix(): name for path, name in names.items()}

    found = named("x")
    assert found["x/in/a.png"] == "in/a"
    assert found["x/a.png"] == "a.png"
    assert found["x/a.jpg.bmp"] == "a.jpg"
    assert (found["x/B.png"], found["x/b.webp"]) == ("B.png", "b.webp")  # one name where case is ignored
    assert len({name.casefold() for name in found.values()}) == len(found) == 6
    assert named("x", "y")["y/c.png"] == "y/c"  # two folders may have the same names
    assert named("x/a.jpg", "y/a.jpg") == {"x/a.jpg": "a.jpg", "y/a.jpg": "a.jpg_2"}
    assert named("y/c.png", "y/c.png", "y") == {"y/c.png": "c", "y/a.jpg": "a"}  # each image once


def test_nothing_to_predict_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none").mkdir()
    for given, words in (("none", "no image"), ("absent.jpg", "no such file")):
        assert run(folder, tmp_path / given, "--out", tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert str(tmp_path / given) in said
        assert words in said
    assert not (tmp_path / "out").exists()


def test_what_a_crop_leaves_out_is_not_predicted(
    tmp_path: Path, made_study: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = made_study("sound")
    config["segmentation"] |= {
        "source": "folder",
        "images": "images",
        "masks": "masks",
        "fit": "crop",
        "classes": {"0": "soil", "7": "road", "255": "soil"},
        "ignore": [9],
    }
    folder = make_cell(tmp_path / "results" / "own", config, CELL, ["soil", "road"])
    image = picture(tmp_path / "a.png", 30, 60)
    out = tmp_path / "out"
    assert run(folder, tmp_path / "a.png", "--out", out) == 0
    mask = pixels(out / "a_mask.png")
    assert (mask[:, :15] == IGNORE).all() and (mask[:, 45:] == IGNORE).all() and (mask[:, 15:45] < 2).all()
    shown = pixels(out / "a_overlay.png")[:30, :60]
    assert np.array_equal(shown[:, :15], np.asarray(image)[:, :15])
    assert not np.array_equal(shown[:, 15:45], np.asarray(image)[:, 15:45])
    row = pd.read_csv(out / "predictions.csv").iloc[0]
    assert row["share_not_predicted"] == pytest.approx(0.5)
    assert row["share_soil"] + row["share_road"] == pytest.approx(0.5)
    legend = read_json(out / "classes.json", "a legend")
    assert legend["not_predicted"] == IGNORE
    assert [(c["index"], c["name"], c["mask_values"]) for c in legend["classes"]] == [
        (0, "soil", [0, 255]),
        (1, "road", [7]),
    ]
    assert "refused" in capsys.readouterr().out


def test_padded_images_are_seen_as_in_training(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    masks = {}
    for fit in ("stretch", "pad"):
        config = made_study("sound")
        config["segmentation"]["fit"] = fit
        folder = make_cell(tmp_path / fit / "own", config, CELL, NAMES)
        picture(tmp_path / "a.png", 24, 48)
        assert run(folder, tmp_path / "a.png", "--out", tmp_path / fit / "out") == 0
        masks[fit] = pixels(tmp_path / fit / "out" / "a_mask.png")
    # Only the packs' own code names the colour of the bars.
    padded = squared(Image.open(tmp_path / "a.png"), 24, "pad", Image.Resampling.BILINEAR, (124, 116, 104))
    cell = load_cell(tmp_path / "pad" / "own" / "finetune" / CELL.name)
    seen = np.asarray(padded).transpose(2, 0, 1)[None].copy()
    scores = predict.class_scores(cell, seen, Machine.choose("cpu", "float32", 1))
    larger = torch.nn.functional.interpolate(scores[..., 6:18, :], (24, 48), mode="bilinear")
    assert (masks["pad"] == larger[0].argmax(0).numpy()).mean() > 0.99  # but for rounding
    assert not np.array_equal(masks["pad"], masks["stretch"])


def test_tiles_show_the_model_a_larger_image(folder: Path, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 96, 144)
    maps = {}
    for tiles in (1, 2, 3):
        assert run(folder, tmp_path / "a.png", "--out", tmp_path / str(tiles), "--tiles", tiles) == 0
        maps[tiles] = pixels(tmp_path / str(tiles) / "a_mask.png")
        assert maps[tiles].shape == (96, 144)
    assert run(folder, tmp_path / "a.png", "--out", tmp_path / "none") == 0
    assert np.array_equal(pixels(tmp_path / "none" / "a_mask.png"), maps[1])
    assert (maps[1] != maps[2]).mean() > 0.1 and (maps[2] != maps[3]).mean() > 0.1
    # In the first tile's corner, which no other tile overlaps, only it and the whole image have a say.
    cell = load_cell(folder)
    large = squared(Image.open(tmp_path / "a.png"), 48, "stretch", Image.Resampling.BILINEAR, 0)
    corner = np.asarray(large)[:24, :24].transpose(2, 0, 1)[None].copy()
    scores = predict.class_scores(cell, corner, Machine.choose("cpu", "float32", 1))
    small = np.asarray(large).reshape(24, 2, 24, 2, 3).mean((1, 3)).round().astype(np.uint8).transpose(2, 0, 1)
    whole = predict.class_scores(cell, small[None], Machine.choose("cpu", "float32", 1))
    both = scores + torch.nn.functional.interpolate(whole, (48, 48), mode="bilinear")[..., :24, :24]
    expected = torch.nn.functional.interpolate(both, (48, 72), mode="bilinear")[0].argmax(0).numpy()
    assert (maps[2][:22, :33] == expected[:22, :33]).mean() > 0.99  # but for rounding


def test_many_classes_keep_their_indices(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    names = [f"kind {i}" for i in range(255)]
    folder = make_cell(tmp_path / "results" / "many", made_study("sound"), CELL, names)
    picture(tmp_path / "a.png")
    assert run(folder, tmp_path / "a.png", "--out", tmp_path / "out") == 0
    legend = read_json(tmp_path / "out" / "classes.json", "a legend")["classes"]
    mask = Image.open(tmp_path / "out" / "a_mask.png")
    present = np.unique(np.asarray(mask))
    assert len(present) > 8 and present.max() < 255
    coloured = np.asarray(mask.convert("RGB"))
    for index in present.tolist():
        colour = tuple(int(legend[index]["colour"][i : i + 2], 16) for i in (1, 3, 5))
        assert set(map(tuple, coloured[np.asarray(mask) == index].tolist())) == {colour}
    assert len({entry["colour"] for entry in legend}) > 200  # hues a golden angle apart seldom meet


def test_an_overlay_is_half_image_and_half_colour() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 10:20], mask[:, 20:] = 2, IGNORE
    colours = ["#000000", "#00FF00", "#FF0000"]
    found = np.asarray(overlay(image, mask, ["a", "b", "c"], colours)).astype(int)
    pixel = np.asarray(image).astype(int)
    assert abs(found[:20, :10] - pixel[:, :10] / 2).max() <= 1
    assert abs(found[:20, 11:20] - (pixel[:, 11:20] + [255, 0, 0]) / 2).max() <= 1
    assert not found[:20, [10, 20]].any()  # a line around each area
    assert np.array_equal(found[:20, 21:30], pixel[:, 21:])
    left = np.asarray(overlay(image, mask, ["background", "b", "c"], colours))
    assert np.array_equal(left[:20, :10], pixel[:, :10])
    legend = set(map(tuple, found[20:].reshape(-1, 3).tolist()))
    assert (255, 0, 0) in legend  # a class that is there
    assert (0, 255, 0) not in legend  # and one that is not


def test_the_legend_of_an_overlay_names_only_what_is_seen() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[20, 20:30] = 1  # under its own outline
    mask[50:52, 50:52] = 2
    mask[90:100, 90:100] = 3
    assert seen(mask, 5).tolist() == [True, False, False, True, False]
    colours = ["#000000", "#00FF00", "#FF0000", "#0000FF", "#FFFF00"]
    found = overlay(Image.new("RGB", (300, 200)), mask, list("abcde"), colours)
    legend = set(map(tuple, np.asarray(found)[200:].reshape(-1, 3).tolist()))
    assert (0, 0, 255) in legend
    assert not {(0, 255, 0), (255, 0, 0), (255, 255, 0)} & legend


def test_shares_of_a_mask_leave_out_what_has_no_class() -> None:
    assert shares(np.array([[0, 0], [1, IGNORE]], np.uint8), 3).tolist() == [0.5, 0.25, 0]
    assert np.asarray(palette_image(np.array([[3]], np.uint8), ["#010203"] * 4).convert("RGB")).tolist() == [
        [[1, 2, 3]]
    ]


def test_a_cell_is_found_by_name_and_a_wrong_one_is_hinted_at(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder.parents[1]
    assert load_cell(CELL.name, root).name == load_cell(folder).name == CELL.name
    picture(tmp_path / "a.png")
    wrong = root / "finetune" / CELL.name.replace("fine-8", "fine-9")
    for arguments in (["--cell", wrong.name, "--root", root], ["--cell", wrong]):
        assert main(["predict", *map(str, arguments), str(tmp_path / "a.png")]) == 2
        said = capsys.readouterr().err
        assert str(wrong) in said
        assert f"Did you mean {CELL.name}?" in said


def test_names_of_cells_complete(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder.parents[1]
    assert cell_names("", argparse.Namespace(root=root)) == [CELL.name]
    monkeypatch.chdir(tmp_path)
    assert cell_names("res", argparse.Namespace(root=None)) == [f"results/tiny/finetune/{CELL.name}"]


def test_a_cell_that_does_not_fit_its_study_is_refused(
    folder: Path, made_study: Callable[[str], dict[str, Any]]
) -> None:
    root = folder.parents[1]
    load_cell(folder)
    manifest = root / "packs" / "segmentation" / "manifest.json"
    write_json(manifest, {"sha256": "5" * 64})
    with pytest.raises(InputError, match="other images"):
        load_cell(folder)
    manifest.unlink()
    config = made_study("sound")
    config["model"]["depth"] = 3
    write_study(root, config)
    with pytest.raises(InputError, match="other settings"):
        load_cell(folder)
    write_study(root, made_study("sound"))
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="content differs"):
        load_cell(folder)
    content[-1] ^= 1
    weights.write_bytes(content)
    record = read_json(folder / "model.json", "a record")
    write_json(folder / "model.json", {**record, "stage": "pretrain"})
    with pytest.raises(InputError, match="expected the record of a fine-tuned model"):
        load_cell(folder)
    write_json(folder / "model.json", record)
    (root / "study.json").unlink()
    with pytest.raises(InputError, match=r"study\.json"):
        load_cell(folder)


def test_the_model_sees_images_normalised_only_where_it_was_trained_so(
    tmp_path: Path, made_study: Callable[[str], dict[str, Any]]
) -> None:
    picture(tmp_path / "a.png")
    masks = {}
    for protocol in ("sound", "paper"):
        config = made_study("sound")
        config["switches"]["normalise_finetune"] = protocol == "sound"
        folder = make_cell(tmp_path / protocol / "s", config, CELL, NAMES)  # the weights are the same
        assert run(folder, tmp_path / "a.png", "--out", tmp_path / protocol / "out") == 0
        masks[protocol] = pixels(tmp_path / protocol / "out" / "a_mask.png")
    assert not np.array_equal(masks["sound"], masks["paper"])


def test_a_gpu_that_is_not_there_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    picture(tmp_path / "a.png")
    assert main(["predict", "--cell", str(folder), "--device", "cuda", str(tmp_path / "a.png")]) == 2
