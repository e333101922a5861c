"""Settings: the paper's numbers as defaults, and every fault named along with what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("jsonschema")

from viny.learning.settings import ModelSettings, TrainSettings
from viny.runtime.errors import InputError
from viny.study import grid, layout, specs
from viny.study.checks import check_sizes
from viny.study.config import SCHEMA, least_pack_size, merge, resolve, typed
from viny.study.protocols import PROTOCOLS
from viny.study.reading import read_config

ROOT = Path(__file__).parents[2]


def study(**over: Any) -> dict[str, Any]:
    return {"study": "made-up", **over}


def synthetic(**over: Any) -> dict[str, Any]:
    source = {"source": "synthetic"}
    return merge(study(pretrain=source, segmentation=source, grid={"intermediates": ["none"]}), over)


# Defaults


def test_defaults_are_table_a1() -> None:
    """Optimisers, rates and schedules from the paper's Table A1; batches, masks and crops from its text and code."""
    config = resolve(study())
    stages = {
        "pretrain": config["pretrain"],
        "intermediate": config["intermediate"]["intel"],
        "finetune": config["finetune"],
    }
    assert {name: TrainSettings.of(stage) for name, stage in stages.items()} == {
        "pretrain": TrainSettings(100, 128, "adamw", 1e-4, 0.05, (50, 85), 0.1),
        "intermediate": TrainSettings(200, 64, "adam", 8e-4, 0, (180, 190), 0.1),
        "finetune": TrainSettings(100, 64, "adamw", 2e-3, 1e-4, (70, 90, 95), 0.5),
    }
    assert (config["pretrain"]["mask_ratio"], config["pretrain"]["crop_scale"]) == (0.5, 0.67)
    assert config["intermediate"]["intel"]["mixup"] == 0.1
    assert config["finetune"]["contrast"] == config["intermediate"]["intel"]["contrast"] == 0.3
    assert config["grid"]["pretrain_sizes"] == [0, 45_000, 100_000, 200_000]
    assert config["grid"]["finetune_sizes"] == [250, 500, 1000, 2000, 4000, 6000]
    assert len(config["grid"]["seeds"]) == 3
    assert (config["segmentation"]["test_size"], config["split_seed"]) == (1000, 42)
    assert len(grid.cells(config)) == 144


def test_model_defaults_agree() -> None:
    assert ModelSettings(**resolve(study())["model"]) == ModelSettings()
    schema = yaml.safe_load(SCHEMA.read_text())
    properties = schema["properties"]["model"]["properties"]
    # The architecture is not a study's to set: a start brings it.
    assert {name: node["default"] for name, node in properties.items()} | {"architecture": "viny"} == asdict(
        ModelSettings()
    )


def test_version_two_tasks() -> None:
    config = resolve(study(grid={"intermediates": ["pets_classes", "pets_spatial"]}))
    tasks = config["intermediate"]
    assert [tasks[t]["target"] for t in ("pets_classes", "pets_spatial")] == ["image", "patch"]
    assert [tasks[t]["lr"] for t in ("pets_classes", "pets_spatial")] == [1e-3, 5e-4]
    assert [tasks[t]["optimizer"] for t in ("pets_classes", "pets_spatial")] == ["adamw", "adam"]
    assert all(t["epochs"] == 20 and t["mixup"] == 0 and t["milestones"] == [] for t in tasks.values())


def described(node: dict[str, Any], root: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Every property below a schema's node, with its description or that of what it refers to."""
    for name, child in node.get("properties", {}).items():
        here = f"{path}{name}"
        target = root["$defs"][child["$ref"].rsplit("/", 1)[1]] if "$ref" in child else {}
        yield here, child.get("description", target.get("description", ""))
        yield from described(child, root, f"{here}.")


def test_every_key_is_described() -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    found = dict(described(schema, schema, ""))
    found |= dict(described(schema["$defs"]["task"], schema, "intermediate.<task>."))
    assert len(found) > 60
    assert [key for key, text in found.items() if not text.strip().endswith(".")] == []


def test_resolving_changes_nothing_it_was_given_and_can_be_repeated() -> None:
    raw = study(grid={"intermediates": ["none", "intel"]}, intermediate={"intel": {"epochs": 250}})
    before = yaml.safe_dump(raw)
    config = resolve(raw)
    assert yaml.safe_dump(raw) == before
    assert config["intermediate"]["intel"]["epochs"] == 250
    assert resolve(config) == config
    # No default is shared between two resolutions.
    config["grid"]["seeds"].append(9)
    assert resolve(study())["grid"]["seeds"] == [0, 1, 2]


def test_defaults_of_paths() -> None:
    config = resolve(study(data_root="/somewhere"))
    assert config["pretrain"]["path"] == "/somewhere/imagenet"
    assert config["intermediate"]["intel"]["path"] == "/somewhere/intel"
    assert config["segmentation"]["path"] == "/somewhere"
    own = resolve(study(data_root="/somewhere", pretrain={"path": "else/where"}))
    assert own["pretrain"]["path"] == "else/where"


def test_pack_size_keeps_the_smallest_crop_large_enough() -> None:
    for image_size, scale in ((128, 0.67), (128, 1.0), (48, 0.2)):
        size = least_pack_size(image_size, scale)
        assert size % 8 == 0
        assert scale * size**2 >= image_size**2 > scale * (size - 8) ** 2
    assert resolve(study())["pretrain"]["pack_size"] == least_pack_size(128, 0.67)
    assert resolve(study(pretrain={"pack_size": 200}))["pretrain"]["pack_size"] == 200


# Protocols


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_protocols_set_every_switch(protocol: str) -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    switches = resolve(study(protocol=protocol))["switches"]
    assert switches == PROTOCOLS[protocol]
    assert switches.keys() == schema["properties"]["switches"]["properties"].keys()
    # Whatever a protocol sets could also be asked for.
    assert resolve(study(switches=switches))["switches"] == switches


def test_protocols_differ_where_the_code_has_quirks() -> None:
    paper, sound = PROTOCOLS["paper"], PROTOCOLS["sound"]
    assert {key for key in paper if paper[key] == sound[key]} == {"class_token"}
    assert resolve(study())["protocol"] == "sound"


def test_single_switches_override() -> None:
    switches = resolve(study(protocol="paper", switches={"test_set": "fixed"}))["switches"]
    assert switches == PROTOCOLS["paper"] | {"test_set": "fixed"}
    with pytest.raises(InputError, match=r"switches\.test_set: expected one of fixed, moving, got 'still'"):
        resolve(study(switches={"test_set": "still"}))


# Faults


def test_a_task_is_like_another_but_for_what_it_says() -> None:
    own = {"intel": {"epochs": 3, "milestones": []}, "mine": {"like": "intel_mean", "mixup": 0.0}}
    names = ["intel", "intel_mean", "intel_kept", "intel_shuffled", "mine"]
    tasks = resolve(study(grid={"intermediates": ["none", *names]}, intermediate=own))["intermediate"]
    assert list(tasks) == names
    for name, other in (
        ("intel_mean", {"pooling": "mean"}),
        ("intel_kept", {"keep_class_token": True}),
        ("intel_shuffled", {"labels": "shuffled"}),
        ("mine", {"pooling": "mean", "mixup": 0.0}),
    ):
        assert tasks[name] == tasks["intel"] | other
    assert tasks["intel"]["epochs"] == 3


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, "missing key.*study"),
        (study(pretrian={}), "unknown key 'pretrian' .did you mean 'pretrain'"),
        (study(finetune={"epoch": 3}), "finetune: unknown key 'epoch' .did you mean 'epochs'"),
        (study(intermediate={"intel": {"mixpu": 0}}), "intermediate.intel: unknown key 'mixpu' .*'mixup'"),
        (study(model={"dim": "128"}), "model.dim: expected integer, got '128'"),
        (study(finetune={"epochs": 0}), "finetune.epochs: expected at least 1, got 0"),
        (study(finetune={"epochs": True}), "finetune.epochs: expected integer, got True"),
        (study(pretrain={"lr": 0}), "pretrain.lr: expected more than 0, got 0"),
        (study(pretrain={"mask_ratio": 1}), "pretrain.mask_ratio: expected less than 1, got 1"),
        (study(pretrain={"optimizer": "sgd"}), "pretrain.optimizer: expected one of adam, adamw, got 'sgd'"),
        (study(grid={"seeds": []}), "grid.seeds: expected at least 1 entry"),
        (study(grid={"seeds": [1, 1]}), "grid.seeds: expected no entry twice"),
        (study(grid={"finetune_sizes": [0]}), "grid.finetune_sizes.0: expected at least 1, got 0"),
        (study(grid=None), "grid: expected object, got None"),
        (study(protocol="papre"), "protocol: expected one of paper, sound, got 'papre'"),
        (study(model={"patch_size": 10}), "model.patch_size: 10 does not divide model.image_size, 128"),
        (study(finetune={"epochs": 95}), "finetune.milestones: 95 is not before the last epoch .*94"),
        (study(pretrain={"epochs": 1, "milestones": [1]}), "pretrain.milestones: 1 is not before"),
        (study(intermediate={"intel": {"epochs": 180}}), "intermediate.intel.milestones: 180"),
        (study(grid={"intermediates": ["intle"]}), "no task is called 'intle' .did you mean 'intel'"),
        (study(pretrain={"mask_ratio": 0.01}), "pretrain.mask_ratio: 0.01 masks none of the 64 patches"),
        (study(pretrain={"pack_size": 100}), "pretrain.pack_size: 100 is less than model.image_size, 128"),
        (study(intermediate={"intel": {"target": "patch"}}), "intel.target: 'patch' needs masks"),
        (
            study(grid={"intermediates": ["pets_spatial"]}, intermediate={"pets_spatial": {"mixup": 0.1}}),
            "pets_spatial.mixup: only for target image",
        ),
        (
            study(grid={"intermediates": ["pets_spatial"]}, intermediate={"pets_spatial": {"pooling": "mean"}}),
            "pets_spatial.pooling: only for target image",
        ),
        (
            study(grid={"intermediates": ["intel_mean"]}, intermediate={"intel_mean": {"keep_class_token": True}}),
            "intel_mean.keep_class_token: under pooling mean no class token is trained",
        ),
        (
            study(grid={"intermediates": ["mine"]}, intermediate={"mine": {"like": "intle"}}),
            "intermediate.mine.like: no task is called 'intle' .did you mean 'intel'",
        ),
        (
            study(grid={"intermediates": ["a"]}, intermediate={"a": {"like": "b"}, "b": {"like": "a"}}),
            "intermediate.b.like: 'a' is like itself .a like b like a.",
        ),
    ],
)
def test_faults_are_named(raw: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        resolve(raw)


def test_all_faults_of_a_file_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        resolve(study(model={"dim": "x"}, finetune={"epochs": 0}))
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["finetune.epochs", "model.dim"]


def test_milestones_of_all_stages_tasks_and_variants_that_come_too_late_are_told_at_once() -> None:
    raw = study(
        finetune={"epochs": 20},
        pretrain={"epochs": 1},
        intermediate={"intel": {"epochs": 10}},
        model={"patch_size": 10},
        grid={"variants": ["study", "long", "short", "wide"]},
        variants={
            "long": {"finetune": {"epochs": 200}, "pretrain": {"epochs": 200}, "model": {"patch_size": 16}},
            "short": {"pretrain": {"epochs": 40}},
            "wide": {"model": {"patch_size": 7}},
        },
    )
    with pytest.raises(InputError) as caught:
        resolve(raw)
    said = dict(line.split(": ", 1) for line in str(caught.value).splitlines() if not line.startswith("variants."))
    assert list(said) == [
        "model.patch_size",
        "pretrain.milestones",
        "finetune.milestones",
        "intermediate.intel.milestones",
    ]
    assert (
        said["finetune.milestones"].startswith("70, 90, 95 are not before")
        and "[13, 17, 18]" in said["finetune.milestones"]
    )
    assert said["pretrain.milestones"].endswith("use [] for none")
    of_variants = [line for line in str(caught.value).splitlines() if line.startswith("variants.")]
    assert [line.partition(" ")[0] for line in of_variants] == ["variants.short:", "variants.wide:"]
    assert "pretrain.milestones: 50, 85 are" in of_variants[0] and "patch_size: 7" in of_variants[1]


@pytest.mark.parametrize(("epochs", "milestones"), [(20, [70, 90, 95]), (2, [1, 9]), (50, [50]), (7, [6, 8, 99])])
def test_the_milestones_that_are_proposed_fit(epochs: int, milestones: list[int]) -> None:
    with pytest.raises(InputError, match=r"finetune\.milestones") as caught:
        resolve(study(finetune={"epochs": epochs, "milestones": milestones}))
    for proposed in re.findall(r"\[[\d, ]*\]", str(caught.value)):
        assert resolve(study(finetune={"epochs": epochs, "milestones": json.loads(proposed)}))


@pytest.mark.parametrize("name", ["../escape", "a/b", "..", ".", "", "-x", "a b", "a\n", "é", "x" * 65])
def test_study_names_cannot_leave_the_results(name: str) -> None:
    with pytest.raises(InputError, match="study: expected"):
        resolve({"study": name})


@pytest.mark.parametrize("name", ["../escape", "a/b", "a-b", "a.b", "1a", "a\n"])
def test_task_names_cannot_leave_the_results(name: str) -> None:
    task = {name: {"source": "synthetic"}}
    with pytest.raises(InputError):
        resolve(study(grid={"intermediates": [name]}, intermediate=task))


@pytest.mark.parametrize("name", ["pretrain", "segmentation"])
def test_a_task_may_not_be_called_as_another_pack(name: str) -> None:
    """Packs are known by role or task, so such a task would learn from the other role's images."""
    task = {name: {"source": "synthetic"}}
    with pytest.raises(InputError, match=name):
        resolve(study(grid={"intermediates": [name]}, intermediate=task))


@pytest.mark.parametrize(
    "over",
    [
        {"finetune": {"epochs": 100.0}},
        {"grid": {"finetune_sizes": [250.0]}},
        {"pretrain": {"lr": float("nan")}},
        {"pretrain": {"lr": float("inf")}},
    ],
)
def test_numbers_that_training_cannot_use_are_refused(over: dict[str, Any]) -> None:
    # JSON Schema takes 100.0 for an integer, and no bound holds against NaN.
    with pytest.raises(InputError):
        resolve(study(**over))


def test_synthetic_images_have_a_least_size() -> None:
    assert resolve(synthetic(model={"image_size": 16, "patch_size": 4}))
    with pytest.raises(InputError, match="image_size"):
        resolve(synthetic(model={"image_size": 12, "patch_size": 4}))


def test_study_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    with pytest.raises(InputError, match=r"study\.yaml: no such"):
        read_config(path)
    for text, expected in (("a: [", "not valid YAML"), ("- a", "expected a mapping"), ("", "NoneType")):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"study\.yaml: .*{expected}"):
            read_config(path)
    path.write_bytes(b"study: \xff")
    with pytest.raises(InputError, match="not valid YAML"):
        read_config(path)


def test_merge_goes_into_mappings_only() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    over = {"a": {"y": [3]}, "c": {"z": 0}}
    assert merge(base, over) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": {"z": 0}}
    assert merge(base, over, {"a": {"x": 4}}) == {"a": {"x": 4, "y": [3]}, "b": 1, "c": {"z": 0}}
    assert merge() == {}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 1}


# Sizes


def test_sizes_are_held_against_the_data() -> None:
    config = resolve(study())
    check_sizes(config, {"pretrain": 200_000, "segmentation": 7000})
    check_sizes(config, {})  # nothing known, nothing refused
    with pytest.raises(InputError, match=r"grid\.pretrain_sizes: 200000 .*imagenet.* 199999 images"):
        check_sizes(config, {"pretrain": 199_999})
    with pytest.raises(InputError, match=r"grid\.finetune_sizes: 6000 .* 6999 labelled images less .*1000, leave 5999"):
        check_sizes(config, {"segmentation": 6999})


# The repository's own


STUDIES = [ROOT / "config.yaml", *sorted((ROOT / "studies").glob("*.yaml")), ROOT / "tests" / "tiny.yaml"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_studies_of_the_repository_resolve(path: Path) -> None:
    config = resolve(read_config(path))
    assert grid.cells(config)
    names = [section["source"] for section in (config["pretrain"], config["segmentation"])]
    if names == ["synthetic", "synthetic"]:
        made = config["synthetic"]
        check_sizes(config, {"pretrain": made["unlabelled"], "segmentation": made["segmentation"]})


def test_study_names_of_the_repository_differ() -> None:
    names = [read_config(path)["study"] for path in STUDIES]
    assert len(set(names)) == len(names)


def test_paper_study_is_all_default() -> None:
    config = resolve(read_config(ROOT / "studies" / "paper.yaml"))
    assert config == resolve({"study": config["study"], "note": config["note"]})
    assert resolve(read_config(ROOT / "studies" / "paper_baseline.yaml"))["switches"] == PROTOCOLS["paper"]


# Cells


def test_cells_have_names_of_their_own() -> None:
    config = resolve(study())
    found = grid.cells(config)
    assert len({cell.name for cell in found}) == len(found)
    assert found[0].name == "pre-0_mid-none_fine-250_seed-0"


def test_specs_hold_what_matters_and_no_more() -> None:
    """A change to one stage's settings must not touch what another stage's weights depend on."""
    base, other = resolve(study()), resolve(study(finetune={"lr": 1e-3}, note="else"))
    cell = grid.cells(base)[-1]
    assert specs.pretrain_spec(base, 45_000, 0) == specs.pretrain_spec(other, 45_000, 0)
    assert specs.intermediate_spec(base, "intel", 0, 0) == specs.intermediate_spec(other, "intel", 0, 0)
    assert specs.finetune_spec(base, cell) != specs.finetune_spec(other, cell)


def test_only_tasks_on_the_same_images_are_on_the_segmentation_data() -> None:
    config = resolve(study(grid={"intermediates": ["intel", "pets_classes", "pets_spatial"]}))
    found = {name: specs.on_segmentation_data(config, name) for name in config["intermediate"]}
    assert found == {"intel": False, "pets_classes": True, "pets_spatial": True}


def test_training_folders_are_each_named_once(tmp_path: Path) -> None:
    config = resolve(read_config(ROOT / "tests" / "tiny.yaml"))
    folders = [training.folder(tmp_path) for training in layout.trainings(grid.cells(config))]
    # 2 seeds x (1 pre-training, 2 intermediates) and 16 cells.
    assert len(folders) == len(set(folders)) == 2 * (1 + 2) + 16
    assert layout.reference_of(grid.Encoder("random", 0, "none", 0, 0)) is None


@pytest.mark.parametrize(
    ("switches", "tasks", "key"),
    [
        ({"subsets": "per_seed"}, ["none"], "switches.subsets"),
        ({"pets_pool": "training"}, ["none", "pets_spatial"], "switches.pets_pool"),
    ],
)
def test_switches_that_a_moving_test_set_rules_out_are_refused(switches: dict, tasks: list, key: str) -> None:
    raw = {"study": "x", "protocol": "paper", "grid": {"intermediates": tasks}, "switches": switches}
    with pytest.raises(InputError, match=key):
        resolve(raw)


def test_a_rate_that_yaml_takes_for_text_is_explained(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("study: x\nfinetune: {lr: 1e-3}\n")
    with pytest.raises(InputError, match=r"write 1\.0e-3"):
        resolve(read_config(study))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"grid": {"seeds": ["3", "4"]}}, {"grid": {"seeds": [3, 4]}}),
        ({"finetune": {"lr": "0.5", "epochs": "2"}}, {"finetune": {"lr": 0.5, "epochs": 2}}),
        ({"switches": {"augment_test": "true"}}, {"switches": {"augment_test": True}}),
        (
            {"segmentation": {"classes": {"1": "12"}}},
            {"segmentation": {"classes": {"1": "12"}}},
        ),
        ({"segmentation": {"ignore": ["7", "#ff0000"]}}, {"segmentation": {"ignore": [7, "#ff0000"]}}),
        ({"segmentation": {"images": "2024", "split": "1.5"}}, {"segmentation": {"images": "2024", "split": "1.5"}}),
        ({"intermediate": {"mine": {"mixup": "0.2"}}}, {"intermediate": {"mine": {"mixup": 0.2}}}),
        ({"study": "2026", "split_seed": 3}, {"study": "2026", "split_seed": 3}),
        ({"grid": {"seeds": ["x", "2026-02-31", "1: [", ""]}}, {"grid": {"seeds": ["x", "2026-02-31", "1: [", ""]}}),
        ({"unknown": {"a": "3"}, "grid": "3"}, {"unknown": {"a": "3"}, "grid": "3"}),
    ],
)
def test_texts_become_what_the_schema_expects(given: dict, expected: dict) -> None:
    assert typed(given) == expected


def test_a_name_that_looks_like_a_number_is_told_to_be_quoted() -> None:
    with pytest.raises(InputError, match=r'study: expected string, got 2026\. .*needs quotes: "2026"'):
        resolve({"study": 2026})
