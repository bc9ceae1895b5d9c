"""`rela switch-trace`: what another switch would have done in a run that is over. Trains nothing.

A run writes down the matching loss of each step of phase 1 (switch.jsonl); a switch looks at nothing else, so any rule
can be played back over it, as far as the run's own phase 1 went.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from rela_cli.config.arguments import Parser, is_now
from rela_cli.config.parts import instantiate
from rela_cli.config.schema import CONF_DIR, Part
from rela_cli.errors import ConfigError, MissingError, did_you_mean
from rela_cli.store.files import section
from rela_cli.store.outputs import find_run, run_names
from rela_cli.store.sealed import Damaged, parsed
from rela_cli.terminal import plural
from rela_cli.weights.run_folder import run_config, trained

NO_SETTINGS = ("name", "_target_", "card")  # keys of a switch's tree that no rule depends on


def main(argv: list[str]) -> int:
    """Play the switches named back over a run's trace, one line each.

    Raises:
        ConfigError: no such switch or key. MissingError: not a run, or one without a trace.
    """
    given = parser().read(argv)
    folder = find_run(given.run, given.outputs).folder
    losses, total = read_trace(folder)
    own = section(run_config(folder), "switch")
    left = trained(folder).get("switch_step")
    steps = f"{len(losses)} of {plural(total, 'step')}"
    print(f"{folder}: matched in {steps}; {f'left at step {left}' if left else 'never left'}")
    for tree in asked_switches(own, given.settings):
        step, rho = replay(losses, Part.from_tree(tree), total)
        said = f"leaves at step {step}" if step else f"does not leave in {plural(len(losses), 'step')} (rho {rho:.4f})"
        print(f"  {switch_words(tree)}: {said}")
    return 0


def parser() -> Parser:
    """The command line of `rela switch-trace`."""
    made = Parser(
        "switch-trace",
        "At which step another switch would have ended phase 1 of a finished run. Nothing is trained. Without a key it "
        "shows the run's own switch.",
        [
            "rela switch-trace latest switch.threshold=0.99,0.995,0.999",
            "rela switch-trace latest switch=adaptive switch.constants=reference",
        ],
    )
    a_run = "a folder, a name or a part of one (default: latest)"
    made.add("run", nargs="?", default="latest", metavar="RUN", help=a_run, offers=run_names)
    values = "switch=adaptive|fixed|never, switch.KEY=VALUE; commas between several values"
    made.add("settings", nargs="*", metavar="key=value", help=values)
    made.add_outputs()
    return made


def read_trace(folder: Path) -> tuple[list[float], int]:
    """The matching losses of a run in order, and its length in steps."""
    path = folder / "switch.jsonl"
    if not path.is_file():
        raise MissingError(
            f"{folder} has no switch.jsonl: it is no run, or one without a prior, or by an older version"
        )
    losses = [loss_of(line, f"{path}, line {n}") for n, line in enumerate(path.read_bytes().splitlines(), start=1)]
    facts = trained(folder)
    if not facts:
        raise MissingError(f"{folder} is not finished; its length is not known yet")
    return losses, int(facts["steps"])


def loss_of(line: bytes, where: str) -> float:
    """The matching loss of a step; without one of them no rule can be played back.

    Raises:
        MissingError: it is not there.
    """
    try:
        return float(parsed(line)["loss"])
    except (Damaged, KeyError, TypeError, ValueError) as error:
        raise MissingError(f"{where} is damaged: it holds no matching loss") from error


def asked_switches(own: dict[str, Any], words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every switch that the command line asks for, as its yaml's tree: the product of all values."""
    given = {key: value.split(",") for key, _, value in (switch_key(word).partition("=") for word in words)}
    for name in given.pop("switch", [own["name"]]):
        tree = own if name == own["name"] else from_yaml(name)
        if unknown := [key for key in given if key not in tree or key in NO_SETTINGS]:
            raise ConfigError(
                f"switch={name} has no {unknown[0]}{did_you_mean(unknown[0], [k for k in tree if k != '_target_'])}"
            )
        for values in itertools.product(*given.values()):
            yield {**tree, **{key: yaml.safe_load(value) for key, value in zip(given, values, strict=True)}}


def switch_key(word: str) -> str:
    """`threshold=0.99` of switch.threshold=0.99.

    Raises:
        ConfigError: a word without a value.
    """
    key, equals, _ = word.partition("=")
    if not equals:
        raise ConfigError(f"cannot read {word}: say switch=NAME or switch.KEY=VALUE")
    if key != "switch" and not key.startswith("switch."):
        is_now(word, f"switch.{word}")
    return word.removeprefix("switch.")


def from_yaml(name: str) -> dict[str, Any]:
    """One of our own switches with its defaults."""
    path = CONF_DIR / "switch" / f"{name}.yaml"
    if not path.is_file():
        known = [path.stem for path in (CONF_DIR / "switch").glob("*.yaml")]
        raise ConfigError(f"unknown switch {name}{did_you_mean(name, known)} (allowed: {', '.join(sorted(known))})")
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def replay(losses: Sequence[float], switch: Part, total_steps: int) -> tuple[int | None, float]:
    """The step at which a switch leaves phase 1, None if it does not within these losses; and its last rho."""
    import torch

    rule = instantiate(switch, total_steps=total_steps, device=torch.device("cpu"))
    for step in range(1, min(len(losses) + 1, total_steps) + 1):  # a verdict falls one step after the last loss
        rule.check()
        if rule.should_leave():
            return step, float(rule.state[2])
        if step <= len(losses):
            rule.observe(torch.tensor(losses[step - 1], dtype=torch.float64))
    return None, float(rule.state[2])


def switch_words(tree: dict[str, Any]) -> str:
    """switch=adaptive constants=share threshold=0.995"""
    rest = [f"{key}={value}" for key, value in tree.items() if key not in NO_SETTINGS]
    return " ".join([f"switch={tree['name']}", *rest])
