# PYTHON_ARGCOMPLETE_OK
"""`viny <command>` or `python -m viny <command>`: commands for people, and the stages that the workflow's rules call.

Heavy imports stand inside the commands, so that each job loads only what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import json
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from viny import __version__
from viny.errors import InputError
from viny.gpus import give_gpu_back, take_gpu
from viny.processes import Stopped, end_with_parent, leave, on_stop

# Exit codes: 0 done, 1 the job failed or results are not sound, 2 the input is at fault, 128 + n stopped by signal n.
FAILED, BAD_INPUT, SIGNALLED = 1, 2, 128
EXIT_CODES = (
    "exit codes: 0 done; 1 the job failed or results are not sound; 2 the input is at fault; "
    "128 + n stopped by signal n"
)
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


def _spec(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def _task(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (equals and name and folder):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=FOLDER")
    return name, Path(folder)


def _number(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Reads a number above zero."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from error
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    return read


def _change(text: str) -> dict[str, Any]:
    """The settings that 'section.key=value' changes."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected key=value, such as data_root=data or finetune.epochs=5")
    try:
        change: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{name}: {value!r} is not YAML") from error
    for key in reversed(name.split(".")):
        change = {key: change}
    return change


def _settings(paths: Sequence[Path], changes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The resolved settings of study files, later ones over earlier ones, and changes over all."""
    from viny.config import merge, read_config, resolve

    raw: dict[str, Any] = {}
    for more in [*map(read_config, paths), *changes]:
        raw = merge(raw, more)
    return resolve(raw)


def _check(args: argparse.Namespace) -> None:
    from viny.cells import cells
    from viny.config import check_sizes
    from viny.listings import folder_report, images_here

    config = _settings(args.study)
    if args.show:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
    else:
        check_sizes(config, images_here(config))
        for line in folder_report(config):
            print(line)
        print(f"{config['study']}: {len(cells(config))} cells, protocol {config['protocol']}; no fault found")


def _init(args: argparse.Namespace) -> None:
    from viny.init import init, parse_classes, parse_value, read_classes

    classes = read_classes(args.classes_file) if args.classes_file else None
    if args.classes:
        classes = parse_classes(args.classes)
    keys = ("name", "images", "masks", "unlabelled", "mask_suffix", "split", "budget", "image_size", "patch_size")
    given = {key: getattr(args, key) for key in keys} | {"tasks": dict(args.task), "spatial": args.spatial}
    given |= {"classes": classes, "ignore": [parse_value(value) for value in args.ignore]}
    init(given, args.coco, args.panoptic, args.folder, args.force)


def _plan(args: argparse.Namespace) -> None:
    from viny.plan import plan, show

    config = _settings(args.study, args.set)
    store = args.store or Path(config["pack_store"])
    planned = plan(
        config, args.results, store, args.cores, args.gpus, args.rate, args.seconds, use_seen=not args.measure
    )
    if args.json:
        print(json.dumps(planned, indent=1))
    else:
        show(planned)


def _predict(args: argparse.Namespace) -> int:
    from viny.inference import load_cell, predict_files
    from viny.learning.train import Machine

    cell = load_cell(args.cell, args.root)
    machine = Machine.choose(args.device, args.precision, args.threads)
    frame, refused = predict_files(cell, args.images, args.out, machine, args.threads, args.overwrite)
    for error in refused:
        print(f"viny: {error}", file=sys.stderr)
    means = {name: float(frame[f"share_{name}"].mean()) for name in cell.classes} if len(frame) else {}
    if args.json:
        bad = [{"image": str(error.path), "reason": error.reason} for error in refused]
        said = {"cell": cell.name, "out": str(args.out), "images": len(frame), "mean_shares": means, "refused": bad}
        print(json.dumps(said, indent=1))
    else:
        print(f"{args.out}: {len(frame)} images predicted, {len(refused)} refused")
        print("".join(f"  {name} {100 * share:.1f} % of the pixels\n" for name, share in means.items()), end="")
    return FAILED if refused else 0


def _export(args: argparse.Namespace) -> None:
    from rich.console import Console

    from viny.export import export
    from viny.inference import load_cell

    cell = load_cell(args.cell, args.root)
    with Console(stderr=True).status(f"writing {args.format}"):  # some seconds; seen on a terminal only
        files = export(cell, args.format, args.out, args.overwrite)
    for file in files:
        print(file)


def _cell_names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """What could stand after --cell: names where --root says of which study, else folders."""
    if parsed_args.root is not None:
        return sorted(path.parent.name for path in parsed_args.root.glob("finetune/*/model.json"))
    from argcomplete.completers import DirectoriesCompleter

    found = sorted(str(path.parent) for path in Path("results").glob("*/finetune/*/model.json"))
    return [name for name in found if name.startswith(prefix)] or list(DirectoriesCompleter()(prefix))


def _advise(args: argparse.Namespace) -> None:
    from viny.evidence.advise import advise, as_dict, show

    config = _settings(args.study) if args.study else None
    advice = advise(args.root, config, args.target, args.minutes_per_mask)
    if args.json:
        print(json.dumps(as_dict(advice), indent=1, allow_nan=False))
    else:
        show(advice)


def _status(args: argparse.Namespace) -> int:
    from viny.status import Watcher, show, watch
    from viny.terminal import console

    live = sys.stdout.isatty() if args.watch is None else args.watch
    if live and not args.json:
        status = watch(args.root, args.every)
        return 0 if status.well or status.alive else FAILED
    status = Watcher(args.root).look()
    if args.json:
        print(json.dumps(status.as_dict(), indent=1))
    else:
        console().print(show(status))
    return 0 if status.well else FAILED


def _verify(args: argparse.Namespace) -> int:
    from viny.verify import verify_study

    report = verify_study(args.root, _settings(args.study) if args.study else None, args.store)
    if args.json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        for finding in report.findings:
            print(finding)
        print(report.summary())
    return 0 if report.sound else FAILED


def _pack(args: argparse.Namespace) -> None:
    from viny.data.packing import describe, pack_into_store
    from viny.files import digest, read_json
    from viny.provenance import Record

    provenance = Record()
    folder = pack_into_store(args.spec, args.store, args.manifest, args.threads)
    manifest = read_json(args.manifest, "a pack manifest")
    print(f"{folder}: {describe(manifest)}")
    # In the log alone: a manifest holds nothing but what the images determine.
    hashes = {"spec": digest(args.spec), "pack": manifest["sha256"]}
    print(json.dumps(provenance.finish(threads=args.threads, hashes=hashes), sort_keys=True))


def _split(args: argparse.Namespace) -> None:
    from viny.data import splits
    from viny.data.pack import open_pack
    from viny.files import digest
    from viny.provenance import Record

    provenance = Record()
    pack = open_pack(args.manifest)
    spec = {k: v for k, v in args.spec.items() if k != "code"}
    make = {"pretrain": splits.pretrain_split, "finetune": splits.finetune_split, "task": splits.task_split}
    split = make[spec.pop("kind")](pack, **spec)
    splits.write_split(args.record, args.indices, split, {"spec": args.spec, "pack_sha256": pack.sha256})
    # In the log alone: a split's record is the same on every machine.
    hashes = {"spec": digest(args.spec), "pack": pack.sha256}
    print(json.dumps(provenance.finish(seed=args.spec.get("seed"), hashes=hashes), sort_keys=True))


def _duplicates(args: argparse.Namespace) -> None:
    from viny.evidence.duplicates import write_duplicates

    write_duplicates(args.spec, args.root, args.out)


def _on_gpu(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], None]:
    """A command that computes on a GPU, where its driver has some to share out."""

    def command(args: argparse.Namespace) -> None:
        if args.spec.get("device") == "cpu":
            run(args)
            return
        take_gpu()
        try:
            run(args)
        finally:
            give_gpu_back()

    return command


@_on_gpu
def _train(args: argparse.Namespace) -> None:
    from viny.learning.stages import CHECKPOINT_MINUTES, StageFiles, run_stage

    files = StageFiles(
        manifest=args.manifest,
        split=args.split,
        indices=args.indices,
        parent=args.parent,
        weights=args.weights,
        record=args.record,
        curve=args.curve,
        run=args.run,
        checkpoints=args.checkpoints,
    )
    minutes = CHECKPOINT_MINUTES if args.checkpoint_minutes is None else args.checkpoint_minutes
    run_stage(args.spec, files, args.threads, minutes)


@_on_gpu
def _evaluate(args: argparse.Namespace) -> None:
    from viny.evidence.evaluate import run_evaluate

    run_evaluate(
        args.spec,
        args.manifest,
        args.split,
        args.indices,
        args.model,
        args.metrics,
        args.confusion,
        args.threads,
    )


def _tables(args: argparse.Namespace) -> None:
    from viny.cells import cells, metrics_file
    from viny.evidence.tables import write_tables

    write_tables([metrics_file(args.root, cell) for cell in cells(args.spec)], args.out)


@_on_gpu
def _geometry(args: argparse.Namespace) -> None:
    from threadpoolctl import threadpool_limits

    from viny.evidence.geometry import run_geometry

    # Else each of NumPy's libraries starts a thread a processor, and jobs side by side wait for each other.
    with threadpool_limits(args.threads):
        run_geometry(
            args.spec,
            args.manifest,
            args.split,
            args.indices,
            args.encoder,
            args.reference,
            args.metrics,
            args.arrays,
            args.threads,
        )


def _gathered(name: str) -> Callable[[argparse.Namespace], None]:
    """A command that makes tables and figures of a study's folder."""

    def command(args: argparse.Namespace) -> None:
        from threadpoolctl import threadpool_limits

        from viny.evidence import gather

        with threadpool_limits(args.threads):
            getattr(gather, f"write_{name}")(args.spec, args.root, args.out)

    return command


def _report(args: argparse.Namespace) -> None:
    from viny.evidence.page import write_page

    write_page(args.spec, args.root, args.out)


def _figures(args: argparse.Namespace) -> None:
    from viny.cells import cells, shown_cells
    from viny.evidence.gallery import write_figures

    write_figures(args.spec, cells(args.spec), args.root, shown_cells(args.spec), args.out, args.threads)


def parser() -> argparse.ArgumentParser:
    """The command line; each command's function is in its `run_command`."""
    top = _Parser(
        prog="viny",
        description="What do pre-training, an intermediate task and labels buy a small vision transformer?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"viny {__version__}")
    commands = top.add_subparsers(required=True, metavar="command", title="commands")
    stages: list[str] = []

    def for_people(name: str, function: Any, text: str, *examples: str) -> argparse.ArgumentParser:
        epilog = "\n  ".join(["examples:", *examples]) + f"\n\n{textwrap.fill(EXIT_CODES, 100)}"
        p = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.set_defaults(run_command=function, command=name)
        return p

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        """A stage; not listed among the commands, for the workflow calls it."""
        epilog = (
            "A stage of the workflow: a log in results/<study>/logs begins with the command of its job, which can be "
            f"run by hand; {EXIT_CODES}."
        )
        p = commands.add_parser(name, description=text, epilog=epilog)
        p.set_defaults(run_command=function, command=name)
        p.add_argument("--spec", type=_spec, required=True, help="the stage's settings, as JSON")
        p.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
        stages.append(name)
        return p

    def files(p: argparse.ArgumentParser, **names: str) -> None:
        for name, text in names.items():
            p.add_argument(f"--{name}", type=Path, required=True, help=text)

    p = for_people(
        "check",
        _check,
        "Check study files and say what they expand to.",
        "viny check studies/mini.yaml",
        "viny check studies/mini.yaml --show    # every default filled in",
    )
    p.add_argument("study", type=Path, nargs="+", help="YAML files, later ones over earlier ones")
    p.add_argument("--show", action="store_true", help="print the settings with every default filled in")

    p = for_people(
        "init",
        _init,
        "Look at your own images and masks; write a study file that fits them, and a contact sheet.",
        "viny init    # asks",
        "viny init mine --images data/images --masks data/masks --unlabelled data/unlabelled",
        "viny init mine --images data/images --masks data/masks --classes 0=ground,255=object --task kinds=data/kinds",
        "viny init mine --images data/images --coco data/annotations.json",
    )
    p.add_argument("name", nargs="?", help="of the study; its file is studies/NAME.yaml")
    p.add_argument("--images", type=Path, metavar="FOLDER", help="images that have masks, with whatever folders in it")
    p.add_argument("--masks", type=Path, metavar="FOLDER", help="their masks, of the same names; with --coco: where to")
    p.add_argument("--mask-suffix", metavar="TEXT", help="behind an image's name in its mask's (default: guessed)")
    p.add_argument("--unlabelled", type=Path, metavar="FOLDER", help="images to pre-train on")
    p.add_argument(
        "--task",
        type=_task,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="class folders of images, as an intermediate task; may be given again",
    )
    p.add_argument("--spatial", action="store_true", help="an intermediate task on each patch's class from the masks")
    p.add_argument("--classes", metavar="VALUE=NAME,...", help="names of mask values, or of colours '#rrggbb'")
    p.add_argument("--classes-file", type=Path, metavar="FILE", help="the same as lines of value,name")
    p.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="VALUE",
        help="mask value or colour without a class; may be given again",
    )
    p.add_argument("--split", type=Path, metavar="FILE", help="lines of image,part, part being train, test or none")
    p.add_argument("--coco", type=Path, metavar="FILE", help="COCO annotations (JSON) to make the masks of")
    p.add_argument("--panoptic", type=Path, metavar="FOLDER", help="PNGs of panoptic ones (default: beside, its name)")
    p.add_argument(
        "--budget",
        choices=("small", "medium", "large"),
        help="small: for a laptop; medium: for a GPU; large: for hours of one (default: medium with a GPU, else small)",
    )
    p.add_argument("--image-size", type=_number(int), metavar="PIXELS", help="side of what the model sees")
    p.add_argument("--patch-size", type=_number(int), metavar="PIXELS", help="side of a patch; divides the image size")
    p.add_argument("--folder", type=Path, default=Path("studies"), help="for the study file (default studies)")
    p.add_argument("--force", action="store_true", help="replace what this command wrote before")

    def cell_and_outputs(p: argparse.ArgumentParser) -> None:
        cell: Any = p.add_argument(
            "--cell", required=True, help="results/<study>/finetune/<cell>, or its bare name and --root"
        )
        cell.completer = _cell_names
        p.add_argument("--root", type=Path, help="the study's folder, results/<study>")
        p.add_argument("--overwrite", action="store_true", help="replace outputs that are there")

    p = for_people(
        "predict",
        _predict,
        "Predict masks of images with a fine-tuned cell: a mask and an overlay of each, at its own size, and a CSV.",
        "viny predict --cell results/demo/finetune/pre-0_mid-none_fine-540_seed-0 photo.jpg",
        "viny predict --root results/demo --cell pre-0_mid-none_fine-540_seed-0 photos --out masks --json",
    )
    cell_and_outputs(p)
    p.add_argument("images", type=Path, nargs="+", help="images, and folders with images at any depth")
    p.add_argument("--out", type=Path, default=Path("predictions"), help="folder for the outputs (default predictions)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="to compute on (default auto)")
    p.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="to compute in (default auto: bfloat16 where the device has it, as in evaluation)",
    )
    p.add_argument("--threads", type=_number(int), default=os.cpu_count() or 1, help="CPU threads (default: all)")
    p.add_argument("--json", action="store_true", help="print what was done as JSON")

    p = for_people(
        "export",
        _export,
        "Export a fine-tuned cell for plain timm or an ONNX runtime, with a model card.",
        "viny export --cell results/demo/finetune/pre-0_mid-none_fine-540_seed-0 --format timm",
        "viny export --root results/demo --cell pre-0_mid-none_fine-540_seed-0 --format onnx --out demo.onnx",
    )
    cell_and_outputs(p)
    p.add_argument(
        "--format", choices=("timm", "onnx"), required=True, help='what is to load it; onnx needs "viny[export]"'
    )
    p.add_argument("--out", type=Path, help="file to write (default <cell>.safetensors or <cell>.onnx)")

    p = for_people(
        "plan",
        _plan,
        "Forecast a study: jobs, image passes, FLOP, disk, memory and hours, and what more would add.",
        "viny plan studies/mini.yaml    # measures for 30 seconds, as many jobs side by side as will run",
        "viny plan studies/paper.yaml --rate 1400 --gpus 4 --cores 32    # at a stated rate: nothing is measured",
        "viny plan studies/mini.yaml --set data_root=/data --set 'grid.seeds=[0, 1, 2]' --json",
    )
    p.add_argument("study", type=Path, nargs="+", help="YAML files, later ones over earlier ones")
    p.add_argument(
        "--set",
        type=_change,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as data_root=data or finetune.epochs=5; may be given again",
    )
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")
    p.add_argument("--store", type=Path, help="folder of packs (default: the study's pack_store)")
    p.add_argument("--cores", type=_number(int), help="that jobs share (default: all of this machine)")
    p.add_argument("--gpus", type=_number(int), help="that jobs share (default: those of this machine)")
    p.add_argument(
        "--rate",
        type=_number(float),
        metavar="IMAGES_PER_SECOND",
        help="training images of ViNy (128 px) a second of one job, as compute.images_per_second; nothing is measured",
    )
    p.add_argument("--seconds", type=_number(float), default=30.0, help="that the measurement takes (default 30)")
    p.add_argument("--measure", action="store_true", help="measure even what finished jobs of the study tell")
    p.add_argument("--json", action="store_true", help="print the forecast as JSON")

    p = for_people(
        "advise",
        _advise,
        "Say what a study's results advise: is pre-training worth it, how many more masks, does the task hurt?",
        "viny advise results/demo",
        "viny advise results/demo --minutes-per-mask 2 --target 0.5    # with the price of labels, to half a point",
        "viny advise results/demo --json    # for programs",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument("--study", type=Path, nargs="+", help="YAML files of its settings (default: its study.json)")
    p.add_argument(
        "--target",
        type=_number(float),
        default=1.0,
        metavar="POINTS",
        help="of mIoU, that an interval should reach to either side; a difference within it is small (default 1)",
    )
    p.add_argument("--minutes-per-mask", type=_number(float), metavar="MINUTES", help="that labelling an image takes")
    p.add_argument("--json", action="store_true", help="print the advice as JSON")

    p = for_people(
        "status",
        _status,
        "Say how far a study's run is: done, running, failed, waiting, and the time left.",
        "viny status results/demo    # on a terminal a live table, until the run ends or Ctrl-C",
        "viny status results/demo --no-watch || echo 'failed, or stopped before its end'",
        "viny status results/demo --json",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument(
        "--watch",
        action=argparse.BooleanOptionalAction,
        help="look again and again, or once (default: again where it is shown on a terminal)",
    )
    p.add_argument("--every", type=_number(float), default=2.0, metavar="SECONDS", help="between looks (default 2)")
    p.add_argument("--json", action="store_true", help="print the state once, as JSON")

    p = for_people(
        "verify",
        _verify,
        "Recompute a study's hashes and say what does not fit.",
        "viny verify results/demo",
        "viny verify copy/of/demo --store packs --json    # of a study that was moved, for programs",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument("--study", type=Path, nargs="+", help="YAML files to hold it against (default: its study.json)")
    p.add_argument("--store", type=Path, help="folder of packs, for a study that was moved (default: as it is linked)")
    p.add_argument("--json", action="store_true", help="print the findings as JSON")

    p = command("pack", _pack, "Decode a data set once into memory-mapped arrays.")
    files(p, store="folder of all packs", manifest="the study's copy of the manifest (output)")

    p = command("split", _split, "Write the index lists of one subset and its test set.")
    files(p, manifest="of the pack", record="JSON (output)", indices="npz (output)")

    p = command("duplicates", _duplicates, "Look for training images among the test images.")
    files(p, root="the study's folder", out="folder (output)")

    for name, text in (
        ("pretrain", "Pre-train an encoder with SimMIM."),
        ("intermediate", "Train an encoder on an intermediate task."),
        ("finetune", "Fine-tune an encoder for segmentation."),
    ):
        p = command(name, _train, text)
        files(p, manifest="of the pack", split="record of the split", indices="index lists of the split")
        p.add_argument("--parent", type=Path, help="record of the weights to start from; none: random ones")
        files(
            p,
            weights="safetensors (output)",
            record="JSON beside the weights (output)",
            curve="CSV (output)",
            run="provenance, JSON (output)",
        )
        p.add_argument("--checkpoints", type=Path, help="folder that a stopped run goes on from; none: it cannot")
        p.add_argument(
            "--checkpoint-minutes",
            type=float,
            default=os.environ.get("VINY_CHECKPOINT_MINUTES"),
            help="between two checkpoints (default $VINY_CHECKPOINT_MINUTES, else 5)",
        )

    p = command("evaluate", _evaluate, "Evaluate a fine-tuned model on its test images.")
    files(
        p,
        manifest="of the pack",
        split="record of the split",
        indices="index lists of the split",
        model="record of the fine-tuned weights",
        metrics="JSON (output)",
        confusion="per-image confusion matrices, npz (output)",
    )

    p = command("geometry", _geometry, "Measure the patch tokens of an encoder on held-out images.")
    files(
        p,
        manifest="of the pack",
        split="record of the split",
        indices="index lists of the split",
        metrics="JSON (output)",
        arrays="npz (output)",
    )
    p.add_argument("--encoder", type=Path, help="record of its weights; none: the random ones of the seed")
    p.add_argument("--reference", type=Path, help="record of the encoder it came from; none: the random one")

    for name, text in (
        ("statistics", "Effects with their uncertainty, returns and costs, as tables and figures."),
        ("representations", "Gather the encoders' geometry into tables and figures."),
        ("scorecard", "Hold a study against the paper."),
    ):
        p = command(name, _gathered(name), text)
        files(p, root="the study's folder", out="folder below which tables and figures stand (output)")

    p = command("report", _report, "Write a study's report as one HTML file.")
    files(p, root="the study's folder", out="HTML (output)")

    p = command("tables", _tables, "Gather metrics into tables.")
    files(p, root="the study's folder", out="folder (output)")

    p = command("figures", _figures, "Draw a study's figures.")
    files(p, root="the study's folder", out="folder (output)")

    said = [
        f"stages, which the workflow calls: {', '.join(stages)}",
        f"`viny <command> --help` has examples; {EXIT_CODES}.",
        'Names complete at Tab in a shell that has run: eval "$(register-python-argcomplete viny)"',
    ]
    top.epilog = "\n\n".join(textwrap.fill(line, 100) for line in said)
    return top


class _Parser(argparse.ArgumentParser):
    """Says what may have been meant, and lists no stage to a person who has mistyped a command."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message)
        if wrong and "command" in message:
            known = [name for action in self._actions for name in action.choices or ()]
            close = difflib.get_close_matches(wrong[1], known, n=1)
            message = f"no command is called '{wrong[1]}'" + (f"; did you mean '{close[0]}'?" if close else "")
            message += " `viny --help` lists all"
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            close = difflib.get_close_matches(unknown[1], self.flags, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        super().error(message)

    @property
    def flags(self) -> list[str]:
        """Of all commands: arguments that no command knows are refused when the command is forgotten."""
        commands = [p for action in self._actions if isinstance(action.choices, dict) for p in action.choices.values()]
        return sorted({flag for p in (self, *commands) for flag in p._option_string_actions})


class Log:
    """Standard output or error that a full disk cannot turn into the end of a training: what does not fit is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise


def _check_code(args: argparse.Namespace) -> None:
    """Refuse to compute under settings that were made for other code than this."""
    from viny.provenance import code_fingerprint

    code = getattr(args, "spec", {}).get("code")
    if code is not None and code != code_fingerprint(args.command):
        raise InputError(
            f"the code of stage '{args.command}' was edited after this run began; start the run again, so that no "
            "result is filed under another version's name"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        with on_stop(leave):
            commands = parser()
            if "_ARGCOMPLETE" in os.environ:  # a shell asks what could stand here
                import argcomplete

                argcomplete.autocomplete(commands)
            args = commands.parse_args(arguments)
            parent = os.environ.get("VINY_PARENT", "")
            if parent.isdecimal():
                end_with_parent(int(parent))
            if hasattr(args, "spec"):  # a stage: its log begins with how to run it by hand
                given = sys.argv[1:] if arguments is None else arguments
                print(f"$ {shlex.join(['python', '-m', 'viny', *given])}", flush=True)
            _check_code(args)
            return args.run_command(args) or 0
    except InputError as error:
        print(f"viny: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped as stop:
        print(f"viny: {stop}", file=sys.stderr)
        return SIGNALLED + stop.signal
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return FAILED
        if error.errno not in DISK_FAULTS:
            raise
        where = error.filename or "output"
        print(
            f"viny: {where}: {error.strerror}; free space or mend the disk and run again, what is done stays",
            file=sys.stderr,
        )
        return FAILED
    except RuntimeError as error:
        if type(error).__name__ != "TrainingError":  # its module costs seconds to import
            raise
        print(f"viny: {error}", file=sys.stderr)
        return FAILED
