"""Arms: which trainings they share, what settings may say of them, and that a study without any is as it was."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json, digest
from viny.study import arms, grid, layout, specs
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.graph import Job, jobs
from viny.study.grid import Arm, Cell, Encoder
from viny.study.inventory import check_starts, count_images
from viny.study.layout import Training
from viny.study.reading import read_config

ROOT = Path(__file__).parents[2]
ARMS = ROOT / "tests" / "arms.yaml"
WITHOUT = Path(__file__).with_name("without_arms.json")  # digests of before a study could have arms
RAW = read_config(ARMS)
CONFIG = resolve(RAW)


def study(*changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The study of tests/arms.yaml with changes, and without some of its sections."""
    raw = {key: value for key, value in copy.deepcopy(RAW).items() if key not in without}
    for change in changes:
        raw = merge(raw, change)
    return raw


def small(**changes: Any) -> dict[str, Any]:
    """The same study without any arms but those given."""
    axes = {key: value for key, value in RAW["grid"].items() if key not in ("starts", "variants")}
    return merge({**study(without=("starts", "variants")), "grid": axes}, changes)


def all_jobs(config: dict[str, Any]) -> list[Job]:
    return jobs(config, count_images(config, Path("nowhere")))


def folders(config: dict[str, Any], arm: Arm, at: tuple[int, str, int, int]) -> list[str]:
    return [str(one.folder(Path())) for one in layout.chain(grid.places(config)[arm, *at])]


# Studies without arms


@pytest.mark.parametrize("name", json.loads(WITHOUT.read_text()))
def test_a_study_without_arms_is_as_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings, and each job's settings, inputs and outputs, byte for byte; references off, which came later."""
    monkeypatch.chdir(tmp_path)
    config = resolve({**read_config(ROOT / name), "references": False})
    told = [
        [job.label, sorted(map(str, job.outputs)), sorted(map(list, job.needs)), dict(job.spec)]
        for job in all_jobs(config)
    ]
    config.pop("references")
    found = {"settings": digest(config), "jobs": digest(sorted(told, key=lambda one: one[0]))}
    assert found == json.loads(WITHOUT.read_text())[name]


@pytest.mark.parametrize("axes", [{"starts": ["random"]}, {"variants": ["study"]}])
def test_the_only_arm_there_is_may_be_named(axes: dict[str, list[str]]) -> None:
    assert resolve(small(grid=axes)) == resolve(small())
    assert grid.arms(resolve(small(grid=axes))) == [grid.BASE]


def test_arms_that_no_grid_names_change_nothing() -> None:
    given = {"starts": RAW["starts"], "variants": RAW["variants"]}
    assert resolve(small(**given)) == resolve(small())


# Sharing


def test_arms_share_what_they_do_not_change() -> None:
    at = (12, "scenes", 8, 0)
    usual = folders(CONFIG, Arm(), at)
    assert usual == [
        "pretrain/size-12_seed-0",
        "intermediate/scenes/size-12_seed-0",
        "finetune/pre-12_mid-scenes_fine-8_seed-0",
    ]
    assert folders(CONFIG, Arm(variant="tuned"), at) == [*usual[:2], f"{usual[2]}_variant-tuned"]
    for variant in ("small", "target", "equal_steps"):
        assert folders(CONFIG, Arm(variant=variant), at) == [f"{one}_variant-{variant}" for one in usual]
    assert folders(CONFIG, Arm(variant="chained"), at) == [
        usual[0],
        "intermediate/spatial/size-12_seed-0",
        "intermediate/scenes/size-12_seed-0_variant-chained",
        "finetune/pre-12_mid-scenes_fine-8_seed-0_variant-chained",
    ]
    assert folders(CONFIG, Arm("tiny", "tuned"), at) == [
        "pretrain/size-12_seed-0_start-tiny",
        "intermediate/scenes/size-12_seed-0_start-tiny",
        "finetune/pre-12_mid-scenes_fine-8_seed-0_start-tiny_variant-tuned",
    ]


def test_where_a_variant_changes_nothing_its_cell_is_an_earlier_arm_s() -> None:
    places = grid.places(CONFIG)
    # Without pre-training, and at the size that equal steps are measured by.
    for size, own in ((0, False), (12, True), (24, False)):
        for task in ("none", "scenes"):
            cell = places[Arm(variant="equal_steps"), size, task, 8, 0]
            assert (cell.variant == "equal_steps") == own
    assert not any(cell.variant == "target" for (*_, size, _, _, _), cell in places.items() if size == 0)
    assert len(set(grid.cells(CONFIG))) == len(grid.cells(CONFIG)) < len(places)


def test_a_schedule_that_two_variants_have_at_different_sizes_is_not_shared() -> None:
    long = {"pretrain": {"epochs": 6, "milestones": [3]}}  # as equal steps are with half of the images
    config = resolve(small(grid={"variants": ["study", "equal_steps", "long"]}, variants={"long": long}))
    check_arms_of(config)
    for size, owner in ((12, "equal_steps"), (24, "long")):
        training = layout.chain(grid.places(config)[Arm(variant="long"), size, "none", 8, 0])[0]
        spec = specs.training_spec(config, training)["train"]
        assert (training.arm.variant, spec["epochs"], spec["milestones"]) == (owner, 6, [3])


def test_tasks_of_the_same_settings_are_told_apart() -> None:
    twin = {"again": {"like": "scenes", "after": "spatial"}}
    variants = {"chained": {"intermediate": {"scenes": {"after": "spatial"}}}}
    axes = {"intermediates": ["again", "scenes"], "variants": ["study", "chained"]}
    config = resolve(small(grid=axes, intermediate=twin, variants=variants))
    check_arms_of(config)
    for task in ("again", "scenes"):
        *_, before, last, _ = layout.chain(grid.places(config)[Arm(variant="chained"), 12, task, 8, 0])
        assert (before.pack, last.pack) == ("spatial", task)


def test_a_rate_is_chosen_by_all_seeds_of_its_arm() -> None:
    tune = {"tune": {"lr": [0.001, 0.01]}}
    variants = {"few": tune | {"grid": {"seeds": [1]}}, "many": tune | {"pretrain": {"budget": "steps"}}}
    config = resolve(small(grid={"variants": ["few", "many"]}, variants=variants))
    places = grid.places(config)
    groups = grid.by_group(grid.cells(config))
    for variant, seeds in (("few", {1}), ("many", {0, 1})):
        for seed in seeds:
            cell = places[Arm(variant=variant), 0, "none", 8, seed]
            assert {one.seed for one in groups[cell.group]} == seeds


def asked(config: dict[str, Any], training: Training, arm: Arm) -> str:
    """What a training is asked to do in an arm, whoever it is called after."""
    if isinstance(training.key, Cell):
        spec = specs.finetune_spec(config, training.key)
    elif training.stage == "pretrain":
        spec = specs.pretrain_spec(config, training.cell["pretrain_size"], training.cell["seed"], arm)
    else:
        spec = specs.intermediate_spec(config, training.pack, 0, training.cell["seed"], arm)
    return canonical_json({key: value for key, value in spec.items() if key != "cell"})


def check_arms_of(config: dict[str, Any]) -> None:
    """What must hold for every study with arms."""
    found = grid.cells(config)
    places = grid.places(config)
    assert set(found) == set(places.values()) and len({cell.name for cell in found}) == len(found)
    assert grid.cells({"grid": json.loads(json.dumps(config["grid"]))}) == found  # as a record has it
    made = layout.trainings(found)
    assert len({one.folder(Path()) for one in made}) == len(made)
    for (arm, *at), cell in places.items():
        assert (cell.start, cell.pretrain_size, cell.intermediate, cell.finetune_size, cell.seed) == (arm.start, *at)
        assert Cell.parse(cell.name) == Cell.of(cell.as_dict()) == cell
        mine = specs.finetune_spec(config, Cell(*at, arm.start, arm.variant))
        theirs = specs.finetune_spec(config, cell)
        assert {**mine, "cell": None} == {**theirs, "cell": None}
        for training in layout.chain(cell)[:-1]:  # what an encoder is called after is as the cell would have it
            assert asked(config, training, arm) == asked(config, training, training.arm)
            name = layout.pack_of_split(*training.split)
            assert name == training.pack
            if training.stage == "pretrain":
                own = arms.settings_of(config, arm)["pretrain"]
                packed = arms.settings_of(config, arms.pretrain_packs(config)[name])["pretrain"]
                assert all(own[key] == packed[key] for key in ("source", "path", "pack_size"))
    # Nothing is trained twice: no two of a start differ in their names alone.
    told = Counter((one.arm.start, one.cell["seed"], line(config, one)) for one in made)
    assert max(told.values()) == 1
    all_of_them = all_jobs(config)
    written = Counter(output for job in all_of_them for output in job.outputs)
    assert max(written.values()) == 1
    keys: set[Any] = set()
    for job in all_of_them:
        assert keys.issuperset(job.needs), job.label
        keys.add(job.key)
    for encoder in grid.encoders(config):
        assert Encoder.of(encoder.as_dict()) == encoder


def line(config: dict[str, Any], training: Training) -> str:
    """What a training and all those before it are asked to do, on which images."""
    before = line(config, training.parent) if training.parent else ""
    if isinstance(training.key, Cell):
        spec = specs.finetune_spec(config, training.key)
    else:
        spec = specs.training_spec(config, training)
    own = canonical_json({key: value for key, value in spec.items() if key != "cell"})
    return f"{before} {training.stage} {training.pack} {training.split} {own}"


def test_a_study_with_every_kind_of_arm_is_sound() -> None:
    check_arms_of(CONFIG)


@pytest.mark.parametrize("path", ["starts", "equal_steps"])
def test_the_studies_of_arms_are_sound(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_arms_of(resolve(read_config(ROOT / "studies" / f"{path}.yaml")))


@pytest.mark.parametrize("path", [ARMS, *(ROOT / "studies" / f"{name}.yaml" for name in ("starts", "equal_steps"))])
def test_resolved_settings_resolve_to_themselves(path: Path) -> None:
    once = resolve(read_config(path))
    again = resolve(once)
    assert canonical_json(again) == canonical_json(once)
    assert canonical_json(resolve(json.loads(json.dumps(once)))) == canonical_json(once)


def test_generated_arms_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hypothesis", reason="generated settings need hypothesis, see envs/test.txt")
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    monkeypatch.chdir(tmp_path)
    differences = st.lists(st.sampled_from(DIFFERENCES), max_size=2)
    limits = st.fixed_dictionaries(
        {},
        optional={
            "starts": st.sampled_from([["random"], ["tiny"], ["random", "tiny"]]),
            "pretrain_sizes": st.sampled_from([[0], [24], [12, 24]]),
            "intermediates": st.sampled_from([["none"], ["scenes"]]),
            "seeds": st.just([1]),
        },
    )
    names = st.sampled_from(["a", "b_start", "variant", "Z9_fine_8"])
    drawn = st.dictionaries(names, st.tuples(differences, limits), max_size=3)
    starts = st.sampled_from([["random"], ["random", "tiny"], ["own", "random"]])

    @settings(max_examples=40, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(drawn, starts, st.booleans())
    def check(variants: dict[str, Any], of: list[str], equal_steps: bool) -> None:
        described = {}
        for name, (some, axes) in variants.items():
            described[name] = {"grid": axes} if axes else {}
            for one in some:
                described[name] = merge(described[name], one)
        axes = {"variants": ["study", *variants, *(["equal_steps"] if equal_steps else [])], "starts": of}
        known = {"tiny": RAW["starts"]["tiny"], "own": {"file": "own.pth"}}
        try:
            config = resolve(small(grid=axes, starts=known, variants=described))
        except InputError as error:
            assert str(error).startswith(("variants.", "grid."))
            return
        check_arms_of(config)
        assert canonical_json(resolve(config)) == canonical_json(config)

    check()


DIFFERENCES: list[dict[str, Any]] = [
    {"tune": {"lr": [0.001, 0.01], "share": 0.5}},
    {"finetune": {"encoder": "frozen"}},
    {"finetune": {"epochs": 2}},
    {"pretrain": {"budget": "steps"}},
    {"pretrain": {"epochs": 3, "milestones": [1]}},
    {"pretrain": {"source": "segmentation"}},
    {"pretrain": {"crop_scale": 0.3}},
    {"model": {"depth": 1}},
    {"switches": {"class_token": "always"}},
    {"switches": {"augmentation": "frozen"}},
    {"intermediate": {"scenes": {"after": "spatial"}}},
    {"intermediate": {"scenes": {"images": 5}}},
    {"intermediate": {"spatial": {"epochs": 2}}},
]


# Starts


def test_a_start_brings_its_model_and_the_variant_the_rest() -> None:
    tiny = arms.settings_of(CONFIG, Arm("tiny", "tuned"))
    assert (tiny["model"]["architecture"], tiny["model"]["dim"], tiny["model"]["image_size"]) == ("timm", 192, 32)
    assert tiny["tune"]["lr"] == [0.001, 0.002, 0.004] and "tune" not in arms.settings_of(CONFIG, Arm("tiny"))
    assert arms.settings_of(CONFIG, Arm()) == CONFIG
    assert arms.settings_of(CONFIG, Arm(variant="small"))["model"] == {**CONFIG["model"], "depth": 1}


def test_what_has_weights_is_the_parent_of_what_is_trained_first() -> None:
    root = Path("r")
    places = grid.places(CONFIG)
    for start, size, origin in (
        ("tiny", 12, "r/starts/tiny/encoder.json"),
        ("tiny", 0, "r/starts/tiny/encoder.json"),
        ("tiny_random", 0, None),
        ("random", 12, None),
    ):
        first, *others = layout.chain(places[Arm(start), size, "scenes", 8, 0])
        assert first.origin(root, "record") == (Path(origin) if origin else None)
        assert [one.origin(root, "record") for one in others] == [
            first.file(root, "record"),
            *(one.file(root, "record") for one in others[:-1]),
        ]
    starts = [job for job in all_jobs(CONFIG) if job.stage == "start"]
    assert [(job.name, job.spec["timm"]) for job in starts] == [("tiny", "vit_tiny_patch16_224.augreg_in21k")]
    assert layout.published(grid.cells(CONFIG)) == ["tiny"]


def test_encoders_are_measured_against_their_own_start() -> None:
    of = {one.name: one for one in grid.encoders(CONFIG)}
    one = of["intermediate_pre-12_mid-scenes_seed-0_start-tiny"]
    assert layout.reference_of(one).name == "size-12_seed-0_start-tiny"
    start = of["random_pre-0_mid-none_seed-0_start-tiny"]
    assert layout.made_of(start, layout.training_of(start), Path(), "record") == Path("starts/tiny/encoder.json")
    drawn = of["random_pre-0_mid-none_seed-0_start-tiny_random"]
    assert layout.made_of(drawn, layout.training_of(drawn), Path(), "record") is None


# Schedules


@pytest.mark.parametrize("batch", [8, 7, 64])
@pytest.mark.parametrize("sizes", [[0, 12, 24], [100, 350, 1001], [4000, 12000, 35000]])
def test_equal_steps_are_equal_to_half_an_epoch(batch: int, sizes: list[int]) -> None:
    config = {
        "pretrain": {"budget": "steps", "epochs": 40, "milestones": [20, 34], "batch_size": batch},
        "grid": {"pretrain_sizes": sizes},
    }
    wanted = 40 * math.ceil(max(sizes) / batch)
    for size in filter(None, sizes):
        epochs, milestones = arms.schedule(config, size)
        a_epoch = math.ceil(size / batch)
        assert abs(epochs * a_epoch - wanted) <= a_epoch / 2
        assert milestones == sorted(set(milestones)) and all(0 < one < epochs for one in milestones)
        for share, milestone in zip((20 / 40, 34 / 40), milestones, strict=True):
            assert abs(milestone / epochs - share) <= 0.5 / epochs + 1e-9
    assert arms.schedule(config, max(sizes)) == (40, [20, 34])


def test_equal_steps_of_few_epochs_keep_one_and_milestones_that_are_left() -> None:
    config = {
        "pretrain": {"budget": "steps", "epochs": 2, "milestones": [1], "batch_size": 1},
        "grid": {"pretrain_sizes": [10, 19]},
    }
    assert arms.schedule(config, 19) == (2, [1]) and arms.schedule(config, 10) == (4, [2])
    config["pretrain"] |= {"epochs": 1, "milestones": []}
    assert arms.schedule(config, 10) == (2, [])


def test_equal_epochs_are_the_study_s() -> None:
    assert arms.schedule(CONFIG, 12) == (CONFIG["pretrain"]["epochs"], CONFIG["pretrain"]["milestones"])


# Tasks in a chain, of fewer images; limits


def test_a_chain_of_three_tasks_is_trained_in_its_order() -> None:
    first = {"source": "synthetic", "epochs": 1, "milestones": [], "batch_size": 8}
    tasks = {"scenes": {"after": "spatial"}, "spatial": {"after": "first"}, "first": first}
    config = resolve(small(intermediate=tasks))
    chain = layout.chain(grid.places(config)[Arm(), 12, "scenes", 8, 0])
    assert [one.pack for one in chain] == ["pretrain", "first", "spatial", "scenes", "segmentation"]
    assert [one.parent.pack for one in chain[1:]] == ["pretrain", "first", "spatial", "scenes"]
    assert chain[2].split == ("intermediate", "spatial-10") and chain[1].split == ("intermediate", "first")
    assert layout.task_of_subset("spatial-10") == ("spatial", 10) and layout.task_of_subset("first") == ("first", None)
    check_arms_of(config)


def test_images_of_a_task_are_its_split_s() -> None:
    config = resolve(
        small(grid={"variants": ["study", "few"]}, variants={"few": {"intermediate": {"scenes": {"images": 5}}}})
    )
    few, all_of_them = (
        layout.chain(grid.places(config)[Arm(variant=name), 0, "scenes", 8, 0])[0] for name in ("few", "study")
    )
    assert few.split == ("intermediate", "scenes-5") and all_of_them.split == ("intermediate", "scenes")
    assert specs.split_spec(config, *few.split)["size"] == 5
    assert "size" not in specs.split_spec(config, *all_of_them.split)


def test_limits_leave_out_what_they_do_not_name() -> None:
    places = grid.places(CONFIG)
    at = {arm: {key[1:] for key in places if key[0] == arm} for arm in grid.arms(CONFIG)}
    assert {(size, task) for size, task, *_ in at[Arm("tiny", "frozen")]} == {(0, "none"), (0, "scenes")}
    assert {task for _, task, *_ in at[Arm(variant="chained")]} == {"scenes"}
    assert Arm("tiny", "small") not in at and Arm("tiny_random", "tuned") not in at
    assert {size for size, *_ in at[Arm("tiny_random")]} == {0}
    assert len(at[Arm("tiny", "tuned")]) == 3 * 2 * 2 * 2
    assert next(iter(at)) == grid.BASE and grid.base_cells(CONFIG) == grid.cells(CONFIG)[:24]


# Names


def test_names_of_cells_and_subsets_lead_back_to_them() -> None:
    pytest.importorskip("hypothesis", reason="generated settings need hypothesis, see envs/test.txt")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    name = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True)
    number = st.integers(0, 10**7)

    @settings(max_examples=200, derandomize=True, database=None, deadline=None)
    @given(number, name, number, number, name, name)
    def check(size: int, task: str, labels: int, seed: int, start: str, variant: str) -> None:
        cell = Cell(size, task, labels, seed, start, variant)
        assert Cell.parse(cell.name) == cell and Cell.of(cell.as_dict()) == cell
        assert layout.parse_subset(layout.subset(size, seed, variant)) == (size, seed, variant)
        assert layout.pack_of_split("pretrain", layout.subset(size, seed, variant)) == grid.pretrain_pack(variant)
        assert layout.task_of_subset(layout.task_subset(task, labels)) == (task, labels)

    check()


# What is refused


TUNE = {"lr": [0.001, 0.002]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"starts": ["random", "tny"]}}, "grid.starts: none is called 'tny' (did you mean 'tiny'?)"),
        (
            {"grid": {"variants": ["study", "frozne"]}},
            "grid.variants: none is called 'frozne' (did you mean 'frozen'?)",
        ),
        ({"grid": {"starts": []}}, "grid.starts: expected at least 1 entry"),
        ({"grid": {"variants": ["tuned", "tuned"]}}, "grid.variants: expected no entry twice"),
        ({"starts": {"random": {"file": "a.pth"}}}, "starts.random: this name is taken"),
        ({"variants": {"study": {}}}, "variants.study: this name is taken"),
        ({"starts": {"both": {"timm": "vit_tiny_patch16_224", "file": "a.pth"}}}, "starts.both"),
        ({"starts": {"tiny": {"weights": "a.pth", "file": "b.pth"}}}, "starts.tiny: expected one of its forms, got"),
        ({"starts": {"tiny": {"file": "b.pth"}}}, "starts.tiny: expected one of its forms, got"),
        ({"starts": {"none": {}}}, "One start: timm, with weights or without, or file alone."),
        (
            {"starts": {"tiny": {"timm": "vit_huge_patch14_224"}}},
            "starts.tiny: timm: 'vit_huge_patch14_224' is not known",
        ),
        ({"model": {"image_size": 40}}, "starts.tiny: model.image_size: 40; expected a multiple of 16"),
        (
            {"pretrain": {"mask_ratio": 0.2}},
            "pretrain.mask_ratio: 0.2 masks none of the 4 patches of starts.tiny; use a larger model.image_size",
        ),
        (
            {"variants": {"small": {"model": {"image_size": 64}}}},
            "variants.small.model.image_size: is one for all arms",
        ),
        ({"variants": {"small": {"model": {"depth": 0}}}}, "variants.small.model.depth"),
        ({"variants": {"small": {"model": {"dept": 1}}}}, "did you mean 'depth'?"),
        (
            {"variants": {"small": {"grid": {"starts": ["random", "tiny"]}}}},
            "variants.small.model: start 'tiny' brings its own",
        ),
        ({"variants": {"tuned": {"switches": {"test_set": "moving"}}}}, "variants.tuned"),
        (
            {"variants": {"tuned": {"switches": {"miou": "per_image"}}}},
            "variants.tuned.switches.miou: is one for all arms",
        ),
        (
            {"variants": {"tuned": {"pretrain": {"held_out": 4}}}},
            "variants.tuned.pretrain.held_out: is one for all arms",
        ),
        (
            {"variants": {"tuned": {"pretrain": {"milestones": [4]}}}},
            "variants.tuned: pretrain.milestones: 4 is not before",
        ),
        (
            {"variants": {"tuned": {"intermediate": {"scenes": {"source": "intel"}}}}},
            "variants.tuned.intermediate.scenes.source: is one for all arms",
        ),
        ({"variants": {"tuned": {"segmentation": {}}}}, "variants.tuned: unknown key 'segmentation'"),
        ({"variants": {"tuned": {"grid": {"seeds": [0, 5]}}}}, "variants.tuned.grid.seeds: 5 is not in grid.seeds"),
        (
            {"variants": {"tuned": {"grid": {"starts": ["own"]}}}},
            "variants.tuned.grid.starts: own is not in grid.starts",
        ),
        (
            {"starts": {"tiny": {"grid": {"variants": ["other"]}}}},
            "starts.tiny.grid.variants: other is not in grid.variants",
        ),
        (
            {"variants": {"frozen": {"grid": {"starts": ["tiny_random"]}}}},
            "grid.variants: 'frozen' is in no arm",
        ),
        (
            {"starts": {"tiny_random": {"grid": {"variants": ["small"]}}}},
            "grid.starts: 'tiny_random' is in no arm",
        ),
        ({"tune": {"lr": [0.001]}}, "tune.lr: expected at least 2 entries"),
        ({"tune": {**TUNE, "share": 0}}, "tune.share: expected more than 0"),
        ({"tune": {**TUNE, "validation": 0.1}}, "tune.validation: 0.1 of 8 labels leaves no validation image"),
        ({"variants": {"tuned": {"tune": {"validation": 0.1}}}}, "variants.tuned: tune.validation: 0.1 of 8 labels"),
        (
            {"intermediate": {"scenes": {"after": "spatial"}, "spatial": {"after": "scenes"}}},
            "after: its tasks come after each other in a circle",
        ),
        ({"intermediate": {"scenes": {"after": "scenes"}}}, "intermediate.scenes.after"),
        ({"intermediate": {"scenes": {"after": "spatail"}}}, "intermediate.scenes.after: no task is called 'spatail'"),
        ({"intermediate": {"scenes": {"images": 0}}}, "intermediate.scenes.images: expected at least 1"),
        ({"pretrain": {"budget": "images"}}, "pretrain.budget: expected one of epochs, steps"),
        ({"finetune": {"encoder": "fixed"}}, "finetune.encoder: expected one of trained, frozen"),
        (
            {"protocol": "paper", "pretrain": {"source": "segmentation"}},
            "pretrain.source: 'segmentation' needs switches.test_set: fixed",
        ),
    ],
)
def test_nonsense_is_refused_with_its_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        resolve(study(changes))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"pretrain": {"held_out": 20}},
            "grid.pretrain_sizes: 24, with pretrain.held_out: 20, is larger than the data",
        ),
        ({"intermediate": {"scenes": {"images": 39}}}, "intermediate.scenes.images: 39 is more than the"),
        (
            {"variants": {"few": {"intermediate": {"scenes": {"images": 39}}}}, "grid": {"variants": ["study", "few"]}},
            "variants.few.intermediate.scenes.images: 39",
        ),
    ],
)
def test_more_images_than_there_are_are_refused(changes: dict[str, Any], words: str) -> None:
    config = resolve(small(**changes))
    with pytest.raises(InputError) as refused:
        check_sizes(config, count_images(config, Path("nowhere")).limits)
    assert words in str(refused.value)


def test_sizes_are_held_against_the_images_that_an_arm_has() -> None:
    few = {"pretrain": {"source": "segmentation"}, "grid": {"pretrain_sizes": [0, 12]}}
    axes = {"variants": ["study", "few"]}
    limits = {"pretrain": 40, "pretrain_variant-few": 20, "segmentation": 60}
    check_sizes(resolve(small(grid=axes, variants={"few": few})), limits)
    with pytest.raises(InputError, match=r"grid\.pretrain_sizes: 24"):
        check_sizes(resolve(small(grid=axes, variants={"few": {"pretrain": few["pretrain"]}})), limits)


def test_a_variant_need_not_fit_label_sizes_that_it_leaves_out() -> None:
    tuned = {"tune": {"lr": [0.001, 0.01], "validation": 0.1}, "grid": {"finetune_sizes": [16]}}
    assert grid.arms(resolve(small(grid={"variants": ["study", "tuned"]}, variants={"tuned": tuned})))


def test_a_variant_limited_to_sizes_that_its_images_allow_is_not_refused() -> None:
    def check(**limits: list[int]) -> None:
        target = {"pretrain": {"source": "segmentation"}, "grid": limits}
        axes = {"variants": ["study", "target"], "pretrain_sizes": [0, 12, 24], "finetune_sizes": [4]}
        config = resolve(small(grid=axes, variants={"target": target}, segmentation={"test_size": 34}))
        check_sizes(config, count_images(config, Path("nowhere")).limits)  # 60 labelled images, 26 of them to train on

    check(pretrain_sizes=[0, 12])
    with pytest.raises(InputError) as refused:
        check()
    assert str(refused.value).endswith(
        "variants.target.grid.pretrain_sizes: [0, 12] keeps the variant to sizes that fit"
    )


# `viny check`


def write(folder: Path, raw: dict[str, Any]) -> str:
    path = folder / "study.yaml"
    path.write_text(json.dumps(raw))
    return str(path)


def test_check_tells_arms_and_what_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", str(ARMS)]) == 0
    out = capsys.readouterr().out
    assert "10 arms; the others are compared with random:" in out
    assert "\n  random, equal_steps: 24 cells, 16 of them an earlier arm's, as nothing differs\n" in out
    assert "\n  tiny, tuned: 24 cells\n" in out
    assert "start tiny: a run downloads the weights of timm's vit_tiny_patch16_224.augreg_in21k" in out
    assert "starts.tiny.weights" in out and "tiny_random:" not in out.split("10 arms")[0]
    assert out.endswith(f"arms: {len(grid.cells(CONFIG))} cells, 20 test images, protocol sound; no faults found\n")
    (tmp_path / "tiny.bin").touch()
    given = study({"starts": {"tiny": {"weights": "tiny.bin"}}})
    assert main(["check", write(tmp_path, given)]) == 0
    assert "start tiny: weights in tiny.bin" in capsys.readouterr().out


def test_weights_that_are_not_there_are_missed_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, small(grid={"starts": ["random", "own"]}, starts={"own": {"file": "gone.pth"}}))
    for command in (["check", path], ["plan", path, "--rate", "100"]):
        assert main(command) == 2
        assert "starts.own.file: gone.pth: no such file" in capsys.readouterr().err
    # Once they were read, the study has them.
    record = tmp_path / "results" / "arms" / "starts" / "own" / "encoder.json"
    record.parent.mkdir(parents=True)
    record.touch()
    check_starts(resolve(read_config(path)), tmp_path / "results" / "arms")
    # A start that no cell begins from is not asked for.
    check_starts(resolve(small(starts={"own": {"file": "gone.pth"}})), tmp_path)


def test_a_check_says_nothing_of_arms_where_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", write(tmp_path, small())]) == 0
    said = capsys.readouterr().out
    assert (
        said.endswith("\narms: 24 cells, 20 test images, protocol sound; no faults found\n") and " arms; " not in said
    )


def test_what_is_said_of_a_study_s_training_is_of_its_first_arm() -> None:
    long = {"pretrain": {"epochs": 6}, "finetune": {"contrast": 0.1}}
    config = resolve(small(grid={"variants": ["long", "study"]}, variants={"long": long}))
    figures = specs.figures_spec(config)
    assert figures["pipeline"]["pretrain"]["epochs"] == 6
    assert figures["tested"]["contrast"] == 0.1 and specs.scorecard_spec(config)["epochs"]["pretrain"] == 6
    assert specs.tables_spec(config)["training"]["pretrain"]["epochs"] == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"starts": ["tiny"]}}, "grid.starts begins with tiny"),
        ({"grid": {"starts": ["tiny"]}}, "model.architecture is timm, the paper's viny"),
        ({"grid": {"variants": ["frozen"]}}, "finetune.encoder is frozen, the paper's trained"),
        ({"grid": {"variants": ["equal_steps"]}}, "pretrain.budget is steps, the paper's epochs"),
        ({"tune": {"lr": [0.001, 0.002]}}, "tune.lr is [0.001, 0.002]"),
        ({"intermediate": {"intel": {"images": 500}}}, "intermediate.intel.images is 500, the paper's all"),
    ],
)
def test_a_first_arm_that_is_not_the_paper_s_is_not_compared_with_it(changes: dict[str, Any], words: str) -> None:
    paper = {"study": "paper", "protocol": "paper", "starts": {"tiny": RAW["starts"]["tiny"]}}
    assert specs.scorecard_spec(resolve(paper))["differences"]["A3"] == []
    found = specs.scorecard_spec(resolve(merge(paper, changes)))["differences"]["A3"]
    assert any(one.startswith(words) for one in found)


def test_other_arms_do_not_set_the_first_apart_from_the_paper() -> None:
    grid_of = {"starts": ["random", "tiny"], "variants": ["study", "frozen"]}
    paper = {"study": "paper", "protocol": "paper", "starts": {"tiny": RAW["starts"]["tiny"]}, "grid": grid_of}
    assert specs.scorecard_spec(resolve(paper))["differences"]["A3"] == []
