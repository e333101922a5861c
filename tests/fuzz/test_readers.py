"""Files of somebody else may hold anything: each reader returns what it promises or refuses with one sentence.

VINY_FUZZ says how many examples each reader gets; `make fuzz` gives it 2,000, others each time.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("hypothesis", reason="generated files need hypothesis, see envs/test.txt")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_study import Study
from trained_cell import make_cell

from viny.data.coco import convert
from viny.data.decoding import decode, decode_mask, mask_values, upright
from viny.data.pack import Pack, open_pack
from viny.data.parts import read_split_file
from viny.data.splits import read_split
from viny.evidence.advice.advice import as_text
from viny.evidence.advice.adviser import advise
from viny.evidence.figures.geometry import read_arrays
from viny.evidence.report.page import write_page
from viny.evidence.stages.scorecard import write_scorecard
from viny.evidence.statistics.costs import chain_costs
from viny.evidence.statistics.crossed import read_confusion
from viny.evidence.statistics.pages import write_statistics
from viny.evidence.statistics.representations import read_geometry
from viny.evidence.tables import read_metrics, write_tables
from viny.evidence.training_settings import write_training_settings
from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.model import ViNy
from viny.learning.optimizer import Adam
from viny.learning.progress import read_progress
from viny.learning.published import as_encoder, read_tensors
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.weights import load_segmentation, load_weights
from viny.runtime import files, stacks
from viny.runtime.errors import InputError
from viny.runtime.files import digest, load_arrays, read_json, seal_of, write_json
from viny.runtime.gpus import Share
from viny.runtime.processes import Owner
from viny.runtime.shapes import SHAPES
from viny.runtime.signals import Stopped
from viny.runtime.stacks import Work
from viny.study import layout, specs
from viny.study.config import merge, resolve
from viny.study.graph import jobs
from viny.study.grid import Cell
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.study.saved import write_study
from viny.tools.forecast.plan import plan
from viny.tools.forecast.rates import rates_seen
from viny.tools.newstudy.class_lists import read_classes
from viny.tools.status.state import Watcher
from viny.tools.status.view import show
from viny.tools.terminal import console
from viny.tools.trained.cell import load_cell
from viny.tools.trained.export import export
from viny.tools.verify.verifier import verify_study

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")
MEMORY = 24 << 30  # bytes of address space, of which PyTorch alone takes several
MANY = int(os.environ.get("VINY_FUZZ", "0"))
FUZZ = {"derandomize": not MANY, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
GENERATED = settings(max_examples=MANY or 60, **FUZZ)
SLOW = settings(max_examples=MANY or 12, **FUZZ)  # of readers that take a tenth of a second

ODD = [None, True, 0, -1, 3, 0.5, 1e308, 2**53, 2**64, 10**25, "", "x", "../../x", "\x1b[2J", "<script>"]
ODD += ["=1+1", "\ud800", [], {}, [[[[]]]], ["x"], [None], {"a": 1}, {"name": "../x"}]
RAW = [b"", b"null", b"[]", b"{}", b"3", b"NaN", b"1e999", b"9" * 5000, b'"\\ud800"', b"\xff"]
RAW += [b"[" * 5000 + b"]" * 5000]
EDITS = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from([*ODD, "delete"])), min_size=1, max_size=4).map(tuple)
BYTES = st.one_of(
    st.sampled_from(RAW),
    st.binary(max_size=60),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12),  # changed ones
    st.integers(0, 10**6),  # how many are left
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """A reader that believes an absurd size fails here, rather than the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


def edited(value: Any, edits: Iterable[tuple[int, Any]]) -> Any:
    """A JSON value with some places changed or deleted."""
    value = copy.deepcopy(value)
    for at, new in edits:
        if some := places(value):
            holder, key = some[at % len(some)]
            if new == "delete":
                del holder[key]
            else:
                holder[key] = copy.deepcopy(new)
    return value


def sealed(value: Any) -> bytes:
    """JSON whose seal, if it has one, is right: what looks into it must not rely on that."""
    if isinstance(value, dict) and "sha256" in value and "config" not in value:
        with contextlib.suppress(ValueError, OverflowError):  # what cannot be hashed
            value = value | {"sha256": seal_of(value)}
    return json.dumps(value).encode()


def changed(content: bytes, how: Any) -> bytes:
    """A file's bytes, replaced, changed, cut or, by a tuple of edits, with other values where it is JSON."""
    if isinstance(how, bytes):
        return how
    if isinstance(how, int):
        return content[: how % (len(content) + 1)]
    if isinstance(how, tuple):
        try:
            return sealed(edited(json.loads(content), how))
        except ValueError:  # not JSON
            how = [(at, len(str(new))) for at, new in how]
    out = bytearray(content)
    for at, value in how:
        out[at % len(out)] = value
    return bytes(out)


def ends_well(read: Callable[[], Any]) -> None:
    """Any exception other than an InputError with a message is raised."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read()
    except InputError as error:
        assert str(error).strip()


@contextlib.contextmanager
def holding(path: Path, content: bytes) -> Any:
    """A file with other content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


# A study file


TREE = read_config(ROOT / "tests" / "tiny.yaml")
TEXT = (ROOT / "tests" / "tiny.yaml").read_bytes()


@GENERATED
@given(EDITS)
def test_a_study_file_of_any_values(edits: tuple) -> None:
    ends_well(lambda: resolve(edited(dict(TREE), edits)))


@GENERATED
@given(BYTES)
def test_a_study_file_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, how: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(changed(TEXT, how))
    ends_well(lambda: resolve(read_config(path)))


# Images, masks and what comes with them


def pictures() -> dict[str, bytes]:
    """Small files of several formats."""
    draw, found = np.random.default_rng(0), {}
    colours = Image.fromarray(draw.integers(0, 256, (13, 17, 3), np.uint8))
    mask = Image.fromarray(draw.integers(0, 2, (13, 17), np.uint8))
    palette = mask.copy()
    palette.putpalette([0, 0, 0, 255, 0, 0])
    deep = Image.fromarray(draw.integers(0, 2**16, (13, 17), np.uint16))
    for name, image in {"colours": colours, "mask": mask, "palette": palette, "deep": deep}.items():
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
            out = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):
                image.save(out, format=kind)
                found[f"{name}.{kind.lower()}"] = out.getvalue()
    return found


PICTURES = pictures()


@GENERATED
@given(st.sampled_from(sorted(PICTURES)), BYTES)
def test_a_picture_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, how: Any) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(changed(PICTURES[name], how))
    for resize in ("antialias", "nearest"):
        ends_well(lambda resize=resize: decode(path, 8, resize))
    ends_well(lambda: upright(path))
    for colours in (False, True):
        ends_well(lambda colours=colours: mask_values(path, colours))
        ends_well(lambda colours=colours: decode_mask(path, 8, {0: 0, 1: 1}, colours))


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (12, 10)).save(folder / "images" / name)
    return folder


CROWD = {"size": [10, 12], "counts": [60, 60]}
COCO = {
    "images": [{"id": i, "file_name": f"{name}.png", "height": 10, "width": 12} for i, name in enumerate("ab", 1)],
    "categories": [{"id": 1, "name": "thing"}, {"id": 7, "name": "other"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 8, 1, 8, 8, 1, 8]]},
        {"id": 2, "image_id": 2, "category_id": 7, "iscrowd": 1, "segmentation": CROWD},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [1, 1, 3, 3]},
    ],
}


@GENERATED
@given(st.one_of(EDITS, BYTES))
def test_coco_annotations_of_any_shape(annotated: Path, how: Any) -> None:
    path = annotated / "any.json"
    path.write_bytes(changed(json.dumps(COCO).encode(), how))
    ends_well(lambda: convert(path, annotated / "images", annotated / "masks", replace=True))


LINES = st.text("abc,;\"'\n\r\t\0#=é/.0123456789train testnone", max_size=60)


@GENERATED
@given(st.one_of(LINES.map(str.encode), BYTES))
def test_lists_of_any_text(tmp_path_factory: pytest.TempPathFactory, how: Any) -> None:
    """A split file and a list of classes."""
    path = tmp_path_factory.getbasetemp() / "list.csv"
    path.write_bytes(changed(b"image,part\na.png,train\nb.png,test\nc.png,none\n", how))
    ends_well(lambda: read_split_file(path))
    path.write_bytes(changed(b"value,name\n0,ground\n255,thing\n#ff0000,other\n", how))
    ends_well(lambda: read_classes(path))


# Results


def config_of(cell: Cell) -> dict[str, Any]:
    """The settings of a study of one cell."""
    grid = {"pretrain_sizes": [cell.pretrain_size], "intermediates": [cell.intermediate]}
    grid |= {"finetune_sizes": [cell.finetune_size], "seeds": [cell.seed]}
    return resolve(merge(TREE, {"grid": grid, "geometry": {"encoders": "none"}, "figures": {"examples": 1}}))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cell]:
    """A study of one cell from a random start, made by the stages themselves; its report needs no figures."""
    cell = Cell(0, "none", 8, 0)
    config = config_of(cell)
    made = Study(tmp_path_factory.mktemp("results") / "tiny", config)
    root = made.root
    write_study(root, config)
    manifest = made.pack("segmentation")
    subset = layout.subset(cell.finetune_size, cell.seed)
    split = made.split(f"finetune/{subset}", specs.finetune_split_spec(config, 8, 0), manifest)
    record = made.train(
        specs.finetune_spec(config, cell), (manifest, *split), None, str(layout.chain(cell)[-1].folder(Path()))
    )
    made.evaluate(cell, record)
    metrics = layout.metrics_file(root, cell)
    metrics.parent.mkdir()
    (root / "metrics.json").rename(metrics)
    (root / "confusion.npz").rename(metrics.with_suffix(".npz"))
    write_tables([metrics], root / "tables")
    write_training_settings(specs.tables_spec(config), root / "tables")
    spent = chain_costs(root, [cell], ModelSettings(**config["model"]))
    write_statistics([metrics], root / "metrics", spent, root / "tables")
    write_scorecard(
        specs.scorecard_spec(config), root=root, out=root, record=root / layout.SUMMARY.format(stage="scorecard")
    )
    (root / "tables" / "duplicates.csv").write_text("role,image,test_image,kind,distance\n")
    benchmark = root / "benchmarks" / "finetune" / f"{cell.name}.jsonl"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text('{"s": 1.5}\n')
    return root, cell


def uses(root: Path, cell: Cell) -> dict[str, Callable[[], Any]]:
    """What people do with results."""
    folder = layout.chain(cell)[-1].folder(root)
    config = config_of(cell)
    spec = specs.report_spec(config)
    return {
        "status": lambda: console().print(show(Watcher(root).look())),
        "status, JSON": lambda: json.dumps(Watcher(root).look().as_dict()),
        "advise": lambda: as_text(advise(root), long=True),
        "plan": lambda: json.dumps(plan(config, root.parent, root.parent, cores=2, gpus=0, rate=100.0)),
        "rates, for plan": lambda: rates_seen(jobs(config, count_images(config, root)), root, 1, "cpu"),
        "export": lambda: export(load_cell(folder), "timm", root.parent / "out.safetensors", overwrite=True),
        "report": lambda: write_page(
            spec, root=root, out=root.parent / "report.html", record=root.parent / "report.json"
        ),
        "verify": lambda: verify_study(root, None, None).summary(),
        "costs": lambda: chain_costs(root, [cell], ModelSettings()),
        "metrics": lambda: read_metrics([layout.metrics_file(root, cell)]),
    }


def test_all_is_well_with_the_study_itself(study: tuple[Path, Cell]) -> None:
    for name, use in uses(*study).items():
        with contextlib.redirect_stdout(io.StringIO()):
            assert use() is not None or name in ("status", "report"), name


@SLOW
@given(st.integers(0, 10**6), st.one_of(EDITS, BYTES))
def test_results_of_any_content(study: tuple[Path, Cell], at: int, how: Any) -> None:
    root, cell = study
    kinds = (".json", ".csv", ".jsonl", ".npz", ".safetensors")
    some = sorted(path for path in root.rglob("*") if path.suffix in kinds)
    path = some[at % len(some)]
    content = changed(path.read_bytes(), how)
    if path.name == "study.json" and at % 5:  # settings with the hash that they should have
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            value = json.loads(content)
            content = json.dumps(value | {"sha256": digest(value["config"])}).encode()
    with holding(path, content):
        for use in uses(root, cell).values():
            ends_well(use)


@GENERATED
@given(st.sampled_from(sorted(SHAPES)), st.one_of(EDITS, BYTES), st.integers(0, 10**6))
def test_records_of_any_content(study: tuple[Path, Cell], what: str, how: Any, at: int) -> None:
    root, _ = study
    some = sorted(root.rglob("*.json"))
    content, path = changed(some[at % len(some)].read_bytes(), how), root.parent / "any.json"
    path.write_bytes(content)
    ends_well(lambda: read_json(path, what))
    ends_well(lambda: read_metrics([path]))
    ends_well(lambda: read_geometry([path]))
    assert read_progress(path) is None or b"process" in content
    with contextlib.suppress(ValueError):
        Owner.parse(content.decode())


HANDED = Work({"stage": "finetune", "cell": {"seed": 1}}, {"manifest": "m", "parent": None, "threads": 2})


@GENERATED
@given(st.one_of(EDITS, BYTES))
def test_trainings_handed_in_of_any_content(tmp_path_factory: pytest.TempPathFactory, how: Any) -> None:
    claims = tmp_path_factory.mktemp("claims")
    board, share = stacks._Board(claims), Share(("0",), 1, claims, 3)
    job = stacks._Job(share, HANDED, "finetune")
    entry = stacks._Entry("20", job.key, "1-a")
    board.hand_in(entry, HANDED)
    with stacks.Desk(board, job.key, "0", 3, share, job.work) as desk:
        for path in (board.path / entry.name / "work.json", board.leader_file(job.key, desk._id)):
            path.write_bytes(changed(path.read_bytes(), how))
        board.leaders()
        board.lives(entry)
        for member in desk.take(2):
            member.done()
        board.sweep()
    for outcome in ({"kind": "stopped", "signal": 15, "where": ""}, {"kind": "OSError", "errno": 5, "file": "x"}):
        board.path.mkdir(exist_ok=True)
        (board.path / "outcome.json").write_bytes(changed(json.dumps(outcome).encode(), how))
        with contextlib.suppress(Stopped, OSError):
            ends_well(lambda: job._settle(job._outcome(board.path) or {}, None))


@GENERATED
@given(st.integers(0, 10**6), st.one_of(EDITS, BYTES))
def test_packs_and_splits_of_any_content(study: tuple[Path, Cell], at: int, how: Any) -> None:
    root, cell = study
    manifest = layout.pack_manifest(root, "segmentation")
    record = layout.split_record(root, "finetune", layout.subset(cell.finetune_size, cell.seed))
    pack: Pack = open_pack(manifest)
    some = [*sorted(manifest.parent.iterdir()), record, record.with_suffix(".npz")]
    path = some[at % len(some)]
    with holding(path, changed(path.read_bytes(), how)):
        ends_well(lambda: open_pack(manifest))
        ends_well(lambda: read_split(record, record.with_suffix(".npz"), pack))


@GENERATED
@given(BYTES)
def test_arrays_of_any_bytes(study: tuple[Path, Cell], how: Any) -> None:
    root, cell = study
    path = root.parent / "any.npz"
    path.write_bytes(changed(layout.metrics_file(root, cell).with_suffix(".npz").read_bytes(), how))
    ends_well(lambda: load_arrays(path, "arrays"))
    ends_well(lambda: read_confusion(path))
    ends_well(lambda: read_arrays([path]))


@GENERATED
@given(st.sampled_from(["a.pth", "a.safetensors"]), BYTES)
def test_published_weights_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, name: str, how: Any) -> None:
    path = tmp_path_factory.getbasetemp() / name
    settings = ModelSettings(8, 4, 4, 1, 1, 4, 4, "timm")
    tensors = ViNy(settings).state_dict()
    torch.save(tensors, path) if name == "a.pth" else save_file(tensors, path)
    path.write_bytes(changed(path.read_bytes(), how))
    ends_well(lambda: as_encoder(path, read_tensors(path)[0], settings))


@GENERATED
@given(BYTES)
def test_weights_and_checkpoints_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, how: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    encoder = ViNy(ModelSettings(image_size=8, patch_size=4, dim=4, depth=1, heads=1, head_dim=4, mlp_dim=4))
    optimizer = Adam(encoder, TrainSettings(1, 1, "adamw", 1e-3, 0.0, (), 0.1))
    kept = Checkpoints(folder, {"run": 1}, 0, {"host": "here"})
    path = kept.save(encoder, optimizer, Progress())
    assert path is not None
    path.write_bytes(changed(path.read_bytes(), how))
    ends_well(lambda: load_weights(path))
    ends_well(lambda: kept.load(encoder, optimizer))
    kept.remove()


def test_a_record_deeper_than_any_of_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"a":' * 40 + "1" + "}" * 40)
    with pytest.raises(InputError, match="inside each other"):
        read_json(path, "a record")


def test_a_cells_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    config = resolve(TREE)
    folder = make_cell(tmp_path / "results" / "tiny", config, Cell(0, "none", 8, 0), ["ground", "object"])
    record = read_json(folder / "model.json", "the record of a fine-tuned model")
    record["spec"]["cell"]["name"] = "../../out"
    write_json(folder / "model.json", record)
    with pytest.raises(InputError, match=r"spec\.cell"):
        load_cell(folder)


def test_sizes_that_a_file_only_states_get_no_memory(study: tuple[Path, Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays that unpack to more than any of ours, and a model far larger than its weights."""
    root, cell = study
    folder = layout.chain(cell)[-1].folder(root)
    monkeypatch.setattr(files, "MAX_ARRAYS", 100)
    with pytest.raises(InputError, match=r"no readable arrays \(0\.0 GB when unpacked"):
        load_arrays(layout.metrics_file(root, cell).with_suffix(".npz"), "arrays")
    for key, value in (("dim", 2**40), ("depth", 2**40), ("image_size", 2**30), ("patch_size", 0), ("heads", -1)):
        record = json.loads((folder / "model.json").read_text())
        record["spec"]["model"][key] = value
        with holding(folder / "model.json", sealed(record)):
            with pytest.raises(InputError, match="does not fit the model"):
                load_segmentation(folder / "model.json")
            with pytest.raises(InputError, match="under other settings"):
                load_cell(folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../pipe", "../../../../../../dev/zero", "", "a\0b", 3])
def test_a_file_that_a_record_names_cannot_hold_status_up(study: tuple[Path, Cell], name: Any) -> None:
    root, _ = study
    with contextlib.suppress(FileExistsError):
        os.mkfifo(root.parent / "pipe")
    path = root / layout.SUMMARY.format(stage="scorecard")
    record = json.loads(path.read_text())
    record["inputs"] = {str(name): "0" * 64, "x": name}
    record["sha256"] = seal_of(record)
    with holding(path, sealed(record)):
        ends_well(lambda: Watcher(root).look())


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself", "device"])
def test_what_is_no_file_is_refused_at_once(study: tuple[Path, Cell], kind: str) -> None:
    """In place of each file of a pack, its split and the matrices of a cell."""
    root, cell = study
    manifest = layout.pack_manifest(root, "segmentation")
    record = layout.split_record(root, "finetune", layout.subset(cell.finetune_size, cell.seed))
    confusion = layout.metrics_file(root, cell).with_suffix(".npz")
    pack = open_pack(manifest)
    for path in [*sorted(manifest.parent.iterdir()), record, record.with_suffix(".npz"), confusion]:
        aside = path.rename(root.parent / "aside")
        try:
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(path if kind == "link to itself" else "/dev/zero")
            ends_well(lambda: open_pack(manifest))
            ends_well(lambda: read_split(record, record.with_suffix(".npz"), pack))
            ends_well(lambda: read_confusion(confusion))
            ends_well(lambda: verify_study(root, None, None).summary())
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            aside.rename(path)


EVIL = "</script><script>alert(1)</script> a|b [c](javascript:d)\n\n# e"


def test_text_of_others_is_text_in_the_report_and_the_card(study: tuple[Path, Cell]) -> None:
    root, cell = study
    folder = layout.chain(cell)[-1].folder(root)
    config = json.loads((root / "study.json").read_text())["config"] | {"note": EVIL}
    record, run = (json.loads((folder / name).read_text()) for name in ("model.json", "run.json"))
    record["mask_classes"] = [EVIL, "<b>", "|"]
    record["spec"]["contrast"] = EVIL
    run |= {"device_name": EVIL, "code": EVIL, "packages": {"torch": EVIL}}
    out = root.parent / "card.safetensors"
    with (
        holding(folder / "model.json", sealed(record)),
        holding(folder / "run.json", sealed(run)),
        holding(root / "study.json", json.dumps({"config": config, "sha256": digest(config)}).encode()),
    ):
        export(load_cell(folder), "timm", out, overwrite=True)
        page = root.parent / "page.html"
        write_page(specs.report_spec(config), root=root, out=page, record=root.parent / "page.json")
    assert "<script" not in page.read_text()
    assert page.read_text().count("&lt;script&gt;") >= 2
    card = out.with_name(f"{out.name}.md").read_text()
    assert card.count(r"\</script>\<script>alert(1)") >= 4
    assert not re.search(r"(?<!\\)<(script|b>)|\]\(|^# e", card, re.MULTILINE)
    rows = [line for line in card.splitlines() if line.startswith("| ") and "alert" in line]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4]
