"""The model: the paper's size, an independent implementation's logits, masking, weights on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from viny.learning import model as model_module
from viny.learning.model import ViNy, assert_paper_size, count_parameters, patchify, unpatchify
from viny.learning.settings import ModelSettings
from viny.learning.weights import load_weights, save_weights
from viny.runtime.errors import InputError


def shaken(model: ViNy) -> ViNy:
    """The model with every weight moved: fresh norms and biases are all alike, and would hide a mix-up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def encoder(tiny: ModelSettings) -> ViNy:
    torch.manual_seed(0)
    return shaken(ViNy(tiny))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("classes", "count"), [(2, 4_843_138), (0, 4_842_880), (6, 4_843_654)])
def test_parameters_are_the_papers(classes: int, count: int) -> None:
    with torch.device("meta"):
        assert count_parameters(ViNy(num_classes=classes)) == count


def test_a_change_of_size_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_paper_size()
    # Without the wide heads the count differs, and the assertion must notice.
    monkeypatch.setattr(model_module, "VINY", ModelSettings(head_dim=16))
    with pytest.raises(AssertionError, match="4,843,138"):
        assert_paper_size()


def carried_over(model: ViNy) -> dict[str, Tensor]:
    """ViNy's weights under vit-pytorch's names."""
    outer = {
        "cls_token": "cls_token",
        "pos_embed": "pos_embedding",
        "patch_embed.norm_in": "to_patch_embedding.1",
        "patch_embed.proj": "to_patch_embedding.2",
        "patch_embed.norm_out": "to_patch_embedding.3",
        "norm": "transformer.norm",
        "head": "mlp_head",
    }
    inner = {
        "norm1": "0.norm",
        "attn.qkv": "0.to_qkv",
        "attn.proj": "0.to_out.0",
        "norm2": "1.net.0",
        "mlp.fc1": "1.net.1",
        "mlp.fc2": "1.net.4",
    }
    out = {}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if not module:
            out[outer[name]] = value
        elif module.startswith("blocks."):
            _, block, rest = module.split(".", 2)
            out[f"transformer.layers.{block}.{inner[rest]}.{kind}"] = value
        else:
            out[f"{outer[module]}.{kind}"] = value
    return out


@pytest.mark.parametrize("fused", [False, True])
def test_logits_are_those_of_vit_pytorch(fused: bool) -> None:
    vit_pytorch = pytest.importorskip("vit_pytorch")
    torch.manual_seed(3)
    ours = shaken(ViNy(num_classes=2))
    ours.set_fused_attention(fused)
    sizes = {"image_size": 128, "patch_size": 16, "dim": 128, "depth": 12, "heads": 8}
    theirs = vit_pytorch.ViT(**sizes, num_classes=2, mlp_dim=512, dim_head=64).eval()
    theirs.load_state_dict(carried_over(ours))  # strict: every weight has its place
    x = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        logits = ours(x)
        torch.testing.assert_close(logits, theirs(x), atol=1e-5, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # not a comparison of constants


def test_simmim_loss_is_that_of_vit_pytorch() -> None:
    vit_pytorch = pytest.importorskip("vit_pytorch")
    from vit_pytorch.simmim import SimMIM as Theirs

    from viny.learning.objectives import SimMIM

    mine = SimMIM(shaken(ViNy()))
    shape = {"image_size": 128, "patch_size": 16, "dim": 128, "depth": 12, "heads": 8, "mlp_dim": 512}
    vit = vit_pytorch.ViT(num_classes=2, dim_head=64, **shape)
    vit.load_state_dict(carried_over(mine.encoder), strict=False)  # all but the class head, which is not used
    theirs = Theirs(encoder=vit, masking_ratio=0.5)
    theirs.mask_token.data.copy_(mine.mask_token)
    theirs.to_pixels.load_state_dict(mine.head.state_dict())
    images = torch.randn(3, 3, 128, 128)
    torch.manual_seed(5)
    their_loss = theirs(images)
    torch.manual_seed(5)  # it draws its mask from the global generator; this is the same one
    hidden = torch.rand(3, 64).topk(32, dim=-1).indices
    mask = torch.zeros(3, 64, dtype=torch.bool).scatter_(1, hidden, True)
    # It divides the mean once more by the number of masked patches, a constant that Adam does not notice.
    assert mine.loss((images, mask)).item() == pytest.approx(32 * their_loss.item(), rel=1e-4)


def test_fused_attention_changes_nothing(encoder: ViNy, images: Tensor) -> None:
    encoder.set_fused_attention(False)
    plain = encoder.encode(images, class_token=True)
    encoder.set_fused_attention(True)
    torch.testing.assert_close(encoder.encode(images, class_token=True), plain, atol=1e-5, rtol=1e-5)


def test_patchify_goes_row_by_row_with_channels_fastest() -> None:
    image = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    for patch in range(6):
        top, left = 4 * (patch // 3), 4 * (patch % 3)
        cut = image[:, :, top : top + 4, left : left + 4]
        assert torch.equal(patches[:, patch], cut.permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_unpatchify_inverts_patchify(channels: int) -> None:
    image = torch.randn(2, channels, 24, 24)
    assert torch.equal(unpatchify(patchify(image, 6), 6, channels), image)
    patches = torch.randn(2, 16, 36 * channels)
    assert torch.equal(patchify(unpatchify(patches, 6, channels), 6), patches)


@pytest.mark.parametrize(
    "change",
    [
        {"head_dim": 12},
        {"heads": 3},
        {"dim": 18, "heads": 4},  # the heads do not divide the width
        {"patch_size": 4, "depth": 1},
        {"image_size": 36},
        {"dim": 49, "mlp_dim": 64},  # 49 * (64 / 49) is less than 64 in floating point
    ],
)
def test_other_dimensions(tiny: ModelSettings, change: dict[str, int]) -> None:
    settings = replace(tiny, **change)
    model = ViNy(settings, num_classes=5)
    side = settings.image_size
    assert model(torch.randn(2, 3, side, side)).shape == (2, 5)
    tokens = model.encode(torch.randn(2, 3, side, side), class_token=False)
    assert tokens.shape == (2, (side // settings.patch_size) ** 2, settings.dim)
    assert len(model.blocks) == settings.depth
    assert model.blocks[0].attn.proj.in_features == settings.heads * settings.head_dim
    assert model.blocks[0].mlp.fc1.out_features == settings.mlp_dim


def test_projections_to_queries_keys_and_values_have_no_bias(encoder: ViNy) -> None:
    assert all(block.attn.qkv.bias is None for block in encoder.blocks)


def test_tokens_start_from_a_standard_normal() -> None:
    torch.manual_seed(0)
    model = ViNy()
    for tokens in (model.pos_embed, model.cls_token):
        assert abs(float(tokens.detach().std()) - 1) < 0.2  # timm's own would be 0.02 and 1e-6


def test_class_token_stands_first(encoder: ViNy, images: Tensor) -> None:
    without = encoder.encode(images, class_token=False)
    having = encoder.encode(images, class_token=True)
    assert without.shape == (3, 16, 16)
    assert having.shape == (3, 17, 16)
    # The patches attend to it, so it is not just one more token.
    assert (having[:, 1:] - without).abs().max() > 1e-3
    # Position 0 belongs to it alone: without it, that position's embedding is not used.
    with torch.no_grad():
        encoder.pos_embed[:, 0] += 1
    assert torch.equal(encoder.encode(images, class_token=False), without)
    assert not torch.equal(encoder.encode(images, class_token=True), having)


def test_masked_pixels_do_not_reach_the_output(encoder: ViNy, images: Tensor) -> None:
    token = torch.randn(16)
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[0, :8], mask[1, 5], mask[2] = True, True, True
    patches = patchify(images, 6)
    other = unpatchify(torch.where(mask.unsqueeze(-1), torch.randn_like(patches), patches), 6)
    hidden = [encoder.encode(x, False, mask, token) for x in (images, other)]
    assert torch.equal(*hidden)
    shown = [encoder.encode(x, False) for x in (images, other)]
    # Every token of every image sees the change, as attention reaches all patches.
    assert ((shown[0] - shown[1]).abs().amax(2) > 1e-6).all()
    assert not torch.equal(encoder.encode(images, False, mask, token + 1), hidden[0])


def test_masked_tokens_keep_their_position(encoder: ViNy, images: Tensor) -> None:
    everything = torch.ones(3, 16, dtype=torch.bool)
    tokens = encoder.encode(images, False, everything, torch.zeros(16))
    gaps = torch.cdist(tokens[0], tokens[0])[~torch.eye(16, dtype=torch.bool)]
    assert gaps.min() > 1e-3
    with torch.no_grad():
        encoder.pos_embed.zero_()
    tokens = encoder.encode(images, False, everything, torch.zeros(16))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))


def test_weights_survive_a_round_trip(tmp_path: Path, encoder: ViNy, tiny: ModelSettings) -> None:
    path = tmp_path / "deeper" / "weights.safetensors"
    about = {"stage": "test", "spec": {"lr": 1e-3, "milestones": [1, 2]}, "parent": None}
    save_weights(path, encoder.state_dict(), about)
    tensors, metadata = load_weights(path)
    assert metadata == about
    fresh = ViNy(tiny)
    fresh.load_state_dict(tensors)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), encoder.parameters(), strict=True))
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file stays behind


def test_the_same_weights_give_the_same_file(tmp_path: Path, encoder: ViNy) -> None:
    for name, about in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
        save_weights(tmp_path / name, encoder.state_dict(), about)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_weights_file_is_named(tmp_path: Path, encoder: ViNy, kept: float) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, encoder.state_dict(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"weights\.safetensors: .*run the stage again"):
        load_weights(path)


def test_a_missing_or_foreign_weights_file_is_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(InputError, match=r"absent\.safetensors: no such"):
        load_weights(tmp_path / "absent.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")  # readable, but without our metadata
    with pytest.raises(InputError, match=r"foreign\.safetensors"):
        load_weights(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("class_token", [True, False])
def test_tokens_are_those_of_timm(class_token: bool) -> None:
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    from timm.layers import Attention as TimmAttention

    class Wide(TimmAttention):  # timm's block asks for a class and has no argument for the width of a head
        def __init__(self, dim: int, num_heads: int, **more: object) -> None:
            super().__init__(dim, num_heads=num_heads, **{**more, "attn_head_dim": 64})

    torch.manual_seed(4)
    ours = shaken(ViNy())
    theirs = timm_vit.VisionTransformer(
        img_size=128,
        embed_dim=128,
        depth=12,
        num_heads=8,
        qkv_bias=False,
        num_classes=0,
        norm_layer=torch.nn.LayerNorm,
        attn_layer=Wide,
        class_token=class_token,
        global_pool="token" if class_token else "",
    ).eval()
    theirs.patch_embed = ours.patch_embed
    weights = ours.state_dict()
    if not class_token:
        weights["pos_embed"] = weights["pos_embed"][:, 1:]
        del weights["cls_token"]
    theirs.load_state_dict(weights)  # strict: the names are timm's
    images = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode(images, class_token), theirs.forward_features(images), atol=1e-5, rtol=0)
