"""`rela.extract` and `rela.probe`: features of any frozen network, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from rela_cli.config.schema import CONF_DIR, PROTOCOLS, Probe
from rela_cli.data.batches.loader import in_blocks
from rela_cli.evaluation import protocols
from rela_cli.evaluation.protocols import Task, accuracy, nine_tenths
from rela_cli.learners.build import in_eval_mode

Network = Callable[[Tensor], Tensor]


def extract(
    model: Network, images: Tensor | Iterable[Any], batch_size: int = 128, device: str | torch.device | None = None
) -> Tensor:
    """Features (N, D) float32, on the CPU, of images (N, 3, H, W) or of batches of them, in order.

    A batch is a tensor, or a tuple that begins with one, as data loaders give them. The model is called as it is: it
    does its own preprocessing, and is in eval mode meanwhile. `device` defaults to that of its parameters.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    >>> extract(model, torch.randn(100, 3, 2, 2)).shape
    torch.Size([100, 5])

    Raises:
        ValueError: the model gives something else than one vector an image, or NaN or Inf.
    """
    network = model if isinstance(model, nn.Module) else None
    place = torch.device(device) if device is not None else device_of(network)
    with in_eval_mode(network) if network else nullcontext():
        found = list(in_blocks(model, images, batch_size, place) if isinstance(images, Tensor) else
                     batched(model, images, place))  # fmt: skip
    features = torch.cat(found).float() if found else torch.empty(0, 0)
    if features.ndim != 2:
        raise ValueError(f"the model gives {tuple(features.shape[1:])} an image, not one vector: pool or flatten it")
    if not features.isfinite().all():
        first = int((~features.isfinite().all(1)).nonzero()[0])
        raise ValueError(f"the model gives NaN or Inf for image {first}")
    return features


def batched(model: Network, batches: Iterable[Any], device: torch.device) -> Iterable[Tensor]:
    """The model over batches as they come."""
    for batch in batches:
        images = batch if isinstance(batch, Tensor) else batch[0]
        with torch.inference_mode():
            yield model(images.to(device)).cpu()


def device_of(network: nn.Module | None) -> torch.device:
    """Where a network is."""
    parameter = next(network.parameters(), None) if network else None
    return torch.device("cpu") if parameter is None else parameter.device


def probe(
    features: Tensor,
    labels: Tensor,
    protocol: str = "lbfgs",
    test: tuple[Tensor, Tensor] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What features (N, D) with labels (N,) are worth: top1 in [0, 1], as the protocol of `rela train` measures it.

    It is fitted on the device that the features lie on. `test` are other features and labels to judge by; without them
    a tenth of each class is held out, always the same. `settings` are keys of the probe group without the protocol's
    name: `probe(..., protocol="knn", k=20)`.

    >>> labels = torch.arange(200) % 4
    >>> features = torch.nn.functional.one_hot(labels, 8).float() + 0.1 * torch.randn(200, 8)
    >>> found = probe(features, labels)
    >>> found["top1"], found["protocol"], found["tested"]
    (1.0, 'lbfgs', 20)

    Raises:
        ValueError: an unknown protocol or setting, or features and labels that do not belong together.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r} must be one of {', '.join(PROTOCOLS)}")
    check_pair(features, labels)
    if test is None:
        labels = labels.cpu()
        rest, held_out = nine_tenths(labels)
        test, features, labels = (features[held_out], labels[held_out]), features[rest], labels[rest]
    check_pair(*test)
    task = Task(features.float(), labels.cpu(), test[0].to(features.device).float(), test[1].cpu())
    logits, extra = protocols.FITTERS[protocol](task, settings_of(protocol, settings))
    return {**accuracy(logits, task.test_labels), **extra, "protocol": protocol, "fitted": len(labels),
            "tested": len(task.test)}  # fmt: skip


def check_pair(features: Tensor, labels: Tensor) -> None:
    """They belong together."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)} must be (N, D) and (N,)")
    if labels.is_floating_point() or not len(labels) or int(labels.min()) < 0:
        raise ValueError("labels must be whole numbers from 0, at least one")


def settings_of(protocol: str, asked: dict[str, Any]) -> Probe:
    """The probe group as its yaml has it, with what was asked for."""
    tree = yaml.safe_load((CONF_DIR / "probe" / "frozen.yaml").read_text(encoding="utf-8"))
    own = {f"{protocol}_{key}": value for key, value in asked.items()}
    if odd := [key for key in own if key not in tree]:
        known = [key.removeprefix(f"{protocol}_") for key in tree if key.startswith(f"{protocol}_")]
        names = ", ".join(key.removeprefix(f"{protocol}_") for key in odd)
        raise ValueError(f"protocol={protocol!r} has no setting {names}; it has {', '.join(known)}")
    numbers = {
        key: float(value) if isinstance(value, str) and key.endswith("lr") else value for key, value in tree.items()
    }
    return Probe(**{**numbers, **own, "protocols": tuple(tree["protocols"])})
