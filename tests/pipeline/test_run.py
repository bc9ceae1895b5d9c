"""What a run is called: what changes its name and what does not."""

from __future__ import annotations

import pytest

from rela_cli.pipeline.run import Run
from tests.factories import config
from tests.pipeline.shared import PLAIN, WORDS


@pytest.mark.parametrize(
    "words",
    [
        ("logger=wandb",),
        ("logger.project=x",),
        ("runtime.block_size=7",),
        ("runtime.log_every_epochs=3",),
        ("runtime.step=eager",),
        ("runtime.step=graph",),
        ("runtime=cpu",),
        ("paths.outputs=elsewhere",),
        ("paths.run=by/hand",),
        ("probe.protocols=[rela]",),
        ("probe.network=target",),
        ("probe.knn_k=3",),
        ("budget=0.50",),
    ],
)
def test_what_does_not_change_the_backbone_does_not_change_its_name(words: tuple[str, ...]) -> None:
    assert Run(config(*WORDS, *words)).hash == Run(config(*WORDS)).hash


@pytest.mark.parametrize(
    "words",
    [
        ("seed=1",),
        ("epochs=2",),
        ("batch_size=8",),
        ("accumulate=2",),
        ("budget=0.25",),
        ("optimizer.lr=2e-3",),
        ("optimizer.schedule=cosine",),
        ("learner.width=8",),
        ("method=byol",),
        ("method.temperature=0.5",),
        ("method.view1.blur_p=0.1",),
        ("prior.seed=1",),
        ("prior.width=8",),
        ("transport=pca",),
        ("transport.max_dim=3",),
        ("matching.transfer=frozen",),
        ("matching.view.gray_p=0.1",),
        ("switch=never",),
        ("dataset.seed=1",),
        ("dataset.limit=64",),
        ("dataset.n=256",),
        ("dataset.flip=false",),
    ],
)
def test_what_changes_the_backbone_changes_its_name(words: tuple[str, ...]) -> None:
    assert Run(config(*WORDS, *words)).hash != Run(config(*WORDS)).hash


@pytest.mark.parametrize("words", [("transport=pca",), ("switch=never",), ("matching.transfer=frozen",)])
def test_the_plain_method_does_not_care_for_what_it_lacks(words: tuple[str, ...]) -> None:
    assert Run(config(*PLAIN, *words)).hash == Run(config(*PLAIN)).hash
    assert Run(config(*PLAIN)).hash != Run(config(*WORDS)).hash


def test_a_newer_version_of_any_stage_is_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from rela_cli.pipeline import run

    before = Run(config(*WORDS)).hash
    for stage in ("images", "extract", "transport", "train"):
        monkeypatch.setitem(run.VERSIONS, stage, run.VERSIONS[stage] + 1)
        assert Run(config(*WORDS)).hash != before, stage
        monkeypatch.undo()
    monkeypatch.setitem(run.VERSIONS, "probe", 99)
    assert Run(config(*WORDS)).hash == before
