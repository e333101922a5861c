"""Geometry of patch tokens: metrics against second implementations and known cases, files, tables, correlations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from tiny_study import Study

from viny.data.augment import labelled_images
from viny.data.pack import Pack, open_pack
from viny.data.splits import write_split
from viny.evidence import geometry, token_metrics
from viny.evidence.statistics import representations
from viny.evidence.statistics.crossed import Runs
from viny.evidence.tables import paired_differences
from viny.learning.settings import ModelSettings
from viny.learning.weights import new_encoder
from viny.runtime.errors import InputError
from viny.study import grid, specs
from viny.study.grid import Cell

MADE = 1e-9  # what float64 leaves between two ways of computing the same thing


@pytest.fixture
def tokens() -> np.ndarray:
    """[5, 16, 6], correlated between images, patches and dimensions."""
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(5, 16, 6)) @ rng.normal(size=(6, 6))
    return mixed + rng.normal(size=(5, 1, 6)) + rng.normal(size=(1, 16, 1)) + 3


def on_grid(side: int, value: Callable[[int, int], float]) -> np.ndarray:
    """[1, side * side, 1]."""
    return np.array([value(r, c) for r in range(side) for c in range(side)], float).reshape(1, -1, 1)


# Metrics


def test_variances_are_those_of_loops_and_add_up(tokens: np.ndarray) -> None:
    n, _, dims = tokens.shape
    within = np.mean([np.var(tokens[i, :, d]) for i in range(n) for d in range(dims)])
    across = np.mean([np.var([tokens[i, :, d].mean() for i in range(n)]) for d in range(dims)])
    assert token_metrics.within_image_variance(tokens) == pytest.approx(within)
    assert token_metrics.across_image_variance(tokens) == pytest.approx(across)
    assert within + across == pytest.approx(np.mean([tokens[..., d].var() for d in range(dims)]))
    assert token_metrics.within_share(tokens) == pytest.approx(within / (within + across))


def test_within_share_of_equal_images_is_one_and_of_equal_patches_zero(tokens: np.ndarray) -> None:
    assert token_metrics.within_share(np.repeat(tokens[:1], 4, axis=0)) == pytest.approx(1)
    assert token_metrics.within_share(np.repeat(tokens[:, :1], 16, axis=1)) == pytest.approx(0, abs=MADE)


def test_similarity_by_distance_is_that_of_loops(tokens: np.ndarray) -> None:
    found: dict[int, list[float]] = {}
    for image in tokens:
        for i, a in enumerate(image):
            for j, b in enumerate(image):
                distance = abs(i // 4 - j // 4) + abs(i % 4 - j % 4)
                found.setdefault(distance, []).append(a @ b / np.sqrt((a @ a) * (b @ b)))
    curve = token_metrics.similarity_by_distance(tokens)
    assert len(curve) == 7
    assert curve == pytest.approx([np.mean(found[d]) for d in range(7)])
    assert curve[0] == pytest.approx(1)
    far = np.concatenate([found[d] for d in range(4, 7)])
    assert token_metrics.local_minus_distant(tokens) == pytest.approx(np.mean(found[1]) - far.mean())


def test_a_common_direction_hides_structure_that_centred_tokens_show() -> None:
    smooth = np.repeat(np.linspace(-1, 1, 8), 8)  # by rows
    x = np.zeros((3, 64, 4))
    x[..., 0] = smooth
    x[..., 1] = 0.3 * np.random.default_rng(0).normal(size=(3, 64))
    shifted = x + np.array([0, 0, 100.0, 0])
    assert token_metrics.similarity_by_distance(shifted).min() > 0.99
    assert token_metrics.local_minus_distant(shifted) < 0.01
    assert token_metrics.local_minus_distant(token_metrics.centred(shifted)) > 1
    assert token_metrics.centred(shifted) == pytest.approx(token_metrics.centred(x))


def test_morans_i_is_that_of_a_sparse_weight_matrix(tokens: np.ndarray) -> None:
    line = sparse.diags_array([1.0, 1.0], offsets=[-1, 1], shape=(4, 4))
    weights = sparse.kronsum(line, line)  # rook neighbours of a 4 x 4 grid
    values = []
    for image in tokens:
        for x in image.T:
            z = x - x.mean()
            values.append(len(x) / weights.sum() * (z @ (weights @ z)) / (z @ z))
    assert weights.sum() == 48
    assert token_metrics.morans_i(tokens) == pytest.approx(np.mean(values))


def test_morans_i_of_known_patterns() -> None:
    assert token_metrics.morans_i(on_grid(8, lambda r, c: (r + c) % 2)) == pytest.approx(-1)
    assert token_metrics.morans_i(on_grid(32, lambda r, c: r + c)) > 0.95
    assert token_metrics.morans_i(5 - 3 * on_grid(32, lambda r, c: r + c)) > 0.95
    noise = np.random.default_rng(0).normal(size=(400, 64, 20))
    assert token_metrics.morans_i(noise) == pytest.approx(-1 / 63, abs=4 * 0.09 / np.sqrt(8000))  # sd of one is 0.09


def test_effective_rank_is_that_of_the_covariance(tokens: np.ndarray) -> None:
    x = tokens.reshape(-1, 6)
    values = np.sqrt(np.linalg.eigvalsh(np.cov(x.T)))
    p = values / values.sum()
    assert token_metrics.effective_rank(tokens) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_effective_rank_counts_equal_directions() -> None:
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(64, 8)) - 0)[0]
    q = np.linalg.qr(q - q.mean(axis=0))[0]  # centred, orthonormal
    for rank in (1, 3, 8):
        tokens = np.zeros((4, 16, 8))
        tokens[..., :rank] = q[:, :rank].reshape(4, 16, rank)
        assert token_metrics.effective_rank(tokens + 7) == pytest.approx(rank)


def test_cka_is_that_of_centred_gram_matrices(tokens: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    other = tokens @ rng.normal(size=(6, 9)) + rng.normal(size=(5, 16, 9))
    n = 5 * 16
    centring = np.eye(n) - 1 / n

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        return float(np.trace(centring @ k @ centring @ m))

    k, m = (x.reshape(n, -1) @ x.reshape(n, -1).T for x in (tokens, other))
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert token_metrics.linear_cka(tokens, other) == pytest.approx(expected)
    assert 0.1 < expected < 0.9


def test_cka_knows_no_rotation_scale_or_shift_and_sees_other_tokens(tokens: np.ndarray) -> None:
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    assert token_metrics.linear_cka(tokens, 7 * tokens @ rotation - 3) == pytest.approx(1)
    stretched = tokens * np.array([1, 1, 1, 1, 1, 30])
    assert token_metrics.linear_cka(tokens, stretched) < 0.99  # a stretch is not a rotation
    big, foreign = (rng.normal(size=(50, 64, 6)) for _ in range(2))
    assert token_metrics.linear_cka(big, foreign) < 0.02


def test_tokens_that_are_all_the_same_have_no_geometry() -> None:
    same = np.full((4, 16, 6), 0.1, np.float32)
    assert token_metrics.within_image_variance(same) == pytest.approx(0, abs=MADE)
    for metric in (token_metrics.within_share, token_metrics.morans_i, token_metrics.effective_rank):
        assert np.isnan(metric(same))
    assert np.isnan(token_metrics.linear_cka(same, np.random.default_rng(0).normal(size=(4, 16, 6))))
    assert np.isnan(token_metrics.local_minus_distant(token_metrics.centred(same)))
    assert token_metrics.similarity_by_distance(same) == pytest.approx(1)


def test_a_grid_that_is_not_square_is_refused() -> None:
    for metric in (token_metrics.similarity_by_distance, token_metrics.morans_i):
        with pytest.raises(ValueError, match="12 patches"):
            metric(np.ones((2, 12, 3)))


# The probe


def labelled(images: int, seed: int, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, 16, 8] of three classes, 60 % of them the first, whose means lie `apart` from each other."""
    rng = np.random.default_rng(seed)
    classes = rng.choice(3, p=[0.6, 0.3, 0.1], size=(images, 16))
    return rng.normal(size=(images, 16, 8)) + apart * np.eye(8)[classes], classes


def test_separable_tokens_are_told_apart_on_images_that_were_not_trained_on() -> None:
    probe = token_metrics.linear_probe(*labelled(40, 0, 20), *labelled(40, 1, 20))
    assert (probe.accuracy, probe.balanced_accuracy, probe.converged) == (1, 1, True)


def test_tokens_without_class_reach_the_majority_share_and_no_more() -> None:
    train, test = labelled(300, 0, 0), labelled(300, 1, 0)
    probe = token_metrics.linear_probe(*train, *test)
    assert probe.accuracy == pytest.approx((test[1] == 0).mean(), abs=0.01)
    assert probe.balanced_accuracy == pytest.approx(1 / 3, abs=0.01)


def test_probe_on_its_own_images_flatters() -> None:
    """Few images and many dimensions: the paper's score says more about the fit than about the tokens."""
    rng = np.random.default_rng(0)
    (x, y), (held_out, truth) = ((rng.normal(size=(10, 4, 60)), rng.integers(0, 2, (10, 4))) for _ in range(2))
    assert token_metrics.linear_probe(x, y, x, y).accuracy == 1
    assert token_metrics.linear_probe(x, y, held_out, truth).accuracy < 0.8


def test_one_class_to_train_on_is_the_guess_for_all() -> None:
    x, _ = labelled(4, 0, 1)
    truth = np.tile([0, 1, 1, 1], 16).reshape(4, 16)
    probe = token_metrics.linear_probe(x, np.ones((4, 16), int), x, truth)
    dummy = DummyClassifier(strategy="constant", constant=1).fit(np.zeros((64, 1)), truth.ravel())
    assert probe.accuracy == dummy.score(np.zeros((64, 1)), truth.ravel())
    assert probe.balanced_accuracy == 0.5


def test_a_class_that_only_training_has_does_not_count_in_the_balance() -> None:
    x, y = labelled(40, 0, 20)
    probe = token_metrics.linear_probe(x, y, x[:, :, :], np.where(y == 2, 1, y))
    assert probe.accuracy == pytest.approx((y != 2).mean())
    assert probe.balanced_accuracy == pytest.approx((1 + (y == 1).sum() / (y > 0).sum()) / 2)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_a_fit_on_a_device_is_scikit_learns(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    rng = np.random.default_rng(classes)
    y = np.arange(400) % classes
    x = rng.normal(size=(400, 5)) + rng.normal(size=(classes, 5))[y]
    monkeypatch.setattr(token_metrics, "TOLERANCE", 1e-9)
    found, iterations = token_metrics.logistic_weights(x, y, torch.device("cpu"))
    model = LogisticRegression(tol=1e-9, max_iter=500).fit(x, y)
    expected = np.column_stack([model.coef_, model.intercept_])
    assert 3 < iterations < 500
    assert np.allclose(found[-len(expected) :], expected, atol=1e-4) and not found[: -len(expected)].any()


@pytest.mark.parametrize("known", [[3, 7, 8], [3, 7, 7]])
def test_a_probe_on_a_device_scores_as_on_the_processor(known: list[int]) -> None:
    (x, y), (held_out, truth) = labelled(60, 0, 2), labelled(60, 1, 2)
    given = x, np.array(known)[y], held_out, np.array(known)[truth]
    given[1][0, :5] = token_metrics.IGNORE
    here, there = token_metrics.linear_probe(*given), token_metrics.linear_probe(*given, torch.device("cpu"))
    assert here.converged and there.converged and 0.8 < here.accuracy < 1
    assert there.accuracy == pytest.approx(here.accuracy, abs=0.003)
    assert there.balanced_accuracy == pytest.approx(here.balanced_accuracy, abs=0.01)


# Reference patches


def mask_of(patches: list[str]) -> np.ndarray:
    """A mask of 4-pixel patches from letters: o object, b background, m half border half background, x half half."""
    kinds = {"o": (0, 0), "b": (1, 1), "m": (1, 2), "x": (0, 1)}
    rows = [[np.repeat([kinds[k]], 4, axis=0).repeat(2, axis=1) for k in line] for line in patches]
    return np.block(rows)


def test_reference_patches_are_far_out_deep_inside_and_on_the_border() -> None:
    mask = mask_of(["oooob", "oooob", "ooomb", "oommb", "bbbbb"])
    places = geometry.reference_patches(mask, 4, 3, background=1, border=2)
    assert places["background"] in (9, 14, 20, 21, 22, 23, 24, 4)
    assert places["background"] == 24  # the farthest from any other patch
    assert places["inside"] == 6  # the image's edge is a border too
    assert places["edge"] == 13


def test_the_edge_without_a_border_class_is_the_patch_that_is_shared_most() -> None:
    places = geometry.reference_patches(mask_of(["obb", "oxb", "obb"]), 4, 2, background=1, border=None)
    assert places == {"background": 2, "inside": 0, "edge": 4}


def test_without_a_background_patches_are_inside_one_class_and_between_two() -> None:
    mask = np.block([mask_of(["oo"] * 5), mask_of(["bbb"] * 5)])
    mask[4:8, 8:12] = [0, 1, 1, 1]  # the one patch of both
    places = geometry.reference_patches(mask, 4, 2, background=None, border=None)
    assert places == {"background": None, "inside": 18, "edge": 7}  # deep in its own class, not in the image's middle


def test_absent_kinds_have_no_place_and_a_map_without_numbers() -> None:
    def places(patches: list[str], background: int | None, border: int | None) -> dict[str, int | None]:
        return geometry.reference_patches(mask_of(patches), 4, 3, background, border)

    assert places(["bb", "bb"], 1, 2) == {"background": 0, "inside": None, "edge": None}
    assert places(["oo", "oo"], 1, 2) == {"background": None, "inside": 0, "edge": None}
    assert places(["bb", "ob"], None, 2)["background"] is None
    tokens = np.random.default_rng(0).normal(size=(4, 3))
    assert np.isnan(geometry.heat_map(tokens, None)).all()
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    assert geometry.heat_map(tokens, 2) == pytest.approx(unit @ unit[2])


# From files to files


@pytest.mark.parametrize("class_token", [False, True])
def test_layers_are_what_a_walk_through_the_blocks_gives(tiny: ModelSettings, pack: Pack, class_token: bool) -> None:
    encoder = new_encoder(vars(tiny), seed=3)
    rows = np.arange(7)
    images = pack.rows("images", rows)
    found = geometry.tokens_by_layer(encoder, images, True, class_token, torch.device("cpu"))
    with torch.inference_mode():
        x = labelled_images(torch.from_numpy(images), None, True)
        tokens = encoder.patch_embed(x) + encoder.pos_embed[:, 1:]
        if class_token:
            tokens = torch.cat([(encoder.cls_token + encoder.pos_embed[:, :1]).expand(7, -1, -1), tokens], dim=1)
        expected = [tokens]
        for block in encoder.blocks:
            expected.append(block(expected[-1]))
        expected.append(encoder.norm(expected[-1]))
    assert len(found) == len(token_metrics.layer_names(tiny.depth)) == tiny.depth + 2
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == np.float32
        assert np.array_equal(mine, theirs[:, int(class_token) :].numpy())
    assert not encoder.norm._forward_hooks  # the encoder is left as it was
    assert not encoder.blocks[0]._forward_pre_hooks


@dataclass
class Measured:
    """A tiny study whose encoders can be measured."""

    study: Study
    inputs: tuple[Path, Path, Path]
    records: dict[str, Path | None]

    def spec(self, kind: str, **over: Any) -> dict[str, Any]:
        config = self.study.config
        encoder = {
            "kind": kind,
            "pretrain_size": 0 if kind == "random" else 24,
            "intermediate": "scenes" if kind in ("intermediate", "finetuned") else "none",
            "finetune_size": 16 if kind == "finetuned" else 0,
            "seed": 0,
        }
        encoder |= {k: over.pop(k) for k in list(over) if k in encoder}
        return {
            "stage": "geometry",
            "study": config["study"],
            "protocol": config["protocol"],
            "encoder": {**encoder, "name": "_".join(map(str, encoder.values()))},
            "model": config["model"],
            "normalise": True,
            "class_token": False,
            "images": 8,
            "probe_images": 12,
            "examples": 2,
            "split_seed": 42,
            "device": "cpu",
            "precision": "float32",
        } | over

    def run(self, kind: str, out: Path, record: Any = "", reference: Any = "", **over: Any) -> dict[str, Any]:
        record = self.records[kind] if record == "" else record
        reference = self.records["random" if kind == "random" else "pretrained"] if reference == "" else reference
        out.mkdir(exist_ok=True)
        paths = out / f"{kind}.json", out / f"{kind}.npz"
        files = dict(zip(("manifest", "split", "indices"), self.inputs, strict=True))
        files |= {"encoder": record, "reference": reference, "metrics": paths[0], "arrays": paths[1]}
        geometry.measure(self.spec(kind, **over), **files)
        # A NaN would be read by Python and by little else.
        return json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, made_study: Callable[[str], dict[str, Any]]) -> Measured:
    study, cell = Study(tmp_path_factory.mktemp("geometry"), made_study("sound")), Cell(24, "scenes", 16, 0)
    pretrained = study.pretrain()
    task = study.intermediate("scenes", pretrained)
    tuned = study.finetune(cell, task)
    records = {"random": None, "pretrained": pretrained, "intermediate": task, "finetuned": tuned}
    return Measured(study, study.finetune_inputs(cell), records)


@pytest.fixture(scope="module")
def results(measured: Measured, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("measured")
    return out, {kind: measured.run(kind, out) for kind in grid.KINDS}


def test_every_kind_of_encoder_is_measured_at_every_layer(results: tuple[Path, dict[str, Any]]) -> None:
    out, found = results
    for value in found.values():
        assert [layer["name"] for layer in value["layers"]] == ["embedding", "block 1", "block 2", "output"]
        assert [layer["layer"] for layer in value["layers"]] == [0, 1, 2, 3]
        for layer in value["layers"]:
            assert set(layer) == {"layer", "name", "note", *representations.METRICS}
            assert layer["note"] == ""
            assert 0 <= layer["probe_accuracy"] <= 1
        assert value["output"] == value["layers"][-1] | {k: value["output"][k] for k in representations.AT_OUTPUT}
        assert (value["images"], value["probe_images"]) == (8, 12)
        assert value["hashes"]["weights"] is None or len(value["hashes"]["weights"]) == 64
        assert value["provenance"]["precision"] == "float32"
    outputs = {kind: value["output"]["effective_rank"] for kind, value in found.items()}
    assert len(set(outputs.values())) == 4  # each encoder has its own weights
    assert {p.name for p in out.iterdir()} == {f"{kind}.{suffix}" for kind in found for suffix in ("json", "npz")}


def test_cka_is_one_to_itself_and_less_to_others(results: tuple[Path, dict[str, Any]]) -> None:
    _, found = results
    for kind in ("random", "pretrained"):
        assert [layer["linear_cka"] for layer in found[kind]["layers"]] == pytest.approx([1] * 4)
    assert found["intermediate"]["output"]["linear_cka"] < 0.9999
    assert found["intermediate"]["hashes"]["reference_weights"] == found["pretrained"]["hashes"]["weights"]


def test_numbers_are_those_of_the_functions_on_images_apart_from_the_probes(
    measured: Measured, results: tuple[Path, dict[str, Any]]
) -> None:
    out, found = results
    arrays = np.load(out / "random.npz")
    manifest, _, indices = measured.inputs
    split = np.load(indices)
    held_out, train = arrays["held_out"], arrays["probe_train"]
    assert set(held_out) <= set(split["test"])
    assert set(train) <= set(split["train"])
    assert not set(held_out) & set(train)
    pack, encoder = open_pack(manifest), new_encoder(measured.study.config["model"], 0)
    with torch.inference_mode():
        tokens = encoder.encode(labelled_images(torch.from_numpy(pack.rows("images", held_out)), None, True), False)
    tokens = tokens.numpy()
    output = found["random"]["output"]
    assert output["within_image_variance"] == pytest.approx(tokens.astype(float).var(axis=1).mean())
    assert output["morans_i"] == pytest.approx(token_metrics.morans_i(tokens))
    assert arrays["similarity"][-1] == pytest.approx(token_metrics.similarity_by_distance(tokens), rel=1e-5)
    assert arrays["similarity"].shape == (4, 7)
    masks = pack.rows("masks", held_out).reshape(8, 4, 6, 4, 6).transpose(0, 1, 3, 2, 4).reshape(-1, 36)
    majority = stats.mode(masks, axis=1).mode
    assert output["probe_majority"] == pytest.approx(np.bincount(majority).max() / len(majority))
    own = token_metrics.linear_probe(tokens, majority.reshape(8, 16), tokens, majority.reshape(8, 16))
    assert output["probe_paper"] == pytest.approx(own.accuracy)


def test_the_same_images_whatever_the_encoder_and_heat_maps_of_them(results: tuple[Path, dict[str, Any]]) -> None:
    out, found = results
    every = [np.load(out / f"{kind}.npz") for kind in found]
    for arrays, value in zip(every, found.values(), strict=True):
        for name in ("held_out", "probe_train", "example_rows", "example_images", "references"):
            assert np.array_equal(arrays[name], every[0][name])
        assert arrays["heat_maps"].shape == arrays["heat_maps_centred"].shape == (2, 3, 16)
        for image, example in enumerate(value["examples"]):
            for kind, place in zip(token_metrics.REFERENCES, arrays["references"][image], strict=True):
                values = arrays["heat_maps"][image, token_metrics.REFERENCES.index(kind)]
                assert (kind in example["without"]) == (place < 0) == bool(np.isnan(values).all())
                if place >= 0:
                    assert values[place] == pytest.approx(1)
    assert (every[0]["references"][0] >= 0).all()  # images with all kinds come first


def test_twice_gives_the_same_files_but_for_the_provenance(
    measured: Measured, results: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, found = results
    again = measured.run("intermediate", tmp_path)
    for value in (again, first := dict(found["intermediate"])):
        assert value.pop("provenance")["seed"] == 0
        value.pop("sha256")
    assert again == first
    assert (tmp_path / "intermediate.npz").read_bytes() == (out / "intermediate.npz").read_bytes()


def test_precision_and_class_token(measured: Measured, results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, found = results
    rough = measured.run("pretrained", tmp_path, precision="bfloat16")
    assert rough["layers"] == found["pretrained"]["layers"]
    assert rough["provenance"]["precision"] == "float32"
    with_token = measured.run("pretrained", tmp_path, class_token=True)
    assert with_token["layers"][0] == pytest.approx(found["pretrained"]["layers"][0])  # patches alone, as before
    assert with_token["output"]["effective_rank"] != found["pretrained"]["output"]["effective_rank"]


def test_tokens_that_do_not_vary_are_said_in_words(measured: Measured, tmp_path: Path) -> None:
    model = measured.study.config["model"]
    encoder = new_encoder(model, 0)
    with torch.no_grad():
        encoder.norm.weight.zero_()

    def collapsed(*_: Any) -> Any:
        return encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "new_encoder", collapsed)
        value = measured.run("random", tmp_path)
    output = value["output"]
    assert output["morans_i"] is output["effective_rank"] is output["linear_cka"] is None
    for said in ("morans_i undefined: no dimension", "linear_cka undefined", "within_share undefined"):
        assert said in output["note"]
    row = representations.read_geometry([tmp_path / "random.json"]).iloc[-1]
    assert np.isnan(row["morans_i"])
    assert "no dimension varies" in row["layer_note"]


@pytest.mark.parametrize(
    ("kind", "record", "over", "said"),
    [
        ("pretrained", None, {}, "needs the record"),
        ("random", "pretrained", {}, "random start"),
        ("pretrained", "intermediate", {}, "its stage is 'intermediate'"),
        ("intermediate", "intermediate", {"intermediate": "spatial"}, "its intermediate is 'scenes'"),
        ("pretrained", "pretrained", {"seed": 1}, "its seed is 0, expected 1"),
        ("finetuned", "finetuned", {"finetune_size": 8}, "its finetune_size is 16"),
        ("baked", None, {}, "expected one of random, pretrained"),
    ],
)
def test_the_encoder_of_another_cell_is_refused(
    measured: Measured, tmp_path: Path, kind: str, record: str | None, over: dict[str, Any], said: str
) -> None:
    path = measured.records[record] if record else None
    with pytest.raises(InputError, match=said):
        measured.run(kind, tmp_path, path, None, **over)
    assert not list(tmp_path.iterdir())


def test_a_reference_of_another_seed_or_stage_is_refused(measured: Measured, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its stage is 'intermediate', expected 'pretrain'"):
        measured.run("intermediate", tmp_path, reference=measured.records["intermediate"])


def test_a_test_list_too_short_is_refused(measured: Measured, tmp_path: Path) -> None:
    manifest, _, _ = measured.inputs
    paths = tmp_path / "s.json", tmp_path / "s.npz"
    split = {"train": np.arange(3), "test": np.array([5])}
    write_split(*paths, split, {"pack_sha256": open_pack(manifest).sha256})
    short = Measured(measured.study, (manifest, *paths), measured.records)
    with pytest.raises(InputError, match="1 test and 3 training"):
        short.run("random", tmp_path)


# Tables


def test_read_gives_a_row_a_layer_in_order(results: tuple[Path, dict[str, Any]]) -> None:
    out, found = results
    frame = representations.read_geometry(sorted(out.glob("*.json"), reverse=True))
    assert len(frame) == 16
    assert list(frame["kind"].drop_duplicates()) == list(grid.KINDS)
    assert list(frame["layer"]) == [0, 1, 2, 3] * 4
    last = frame[frame["layer_name"] == "output"].set_index("kind")
    assert last.loc["finetuned", "probe_paper"] == found["finetuned"]["output"]["probe_paper"]
    assert last.loc["random", "weights"] == "random"
    assert frame.loc[frame["layer_name"] != "output", "probe_paper"].isna().all()
    assert list(representations.regimes(last)) == [
        "random start", "pre-trained 24", "pre-trained 24 + scenes", "pre-trained 24 + scenes, 16 labels",
    ]  # fmt: skip


def test_foreign_or_doubled_files_are_named(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = results
    value = json.loads((out / "random.json").read_text())
    odd = tmp_path / "odd.json"
    wrong = [{}, [], value | {"layers": [{"layer": 0}]}, value | {"output": {}}, value | {"encoder": {"kind": "x"}}]
    wrong.append(value | {"encoder": value["encoder"] | {"kind": "baked"}})
    wrong.append(value | {"output": {k: v for k, v in value["output"].items() if k != "morans_i"}})
    for each in wrong:
        odd.write_text(json.dumps(each))
        with pytest.raises(InputError, match=r"odd\.json"):
            representations.read_geometry([odd])
    odd.write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"odd\.json.*random\.json.*keep one"):
        representations.read_geometry([out / "random.json", odd])
    with pytest.raises(InputError, match="no geometry files"):
        representations.read_geometry([])
    with pytest.raises(InputError, match=r"missing\.json"):
        representations.read_geometry([tmp_path / "missing.json"])


def encoders(rows: list[tuple[str, int, str, int, dict[str, float]]]) -> pd.DataFrame:
    """Output rows of `read_geometry` of (kind, pretrain_size, intermediate, seed, metrics)."""
    out = []
    for kind, size, task, seed, metrics in rows:
        start = f"{'pretrained' if size else 'random'} {size} {seed}"
        mine = start if kind in ("random", "pretrained") else f"{start} {task}"
        out.append(
            {
                "study": "made-up", "protocol": "sound", "note": "", "name": mine, "kind": kind,
                "pretrain_size": size, "intermediate": task, "finetune_size": 0, "seed": seed,
                "layer": 13, "layer_name": "output", **dict.fromkeys(representations.ALL_METRICS, 0.5), **metrics,
                "weights": mine, "reference_weights": start,
            }
        )  # fmt: skip
    return pd.DataFrame(out)


def test_table_has_mean_and_deviation_over_seeds() -> None:
    values = [0.1, 0.2, 0.6]
    frame = encoders([("pretrained", 9, "none", s, {"morans_i": v}) for s, v in enumerate(values)])
    frame = pd.concat([frame, encoders([("random", 0, "none", 0, {})])])
    table = representations.geometry_table(frame).set_index("kind")
    assert table.loc["pretrained", "morans_i_mean"] == pytest.approx(0.3)
    assert table.loc["pretrained", "morans_i_sd"] == pytest.approx(np.std(values, ddof=1))
    assert list(table["n"]) == [3, 1]
    assert np.isnan(table.loc["random", "morans_i_sd"])
    for column, value in (("study", "other"), ("protocol", "paper")):
        with pytest.raises(InputError, match=column):
            representations.geometry_table(pd.concat([frame, frame.assign(**{column: value})]))
    with pytest.raises(InputError, match="more than once"):
        representations.geometry_table(pd.concat([frame, frame]))


def test_paper_table_2_takes_the_largest_pretraining_and_says_what_was_not_run() -> None:
    values = {"within_image_variance": 0.25, "probe_paper": 0.8, "probe_accuracy": 0.75, "within_share": 0.9}
    rows = [("pretrained", size, "none", s, values) for size in (9, 99) for s in range(2)]
    rows += [("intermediate", 99, "intel", s, values | {"probe_accuracy": 0.5 + 0.1 * s}) for s in range(2)]
    rows += [("intermediate", 0, "pets_spatial", 0, values), ("random", 0, "none", 0, {})]
    table = representations.paper_table2(encoders(rows)).set_index("Regime")
    assert list(table.index) == ["random start", *representations.PAPER]
    assert list(table["Runs"]) == [1, 2, 2, 0, 0]
    assert list(table["# Pre-train"]) == [0, 99, 99, 99, 99]
    assert table.loc["pre-trained", "Within-image variance"] == "0.250 ± 0.000"
    assert table.loc["CLS-Intel", "Probe on held-out images (%)"] == "55.0 ± 7.1"
    assert table.loc["Spatial", "Within share (%)"] == "not run"
    assert list(table["Within-image variance, paper"]) == ["", "0.10", "0.18", "0.58", "0.32"]
    assert list(table["Across-image variance, paper"]) == ["", "0.02", "0.11", "0.29", "0.06"]
    assert list(table["Probe on its training images (%), paper"]) == ["", "79.5", "76.1", "78.6", "93.3"]
    none = representations.paper_table2(encoders([("random", 0, "none", 0, {}), ("intermediate", 0, "intel", 0, {})]))
    assert list(none["Runs"]) == [1, 0, 0, 0, 0]


# Harm


def made(
    rng: np.random.Generator, tasks: int = 4, sizes: int = 3, labels: int = 2, seeds: int = 3, noise: float = 0.05
) -> tuple[pd.DataFrame, pd.DataFrame, float]:
    """Encoders whose Moran's I changes with the harm; the effects; and the rank correlation without noise."""
    rows, effects, truth = [], [], []
    change, rest = rng.normal(size=(2, tasks, sizes))
    noises = rng.normal(size=(2, sizes, seeds)) * noise
    for size in range(sizes):
        for seed in range(seeds):
            rows.append(("pretrained" if size else "random", size, "none", seed, {"morans_i": 0.1 * seed}))
            for task in range(tasks):
                x = change[task, size] + noises[0, size, seed] + noise * rng.normal()
                rows.append(("intermediate", size, f"t{task}", seed, {"morans_i": 0.1 * seed + x}))
                for label in range(labels):
                    y = change[task, size] + 0.5 * rest[task, size] + 0.1 * label
                    if seed == 0:
                        truth.append((change[task, size], y))
                    y += noises[1, size, seed] + noise * rng.normal()
                    effects.append((size, f"t{task}", label, seed, y))
    columns = ["pretrain_size", "intermediate", "finetune_size", "seed", "difference"]
    return encoders(rows), pd.DataFrame(effects, columns=columns), stats.spearmanr(*zip(*truth, strict=True)).statistic


def test_change_is_taken_from_the_encoder_that_the_task_started_from() -> None:
    rows = [("random", 0, "none", 0, {"morans_i": 0.1}), ("pretrained", 9, "none", 0, {"morans_i": 0.3})]
    rows += [("intermediate", 0, "a", 0, {"morans_i": 0.2}), ("intermediate", 9, "a", 0, {"linear_cka": 0.8})]
    rows += [("intermediate", 9, "a", 1, {})]  # whose start was not measured
    frame = encoders(rows)
    miou = pd.DataFrame(
        [(p, t, n, s, 0.5 + 0.1 * (t == "a") * (1 + p)) for p in (0, 9) for t in ("none", "a") for n in (5, 7)
         for s in (0, 1)],
        columns=["pretrain_size", "intermediate", "finetune_size", "seed", "miou"],
    )  # fmt: skip
    pairs = representations.harm(frame, paired_differences(miou))
    assert pairs[["pretrain_size", "finetune_size", "seed"]].to_numpy().tolist() == [[0, 5, 0], [0, 7, 0], [9, 5, 0],
                                                                                    [9, 7, 0]]  # fmt: skip
    assert list(pairs["morans_i"]) == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert list(pairs["linear_cka"]) == pytest.approx([-0.5, -0.5, -0.2, -0.2])
    assert list(pairs["difference"]) == pytest.approx([0.1, 0.1, 1, 1])
    frame.loc[3, "reference_weights"] = "another"
    assert list(representations.harm(frame, paired_differences(miou))["linear_cka"].isna()) == [
        False,
        False,
        True,
        True,
    ]


def test_correlation_is_scipys_over_cell_means() -> None:
    frame, effects, _ = made(np.random.default_rng(0), noise=0.5)
    pairs = representations.harm(frame, effects)
    table = representations.harm_correlation(pairs, draws=200).set_index("metric")
    means = pairs.groupby(["intermediate", "pretrain_size", "finetune_size"])[["morans_i", "difference"]].mean()
    row = table.loc["morans_i"]
    assert row["rho"] == pytest.approx(stats.spearmanr(means["morans_i"], means["difference"]).statistic)
    assert (row["n"], row["seeds"]) == (24, 3)
    assert -1 <= row["low"] < row["rho"] < row["high"] <= 1
    assert row["p_least"] == pytest.approx(1 / (24 * 6))
    assert table.loc["effective_rank", "verdict"].startswith("too few to rank: 1 distinct value of the change")
    assert np.isnan(table.loc["effective_rank", "p_holm"])
    shuffled = representations.harm_correlation(pairs.sample(frac=1, random_state=1), draws=200)
    pd.testing.assert_frame_equal(shuffled.set_index("metric"), table)


def test_permutation_p_is_the_share_of_tables_that_agree_as_well() -> None:
    """Compared with a loop over all orders of rows and columns, with scipy's own correlation."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(3, 3)), rng.normal(size=(3, 3))
    rows = [(s, f"t{t}", 1, 0, y[t, s], x[t, s]) for t in range(3) for s in range(3)]
    columns = ["pretrain_size", "intermediate", "finetune_size", "seed", "difference", "morans_i"]
    pairs = pd.DataFrame(rows, columns=columns)
    pairs = pairs.assign(**dict.fromkeys(set(representations.METRICS) - {"morans_i"}, 0.0))
    rho = [
        abs(stats.spearmanr(x[np.ix_(a, b)].ravel(), y.ravel()).statistic)
        for a in permutations(range(3))
        for b in permutations(range(3))
    ]
    row = representations.harm_correlation(pairs).set_index("metric").loc["morans_i"]
    assert row["p"] == pytest.approx(np.mean(np.array(rho) >= rho[0] - MADE))
    assert 0.05 < row["p"] < 1


def test_unrelated_changes_are_rarely_called_an_association() -> None:
    """Task and size effects on both sides, as in real studies: cells are far from independent."""
    found = []
    for study in range(100):
        rng = np.random.default_rng(study)
        units = [rng.normal(size=4)[:, None] * 2 + rng.normal(size=3) * 2 + rng.normal(size=(4, 3)) for _ in range(2)]
        rows = [(s, f"t{t}", n, 0, units[0][t, s], units[1][t, s]) for t in range(4) for s in range(3) for n in (1, 2)]
        columns = ["pretrain_size", "intermediate", "finetune_size", "seed", "difference", "morans_i"]
        pairs = pd.DataFrame(rows, columns=columns)
        found.append(representations._correlation(pairs, "morans_i", None, 10, 0)["p"])
        naive = stats.spearmanr(pairs["difference"], pairs["morans_i"]).pvalue
        found[-1] = (found[-1], naive)
    ours, naive = (np.mean(np.array(found)[:, i] <= 0.05) for i in range(2))
    assert ours <= stats.binom.ppf(0.999, 100, 0.05) / 100
    assert naive > 0.2  # what a test that treats cells as independent would do


@pytest.mark.parametrize("noise", [0.1, 0.8])
def test_interval_holds_the_truth_in_most_studies(noise: float) -> None:
    inside = []
    for study in range(80):
        frame, effects, truth = made(np.random.default_rng(study), noise=noise)
        pairs = representations.harm(frame, effects)
        row = representations._correlation(pairs, "morans_i", None, 200, 0)
        inside.append(row["low"] <= truth <= row["high"])
    assert np.mean(inside) >= stats.binom.ppf(0.001, 80, 0.95) / 80


def test_interval_follows_the_test_images_too() -> None:
    frame, effects, _ = made(np.random.default_rng(0), noise=0.02)
    pairs, rng = representations.harm(frame, effects), np.random.default_rng(1)
    keys = [(size, task, n) for size in range(3) for task in ("none", "t0", "t1", "t2", "t3") for n in range(2)]
    moved = rng.normal(size=(3, len(keys), 50)) * 0.05
    runs = Runs(keys, [0, 1, 2], np.zeros((3, len(keys))), moved - moved.mean(-1, keepdims=True))
    alone, both = (representations._correlation(pairs, "morans_i", each, 500, 0) for each in (None, runs))
    assert both["rho"] == alone["rho"]
    assert both["se"] > 2 * alone["se"]


def test_what_a_study_cannot_tell_is_said() -> None:
    def verdict(**design: int) -> pd.Series:
        frame, effects, _ = made(np.random.default_rng(0), **design)
        return (
            representations.harm_correlation(representations.harm(frame, effects), draws=50)
            .set_index("metric")
            .loc["morans_i"]
        )

    few = verdict(tasks=1, sizes=2, labels=2)
    assert few["verdict"] == "too few to rank: 2 distinct values of the change, at least 5 needed"
    assert np.isnan([few["rho"], few["p"]]).all()
    assert verdict(tasks=1, sizes=2, labels=6)["verdict"] == few["verdict"]  # labels share the change
    coarse = verdict(tasks=2, sizes=3, labels=3)
    assert coarse["p_least"] == pytest.approx(1 / 12)
    assert "cannot reach p < 0.05" in coarse["verdict"]
    one_seed = verdict(tasks=5, sizes=3, seeds=1)
    assert "no interval from one seed" in one_seed["verdict"]
    assert np.isnan(one_seed["low"])
    assert one_seed["p"] < 0.05
    clear = verdict(tasks=5, sizes=3)
    assert "costs less or gains more" in clear["verdict"]
    assert clear["p_holm"] == clear["p"] < 0.05  # the other metrics are constant, so one is tested
    empty = representations.harm_correlation(representations.harm(encoders([("random", 0, "none", 0, {})]), made(
        np.random.default_rng(0))[1]))  # fmt: skip
    assert set(empty["verdict"]) == {"no pairs"}


def test_what_goes_with_the_effect_is_named_only_when_it_is_shown() -> None:
    def sentence(**changed: Any) -> str:
        row = {"metric": list(representations.METRICS), "n": 24, "rho": 0.5, "low": 0.2, "high": 0.7, "p": 0.001}
        row |= {"p_least": 1e-4, "p_holm": 0.2, "verdict": "no association shown"} | changed
        return representations.harm_sentence(pd.DataFrame(row))

    assert sentence() == (
        "No change of a property of the patch tokens is shown to go with the effect on mIoU (over 24 cells, after "
        "Holm's correction over 10 properties: least p 0.2)."
    )
    tied = sentence(p_holm=[0.04, 0.04, *[0.5] * 8])
    assert "Within-image variance (rank correlation +0.50, +0.20 to +0.70, p 0.04) and Across-image variance" in tied
    assert "Moran" not in tied
    assert "least p that its grid allows is 0.042 for one property, and 0.42 after Holm's" in sentence(p_least=1 / 24)
    nothing = {"rho": np.nan, "p": np.nan, "p_holm": np.nan, "verdict": "too few to rank: 2 distinct values"}
    assert sentence(**nothing).endswith("this study cannot say: too few to rank: 2 distinct values.")
    for said in (sentence(), tied, sentence(p_least=1.0), sentence(**nothing)):
        assert "most" not in said


def test_a_task_that_was_not_run_at_a_size_takes_no_part_in_permutations() -> None:
    frame, effects, _ = made(np.random.default_rng(0), tasks=3, sizes=2, labels=3)
    whole = representations.harm(frame, effects)
    part = whole[~((whole["intermediate"] == "t2") & (whole["pretrain_size"] == 0))]
    rows = [representations._correlation(pairs, "morans_i", None, 50, 0) for pairs in (whole, part)]
    assert [row["p_least"] for row in rows] == pytest.approx([1 / 12, 1 / 2])  # only t0 and t1 change places
    assert rows[1]["p"] >= 0.5


def test_many_permutations_are_drawn_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, effects, _ = made(np.random.default_rng(0), tasks=4, sizes=3)
    pairs = representations.harm(frame, effects).assign(
        morans_i=lambda f: f["morans_i"] + np.sin(f["pretrain_size"] * 9)
    )
    exact = representations._correlation(pairs, "morans_i", None, 10, 0)["p"]
    monkeypatch.setattr(representations, "PERMUTATIONS", 143)
    drawn = representations._correlation(pairs, "morans_i", None, 10, 0)
    assert drawn["p_least"] == 1 / 144
    assert drawn["p"] == pytest.approx(exact, abs=0.1)


# All of it


def cell_metrics(folder: Path, study: str, cells_of: list[Cell]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells_of:
        value = {
            "study": study, "protocol": "sound", "note": "Test study.", "cell": cell.as_dict(),
            "metrics": {"miou": 0.4 if cell.intermediate == "none" else 0.3, "pixel_accuracy": 0.7},
            "test_images": 10, "miou_is": "dataset", "provenance": {},
        }  # fmt: skip
        (folder / f"{cell.name}.json").write_text(json.dumps(value))
    return [folder / f"{cell.name}.json" for cell in cells_of]


def test_files(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = results
    paths = list(out.glob("*.json"))
    every = [Cell(24, task, size, 0) for task in ("none", "scenes") for size in (8, 16)]
    metrics = cell_metrics(tmp_path / "cells", "tiny", every)
    tables = tmp_path / "new" / "tables"
    representations.write_geometry(iter(paths), iter(metrics), tables)
    names = {f"{n}.csv" for n in ("geometry", "table2", "harm", "harm_correlation")}
    names |= {f"{n}.md" for n in ("geometry", "table2", "harm_correlation")}
    assert {p.name for p in tables.iterdir()} == names
    for name in names:
        text = (tables / name).read_text()
        assert "tiny" in text
        assert "sound" in text
        assert "Test study." in text
    frame = pd.read_csv(tables / "geometry.csv")
    assert len(frame) == 16
    assert frame["probe_accuracy"].max() <= 1
    assert list(pd.read_csv(tables / "harm.csv")["difference"]) == pytest.approx([-0.1, -0.1])
    text = (tables / "geometry.md").read_text()
    assert "± standard deviation over seeds" in text
    assert "| pre-trained 24 + scenes, 16 labels | 1 |" in text
    assert (
        "this study cannot say: too few to rank: 1 distinct value of the change"
        in (tables / "harm_correlation.md").read_text()
    )
    before = {p.name: p.read_bytes() for p in tables.iterdir()}
    representations.write_geometry(reversed(paths), reversed(metrics), tables)
    assert {p.name: p.read_bytes() for p in tables.iterdir()} == before
    with pytest.raises(InputError, match="geometry is of study 'tiny', metrics are of 'other'"):
        representations.write_geometry(paths, cell_metrics(tmp_path / "other", "other", every), tables)


def test_files_of_a_study_without_tasks_say_so(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = results
    metrics = cell_metrics(tmp_path / "cells", "tiny", [Cell(0, "none", 8, 0)])
    representations.write_geometry([out / "random.json"], metrics, tmp_path / "tables")
    assert "no pairs of cells" in (tmp_path / "tables" / "harm_correlation.md").read_text()
    assert pd.read_csv(tmp_path / "tables" / "harm.csv").empty
    assert "not run" in (tmp_path / "tables" / "table2.md").read_text()


def test_the_paper_protocol_takes_its_own_split(made_study: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    """Images that are not normalised, a test set that moves."""
    study = Study(tmp_path, made_study("paper"))
    inputs = study.finetune_inputs(Cell(0, "none", 16, 0))
    measured = Measured(study, inputs, {"random": None})
    value = measured.run("random", tmp_path / "out", normalise=False)
    spec = specs.finetune_split_spec(study.config, 16, 0)
    assert spec["test_set"] == "moving"
    assert value["images"] == 8
    normalised = measured.run("random", tmp_path / "out", normalise=True)
    assert value["output"]["probe_majority"] == normalised["output"]["probe_majority"]
    assert value["output"]["effective_rank"] != normalised["output"]["effective_rank"]
