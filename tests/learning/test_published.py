"""Published weights: the same tokens as the model that they were saved from, and a reason where they do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from patience import PATIENCE
from safetensors.torch import save_file
from test_model import carried_over, shaken
from torch import Tensor, nn

from viny.data.augment import IMAGENET
from viny.learning.model import VINY, ViNy, count_parameters
from viny.learning.objectives import SimMIM
from viny.learning.published import fetch, read_tensors
from viny.learning.settings import TIMM_MODELS, ModelSettings, timm_model
from viny.learning.weights import load_encoder, new_encoder, own_normalisation, save_weights
from viny.runtime.errors import InputError
from viny.runtime.files import file_sha256, read_sealed
from viny.study.workload import parameters

TIMM = "vit_tiny_patch16_224"
SMALL = {"image_size": 48, "patch_size": 16, "dim": 32, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 64}
PLAIN = {**SMALL, "architecture": "timm"}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def small(**more: Any) -> nn.Module:
    """timm's own class with the dimensions of `PLAIN`, every weight moved."""
    sizes = {"img_size": 48, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
    torch.manual_seed(1)
    return shaken(timm.models.VisionTransformer(**{**sizes, **more}))


def start(tmp_path: Path, model: dict[str, Any], **given: Any) -> Path:
    """Fetch; returns the record."""
    spec = {"stage": "start", "start": "mine", "model": model, **{k: str(v) for k, v in given.items()}}
    record = tmp_path / "starts" / "mine" / "encoder.json"
    fetch(spec, weights=record.with_suffix(".safetensors"), record=record)
    return record


def loaded(record: Path, model: dict[str, Any]) -> ViNy:
    encoder = new_encoder(model, 0)
    load_encoder(encoder, record)
    return encoder.double().eval()


def same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1  # not a comparison of constants
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


# timm's architecture


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("ending", ["safetensors", "pth", "bin"])
@torch.inference_mode()
def test_timms_weights_give_timms_tokens_at_any_size(ending: str, size: int, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model, path = shaken(timm.create_model(TIMM)), tmp_path / f"saved.{ending}"
    if ending == "safetensors":
        save_file(model.state_dict(), path)
    else:  # a state dict alone, or in a checkpoint of a model that was parallel
        state = {f"module.{k}": v for k, v in model.state_dict().items()}
        torch.save(model.state_dict() if ending == "pth" else {"epoch": 3, "state_dict": state}, path)
    record = start(tmp_path, timm_model(TIMM, size), timm=TIMM, weights=path)
    encoder, images = loaded(record, timm_model(TIMM, size)), torch.randn(2, 3, size, size, dtype=torch.float64)
    settings = {"pretrained_cfg_overlay": {"file": str(path), "custom_load": False}, "num_classes": 0}
    theirs = timm.create_model(TIMM, pretrained=True, img_size=size, **settings).double().eval()
    same(encoder.encode(images, class_token=True), theirs.forward_features(images))
    found = read_sealed(record, "a weights record")
    assert found["normalisation"] == HALF
    assert (found["source"], found["source_sha256"]) == (str(path), file_sha256(path))
    assert found["parameters"] == count_parameters(encoder)


def test_gradients_are_timms(tmp_path: Path) -> None:
    theirs = small().double()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = loaded(start(tmp_path, PLAIN, timm=TIMM, weights=tmp_path / "a.pth"), PLAIN)
    images, weights = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 3, 48, 48), (3, 10, 32)))
    for fused in (False, True):
        ours.zero_grad(), theirs.zero_grad()
        ours.set_fused_attention(fused)
        (ours.encode(images, True) * weights).sum().backward()
        (theirs.forward_features(images) * weights).sum().backward()
        expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
        kernel = "patch_embed.proj.weight"
        expected[kernel] = expected[kernel].permute(0, 2, 3, 1).flatten(1)
        assert {name for name, p in ours.named_parameters() if p.grad is not None} == set(expected)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-9, rtol=1e-9, msg=name)


def test_a_named_model_comes_from_the_hubs_cache_or_else_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(timm.create_model(TIMM, depth=1).state_dict(), tmp_path / "model.safetensors")
    model, asked = {**timm_model(TIMM, 32), "depth": 1}, []

    def download(repository: str, name: str, local_files_only: bool = False) -> str:
        asked.append((repository, name, local_files_only))
        if local_files_only and len(asked) == 1:
            raise LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for _ in range(2):
        found = read_sealed(start(tmp_path, model, timm=f"{TIMM}.augreg_in21k"), "a weights record")
    hub = f"timm/{TIMM}.augreg_in21k", "model.safetensors"
    assert asked == [(*hub, True), (*hub, False), (*hub, True)]
    assert found["source"] == f"https://huggingface.co/{hub[0]}"


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("no such file here\nmore lines")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(InputError) as refused:
        start(tmp_path, timm_model(TIMM, 32), timm=TIMM)
    hub = f"timm/{TIMM}.augreg_in21k_ft_in1k"
    for said in (f"https://huggingface.co/{hub}", "no such file here)", f"hf download {hub}", "starts.mine.weights:"):
        assert said in str(refused.value)
    assert not (tmp_path / "starts").exists()


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_dimensions_are_those_of_timms_models(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(name, img_size=96, num_classes=0)
        settings = ModelSettings(**timm_model(f"{name}.tag", 96))
        ours = ViNy(settings)
    assert count_parameters(ours) == count_parameters(theirs) == parameters(settings)
    assert theirs.blocks[0].attn.num_heads == settings.heads
    assert [p.shape.numel() for p in ours.parameters()] == [p.shape.numel() for p in theirs.parameters()]


@pytest.mark.parametrize("model", [VINY, ModelSettings(**SMALL), ModelSettings(**PLAIN)])
def test_parameters_are_counted_without_the_module(model: ModelSettings) -> None:
    assert parameters(model) == count_parameters(ViNy(model))


def test_random_weights_are_drawn_as_timm_draws_them() -> None:
    model = timm_model(TIMM, 224)
    ours, theirs = new_encoder(model, 0), timm.create_model(TIMM, num_classes=0)
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        mean, spread = expected[name].mean(), expected[name].std()
        assert value.std() == pytest.approx(float(spread), rel=0.15, abs=1e-9), name
        assert float(value.mean()) == pytest.approx(float(mean), abs=0.3 * float(spread) + 1e-9), name
    again = new_encoder(model, 0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in ours.state_dict().items())
    assert not torch.equal(new_encoder(model, 1).pos_embed, ours.pos_embed)


@pytest.mark.parametrize("settings", [{"architecture": "resnet"}, {"architecture": "timm", "heads": 3}])
def test_other_architectures_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected viny or timm|are not the 32 dimensions"):
        ModelSettings(**{**SMALL, **settings})


# ViNy's architecture


@pytest.mark.parametrize("kind", ["vit", "simmim", "parallel"])
@torch.inference_mode()
def test_vit_pytorchs_weights_give_its_tokens(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit_pytorch = pytest.importorskip("vit_pytorch")
    from vit_pytorch.simmim import SimMIM as Theirs

    torch.manual_seed(3)
    sizes = {"image_size": 128, "patch_size": 16, "dim": 128, "depth": 12, "heads": 8, "mlp_dim": 512}
    vit = vit_pytorch.ViT(**sizes, num_classes=2, dim_head=64)
    vit.load_state_dict(carried_over(shaken(ViNy(num_classes=2))))
    state = (Theirs(encoder=vit, masking_ratio=0.5) if kind == "simmim" else vit).state_dict()
    torch.save({f"module.{k}": v for k, v in state.items()} if kind == "parallel" else state, tmp_path / "vit.pth")
    record = start(tmp_path, vars(VINY), file=tmp_path / "vit.pth")
    out = capsys.readouterr().out
    parts = "mask_token, encoder.mlp_head, patch_to_emb.0, patch_to_emb.1, patch_to_emb.2, to_pixels\n"
    assert out.splitlines(keepends=True)[0].endswith(parts if kind == "simmim" else "mlp_head\n")
    vit.double().eval().mlp_head = nn.Identity()
    vit.pool = "all"
    vit.transformer.register_forward_hook(lambda module, inputs, tokens: kept.append(tokens))
    images, kept = torch.randn(2, 3, 128, 128, dtype=torch.float64), []
    vit(images)
    same(loaded(record, vars(VINY)).encode(images, class_token=True), kept[0])
    assert "normalisation" not in read_sealed(record, "a weights record")


@pytest.mark.parametrize("own", [None, HALF])
def test_an_encoder_of_this_project_is_taken_with_its_normalisation(
    own: dict[str, Any] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = SMALL if own is None else PLAIN
    objective = SimMIM(shaken(new_encoder(model, 4)))
    about = {"spec": {"model": model}} | ({} if own is None else {"normalisation": own})
    save_weights(tmp_path / "encoder.safetensors", objective.state_dict(), about)
    given = {"file": tmp_path / "encoder.safetensors"}
    if own is not None:
        given = {"timm": TIMM, "weights": given["file"]}
    record = start(tmp_path, model, **given)
    assert "left out" in capsys.readouterr().out
    expected = objective.encoder.double().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded(record, model).state_dict().items())
    assert read_sealed(record, "a weights record").get("normalisation") == own


# What is refused


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    state = {**small().state_dict(), "more": Code(f"touch {tmp_path / 'ran'}")}
    with pytest.raises(InputError, match=r"a\.pth: holds an object of \w+\.system, and reading that could run code"):
        start(tmp_path, PLAIN, timm=TIMM, weights=save(tmp_path / "a.pth", state))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match=r"b\.pth: holds an object of .*VisionTransformer"):
        start(tmp_path, PLAIN, timm=TIMM, weights=save(tmp_path / "b.pth", small()))
    assert not (tmp_path / "starts").exists()


def broken(state: dict[str, Tensor], name: str, value: Tensor | None) -> dict[str, Tensor]:
    changed = {**state, name: value}
    return changed if value is not None else {k: v for k, v in state.items() if k != name}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("norm.bias", None, r"lacks norm\.bias; expected the weights of timm's architecture, 48 px"),
        ("blocks.2.norm1.weight", torch.ones(32), r"has blocks\.2\.norm1\.weight, for which the model has no place"),
        ("norm.weight", torch.ones(33), r"'norm\.weight' is 33, but the model's norm\.weight is 32"),
        ("norm.weight", torch.full((32,), torch.nan), r"'norm\.weight' is not finite"),
        ("norm.weight", torch.ones(32, dtype=torch.int64), r"'norm\.weight' holds torch\.int64"),
        ("pos_embed", torch.ones(1, 12, 32), r"'pos_embed' is 1 x 12 x 32; expected a position"),
        ("patch_embed.proj.weight", torch.ones(32, 768), "is no convolution"),
        ("blocks.0.ls1.gamma", torch.ones(32), "layer scale"),
        ("reg_token", torch.ones(1, 4, 32), "register tokens"),
        ("dist_token", torch.ones(1, 1, 32), "a distillation token"),
        ("blocks.1.attn.q_norm.weight", torch.ones(16), "norms of queries and keys"),
        ("fc_norm.weight", torch.ones(32), "behind the pooling"),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: Tensor | None, said: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", broken(small().state_dict(), name, value))
    with pytest.raises(InputError, match=rf"a\.pth: .*{said}"):
        start(tmp_path, PLAIN, timm=TIMM, weights=path)
    assert not (tmp_path / "starts").exists()


def test_models_that_timm_builds_otherwise_are_refused(tmp_path: Path) -> None:
    for more in ({"init_values": 1e-5}, {"reg_tokens": 4}, {"qk_norm": True}, {"pre_norm": True}):
        path = save(tmp_path / "a.pth", small(**more).state_dict())
        with pytest.raises(InputError, match="which the model here lacks"):
            start(tmp_path, PLAIN, timm=TIMM, weights=path)
    path = save(tmp_path / "a.pth", small(class_token=False, global_pool="avg").state_dict())
    with pytest.raises(InputError, match="behind the pooling"):
        start(tmp_path, PLAIN, timm=TIMM, weights=path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["cut short", "empty", "text"])
def test_a_damaged_file_is_refused(ending: str, damage: str, tmp_path: Path) -> None:
    path, state = tmp_path / f"a.{ending}", small().state_dict()
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "empty": b"", "text": b"hello, weights"}[damage])
    with pytest.raises(InputError, match=rf"a\.{ending}: not a readable"):
        read_tensors(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, {1: torch.ones(2)}, torch.ones(3)])
def test_what_is_no_state_dict_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.pt: .*(no state dict|no tensor)"):
        read_tensors(save(tmp_path / "a.pt", content))


def test_architectures_are_not_mixed_up(tmp_path: Path) -> None:
    theirs = save(tmp_path / "timm.pth", small().state_dict())
    with pytest.raises(InputError, match=r"timm\.pth: timm's architecture.*name its model as `timm`"):
        start(tmp_path, SMALL, file=theirs)
    ours = save(tmp_path / "vit.pth", carried_over(ViNy(ModelSettings(**SMALL))))
    with pytest.raises(InputError, match=r"vit\.pth: ViNy's architecture.*as `file`"):
        start(tmp_path, PLAIN, timm=TIMM, weights=ours)
    with pytest.raises(InputError, match=r"absent\.pth: no such weights file"):
        start(tmp_path, SMALL, file=tmp_path / "absent.pth")


def test_heads_that_no_tensor_shows_are_known_of_own_files(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_weights(path, SimMIM(new_encoder(SMALL, 0)).state_dict(), {"spec": {"model": SMALL}})
    with pytest.raises(InputError, match=r"2 heads of 16.*expected those of .*4 heads of 8"):
        start(tmp_path, {**SMALL, "heads": 4, "head_dim": 8}, file=path)
    save_weights(path, SimMIM(new_encoder(SMALL, 0)).state_dict(), {"spec": {"model": [1]}})
    with pytest.raises(InputError, match="what it says of itself"):
        start(tmp_path, SMALL, file=path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit_huge_patch14_224", "not known here; expected one of vit_tiny_patch16_224"),
        ("vit_small_patch16_dinov3", "not known here"),
        (f"{TIMM}.nope", f"Invalid pretrained tag .nope.* Expected one of {TIMM}.augreg_in21k, "),
    ],
)
def test_a_name_that_timm_or_this_project_does_not_know_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        start(tmp_path, PLAIN, timm=name)


def test_a_size_that_patches_do_not_fill_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.image_size: 100; expected a multiple of 16"):
        timm_model(TIMM, 100)


def test_random_weights_are_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"starts\.mine: random weights are drawn"):
        start(tmp_path, PLAIN, timm=TIMM, weights="random")


@pytest.mark.parametrize("found", [{"mean": [0.5], "std": [0.5]}, {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}])
def test_a_normalisation_of_no_three_channels_is_refused(found: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="three means and three deviations"):
        own_normalisation({"normalisation": found})
    assert own_normalisation({}) is None
    assert own_normalisation({"normalisation": json.loads(json.dumps(IMAGENET._asdict()))}) == IMAGENET


def test_timm_is_not_loaded_before_it_is_needed() -> None:
    code = "import sys, viny.learning.stages, viny.learning.published; assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
