"""Masks for any images, from a fine-tuned cell."""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from viny.data.augment import labelled_images
from viny.data.decoding import BadFileError, Picture, decode, upright
from viny.data.folders import check_name, check_some, few, list_below, name_below
from viny.data.masks import BACKGROUNDS, IGNORE
from viny.data.pack import open_pack
from viny.data.splits import read_split
from viny.evidence.figures import kit
from viny.evidence.figures.tint import seen, tinted
from viny.evidence.own_size import class_map, tiled
from viny.learning.machine import Machine
from viny.learning.settings import batch_of_masks
from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, write_json
from viny.runtime.text import cell_text
from viny.study.layout import pack_manifest, pack_of_split, split_record
from viny.tools.trained.cell import TrainedCell

NOT_PREDICTED = "not predicted"
TRAINED_ON = "training"
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # has more letters than Pillow's own


@torch.inference_mode()
def class_scores(cell: TrainedCell, images: np.ndarray, machine: Machine) -> Tensor:
    """Class scores of square images as packs hold them.

    Args:
        cell: whose model it is.
        images: uint8 [B, 3, S, S].
        machine: device and precision.

    Returns:
        float [B, C, S, S], on the machine's device.
    """
    model = cell.model.to(machine.device)
    model.encoder.set_fused_attention(machine.fused_attention)
    x = labelled_images(torch.from_numpy(images).to(machine.device), None, cell.normalised)
    with machine.autocast():
        return model(x)


def palette_image(mask: np.ndarray, colours: Sequence[str]) -> Image.Image:
    """A mask, uint8 [H, W], as a palette picture, whose pixels are still class indices; IGNORE is grey."""
    palette = [ImageColor.getrgb(colour) for colour in (*colours, *[kit.NO_CLASS] * (256 - len(colours)))]
    image = Image.fromarray(mask)
    image.putpalette([value for colour in palette for value in colour])
    return image


def overlay(image: Image.Image, mask: np.ndarray, classes: Sequence[str], colours: Sequence[str]) -> Image.Image:
    """An image under translucent class colours, all but the background's, with a legend of those that are seen.

    Args:
        image: RGB.
        mask: uint8 [H, W], class indices; the image shows through unchanged where it is IGNORE.
        classes: names.
        colours: '#rrggbb' of each.
    """
    clear = [at for at, name in enumerate(classes) if name in BACKGROUNDS]
    out = Image.fromarray(tinted(np.asarray(image), mask, colours, clear, striped=False))
    found = shares(mask, len(classes))
    entries = [
        (f"{classes[at]}: {_percent(found[at])}", "white" if at in clear else colours[at])
        for at in kit.shown_classes(np.where(seen(mask, len(classes)), found, 0))
    ]
    if IGNORE in mask:
        entries.append((NOT_PREDICTED, "white"))
    font = ImageFont.truetype(FONT, min(48, max(11, max(image.size) // 40)))
    line = math.ceil(1.5 * font.size)
    widths = [line + math.ceil(font.getlength(text)) for text, _ in entries]
    canvas_width = max(image.width, *widths)
    places, x, y = [], 0, image.height
    for width in widths:
        if x + width > canvas_width:
            x, y = 0, y + line
        places.append((x, y))
        x += width + font.size
    canvas = Image.new("RGB", (canvas_width, y + line), "white")
    canvas.paste(out)
    draw = ImageDraw.Draw(canvas)
    for (text, colour), (left, top) in zip(entries, places, strict=True):
        middle, half = top + line // 2, font.size // 2
        draw.rectangle((left, middle - half, left + 2 * half, middle + half), fill=colour, outline="black")
        draw.text((left + line, middle), text, fill="black", font=font, anchor="lm")
    return canvas


def shares(mask: np.ndarray, classes: int) -> np.ndarray:
    """Each class's share of a mask's pixels: float [classes]; pixels of IGNORE make the sum less than 1."""
    return np.bincount(mask.ravel(), minlength=256)[:classes] / mask.size


def _percent(share: float) -> str:
    return "< 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def output_names(given: Iterable[Path], out: Path) -> dict[Path, str]:
    """The images to predict, and what the names of their outputs begin with, a path below `out`.

    This is the image's path below its folder without its ending, or with it if two would otherwise be the same.

    Args:
        given: images, and folders of images, which are searched at any depth, except in `out`.
        out: folder of the outputs.

    Raises:
        InputError: a file or folder is missing, or a folder holds no image, or only those in `out`.
    """
    given = list(given)
    below: dict[Path, tuple[Path, Path]] = {}  # by the target of links, so that each is taken once
    several = sum(map(os.path.isdir, given)) > 1
    for path in given:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file or folder; expected images and folders of images")
        if not os.path.isdir(path):
            check_name(path.name, path.parent)
            below.setdefault(path.resolve(), (path, Path(path.name)))
            continue
        folder, outputs = path.resolve(), out.resolve()
        found = list_below(path)
        check_some(found)
        for image in sorted(found.images + found.missing):  # the latter are refused one by one, as they cannot be read
            name = Path(name_below(image, path))
            if not (outputs.is_relative_to(folder) and (folder / name).is_relative_to(outputs)):
                below.setdefault(Path(os.path.realpath(image)), (image, folder.name / name if several else name))
    images = dict(below.values())
    if not images:
        raise InputError(f"{few(given)}: no images but those in {out}, the folder of the outputs; choose another --out")
    stems = {image: name.with_suffix("").as_posix() for image, name in images.items()}
    alike = Counter(stem.casefold() for stem in stems.values())  # some file systems ignore case
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for image in sorted(images, key=lambda image: alike[stems[image].casefold()]):  # first those that may keep theirs
        base = stems[image] if alike[stems[image].casefold()] == 1 else images[image].as_posix()
        tries = (base if count == 1 else f"{base}_{count}" for count in itertools.count(1))
        names[image] = next(name for name in tries if name.casefold() not in taken)
        taken.add(names[image].casefold())
    return {image: names[image] for image in images}


def used_files(cell: TrainedCell) -> dict[bytes, str] | None:
    """What a cell's labelled images were used for, 'training' or 'test', by the hashes of their files.

    Returns:
        None if that is not known any more: the images' pack, or the split, is gone or another.
    """
    part, subset = cell.split
    record = split_record(cell.root, part, subset)
    try:
        pack = open_pack(pack_manifest(cell.root, pack_of_split(part, subset)))
        lists = read_split(record, record.with_suffix(".npz"), pack)
    except InputError:
        return None
    assert pack.file_sums is not None
    # Of a file that is in both, that it was trained on is what matters.
    found = {"test": lists["test"], TRAINED_ON: lists["train"]}
    return {pack.file_sums[row].tobytes(): use for use, rows in found.items() for row in rows}


def predict_files(
    cell: TrainedCell,
    given: Iterable[Path],
    out: Path,
    machine: Machine,
    threads: int,
    overwrite: bool = False,
    tiles: int | None = None,
) -> tuple[pd.DataFrame, list[BadFileError]]:
    """Predict masks for images, each decoded as the study's images were, and write them at the images' own size.

    The model's scores are brought to an image's size before its classes are chosen, as in evaluations, see `class_map`.

    Written below `out` are `<name>_mask.png`, class indices with a palette; `<name>_overlay.png`; `predictions.csv`,
    the returned table; and `classes.json`, the legend.

    Args:
        cell: whose model predicts.
        given: images and folders of images, see `output_names`.
        out: folder for the outputs.
        machine: device and precision.
        threads: number that decode and write.
        overwrite: whether existing files may be replaced.
        tiles: to each side, see `tiled`; None: as the study has it.

    Returns:
        One row per image that could be read: image, mask (below `out`), used_for, 'training', 'test' or empty, as it
        was in the study, by its bytes ('unknown' if the study's images are gone), height and width in pixels, and each
        class's share of pixels, `share_<class>`; with the share not predicted, if any, they sum to 1. And the images
        that could not be read.

    Raises:
        InputError: an argument is not an image or a folder, or an output exists already.
    """
    names = output_names(given, out)
    legend, table = out / "classes.json", out / "predictions.csv"
    make_room([legend, table, *(path for name in names.values() for path in _outputs(out, name))], out, overwrite)
    colours = kit.class_colours(len(cell.classes))
    write_json(legend, _legend(cell, colours))
    rows: list[dict[str, Any]] = []
    refused: list[BadFileError] = []
    tiles = cell.tiles if tiles is None else tiles
    used = used_files(cell)
    one_at_a_time = threading.Lock()  # larger scores and PyTorch's threads: so that memory and processors suffice

    def read(image: Path) -> Picture | BadFileError:
        try:
            return decode(image, tiles * cell.size, cell.resize, fit=cell.fit, white=cell.white)
        except BadFileError as error:
            return error

    def write(image: Path, picture: Picture, scores: Tensor) -> dict[str, Any] | BadFileError:
        mask_path, overlay_path = _outputs(out, names[image])
        with one_at_a_time:
            mask = class_map(scores, *picture.shape, cell.fit)
        try:
            drawn = {mask_path: palette_image(mask, colours)}
            drawn[overlay_path] = overlay(upright(image, cell.white), mask, cell.classes, colours)
        except BadFileError as error:
            return error
        for path, drawing in drawn.items():
            with atomic_path(path) as tmp:
                drawing.save(tmp, format="PNG")
        found = {f"share_{name}": share for name, share in zip(cell.classes, shares(mask, len(colours)), strict=True)}
        if cell.fit == "crop":
            found["share_not_predicted"] = float((mask == IGNORE).mean())
        about = {"image": _path_cell(image), "mask": _path_cell(mask_path.relative_to(out))}
        about["used_for"] = "unknown" if used is None else used.get(picture.file, "")
        return about | dict(zip(("height", "width"), picture.shape, strict=True)) | found

    def score(squares: np.ndarray) -> Tensor:
        return class_scores(cell, squares, machine)

    images = list(names)
    bar = tqdm(total=len(images), desc="predict", unit="image", mininterval=1.0, disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        some = batch_of_masks(len(cell.classes)) if tiles == 1 else 1
        for start in range(0, len(images), some):
            batch = images[start : start + some]
            pictures = list(pool.map(read, batch))
            good = [(i, p) for i, p in zip(batch, pictures, strict=True) if not isinstance(p, BadFileError)]
            written: list[dict[str, Any] | BadFileError] = []
            if good:
                scores = tiled(score, np.stack([picture.pixels for _, picture in good]), cell.size)
                written = list(pool.map(write, *zip(*good, strict=True), scores))
            for result in (*(p for p in pictures if isinstance(p, BadFileError)), *written):
                refused.append(result) if isinstance(result, BadFileError) else rows.append(result)
            bar.update(len(batch))
    columns = ["image", "mask", "used_for", "height", "width", *(f"share_{name}" for name in cell.classes)]
    frame = pd.DataFrame(rows, columns=columns + ["share_not_predicted"] * (cell.fit == "crop"))
    with atomic_path(table) as tmp:
        frame.to_csv(tmp, index=False, float_format="%.6g")
    return frame, refused


def _outputs(out: Path, name: str) -> tuple[Path, Path]:
    return out / f"{name}_mask.png", out / f"{name}_overlay.png"


def _path_cell(path: Path) -> str:
    """A path as a cell of a CSV file, which no spreadsheet takes for a formula and which stays a path."""
    text = path.as_posix()
    return text if cell_text(text) == text else f"./{text}"


def make_room(paths: Sequence[Path], folder: Path, overwrite: bool) -> None:
    """Make the folder for some outputs.

    Raises:
        InputError: an output exists and may not be replaced, or the folder cannot be made.
    """
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise InputError(f"{few(there)}: there already; choose another --out, or replace with --overwrite")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: no folder can be made there ({error.strerror}); choose another --out") from error


def _legend(cell: TrainedCell, colours: Sequence[str]) -> dict[str, Any]:
    values = cell.mask_values() or [None] * len(colours)
    classes = [
        {"index": index, "name": name, "colour": colour} | ({"mask_values": value} if value else {})
        for index, (name, colour, value) in enumerate(zip(cell.classes, colours, values, strict=True))
    ]
    about = {"cell": cell.name, "study": cell.config["study"], "weights_sha256": cell.record["weights_sha256"]}
    return about | {"classes": classes, "not_predicted": IGNORE if cell.fit == "crop" else None}
