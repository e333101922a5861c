"""Settings that nobody would write on purpose: they resolve to something sound, or are refused with a message."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("jsonschema")
pytest.importorskip("hypothesis", reason="generated settings need hypothesis, see envs/test.txt")

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json
from viny.study import grid, layout, specs
from viny.study.checks import MAX_CELLS
from viny.study.config import resolve
from viny.study.reading import MAX_ENTRIES, read_config

ROOT = Path(__file__).parents[2]
STUDIES = [
    ROOT / "config.yaml",
    *sorted((ROOT / "studies").glob("*.yaml")),
    *(ROOT / "tests" / f"{name}.yaml" for name in ("tiny", "arms")),
]
TEXTS = [path.read_text(encoding="utf-8") for path in STUDIES]
# As written, and with every possible key, so that each of them gets mutated.
TREES = [tree for path in STUDIES for tree in (read_config(path), resolve(read_config(path)))]
GENERATED = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=60_000,  # milliseconds: a hang, not a busy machine
    suppress_health_check=list(HealthCheck),
)


def sound(read: Callable[[], Any]) -> bool:
    """Whether settings resolve; if they do, checks what the workflow takes for granted.

    Any exception other than an InputError with a message is raised.
    """
    try:
        config = resolve(read())
    except InputError as error:
        assert str(error).strip()
        return False
    axes = config["grid"]
    found = grid.cells(config)
    assert 0 < len(found) <= MAX_CELLS
    picked = found[:: max(1, len(found) // 20)]
    root = Path("results") / config["study"]
    paths = [training.folder(root) for training in layout.trainings(picked)]
    paths += [layout.metrics_file(root, cell) for cell in picked]
    paths += [root / "packs" / name for name in config["intermediate"]]
    for path in paths:
        assert os.path.normpath(path) == str(path)
        assert path.parts[:2] == ("results", config["study"])
        assert max(len(part.encode()) for part in path.parts) < 200
    assert all(grid.Cell.parse(cell.name) == cell for cell in picked)  # as the workflow's wildcard has it

    made = [specs.pack_spec(config, name) for name in ("pretrain", "segmentation", *config["intermediate"])]
    made += [specs.task_split_spec(config, task) for task in config["intermediate"]]
    made += [specs.tables_spec(config), specs.figures_spec(config)]
    made += [cell.as_dict() for cell in grid.shown_cells(config)]
    for cell in picked:
        made += [make(config, cell) for make in (specs.finetune_spec, specs.evaluate_spec)]
        made.append(specs.finetune_split_spec(config, cell.finetune_size, cell.seed))
    for seed in axes["seeds"][:3]:
        made.append(specs.pretrain_split_spec(config, max(axes["pretrain_sizes"]), seed))
        made.append(specs.pretrain_spec(config, max(axes["pretrain_sizes"]), seed))
        made += [specs.intermediate_spec(config, task, 0, seed) for task in config["intermediate"]]
    for spec in made:
        text = canonical_json(spec)
        assert json.loads(text) == spec
        assert canonical_json(json.loads(text)) == text
        text.encode()
    assert resolve(config) == config  # what study.json holds can be read back
    return True


# Values in trees


def nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def bomb() -> Any:
    """About ten thousand million values in a few objects."""
    value: Any = "x"
    for _ in range(10):
        value = [value] * 10
    return value


def recursive() -> Any:
    value: dict[str, Any] = {}
    value["epochs"] = value
    return value


NAMES = ["../x", "/abs", "$(x)", ";", "a\nb", "a b", "", ".", "..", "-x", "é", "a" * 300, "none", "pretrain", "scenes"]
NAMES += ["\x00", "\u202e", "\ud800", "x'; rm -rf ~ #", "`x`", "%s", "{wildcards.x}", "~", "🙂", "con", "İ"]
NUMBERS = [0, -1, 1, 2, 7, 0.5, -0.0, 1e-320, 1e300, 2**53, 2**53 + 1, 2**63, -(2**64), 10**10_000, True]
NUMBERS += [float("nan"), float("inf"), -float("inf"), 16.0]
LISTS = [[], [[]], [None], ["none", "none"], [0, 0], list(range(400)), list(range(1, MAX_ENTRIES + 2)), [1, "a"]]
OTHERS = [None, {}, {"source": "synthetic"}, {1: 2}, {None: 1}, {("a",): 1}, {10**5000: 1}, b"x", {1, 2}, object()]
VALUES = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NUMBERS),
    st.sampled_from(LISTS),
    st.sampled_from(OTHERS),
    st.sampled_from([lambda: nested(5), lambda: nested(5000), bomb, recursive]),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
KINDS = st.sampled_from(["delete", "rename", "replace", "nest", "add", "wrap"])
MUTATIONS = st.lists(st.tuples(st.integers(0, 10_000), KINDS, VALUES), min_size=1, max_size=4)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in a tree's own mappings and lists; what mutations put in is left alone."""
    found, todo = [], [tree]
    while todo and len(found) < 500:
        holder = todo.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list) and len(found) < 500:
                todo.append(holder[key])
    return found


def mutated(tree: dict[str, Any], mutations: list[tuple[int, str, Any]]) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    for which, kind, value in mutations:
        value = value() if callable(value) else value
        spots = places(tree)
        if not spots:
            break
        holder, key = spots[which % len(spots)]
        text = value if isinstance(value, str) else "x"
        if kind == "delete":
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict):
            holder[text] = holder.pop(key)
        elif kind == "nest":
            holder[key] = {text: holder[key]}
        elif kind == "wrap":
            holder[key] = [holder[key], value]
        elif kind == "add" and isinstance(holder[key], dict):
            holder[key][text] = value
        elif kind == "add" and isinstance(holder[key], list):
            holder[key].append(value)
        else:
            holder[key] = value
    return tree


@GENERATED
@given(st.sampled_from(TREES), MUTATIONS)
def test_mutated_settings_resolve_or_are_refused(tree: dict[str, Any], mutations: list[tuple[int, str, Any]]) -> None:
    raw = mutated(tree, mutations)
    sound(lambda: raw)


@GENERATED
@given(st.sampled_from(NAMES) | st.text(max_size=8), st.sampled_from(NAMES) | st.text(max_size=8))
def test_names_never_leave_the_results(study: str, task: str) -> None:
    source = {"source": "synthetic"}
    raw = {"study": study, "pretrain": source, "segmentation": source, "intermediate": {task: source}}
    sound(lambda: {**raw, "grid": {"intermediates": [task, "none"]}})
    sound(lambda: {**raw, "study": "x", "grid": {"intermediates": [task, "none"]}})
    sound(lambda: {**raw, "intermediate": {}, "grid": {"intermediates": ["none"]}, "pack_store": task, "note": task})


@GENERATED
@given(st.sampled_from([("pretrain", "lr"), ("model", "image_size"), ("synthetic", "seed"), ("finetune", "gamma")]),
       st.floats() | st.integers() | st.sampled_from(NUMBERS))  # fmt: skip
def test_numbers_of_any_size_resolve_or_are_refused(place: tuple[str, str], value: Any) -> None:
    section, key = place
    sound(lambda: {"study": "x", section: {key: value}})


@pytest.mark.parametrize("raw", [[], [{"study": "x"}], "study", None, 3, recursive(), bomb(), {"study": bomb()}])
def test_what_is_no_study_at_all_is_refused(raw: Any) -> None:
    assert not sound(lambda: raw)


def test_the_generators_reach_both_outcomes() -> None:
    """Settings with one unlikely value are usually refused; those of the repository are not."""
    assert all(sound(lambda tree=tree: tree) for tree in TREES)
    outcomes = {sound(lambda n=n: mutated(TREES[0], [(n, "replace", 1)])) for n in range(60)}
    assert outcomes == {True, False}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"seeds": list(range(400)), "finetune_sizes": list(range(1, 401))}, r"grid: 1,280,000 cells; .* 100,000"),
        ({"seeds": list(range(1001))}, r"grid\.seeds: 1,001 entries; expected at most 1,000"),
        ({"seeds": [2**63]}, r"grid\.seeds\.0: expected a number of at most 2\*\*53"),
    ],
)
def test_absurd_grids_are_refused(grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve({"study": "x", "grid": grid})


def test_a_crop_that_needs_absurd_images_is_refused() -> None:
    with pytest.raises(InputError, match=r"pretrain\.pack_size: .* larger crop_scale"):
        resolve({"study": "x", "pretrain": {"crop_scale": 1e-320}})


def test_half_a_character_is_refused_before_it_meets_a_table() -> None:
    with pytest.raises(InputError, match="note: holds half a character"):
        resolve({"study": "x", "note": "\ud800"})


# Text


PIECES = [
    "&a ",
    "*a",
    "<<: *a\n",
    "\t",
    "!!int ",
    "!!timestamp x",
    "!!bool maybe",
    "!!set {a}",
    '"',
    "'",
    "{",
    "[",
    "]",
]
PIECES += [
    "\n",
    "  ",
    "- ",
    ": ",
    "? ",
    "#",
    "|",
    ">",
    "---\n",
    "...\n",
    "%YAML 3.0\n",
    "\x00",
    "\ufeff",
    "\u2028",
    "é",
]
PIECES += ["9" * 5000, "[" * 2000, "{a: " * 2000, "0x" + "f" * 5000, "2026-13-45", ".nan", ".inf", "1e400", "12:61:61"]
PIECES += ["!!python/object/apply:os.system [ls]", "!!binary x", "study: y\n", "a: &a [*a]\n", "&study study: x\n"]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "repeat line", "indent", "swap"]),
        st.integers(0, 5000),
        st.integers(1, 40),
        st.sampled_from(PIECES),
    ),
    min_size=1,
    max_size=4,
)


def edited(text: str, edits: list[tuple[str, int, int, str]]) -> str:
    for kind, where, length, piece in edits:
        at = where % (len(text) + 1)
        lines = text.splitlines(keepends=True) or [""]
        line = where % len(lines)
        if kind == "insert":
            text = text[:at] + piece + text[at:]
        elif kind == "delete":
            text = text[:at] + text[at + length :]
        elif kind == "repeat line":
            text = "".join([*lines[: line + 1], *lines[line:]])
        elif kind == "indent":
            text = "".join([*lines[:line], " " * (length % 5) + lines[line], *lines[line + 1 :]])
        else:
            other = length % len(lines)
            lines[line], lines[other] = lines[other], lines[line]
            text = "".join(lines)
    return text


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text") / "study.yaml"


@GENERATED
@given(st.sampled_from(TEXTS), EDITS)
@example("study: x\nstudy: y\n", [("insert", 0, 1, "\ufeff")])
def test_mutated_text_resolves_or_is_refused(file: Path, text: str, edits: list[tuple[str, int, int, str]]) -> None:
    file.write_text(edited(text, edits), encoding="utf-8")
    sound(lambda: read_config(file))


@GENERATED
@given(st.binary(max_size=200))
def test_bytes_resolve_or_are_refused(file: Path, data: bytes) -> None:
    file.write_bytes(b"study: x\n" + data)
    sound(lambda: read_config(file))


def aliases(line: str, levels: int = 12) -> str:
    """YAML that grows nine times with each level; `line` joins the nine."""
    out = "a0: &a0 {epochs: 3}\n"
    return out + "".join(f"a{i}: &a{i} {line.format(', '.join([f'*a{i - 1}'] * 9))}\n" for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: x\nstudy: y\n", "the key 'study' is given twice"),
        ("study: x\nfinetune: {lr: 0.1, lr: 0.2}\n", "the key 'lr' is given twice"),
        ("study: x\nfinetune: {'lr': 0.1, lr: 0.2}\n", "the key 'lr' is given twice"),
        ("study: x\nnote: " + "9" * 10_000, "not valid YAML"),
        ("study: x\nsplit_seed: 0x" + "f" * 10_000, r"split_seed: expected a number of at most 2\*\*53"),
        ("study: x\n" + aliases("[{}]"), "more than 10,000 values, counting aliases"),
        ("study: x\n" + aliases("{{<<: [{}]}}"), "unknown key 'a0'"),
        ("study: x\nfinetune: &a {epochs: *a}", "more than 16 mappings and lists"),
        ("study: x\nfinetune: &a {<<: *a}\n", None),
        ("- study: x\n", "expected a mapping of keys to values, got list"),
        ("study: 2026-11-21\n", "study: expected text.* got date; put text in quotes"),
        ("study: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("study: x\nnote: " + "x" * 200_000, r"note: 200,000 characters; expected at most 2,000"),
        ("study: x\n1: 2\n", "unknown key '1'"),
        ("study: x\n1.5: 2\n", r"1\.5: expected text as a key, got float"),
    ],
)
def test_faults_of_text_are_named(file: Path, text: str, message: str | None) -> None:
    file.write_text(text, encoding="utf-8")
    if message is None:
        assert sound(lambda: read_config(file))
        return
    with pytest.raises(InputError, match=message):
        resolve(read_config(file))


def test_merged_mappings_may_be_overridden(file: Path) -> None:
    file.write_text(
        "study: x\nfinetune: &f {epochs: 99, lr: 0.1}\npretrain: {<<: *f, lr: 0.2, milestones: []}\n", encoding="utf-8"
    )
    read = read_config(file)
    assert read["pretrain"] == {"epochs": 99, "lr": 0.2, "milestones": []}
    assert read == yaml.safe_load(file.read_text(encoding="utf-8"))
    assert sound(lambda: read)


def test_sections_that_an_alias_makes_one_keep_their_own_defaults(file: Path) -> None:
    file.write_text("study: x\npretrain: &a {epochs: 99, milestones: []}\nfinetune: *a\n", encoding="utf-8")
    config = resolve(read_config(file))
    assert config == resolve(
        {
            "study": "x",
            "pretrain": {"epochs": 99, "milestones": []},
            "finetune": {"epochs": 99, "milestones": []},
        }
    )
    assert config["finetune"]["lr"] != config["pretrain"]["lr"]


@pytest.mark.parametrize("path", [ROOT, Path("\x00"), ROOT / "README.md"], ids=["folder", "nul", "markdown"])
def test_what_cannot_be_read_is_refused(path: Path) -> None:
    with pytest.raises(InputError):
        read_config(path)
