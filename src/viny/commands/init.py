"""`viny init`: a study file for a user's own folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from viny.commands.common import RATE, People, positive


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "init",
        run,
        "Look at your own images and masks; write a study file that fits them, and a contact sheet.",
        "viny init    # asks",
        "viny init mine --images data/images --masks data/masks --unlabelled data/unlabelled --minutes 20",
        "viny init mine --images data/images --masks data/masks --classes 0=ground,255=object --task kinds=data/kinds",
        "viny init mine --images data/images --coco data/annotations.json",
    )
    p.add_argument("name", nargs="?", help="name of the study; its file is studies/NAME.yaml")
    p.add_argument("--images", type=Path, metavar="FOLDER", help="images that have masks, at any depth")
    p.add_argument(
        "--masks", type=Path, metavar="FOLDER", help="their masks, of the same names; with --coco: where to write them"
    )
    p.add_argument("--mask-suffix", metavar="TEXT", help="what a mask's name adds to its image's (default: guessed)")
    p.add_argument(
        "--unlabelled",
        type=Path,
        metavar="FOLDER",
        help="images without masks, to pre-train on; same for those with masks, less the test images; none for none "
        "(default)",
    )
    p.add_argument(
        "--task",
        type=_task,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a task to train on between pre-training and the masks: a folder with one sub-folder of images per class; "
        "may be repeated; none for none (default)",
    )
    p.add_argument("--spatial", action="store_true", help="an intermediate task: each patch's class, from the masks")
    p.add_argument("--classes", metavar="VALUE=NAME,...", help="names of mask values, or of colours '#rrggbb'")
    p.add_argument(
        "--classes-file",
        type=Path,
        metavar="FILE",
        help="the same in a file: lines of value,name, or what Roboflow or CVAT wrote",
    )
    p.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="VALUE",
        help="mask value or colour without a class; may be repeated",
    )
    p.add_argument(
        "--split",
        type=Path,
        metavar="FILE",
        help="lines of image,part; part is train, test or none (default: folders called train, val or test, if any)",
    )
    p.add_argument(
        "--group",
        metavar="PATTERN",
        help="what images of one film, patient or scan have in common, so that they are split together: a regular "
        "expression with one group, such as '(.*)_[0-9]+$', folder, or none (default: found by their names and looks)",
    )
    p.add_argument("--coco", type=Path, metavar="FILE", help="COCO annotations (JSON) to make the masks from")
    p.add_argument(
        "--panoptic", type=Path, metavar="FOLDER", help="PNGs of panoptic annotations (default: beside them, same name)"
    )
    p.add_argument(
        "--minutes",
        type=positive(float),
        metavar="N",
        help="the study is to take so long on this machine, which is measured for some seconds; what it then cannot "
        "answer is said (default: one that answers all, whatever it takes)",
    )
    p.add_argument("--rate", type=positive(float), metavar="IMAGES_PER_SECOND", help=RATE)
    p.add_argument("--image-size", type=positive(int), metavar="PIXELS", help="side of the images that the model sees")
    p.add_argument("--patch-size", type=positive(int), metavar="PIXELS", help="side of a patch; divides the image size")
    p.add_argument("--folder", type=Path, default=Path("studies"), help="folder for the study file (default studies)")
    p.add_argument(
        "--ask", action="store_true", help="ask for all that is not given (default: if a name or a folder is lacking)"
    )
    p.add_argument("--force", action="store_true", help="replace what this command wrote before")


def _task(text: str) -> tuple[str, Path] | None:
    if text == "none":
        return None
    name, equals, folder = text.partition("=")
    if not (equals and name and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER")
    return name, Path(folder)


def run(args: argparse.Namespace) -> None:
    from viny.tools.newstudy.class_lists import parse_classes, parse_value, read_classes
    from viny.tools.newstudy.dialogue import init

    classes = read_classes(args.classes_file) if args.classes_file else None
    if args.classes:
        classes = parse_classes(args.classes, least=1 if args.ask else 2)
    keys = ("name", "images", "masks", "unlabelled", "mask_suffix", "split", "group", "image_size", "patch_size")
    given = {key: getattr(args, key) for key in keys}
    given |= {"classes": classes, "ignore": [parse_value(value) for value in args.ignore] or None}
    given |= {"tasks": dict(filter(None, args.task)) if args.task else None, "spatial": args.spatial or None}
    given = {key: value for key, value in given.items() if value is not None}
    if args.unlabelled == Path("none"):
        given["unlabelled"] = None
    if args.group == "none":
        given["group"] = ""
    init(
        given, args.coco, args.panoptic, args.folder, args.force, minutes=args.minutes, rate=args.rate, ask_all=args.ask
    )
