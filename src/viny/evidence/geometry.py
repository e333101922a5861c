"""Geometry of an encoder's patch tokens on held-out images, layer by layer.

Only patch tokens count; the class token, where there is one in the sequence, is dropped. Tokens are computed in float32
whatever precision a study trains in, and every metric from them in float64, so that numbers do not depend on it.
Layer 0 holds the embedded patches with their positions, layers 1 to depth what each block gives, and the last,
'output', the tokens after the final LayerNorm, which are what the heads see.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.stats import entropy
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from viny.data.augment import labelled_images
from viny.data.pack import Pack, open_pack
from viny.data.splits import permutation, read_split
from viny.errors import InputError
from viny.files import atomic_path, digest, read_json, write_json
from viny.learning.model import ViNy, patchify
from viny.learning.objectives import majority_class
from viny.learning.stages import load_encoder, new_encoder
from viny.learning.train import Machine
from viny.provenance import Record
from viny.settings import BACKGROUNDS, BATCH, IGNORE

STAGE_OF = {"pretrained": "pretrain", "intermediate": "intermediate", "finetuned": "finetune"}  # random has none
KINDS = ("random", *STAGE_OF)
REFERENCES = ("background", "interior", "boundary")  # kinds of reference patch, in the order of the arrays
ITERATIONS = 500  # at most, of a probe's optimiser
TOLERANCE = 1e-3  # of its gradient; a tenth of it takes three times as long and moves accuracies by less than 0.1 %
TINY = 1e-12  # a variance below this share of the mean square is rounding

WHY_UNDEFINED = {
    "within_share": "no token differs from another",
    "local_minus_distant": "no pair of patches is that far apart, or tokens are zero",
    "local_minus_distant_centred": "no pair of patches is that far apart, or no token differs from another",
    "morans_i": "no dimension varies within an image",
    "effective_rank": "no token differs from another",
    "linear_cka": "the tokens of one of the encoders are all the same",
}


# Metrics of tokens [N, L, D]: N images, L patches row by row on a square grid, D dimensions.


def within_image_variance(tokens: np.ndarray) -> float:
    """Variance over an image's patch tokens, averaged over images and dimensions (the paper's definition).

    Args:
        tokens: [N, L, D].

    Returns:
        The population variance (ddof = 0), in squared units of the tokens.
    """
    return float(np.asarray(tokens, np.float64).var(axis=1).mean())


def across_image_variance(tokens: np.ndarray) -> float:
    """Variance over images of the mean patch token, averaged over dimensions (the paper's definition).

    Args:
        tokens: [N, L, D].

    Returns:
        The population variance (ddof = 0); with that within images it adds up to the variance of all tokens.
    """
    return float(np.asarray(tokens, np.float64).mean(axis=1).var(axis=0).mean())


def within_share(tokens: np.ndarray) -> float:
    """Share of the tokens' variance that lies within images.

    Args:
        tokens: [N, L, D].

    Returns:
        A fraction; NaN where tokens do not vary.
    """
    within, across = within_image_variance(tokens), across_image_variance(tokens)
    return within / (within + across) if _varies(tokens) else math.nan


def _varies(tokens: np.ndarray) -> bool:
    """Whether tokens [N, L, D] differ by more than rounding does."""
    x = np.asarray(tokens, np.float64)
    return bool(x.var(axis=(0, 1)).mean() > TINY * (x**2).mean())


def centred(tokens: np.ndarray) -> np.ndarray:
    """Tokens minus the mean token over all images and patches: [N, L, D] in float64, zero where none differs."""
    x = np.asarray(tokens, np.float64)
    return x - x.mean(axis=(0, 1)) if _varies(x) else np.zeros_like(x)


def patch_similarity(tokens: np.ndarray) -> np.ndarray:
    """Cosine similarity of every two patch tokens of the same image.

    Args:
        tokens: [N, L, D].

    Returns:
        [N, L, L] in -1 to 1; NaN where a token is zero.
    """
    x = np.asarray(tokens, np.float64)
    norm = np.linalg.norm(x, axis=2, keepdims=True)
    unit = np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 0)
    return (unit @ unit.transpose(0, 2, 1)).clip(-1, 1)


def manhattan(patches: int) -> np.ndarray:
    """Manhattan distance of every two patches of a square grid, in patches: int [L, L].

    Raises:
        ValueError: `patches` is no square number.
    """
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"{patches} patches make no square grid")
    row, column = np.divmod(np.arange(patches), side)
    return abs(row[:, None] - row) + abs(column[:, None] - column)


def similarity_by_distance(tokens: np.ndarray) -> np.ndarray:
    """Mean cosine similarity of patch tokens of the same image at each Manhattan distance (the paper's figure).

    Args:
        tokens: [N, L, D]; for the similarity beyond a common direction pass `centred(tokens)`.

    Returns:
        [2 * sqrt(L) - 1], for the distances 0, 1, ... in patches; NaN where no pair is defined.
    """
    return _by_distance(patch_similarity(tokens))


def _by_distance(similarity: np.ndarray) -> np.ndarray:
    """Mean over images and pairs of [N, L, L] at each distance."""
    distance = manhattan(similarity.shape[1]).ravel()
    defined = np.isfinite(similarity).sum(axis=0).ravel()
    total = np.bincount(distance, np.nansum(similarity, axis=0).ravel())
    count = np.bincount(distance, defined)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def local_minus_distant(tokens: np.ndarray) -> float:
    """How much more alike neighbouring patches of an image are than distant ones.

    Args:
        tokens: [N, L, D].

    Returns:
        Mean cosine similarity of pairs at Manhattan distance 1 minus that of pairs as far apart as the grid is wide or
        further; NaN where the grid or the tokens have no such pairs.
    """
    return _local_minus_distant(patch_similarity(tokens))


def _local_minus_distant(similarity: np.ndarray) -> float:
    patches = similarity.shape[1]
    distance = manhattan(patches)
    near, far = similarity[:, distance == 1], similarity[:, distance >= math.isqrt(patches)]
    if not (np.isfinite(near).any() and np.isfinite(far).any()):
        return math.nan
    return float(np.nanmean(near) - np.nanmean(far))


def morans_i(tokens: np.ndarray) -> float:
    """Spatial autocorrelation of tokens on the patch grid: Moran's I (Moran 1950) with rook neighbours.

    For values z, centred within the image, I = L / W * sum of w_ij z_i z_j / sum of z_i^2, with w_ij = 1 for patches
    that share an edge and W the sum of all w_ij. Under no autocorrelation its expectation is -1 / (L - 1).

    Args:
        tokens: [N, L, D].

    Returns:
        The mean over images and dimensions, of those that vary within the image; NaN where none does.
    """
    x = np.asarray(tokens, np.float64)
    n, patches, dims = x.shape
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"{patches} patches make no square grid")
    z = (x - x.mean(axis=1, keepdims=True)).reshape(n, side, side, dims)
    squares = (z**2).sum(axis=(1, 2))  # [N, D]
    right = (z[:, :, 1:] * z[:, :, :-1]).sum(axis=(1, 2))
    down = (z[:, 1:] * z[:, :-1]).sum(axis=(1, 2))
    weights = 4 * side * (side - 1)  # each of the 2 * side * (side - 1) edges counts from both ends
    defined = squares > TINY * (x**2).sum(axis=1)
    if side < 2 or not defined.any():
        return math.nan
    return float((patches / weights * 2 * (right + down)[defined] / squares[defined]).mean())


def effective_rank(tokens: np.ndarray) -> float:
    """Effective rank of the centred patch tokens (Roy and Vetterli 2007): exp of the entropy of their singular values.

    Args:
        tokens: [N, L, D]; taken as one matrix [N * L, D].

    Returns:
        Between 1 and D; NaN where tokens do not vary.
    """
    if not _varies(tokens):
        return math.nan
    values = np.linalg.svd(centred(tokens).reshape(-1, tokens.shape[2]), compute_uv=False)
    return float(np.exp(entropy(values)))


def linear_cka(tokens: np.ndarray, reference: np.ndarray) -> float:
    """Linear centred kernel alignment of two encoders' tokens (Kornblith et al. 2019, arXiv 1905.00414).

    In its feature-space form, |Y'X|^2 / (|X'X| |Y'Y|) with Frobenius norms of column-centred matrices; every patch of
    every image is an example.

    Args:
        tokens: [N, L, D].
        reference: [N, L, E], of the same patches.

    Returns:
        Between 0 and 1; NaN where the tokens of one do not vary.
    """
    if not (_varies(tokens) and _varies(reference)):
        return math.nan
    x = centred(tokens).reshape(-1, tokens.shape[2])
    y = centred(reference).reshape(-1, reference.shape[2])
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@dataclass(frozen=True)
class Probe:
    """What a linear probe of patch tokens finds: fractions, and whether its optimiser came to an end."""

    accuracy: float
    balanced_accuracy: float
    converged: bool


def linear_probe(tokens: np.ndarray, classes: np.ndarray, held_out: np.ndarray, held_out_classes: np.ndarray) -> Probe:
    """Train a linear classifier of patch tokens (Alain and Bengio 2016, arXiv 1610.01644) and score it on others.

    Multinomial logistic regression on standardised tokens, with an L2 penalty of C = 1.

    Args:
        tokens: [N, L, D], to train on.
        classes: int [N, L], of those patches; those of IGNORE are left out.
        held_out: [M, L, D], to score.
        held_out_classes: int [M, L].

    Returns:
        Accuracy, and balanced accuracy: the mean recall of the classes that the scored patches have. Where only one
        class is there to train on, it is the guess for every patch.
    """
    has_class = np.ravel(classes) != IGNORE, np.ravel(held_out_classes) != IGNORE
    x, y = tokens.reshape(-1, tokens.shape[2])[has_class[0]], np.ravel(classes)[has_class[0]]
    to_score, truth = held_out.reshape(-1, held_out.shape[2])[has_class[1]], np.ravel(held_out_classes)[has_class[1]]
    converged = True
    if len(np.unique(y)) == 1:
        guess = np.full_like(truth, y[0])
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(tol=TOLERANCE, max_iter=ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result says it
            model.fit(x.astype(np.float64), y)
        converged = int(model[-1].n_iter_.max()) < ITERATIONS
        guess = model.predict(to_score.astype(np.float64))
    recall = recall_score(truth, guess, labels=np.unique(truth), average="macro")
    return Probe(float((truth == guess).mean()), float(recall), converged)


# Reference patches of heat maps


def reference_patches(
    mask: np.ndarray, patch_size: int, classes: int, background: int | None, border: int | None
) -> dict[str, int | None]:
    """A background, an interior and a boundary patch of an image, from its mask.

    Args:
        mask: int [S, S], classes of pixels.
        patch_size: P, pixels.
        classes: how many there are.
        background: the class that is no object; None for data without one.
        border: the class of the pixels around an object; None for data without one.

    Returns:
        The index of each kind of `REFERENCES` among the patches row by row, None where the image has no such patch.
        'background': of the patches of nothing but background, the one farthest from all others. 'interior': of the
        patches of nothing but object, the one deepest inside, the image's edge being a border too. 'boundary': the
        patch with most border pixels; without a border class, the one that object and background share most equally.
        Of equals, the first.
    """
    patches = patchify(torch.from_numpy(np.asarray(mask, np.int64))[None, None], patch_size)[0].numpy()  # [L, P*P]
    share = np.stack([(patches == c).mean(axis=1) for c in range(classes)], axis=1)  # [L, C]
    side = math.isqrt(len(share))
    ground = share[:, background] if background is not None else np.zeros(len(share))
    edge = share[:, border] if border is not None else np.zeros(len(share))
    others = [c for c in range(classes) if c not in (background, border)]
    thing = share[:, others].sum(axis=1)
    empty, full = np.isclose(ground, 1), np.isclose(thing, 1)
    mixed = edge if border is not None else np.minimum(ground, thing)
    found: dict[str, int | None] = dict.fromkeys(REFERENCES)
    if empty.any():
        # Without a patch of anything else there is nothing to be far from.
        far = distance_transform_edt(empty.reshape(side, side)).ravel() if not empty.all() else empty
        found["background"] = int(far.argmax())
    if full.any():
        depth = distance_transform_edt(np.pad(full.reshape(side, side), 1))[1:-1, 1:-1]
        found["interior"] = int(depth.argmax())
    if mixed.max() > 0:
        found["boundary"] = int(mixed.argmax())
    return found


def heat_map(tokens: np.ndarray, reference: int | None) -> np.ndarray:
    """Cosine similarity of every patch token of an image to one of them.

    Args:
        tokens: [L, D].
        reference: index of the patch; None where the image has none of its kind.

    Returns:
        [L]; NaN throughout without a reference.
    """
    if reference is None:
        return np.full(len(tokens), np.nan)
    return patch_similarity(tokens[None])[0, reference]


# One encoder, from files to files


@torch.inference_mode()
def tokens_by_layer(
    encoder: ViNy, images: np.ndarray, normalised: bool, class_token: bool, device: torch.device
) -> list[np.ndarray]:
    """Patch tokens of images at every layer, in float32.

    Args:
        encoder: the transformer.
        images: uint8 [N, 3, S, S].
        normalised: whether images are normalised as in the other stages.
        class_token: whether a class token stands in the sequence; it is dropped from what is returned.
        device: to compute on.

    Returns:
        Depth + 2 arrays [N, L, D]: embedding with positions, each block's, and after the final LayerNorm.
    """
    kept: list[list[np.ndarray]] = [[] for _ in range(len(encoder.blocks) + 2)]

    def keep(layer: int, tokens: Tensor) -> None:
        kept[layer].append(tokens[:, int(class_token) :].float().cpu().numpy())

    def of_input(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(0, inputs[0])

    encoder.to(device).eval()
    encoder.set_fused_attention(device.type == "cuda")
    handles = [encoder.blocks[0].register_forward_pre_hook(of_input)]
    for layer, module in enumerate([*encoder.blocks, encoder.norm], start=1):
        handles.append(module.register_forward_hook(lambda _module, _inputs, out, layer=layer: keep(layer, out)))
    try:
        for batch in torch.from_numpy(images).split(BATCH):
            encoder.encode(labelled_images(batch.to(device), None, normalised), class_token)
    finally:
        for handle in handles:
            handle.remove()
    return [np.concatenate(parts) for parts in kept]


def layer_names(depth: int) -> list[str]:
    """What the layers of an encoder are called, first to last."""
    return ["embedding", *(f"block {i + 1}" for i in range(depth)), "output"]


def _load(spec: Mapping[str, Any], path: Path | None, stage: str | None, keys: tuple[str, ...]) -> tuple[ViNy, Any]:
    """An encoder of the seed, with the weights of a record if there is one, and the record.

    `stage` is the one that made the record, None for a random start; `keys` name what must agree with the spec.
    """
    wanted = spec["encoder"]
    encoder = new_encoder(spec["model"], wanted["seed"])
    if path is None:
        if stage is not None:
            raise InputError(f"encoder.kind: '{wanted['kind']}' needs the record of its weights; pass it as `encoder`")
        return encoder, None
    if stage is None:
        raise InputError(f"{path}: given for a random start, which has no weights; pass None or name another kind")
    record = load_encoder(encoder, path)
    found = {"stage": record.get("stage"), **record["spec"]["cell"]}
    for key, value in {"stage": stage, **{k: wanted[k] for k in keys}}.items():
        if found.get(key) != value:
            raise InputError(f"{path}: its {key} is {found.get(key)!r}, expected {value!r}; pass the record of that")
    return encoder, record


def run_geometry(
    spec: Mapping[str, Any],
    manifest: Path,
    split: Path,
    indices: Path,
    encoder: Path | None,
    reference: Path | None,
    metrics: Path,
    arrays: Path,
    threads: int,
) -> None:
    """Measure the geometry of one encoder's patch tokens on held-out images.

    Held-out images are drawn from the split's 'test' list, the same for every encoder of a study with one test set. The
    probe is trained on the first images of its 'train' list. No image is augmented.

    Args:
        spec: stage, study, protocol, encoder (kind, pretrain_size, intermediate, finetune_size, seed, name), model,
            normalise, class_token, images (held out), probe_images, examples (of heat maps), split_seed, device;
            'note' where the study has one. Its precision does not matter: tokens are float32.
        manifest: of the segmentation pack.
        split: record of a split of it.
        indices: index lists of that split.
        encoder: record of the encoder's weights, also a fine-tuned model's; None for the random start of the seed.
        reference: record of the pre-trained encoder that CKA compares with; None for the random start of the seed.
        metrics: JSON to write: layers (a mapping each: layer, name, metrics, note), output (the last of them with
            probe_paper, probe_majority), examples, hashes, provenance. Metrics are fractions or plain numbers.
        arrays: npz to write. distance [Q] in patches; similarity, similarity_centred [depth + 2, Q]; heat_maps,
            heat_maps_centred [E, 3, L], of the output; references int [E, 3], -1 for none; example_images uint8
            [E, 3, S, S]; example_masks [E, S, S]; example_rows [E], held_out [N], probe_train [M], rows of the pack;
            encoder, the spec's, as JSON.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or not of the encoder that the spec names.
    """
    provenance = Record()
    machine = Machine.choose(spec["device"], "float32", threads)
    wanted = spec["encoder"]
    if wanted["kind"] not in KINDS:
        raise InputError(f"encoder.kind: '{wanted['kind']}'; expected one of {', '.join(KINDS)}")
    pack = open_pack(manifest, node_local=True)
    lists = read_split(split, indices, pack)
    held_out, probe_train = _picked(spec, lists, split)
    mine, record = _load(spec, encoder, STAGE_OF.get(wanted["kind"]), _keys_of(wanted["kind"]))
    if wanted["kind"] == "finetuned" and record["pack_sha256"] != pack.sha256:
        raise InputError(f"{encoder}: was trained on another pack than {manifest}; rerun its fine-tuning")
    stage = None if reference is None else "pretrain"
    other, start = _load(spec, reference, stage, ("pretrain_size", "seed"))

    def tokens(model: ViNy, rows: np.ndarray) -> list[np.ndarray]:
        images = pack.rows("images", rows)
        return tokens_by_layer(model, images, spec["normalise"], spec["class_token"], machine.device)

    layers, trained = tokens(mine, held_out), tokens(mine, probe_train)
    compared = layers if encoder == reference else tokens(other, held_out)
    truth, train_classes = (_patch_classes(pack, rows, mine.settings.patch_size) for rows in (held_out, probe_train))
    names = layer_names(mine.settings.depth)
    rows, similarity, similarity_centred = [], [], []
    for layer, (name, *those) in enumerate(zip(names, layers, compared, trained, strict=True)):
        row, raw, without_mean = _measure(*those, truth, train_classes)
        rows.append({"layer": layer, "name": name, **row})
        similarity.append(raw)
        similarity_centred.append(without_mean)
    own = linear_probe(layers[-1], truth, layers[-1], truth)
    of_a_class = truth[truth != IGNORE]
    majority = float(np.bincount(of_a_class).max() / of_a_class.size)
    shown = _examples(spec, pack, held_out, layers[-1], mine.settings.patch_size)
    _write_arrays(
        arrays,
        distance=np.arange(len(similarity[0])),
        similarity=np.float32(similarity),
        similarity_centred=np.float32(similarity_centred),
        held_out=held_out,
        probe_train=probe_train,
        encoder=json.dumps(dict(wanted), sort_keys=True),
        **shown,
    )
    write_json(
        metrics,
        {
            "study": spec["study"],
            "protocol": spec["protocol"],
            "note": spec.get("note", ""),
            "encoder": dict(wanted),
            "reference": "random" if start is None else "pretrained",
            "images": len(held_out),
            "probe_images": len(probe_train),
            "class_token": spec["class_token"],
            "normalise": spec["normalise"],
            "layers": rows,
            "output": rows[-1] | {"probe_paper": own.accuracy, "probe_majority": majority},
            "examples": [
                {"row": int(row), "without": [kind for kind, at in zip(REFERENCES, places, strict=True) if at < 0]}
                for row, places in zip(shown["example_rows"], shown["references"], strict=True)
            ],
            "hashes": {
                "spec": digest(dict(spec)),
                "pack": pack.sha256,
                "split": read_json(split, "a split record")["parts"]["test"]["sha256"],
                "weights": record["weights_sha256"] if record else None,
                "reference_weights": start["weights_sha256"] if start else None,
            },
            "provenance": provenance.finish(
                device=str(machine.device),
                precision=machine.precision,
                threads=threads,
                seed=wanted["seed"],
                fingerprint=spec.get("code"),
            ),
        },
    )
    at_end = rows[-1]
    print(
        f"{wanted['name']}: patch probe {100 * at_end['probe_accuracy']:.1f} % of held-out patches "
        f"(majority {100 * majority:.1f} %), effective rank {at_end['effective_rank'] or math.nan:.1f}"
    )


def _keys_of(kind: str) -> tuple[str, ...]:
    """What the record of such an encoder says of itself."""
    keys = {"intermediate": ("intermediate",), "finetuned": ("intermediate", "finetune_size")}
    return ("pretrain_size", "seed", *keys.get(kind, ()))


def _picked(spec: Mapping[str, Any], lists: Mapping[str, np.ndarray], split: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of held-out and of probe-training images."""
    test, train = lists["test"], lists["train"]
    if len(test) < 2 or not len(train):
        raise InputError(
            f"{split}: lists {len(test)} test and {len(train)} training images; geometry needs 2 and 1 at least: "
            "take a larger segmentation.test_size or grid.finetune_sizes"
        )
    order = permutation(len(test), "geometry", spec["split_seed"])
    # A prefix of the training list: lists nest, so cells of all sizes share these images.
    return np.sort(test[order[: spec["images"]]]), np.sort(train[: spec["probe_images"]])


def _patch_classes(pack: Pack, rows: np.ndarray, patch_size: int) -> np.ndarray:
    """Majority class of every patch, int [N, L]; IGNORE where none of its pixels has a class."""
    masks = torch.from_numpy(pack.rows("masks", rows))
    return majority_class(masks, patch_size, len(pack.manifest["mask_classes"])).numpy()


def _measure(
    tokens: np.ndarray, reference: np.ndarray, train: np.ndarray, truth: np.ndarray, train_classes: np.ndarray
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A layer's metrics, and its similarity by distance, raw and centred."""
    raw, without_mean = patch_similarity(tokens), patch_similarity(centred(tokens))
    probe = linear_probe(train, train_classes, tokens, truth)
    values = {
        "within_image_variance": within_image_variance(tokens),
        "across_image_variance": across_image_variance(tokens),
        "within_share": within_share(tokens),
        "local_minus_distant": _local_minus_distant(raw),
        "local_minus_distant_centred": _local_minus_distant(without_mean),
        "morans_i": morans_i(tokens),
        "effective_rank": effective_rank(tokens),
        "linear_cka": linear_cka(tokens, reference),
        "probe_accuracy": probe.accuracy,
        "probe_balanced_accuracy": probe.balanced_accuracy,
    }
    notes = [f"{name} undefined: {WHY_UNDEFINED[name]}" for name, value in values.items() if not math.isfinite(value)]
    if not probe.converged:
        notes.append(f"the probe stopped after {ITERATIONS} iterations")
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {**known, "note": "; ".join(notes)}, _by_distance(raw), _by_distance(without_mean)


def _examples(
    spec: Mapping[str, Any], pack: Pack, held_out: np.ndarray, tokens: np.ndarray, patch_size: int
) -> dict[str, np.ndarray]:
    """Arrays of the heat maps: images with every kind of reference patch, evenly spaced; where they are few, others."""
    names = pack.manifest["mask_classes"]
    background = next((names.index(name) for name in BACKGROUNDS if name in names), None)
    masks = pack.rows("masks", held_out)
    found = [
        reference_patches(mask, patch_size, len(names), background, pack.manifest.get("border_class")) for mask in masks
    ]
    places = np.array([[-1 if at is None else at for at in each.values()] for each in found])  # [N, 3]
    whole = np.flatnonzero((places >= 0).all(axis=1))
    count = min(spec["examples"], len(held_out))
    picked = whole[:: max(1, len(whole) // max(1, count))][:count]
    if len(picked) < count:
        rest = np.setdiff1d(np.arange(len(held_out)), picked)
        rest = rest[np.argsort((places[rest] < 0).sum(axis=1), kind="stable")]
        picked = np.concatenate([picked, rest[: count - len(picked)]])

    def maps(of: np.ndarray) -> np.ndarray:
        shape = (len(picked), len(REFERENCES), tokens.shape[1])
        every = [heat_map(of[i], found[i][kind]) for i in picked for kind in REFERENCES]
        return np.array(every, np.float32).reshape(shape)

    return {
        "heat_maps": maps(tokens),
        "heat_maps_centred": maps(centred(tokens)),
        "references": places[picked],
        "example_images": pack.rows("images", held_out[picked]),
        "example_masks": masks[picked],
        "example_rows": held_out[picked],
    }


def _write_arrays(path: Path, **arrays: Any) -> None:
    with atomic_path(path) as tmp, open(tmp, "wb") as f:
        np.savez_compressed(f, **arrays)
