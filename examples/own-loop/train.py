"""Match a network to targets that are already there: python train.py efficient."""

import argparse

import torch
import torchvision
from torchvision.transforms import v2

import rela_cli as rela


def network(width: int) -> torch.nn.Module:
    """torchvision's ResNet-18 for small images, without its classifier."""
    learner = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], width_per_group=64)
    learner.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    learner.maxpool, learner.fc = torch.nn.Identity(), torch.nn.Linear(512, width)
    return learner


def accuracy(learner: torch.nn.Module, folder: str, clean: v2.Transform) -> float:
    """Top-1 of a linear probe, as `rela train` measures it."""
    splits = [rela.open(folder, split=split) for split in ("train", "test")]
    loaders = [torch.utils.data.DataLoader(split.images(clean), batch_size=256) for split in splits]
    train, test = (rela.extract(learner, loader) for loader in loaders)
    return rela.probe(train, splits[0].labels, test=(test, splits[1].labels))["top1"]


def main() -> None:
    """Train, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="what `rela convert` wrote")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.5, help="share of the images in an epoch")
    given = parser.parse_args()
    torch.manual_seed(0)

    data = rela.open(given.folder)
    learner = network(width=128)
    clean = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(data.mean, data.std)])
    view = v2.Compose([v2.RandomResizedCrop(data.image_size, (0.5, 1), antialias=True), clean])
    sampler = rela.DynamicSubset(len(data), budget=given.budget, seed=0)
    loader = torch.utils.data.DataLoader(data.images(view), batch_size=64, sampler=sampler, drop_last=True)
    matching = rela.Matching(learner, data, switch="never")
    optimizer = torch.optim.AdamW([*learner.parameters(), *matching.parameters()], lr=1e-3)

    print(f"before: {100 * accuracy(learner, given.folder, clean):.1f} %")
    for epoch in range(given.epochs):
        learner.train()
        for images, numbers in loader:
            loss = matching.loss(learner(images), numbers)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1} of {given.epochs}: loss {loss.item():.3f}", flush=True)
    print(f"after: {100 * accuracy(learner, given.folder, clean):.1f} %")


if __name__ == "__main__":
    main()
