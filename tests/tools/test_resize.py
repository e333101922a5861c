"""Sizes for a time: what fits, what is cut first, and that nothing else of a study file changes."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("jsonschema")
pytest.importorskip("hypothesis", reason="generated studies need hypothesis, see envs/test.txt")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from viny.cli import main
from viny.runtime.errors import InputError
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.grid import cells
from viny.study.inventory import count_images
from viny.study.reading import parse_config, read_config
from viny.study.saved import write_study
from viny.study.unanswered import PRETRAINING, unanswered
from viny.tools.forecast.plan import plan
from viny.tools.forecast.throughput import Step, Throughput
from viny.tools.newstudy.edit import edited, nested
from viny.tools.newstudy.machine import Machine
from viny.tools.newstudy.resize import LONGER, fitted, resized

ROOT = Path(__file__).parents[2]
STUDIES = [ROOT / "config.yaml", ROOT / "examples" / "own_data.yaml", ROOT / "tests" / "arms.yaml"]
STUDIES += [ROOT / "studies" / f"{name}.yaml" for name in ("mini", "starts", "equal_steps")]
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in STUDIES}
SIZES = {"pretrain_sizes", "finetune_sizes", "seeds", "epochs", "milestones"}
RATE = 100.0  # ViNy images per second of a job
NOWHERE = Path("nowhere")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU and with two cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)


def machine(raw: dict[str, Any]) -> Machine:
    config = resolve(raw)
    made = Machine(count_images(config, NOWHERE), RATE)
    made.learn(config)
    return made


def cheap(config: dict[str, Any]) -> float:
    """Hours by a rule of thumb, in no time."""
    grid = config["grid"]
    passes = sum(grid["pretrain_sizes"]) * config["pretrain"]["epochs"]
    passes += sum(1e4 * task["epochs"] for task in config["intermediate"].values())
    passes += sum(grid["finetune_sizes"]) * config["finetune"]["epochs"] * len(grid["pretrain_sizes"])
    return (4 * len(cells(config)) + len(grid["seeds"]) * passes / 1000) / 3600


def comments(text: str) -> list[str]:
    """All comments, by what stands behind the first # that begins a word."""
    return sorted(found[1] for line in text.splitlines() if (found := re.search(r"(?:^|\s)(#.*)$", line)))


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, (*path, str(name))).items()}


# What fits


def test_a_study_s_hours_are_those_of_viny_plan(tmp_path: Path) -> None:
    raw = parse_config(TEXTS["arms"])
    planned = plan(resolve(raw), tmp_path, tmp_path / "packs", rate=RATE)
    assert machine(raw).hours(resolve(raw)) == pytest.approx(planned["wall_clock"]["hours"])


@settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(TEXTS)),
    minutes=st.floats(1, 3000),
    labels=st.integers(1, 5),
    seeds=st.integers(1, 6),
    epochs=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_any_study_fits_its_minutes_and_changes_in_its_sizes_alone(
    name: str, minutes: float, labels: int, seeds: int, epochs: tuple[int, int]
) -> None:
    raw = parse_config(TEXTS[name])
    given = {
        ("grid", "seeds"): list(range(seeds)),
        ("pretrain", "epochs"): epochs[0],
        ("pretrain", "milestones"): [epochs[0] // 2] if epochs[0] > 1 else [],
        ("finetune", "epochs"): epochs[1],
        ("finetune", "milestones"): [],
    }
    if "starts" not in raw and "variants" not in raw:
        given[("grid", "finetune_sizes")] = [10 * 2**at for at in range(labels)]
    text = edited(TEXTS[name], given)
    raw = parse_config(text)
    assert raw == merge(parse_config(TEXTS[name]), nested(given))
    images = count_images(resolve(raw), NOWHERE)
    try:
        before, fit = resized(raw, images, cheap, minutes)
    except InputError as error:
        assert "too short" in str(error)
        assert cheap(resolve(raw)) > minutes / 60
        return
    new = edited(text, fit.changes)
    assert comments(new) == comments(text)
    after = resolve(parse_config(new))
    check_sizes(after, images.limits)
    assert cheap(after) == pytest.approx(fit.hours) and fit.hours <= minutes / 60
    one, other = leaves(raw), leaves(parse_config(new))
    differ = {key for key in {*one, *other} if one.get(key) != other.get(key)}
    assert {key[-1] for key in differ} <= SIZES
    if not fit.changes:
        assert fit.hours == before


def test_the_time_is_used_and_milestones_keep_their_shares() -> None:
    raw = parse_config(TEXTS["config"])
    made = machine(raw)
    for minutes in (6, 20, 110):
        fit = fitted(raw, made.images, made.hours, minutes)
        assert fit is not None and 0.9 * minutes <= 60 * fit.hours <= minutes
        config = resolve(merge(raw, nested(fit.changes)))
        for section, shares in (("pretrain", (0.8, 0.92)), ("finetune", (0.7, 0.9))):
            epochs = config[section]["epochs"]
            assert config[section]["milestones"] == pytest.approx([share * epochs for share in shares], abs=1)


def test_what_answers_take_is_cut_in_the_documented_order() -> None:
    raw = merge(parse_config(TEXTS["config"]), {"grid": {"pretrain_sizes": [0, 2000, 4000]}})
    made = machine(raw)
    seen = []
    for minutes in (2000, 50, 18, 9, 6, 4, 2.5):
        fit = fitted(raw, made.images, made.hours, minutes)
        assert fit is not None
        config = resolve(merge(raw, nested(fit.changes)))
        grid = config["grid"]
        seen.append(
            (
                len(grid["seeds"]) > 3,
                len(grid["pretrain_sizes"]),
                config["pretrain"]["epochs"] * 125,
                len(grid["finetune_sizes"]),
            )
        )
    for column in (0, 1, 3):  # pre-training may be longer again with fewer label sizes
        assert [one[column] for one in seen] == sorted((one[column] for one in seen), reverse=True)
    assert seen[0][0] and seen[1][1:] >= (3, 10_000, 4) and not seen[1][0]
    assert seen[-1][1] == 2 and seen[-1][2] < 10_000 and seen[-1][3] < 4


def test_a_study_that_fits_and_uses_the_time_stays() -> None:
    raw = parse_config(TEXTS["config"])
    made = machine(raw)
    hours = made.hours(resolve(raw))
    assert resized(raw, made.images, made.hours, 62 * hours)[1].changes == {}


def test_time_that_no_training_can_use_is_not_wasted_on_one() -> None:
    raw = parse_config(TEXTS["config"])
    made = machine(raw)
    fit = fitted(raw, made.images, made.hours, 1e6)
    config = resolve(merge(raw, nested(fit.changes)))
    assert len(config["grid"]["seeds"]) == 10 and config["pretrain"]["epochs"] * 63 <= 1.1 * LONGER * 10_000
    assert unanswered(config, made.images) == []


# The text


def test_values_are_edited_wherever_they_stand() -> None:
    text = (
        "# top\nstudy: x # name\n\n"
        "grid:\n  seeds: # which\n    - 0 # the first\n    - 1\n    # between\n    - 2 # the last\n"
        "  finetune_sizes: [10, # few\n    20, 40] # many\nfinetune: {lr: 0.1, epochs: 7} # f\n\n# the end\n"
    )
    changes: dict[tuple[str, ...], Any] = {
        ("grid", "seeds"): [0, 1],
        ("grid", "finetune_sizes"): [10, 20, 40, 80],
        ("grid", "pretrain_sizes"): [0],
        ("finetune", "milestones"): [1],
        ("finetune", "epochs"): 5,
        ("pretrain", "epochs"): 3,
        ("variants", "a", "finetune", "epochs"): 2,
    }
    new = edited(text, changes)
    assert yaml.safe_load(new) == merge(yaml.safe_load(text), nested(changes))
    assert comments(new) == comments(text)
    longer = edited(new, {("grid", "seeds"): [0, 1, 2, 3]})
    assert yaml.safe_load(longer)["grid"]["seeds"] == [0, 1, 2, 3] and comments(longer) == comments(text)


def test_json_is_edited_too() -> None:
    text = json.dumps({"study": "x", "finetune": {"epochs": 4}})
    assert json.loads(edited(text, {("finetune", "epochs"): 5, ("grid", "seeds"): [1]})) == {
        "study": "x",
        "finetune": {"epochs": 5},
        "grid": {"seeds": [1]},
    }


@pytest.mark.parametrize(
    "text",
    [
        "study: x\npretrain: &a {epochs: 9}\nfinetune: *a\n",
        "study: x\npretrain:\n  &a\n  epochs: &e 9\nfinetune: {epochs: *e}\n",
        "study: x\nfinetune: &a {epochs: 9}\npretrain: {<<: *a, lr: 0.1}\n",
    ],
)
def test_shared_sections_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InputError, match=r"by hand: finetune\.epochs: 5"):
        edited(text, {("finetune", "epochs"): 5})


def test_a_merged_section_gets_a_value_of_its_own() -> None:
    text = "study: x\npretrain: &a {epochs: 9}\nfinetune: {<<: *a, lr: 0.1} # f\n"
    assert yaml.safe_load(edited(text, {("finetune", "epochs"): 5}))["finetune"]["epochs"] == 5


# The commands


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of images, masks and unlabelled images."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for folder in ("images", "masks", "more"):
        Path(folder).mkdir()
    for at in range(120):
        pixels = Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8))
        pixels.save(Path("images", f"{at}.png"))
        mask = np.zeros((64, 64), np.uint8)
        mask[: 8 + at % 40, 8:50] = 255
        Image.fromarray(mask).save(Path("masks", f"{at}.png"))
    Path("more", "0.png").write_bytes(Path("images", "0.png").read_bytes())
    for at in range(1, 500):
        Path("more", f"{at}.png").symlink_to("0.png")
    return tmp_path


FOLDERS = ("--images", "images", "--masks", "masks", "--unlabelled", "more")


def forecast(path: str) -> float:
    """Minutes."""
    raw = read_config(path)
    return 60 * machine(raw).hours(resolve(raw))


def test_init_writes_a_study_for_the_minutes_and_resize_another(own: Path, capsys: Any) -> None:
    study = "studies/mine.yaml"
    sizes = {}
    for minutes in (4, 60, 600):
        flags = ("--minutes", str(minutes), "--rate", str(RATE), "--force")
        assert main(["init", "mine", *FOLDERS, *flags]) == 0
        said = capsys.readouterr().out
        assert f"Sized for {minutes} minutes" in said
        config = resolve(read_config(study))
        assert 0.9 * minutes <= forecast(study) <= minutes
        sizes[minutes] = config["model"]["image_size"], config["pretrain"]["epochs"]
        assert (PRETRAINING in said) == (minutes == 4)
        text = Path(study).read_text(encoding="utf-8")
        assert (f"# {PRETRAINING}" in text) == (minutes == 4)
        for section, size in (("pretrain", "pretrain_sizes"), ("finetune", "finetune_sizes")):
            images, epochs = max(config["grid"][size]), config[section]["epochs"]
            steps = epochs * -(-images // config[section]["batch_size"])
            assert f"epochs: {epochs} # {steps:,} steps with {images:,} images" in text
    assert sizes[4][0] < sizes[600][0]
    assert main(["resize", study, "--minutes", "60", "--rate", str(RATE)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"pretrain\.epochs: \d+ -> \d+", said) and "What it held before: studies/mine.yaml.bak" in said
    assert Path("studies/mine.yaml.bak").read_text(encoding="utf-8") == text
    assert forecast(study) <= 60
    new = Path(study).read_text(encoding="utf-8")
    config = resolve(read_config(study))
    assert f"# {len(config['grid']['seeds']) * 4 * len(config['grid']['pretrain_sizes'])} cells; about" in new
    assert "resized for 60 minutes" in new
    assert main(["resize", study, "--minutes", "60", "--rate", str(RATE)]) == 0
    assert "stay as they are" in capsys.readouterr().out and not Path("studies/mine.yaml.bak2").exists()


def test_a_change_is_written_into_the_file_that_its_results_are_of(own: Path, capsys: Any) -> None:
    assert main(["init", "mine", *FOLDERS, "--minutes", "60", "--rate", str(RATE)]) == 0
    before = read_config("studies/mine.yaml")
    write_study(Path("results/mine"), resolve(before))
    flags = [
        "--set",
        "finetune.epochs=77",
        "--set",
        "finetune.milestones=[54, 69]",
        "--set",
        "grid.seeds=[0, 1]",
        "--set",
        "segmentation.test_size=46",
    ]
    assert main(["plan", "results/mine", *flags, "--rate", str(RATE)]) == 0
    command = capsys.readouterr().out.strip().splitlines()[-1].partition("To write this into its file: viny ")[2]
    assert main([*shlex.split(command), "--rate", str(RATE)]) == 0
    said = capsys.readouterr().out
    assert "finetune.epochs: " in said and " -> 77" in said and "results/mine: what was trained" in said
    after = read_config("studies/mine.yaml")
    expected = merge(
        before,
        {
            "finetune": {"epochs": 77, "milestones": [54, 69]},
            "grid": {"seeds": [0, 1]},
            "segmentation": {"test_size": 46},
        },
    )
    assert after == expected and Path("studies/mine.yaml.bak").is_file()
    assert f"# {len(after['grid']['pretrain_sizes']) * 4 * 2} cells" in Path("studies/mine.yaml").read_text()
    # What check would refuse is refused, and nothing is written; so is a name that two files have.
    assert main(["resize", "results/mine", "--set", "segmentation.test_size=100"]) == 2
    assert (
        "segmentation.test_size, 100, leave 20" in capsys.readouterr().err
        and read_config("studies/mine.yaml") == expected
    )
    shutil.copy("studies/mine.yaml", "studies/other.yaml")
    assert main(["resize", "results/mine", "--set", "finetune.epochs=78"]) == 2
    assert "studies/mine.yaml and studies/other.yaml" in capsys.readouterr().err


def test_the_time_that_is_lacking_settles_the_questions_that_it_says(own: Path, capsys: Any) -> None:
    def open_questions(said: str) -> list[str]:
        return re.findall(r"^(\S.*\?)  ", said, re.MULTILINE)

    assert main(["init", "mine", *FOLDERS, "--minutes", "4", "--rate", str(RATE)]) == 0
    said = capsys.readouterr().out
    before = open_questions(said)
    which, count, command = re.search(
        r"Only time is lacking for questions? (.*) of these (\d+): viny (resize .*)", said
    ).groups()
    settled = [before[int(place) - 1] for place in re.findall(r"\d+", which)]
    assert int(count) == len(before) > len(settled) > 0
    assert main([*command.split(), "--rate", str(RATE)]) == 0
    said = capsys.readouterr().out
    assert open_questions(said) == [question for question in before if question not in settled]
    assert "Only time is lacking" not in said


def test_what_was_there_is_never_lost(own: Path, capsys: Any) -> None:
    (own / "results" / "demo").mkdir(parents=True)
    (own / "results" / "demo" / "study.json").write_text("{}")
    text = TEXTS["config"].replace("\n", "\r\n")
    study = own / "demo.yaml"
    study.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (own / "demo.yaml.bak").write_text("mine")
    assert main(["resize", "demo.yaml", "--minutes", "20", "--rate", str(RATE)]) == 0
    assert "results/demo: what was trained with other sizes is out of date" in capsys.readouterr().out
    assert (own / "demo.yaml.bak").read_text() == "mine"
    assert (own / "demo.yaml.bak2").read_bytes() == b"\xef\xbb\xbf" + text.encode()
    new = study.read_bytes()
    assert new.startswith(b"\xef\xbb\xbf") and b"\r\n" in new and b"\n" not in new.replace(b"\r\n", b"")
    assert forecast("demo.yaml") <= 20


def test_too_short_a_time_is_refused_with_the_least(own: Path, capsys: Any) -> None:
    assert main(["init", "mine", *FOLDERS, "--minutes", "0.5", "--rate", str(RATE)]) == 2
    said = capsys.readouterr().err
    least = int(re.search(r"the least takes about (\d+) minutes", said)[1])
    assert not Path("studies").exists()
    assert main(["init", "mine", *FOLDERS, "--minutes", str(least), "--rate", str(RATE)]) == 0


def test_what_was_measured_is_not_measured_again_for_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def measure(steps: list[Step], *_: Any) -> Throughput:
        asked.append([step.name for step in steps])
        return Throughput({step.name: 100.0 for step in steps}, 1.0, 1.0)

    monkeypatch.setattr("viny.tools.forecast.throughput.measure", measure)
    raw = read_config(Path(__file__).parents[1] / "tiny.yaml")
    config = resolve(raw)
    made = Machine(count_images(config, NOWHERE), None, tmp_path)
    made.learn(config)
    assert len(asked) == 1 and made.rates.images
    made.learn(resolve(merge(raw, {"finetune": {"epochs": 30}, "pretrain": {"epochs": 30}})))
    assert len(asked) == 1  # longer trainings are as fast
    made.learn(resolve(merge(raw, {"model": {"depth": 4}})))
    assert len(asked) == 2
