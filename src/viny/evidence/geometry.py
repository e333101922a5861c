"""Geometry of an encoder's patch tokens on held-out images, layer by layer.

Only patch tokens count; a class token in the sequence is dropped. Tokens are computed in float32 and every metric in
float64, so that numbers do not depend on the precision a study trains in. Layer 0 holds the embedded patches with their
positions, layers 1 to depth the output of each block, and the last, 'output', the tokens after the final LayerNorm,
which are what the heads see.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from threadpoolctl import threadpool_limits
from torch import Tensor

from viny.data.augment import Normalisation, labelled_images
from viny.data.masks import BACKGROUNDS, IGNORE
from viny.data.pack import Pack, open_pack
from viny.data.splits import permutation, read_split
from viny.evidence.token_metrics import (
    ITERATIONS,
    REFERENCES,
    across_image_variance,
    alignment,
    centred,
    layer_names,
    linear_probe,
    mean_by_distance,
    morans_i,
    near_minus_far,
    patch_similarity,
    rank_of,
    share_within,
    within_image_variance,
)
from viny.learning.machine import Machine
from viny.learning.model import ViNy, patchify
from viny.learning.objectives import majority_class
from viny.learning.settings import BATCH
from viny.learning.weights import load_encoder, new_encoder, shown_by
from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, digest, file_sha256, read_sealed, write_sealed
from viny.runtime.provenance import Provenance
from viny.study.grid import KINDS, STAGE_OF

WHY_UNDEFINED = {
    "within_share": "no token differs from another",
    "local_minus_distant": "no pair of patches is that far apart, or tokens are zero",
    "local_minus_distant_centred": "no pair of patches is that far apart, or no token differs from another",
    "morans_i": "no dimension varies within an image",
    "effective_rank": "no token differs from another",
    "linear_cka": "the tokens of one of the encoders are all the same",
}


# Reference patches of heat maps


def reference_patches(
    mask: np.ndarray, patch_size: int, classes: int, background: int | None, border: int | None
) -> dict[str, int | None]:
    """A patch of the background, one inside a class and one on an edge between classes, from an image's mask.

    Args:
        mask: int [S, S], classes of pixels.
        patch_size: P, pixels.
        classes: how many there are.
        background: the class of what is nothing else; None for data without one.
        border: the class of the pixels around others; None for data without one.

    Returns:
        The index of each kind in `REFERENCES`, with patches counted row by row; None if the image has no such patch.
        'background': of the patches that are all background, the one farthest from any other patch. 'inside': of the
        patches that are all of one other class, the one deepest inside, where the image's edge also counts as an edge.
        'edge': the patch with the most border pixels; without a border class, the one with the most pixels of any but
        its commonest class. Ties go to the first.
    """
    patches = patchify(torch.from_numpy(np.asarray(mask, np.int64))[None, None], patch_size)[0].numpy()  # [L, P*P]
    share = np.stack([(patches == c).mean(axis=1) for c in range(classes)], axis=1)  # [L, C]
    side = math.isqrt(len(share))
    whole = np.isclose(share, 1)
    empty = whole[:, background] if background is not None else np.zeros(len(share), bool)
    others = [c for c in range(classes) if c not in (background, border) and whole[:, c].any()]
    mixed = share[:, border] if border is not None else share.sum(axis=1) - share.max(axis=1)
    found: dict[str, int | None] = dict.fromkeys(REFERENCES)
    if empty.any():
        # If every patch is background, there is nothing to be far from.
        far = distance_transform_edt(empty.reshape(side, side)).ravel() if not empty.all() else empty
        found["background"] = int(far.argmax())
    if others:
        areas = [np.pad(whole[:, c].reshape(side, side), 1) for c in others]
        depth = np.max([distance_transform_edt(area)[1:-1, 1:-1] for area in areas], axis=0)
        found["inside"] = int(depth.argmax())
    if mixed.max() > 0:
        found["edge"] = int(mixed.argmax())
    return found


def heat_map(tokens: np.ndarray, reference: int | None) -> np.ndarray:
    """Cosine similarity of every patch token of an image to one of them.

    Args:
        tokens: [L, D].
        reference: index of that patch; None if the image has none of its kind.

    Returns:
        [L]; all NaN without a reference.
    """
    if reference is None:
        return np.full(len(tokens), np.nan)
    return patch_similarity(tokens[None])[0, reference]


# One encoder, from files to files


@torch.inference_mode()
def tokens_by_layer(
    encoder: ViNy, images: np.ndarray, normalised: bool | Normalisation, class_token: bool, device: torch.device
) -> list[np.ndarray]:
    """Patch tokens of images at every layer, in float32.

    Args:
        encoder: the transformer.
        images: uint8 [N, 3, S, S].
        normalised: whether and by what images are normalised, as in the other stages; see `labelled_images`.
        class_token: whether the sequence has a class token, which is not returned.
        device: to compute on.

    Returns:
        Depth + 2 arrays [N, L, D]: embedding with positions, output of each block, tokens after the final LayerNorm.
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


def _load(spec: Mapping[str, Any], path: Path | None, stage: str | None, keys: tuple[str, ...]) -> tuple[ViNy, Any]:
    """The encoder of the spec's seed, with the weights of a record if there is one, and the record.

    `stage` is the one that made the record, None for a start, which has a record if its weights are published; `keys`
    name what must agree with the spec.
    """
    wanted = spec["encoder"]
    encoder = new_encoder(spec["model"], wanted["seed"])
    if path is None:
        if stage is not None:
            raise InputError(f"encoder.kind: '{wanted['kind']}' needs the record of its weights; pass it as `encoder`")
        return encoder, None
    if stage is None and "start" not in wanted:
        raise InputError(f"{path}: given for a random start, which has no weights; pass None or name another kind")
    record = load_encoder(encoder, path)
    if stage is None:
        stage, keys, found = "start", ("start",), {"stage": record.get("stage"), "start": record["spec"].get("start")}
    else:
        found = {"stage": record.get("stage"), **record["spec"]["cell"]}
    for key, value in {"stage": stage, **{k: wanted.get(k) for k in keys}}.items():
        if found.get(key) != value:
            raise InputError(f"{path}: its {key} is {found.get(key)!r}, expected {value!r}; pass the record of that")
    return encoder, record


def measure(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    encoder: Path | None = None,
    reference: Path | None = None,
    metrics: Path,
    arrays: Path,
    threads: int = 1,
) -> None:
    """Measure the patch tokens of an encoder on held-out images.

    Held-out images are drawn from the split's 'test' list, the same for every encoder of a study with one test set. The
    probe is trained on the first images of its 'train' list. No image is augmented.

    Args:
        spec: stage, study, protocol, encoder (kind, pretrain_size, intermediate, finetune_size, seed, name), model,
            normalise, class_token, images (held out), probe_images, examples (of heat maps), split_seed, device;
            'note' if the study has one. Its precision does not matter: tokens are float32.
        manifest: manifest of the segmentation pack.
        split: record of a split of that pack.
        indices: index lists of that split.
        encoder: record of the encoder's or a fine-tuned model's weights, or of a published start; none for the random
            start of the seed.
        reference: record of the pre-trained encoder or the published start that CKA compares with; none for the random
            start of the seed.
        metrics: JSON file to write: layers (each with layer, name, metrics, note), output (the last layer, with
            probe_paper and probe_majority), examples, hashes, provenance. Metrics are fractions or plain numbers.
        arrays: npz file to write: distance [Q] in patches; similarity, similarity_centred [depth + 2, Q]; heat_maps,
            heat_maps_centred [E, 3, L], of the output; references int [E, 3], -1 for none; example_images uint8
            [E, 3, S, S]; example_masks [E, S, S]; example_rows [E], held_out [N], probe_train [M], rows of the pack;
            encoder, from the spec, as JSON.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or of another encoder than the spec names.
    """
    # Otherwise each of NumPy's libraries starts one thread per processor, and parallel jobs wait for each other.
    with threadpool_limits(threads):
        _measure_encoder(spec, manifest, split, indices, encoder, reference, metrics, arrays, threads)


def _measure_encoder(
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
    provenance = Provenance()
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
    stage = None if reference is None or not wanted["pretrain_size"] else "pretrain"
    other, start = _load(spec, reference, stage, ("pretrain_size", "seed", "start"))

    def tokens(model: ViNy, of: Any, rows: np.ndarray) -> list[np.ndarray]:
        images, normalised = pack.rows("images", rows), shown_by(of or {}, spec["normalise"])
        return tokens_by_layer(model, images, normalised, spec["class_token"], machine.device)

    layers, trained = tokens(mine, record, held_out), tokens(mine, record, probe_train)
    compared = layers if encoder == reference else tokens(other, start, held_out)
    truth, train_classes = (_patch_classes(pack, rows, mine.settings.patch_size) for rows in (held_out, probe_train))
    names, gpu = layer_names(mine.settings.depth), machine.device if machine.device.type == "cuda" else None
    rows, similarity, similarity_centred = [], [], []
    for layer, (name, *those) in enumerate(zip(names, layers, compared, trained, strict=True)):
        row, raw, without_mean = _measure(*those, truth, train_classes, gpu)
        rows.append({"layer": layer, "name": name, **row})
        similarity.append(raw)
        similarity_centred.append(without_mean)
    own = linear_probe(layers[-1], truth, layers[-1], truth, gpu)
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
    write_sealed(
        metrics,
        {
            "study": spec["study"],
            "protocol": spec["protocol"],
            "note": spec.get("note", ""),
            "encoder": dict(wanted),
            "reference": {"pretrain": "pretrained", "start": "start"}.get((start or {}).get("stage"), "random"),
            "images": len(held_out),
            "probe_images": len(probe_train),
            "class_token": spec["class_token"],
            "normalise": spec["normalise"],
            **({"normalisation": record["normalisation"]} if "normalisation" in (record or {}) else {}),
            "layers": rows,
            "output": rows[-1] | {"probe_paper": own.accuracy, "probe_majority": majority},
            "examples": [
                {"row": int(row), "without": [kind for kind, at in zip(REFERENCES, places, strict=True) if at < 0]}
                for row, places in zip(shown["example_rows"], shown["references"], strict=True)
            ],
            "hashes": {
                "spec": digest(dict(spec)),
                "pack": pack.sha256,
                "split": read_sealed(split, "a split record")["parts"]["test"]["sha256"],
                "weights": record["weights_sha256"] if record else None,
                "reference_weights": start["weights_sha256"] if start else None,
            },
            "outputs": {arrays.name: file_sha256(arrays)},
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
    """The keys that identify such an encoder in its record."""
    keys = {"intermediate": ("intermediate",), "finetuned": ("intermediate", "finetune_size")}
    return ("pretrain_size", "seed", "start", "variant", *keys.get(kind, ()))


def _picked(spec: Mapping[str, Any], lists: Mapping[str, np.ndarray], split: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the held-out images and of those that train the probe."""
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
    tokens: np.ndarray,
    reference: np.ndarray,
    train: np.ndarray,
    truth: np.ndarray,
    train_classes: np.ndarray,
    gpu: torch.device | None,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """A layer's metrics, and its similarity by distance, raw and centred."""
    tokens = tokens.astype(np.float64)  # once for all that follows
    around_mean = centred(tokens)
    raw, without_mean = patch_similarity(tokens), patch_similarity(around_mean)
    probe = linear_probe(train, train_classes, tokens, truth, gpu)
    within, across = within_image_variance(tokens), across_image_variance(tokens)
    values = {
        "within_image_variance": within,
        "across_image_variance": across,
        "within_share": share_within(within, across, around_mean),
        "local_minus_distant": near_minus_far(raw),
        "local_minus_distant_centred": near_minus_far(without_mean),
        "morans_i": morans_i(tokens),
        "effective_rank": rank_of(around_mean),
        "linear_cka": alignment(around_mean, centred(reference)),
        "probe_accuracy": probe.accuracy,
        "probe_balanced_accuracy": probe.balanced_accuracy,
    }
    notes = [f"{name} undefined: {WHY_UNDEFINED[name]}" for name, value in values.items() if not math.isfinite(value)]
    if not probe.converged:
        notes.append(f"the probe stopped after {ITERATIONS} iterations")
    known = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {**known, "note": "; ".join(notes)}, mean_by_distance(raw), mean_by_distance(without_mean)


def _examples(
    spec: Mapping[str, Any], pack: Pack, held_out: np.ndarray, tokens: np.ndarray, patch_size: int
) -> dict[str, np.ndarray]:
    """Arrays of the heat maps, for evenly spaced images with every kind of reference patch that any has; if too few,
    others too."""
    names = pack.manifest["mask_classes"]
    background = next((names.index(name) for name in BACKGROUNDS if name in names), None)
    masks = pack.rows("masks", held_out)
    found = [
        reference_patches(mask, patch_size, len(names), background, pack.manifest.get("border_class")) for mask in masks
    ]
    places = np.array([[-1 if at is None else at for at in each.values()] for each in found])  # [N, 3]
    there = places >= 0
    whole = np.flatnonzero(there[:, there.any(axis=0)].all(axis=1))
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
