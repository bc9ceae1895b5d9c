"""Stage 4: probes of the trained backbone, of the untrained learner and of the prior alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from rela_cli.distributed import ranks
from rela_cli.pipeline.making import make_together
from rela_cli.pipeline.result import Numbers
from rela_cli.pipeline.run import Run
from rela_cli.store.files import Facts
from rela_cli.weights import run_folder


class Probing:
    """Measures the numbers of a run. `make_images` and `make_targets` bring into being what a probe reads."""

    def __init__(self, run: Run, make_images: Callable[[], None], make_targets: Callable[[], None]) -> None:
        self.run, self.config = run, run.config
        self.make_images, self.make_targets = make_images, make_targets

    def add_own(self, numbers: Numbers, protocols: list[str]) -> None:
        """Add the trained backbone's number under each of these protocols, and what they cost."""
        from rela_cli.stages.probe import backbone_task, probes

        run_folder.check_backbone(self.run.folder, self.config.probe.network)
        task, cost = backbone_task(self.config, self.run.folder, self.run.images, self.run.dataset)
        network = self.config.probe.network
        for protocol, number in probes(task, protocols, self.config.probe).items():
            cost["seconds"] += number.get("seconds", 0.0)
            settings = self.run.probe_settings(protocol)
            numbers.own[self.run.probe_key(protocol)] = {**number, "network": network, "settings": settings}
        numbers.cost = {account: numbers.cost[account] + cost[account] for account in numbers.cost}

    def add_baselines(self, found: Facts) -> None:
        """Add the untrained learner and the prior alone, under the same protocols; each is made once, then cached."""
        from rela_cli.stages.probe import prior_task, untrained_task

        learner = {"learner": self.config.learner.identity, "seed": self.config.seed}
        fresh = partial(untrained_task, self.config, self.run.images, self.run.dataset)
        found["untrained"] = {**found.get("untrained", {}), **self.baseline("untrained", fresh, **learner)}
        found.setdefault("prior_alone", None if self.config.is_plain else {})
        if not self.config.is_plain:
            self.make_targets()
            dim = (self.run.trained or {})["target_dim"]
            prior = partial(prior_task, self.run.targets, dim, self.run.images, self.config.runtime)
            found["prior_alone"] |= self.baseline("prior_alone", prior, targets=self.run.targets.hash, dim=dim)

    def baseline(self, what: str, make_task: Callable[[], tuple[Any, Facts]], **of: Any) -> Facts:
        """A baseline's number under each protocol, from the cache or made now; its features are made once for all."""
        from rela_cli.stages.probe import probes

        entries = {protocol: self.run.baseline(what, protocol, **of) for protocol in self.config.probe.protocols}
        missing = ranks.agree([protocol for protocol, entry in entries.items() if not entry.manifest])
        task, numbers = cache(make_task), {}

        def fill(protocol: str, _: Path | None) -> Facts:
            self.make_images()
            if protocol not in numbers:
                together = ranks.world() > 1 and protocol in missing  # then several ranks fit them side by side
                numbers.update(probes(task()[0], missing if together else [protocol], self.config.probe))
            return {"number": {**numbers[protocol], "network": what}, **task()[1]}

        for protocol, entry in entries.items():
            make_together(entry, partial(fill, protocol))
        return {protocol: dict((entry.manifest or {})["number"]) for protocol, entry in entries.items()}
