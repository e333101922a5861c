"""Write folders like a user's own, filled with made images, to try docs/own-data.md before your own data are ready.

python examples/own_data.py data/own                      # 200 images with binary masks, 1,000 without
python examples/own_data.py data/own --classes 11         # eleven classes, and borders to ignore
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from viny.data.synthetic import GROUND, KINDS, OBJECT, SCENES, render

SIDE = 256  # pixels
SHAPES = ((192, 256), (256, 192), (256, 256), (160, 240))  # heights and widths to crop to
GROUNDS = 4  # of the eleven classes, those of grounds
IGNORED = 255


def picture(stream: str, index: int, seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Image uint8 [H, W, 3], trimap uint8 [H, W], ground and kind; in several shapes."""
    image, trimap, scene, kind = render(stream, index, SIDE, seed)
    height, width = SHAPES[index % len(SHAPES)]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    cut = np.s_[top : top + height, left : left + width]
    return image.transpose(1, 2, 0)[cut], trimap[cut], scene, kind


def mask_of(trimap: np.ndarray, scene: int, kind: int, classes: int) -> np.ndarray:
    """Mask values uint8 [H, W]: 0 and 255 for two classes; 0 to 10 for eleven, with 255 for borders."""
    if classes == 2:
        return np.where(trimap == GROUND, 0, 255).astype(np.uint8)
    values = np.where(trimap == OBJECT, GROUNDS + kind, scene % GROUNDS)
    return np.where((trimap == OBJECT) | (trimap == GROUND), values, IGNORED).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write; must not exist")
    parser.add_argument("--images", type=int, default=200, help="with masks (default 200)")
    parser.add_argument("--unlabelled", type=int, default=1000, help="without (default 1000)")
    parser.add_argument("--scenes", type=int, default=300, help="in class folders, of a task (default 300)")
    parser.add_argument("--classes", type=int, choices=(2, 4 + len(KINDS)), default=2, help="of the masks (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of the images (default 0)")
    args = parser.parse_args()
    if args.folder.exists():
        print(f"{args.folder}: there already; give the name of a new folder", file=sys.stderr)
        return 2
    for i in tqdm(range(args.images), "images with masks", disable=None):
        image, trimap, scene, kind = picture("segmentation", i, args.seed)
        save(args.folder / "images" / f"{i:05}.jpg", image)
        save(args.folder / "masks" / f"{i:05}.png", mask_of(trimap, scene, kind, args.classes))
    for i in tqdm(range(args.unlabelled), "unlabelled images", disable=None):
        save(args.folder / "unlabelled" / f"{i // 500}" / f"{i:05}.jpg", picture("unlabelled", i, args.seed)[0])
    for i in tqdm(range(args.scenes), "images of a task", disable=None):
        image, _, scene, _ = picture("scenes", i, args.seed)
        save(args.folder / "scenes" / SCENES[scene] / f"{i:05}.jpg", image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
