"""Today's usual way to train such a model: vit-pytorch, torchvision transforms, a DataLoader that decodes every JPEG.

The model is ViNy (4.8 M parameters) with vit-pytorch's own modules; nothing from this project is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from torchvision.transforms import functional as VF
from vit_pytorch import ViT
from vit_pytorch.simmim import SimMIM

SIDE, PATCH, DIM, CLASSES = 128, 16, 128, 3
NORMALISE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def new_vit() -> ViT:
    return ViT(
        image_size=SIDE, patch_size=PATCH, num_classes=2, dim=DIM, depth=12, heads=8, mlp_dim=4 * DIM, dim_head=64
    )


class Pretraining(nn.Module):
    """SimMIM as in vit-pytorch."""

    def __init__(self) -> None:
        super().__init__()
        self.simmim = SimMIM(encoder=new_vit(), masking_ratio=0.5)

    def loss(self, images: Tensor, _: Tensor) -> Tensor:
        return self.simmim(images)


class Finetuning(nn.Module):
    """A linear head on vit-pytorch's patch tokens gives every pixel its class logits."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = new_vit()
        self.head = nn.Linear(DIM, PATCH * PATCH * CLASSES)

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        x = self.vit.to_patch_embedding(images) + self.vit.pos_embedding[..., 1:, :]
        x = self.head(self.vit.transformer(x))
        side = SIDE // PATCH
        x = x.view(-1, side, side, PATCH, PATCH, CLASSES).permute(0, 5, 1, 3, 2, 4)
        return F.cross_entropy(x.reshape(-1, CLASSES, SIDE, SIDE).float(), masks)


class Trimaps(Dataset[tuple[Tensor, Tensor]]):
    """Pets' images and trimaps from their files, with a flip and a contrast jitter."""

    def __init__(self, base: Path) -> None:
        self.images = sorted((base / "images").glob("*.jpg"))
        self.masks = base / "annotations" / "trimaps"
        self.jitter = transforms.ColorJitter(contrast=0.3)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.images[index]
        image = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        mask = Image.open(self.masks / f"{path.stem}.png").resize((SIDE, SIDE), Image.Resampling.NEAREST)
        if torch.rand(()) < 0.5:
            image, mask = VF.hflip(image), VF.hflip(mask)
        target = VF.pil_to_tensor(mask)[0].long() - 1
        return NORMALISE(VF.to_tensor(self.jitter(image))), target


def make_loader(stage: str, data: Path, batch_size: int, workers: int, pinned: bool) -> DataLoader[tuple[Tensor, ...]]:
    """Batches of a stage's images; a second call of `iter` starts a further epoch with the same workers."""
    if stage == "pretrain":
        augment = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        dataset: Dataset[tuple[Tensor, ...]] = datasets.ImageFolder(
            str(data / "imagenet"), transforms.Compose([*augment, NORMALISE])
        )
    else:
        dataset = Trimaps(data / "oxford-iiit-pet")
    return DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, pin_memory=pinned, persistent_workers=workers > 0
    )


class Peer:
    """One stage in one precision, a step or an epoch at a time; with a `mode` of torch.compile, compiled."""

    def __init__(
        self,
        stage: str,
        precision: str,
        data: Path,
        batch_size: int,
        workers: int,
        device: torch.device,
        mode: str | None = None,
    ) -> None:
        self.device, self.precision = device, precision
        self.loader = make_loader(stage, data, batch_size, workers, device.type == "cuda")
        self.model = {"pretrain": Pretraining, "finetune": Finetuning}[stage]().to(device)
        self.loss = self.model.loss if mode is None else torch.compile(self.model.loss, mode=mode)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, images: Tensor, targets: Tensor) -> None:
        """Train on a batch that is on the device."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.loss(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def epoch(self) -> int:
        """Train on every image once; returns how many there were."""
        count = 0
        for images, targets in self.batches():
            self.step(images, targets)
            count += len(images)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return count

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch's batches, on the device."""
        for images, targets in self.loader:
            yield images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Shut the workers down."""
        iterator = getattr(self.loader, "_iterator", None)
        with suppress(AttributeError):
            iterator._shutdown_workers()
