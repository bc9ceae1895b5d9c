"""`rela list`: what can be chosen, read from the yamls' own first sentences."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

from rela_cli.config.arguments import Parser
from rela_cli.config.schema import CONF_DIR, GROUPS
from rela_cli.errors import ConfigError, did_you_mean
from rela_cli.terminal import item

PROTOCOL_SENTENCES = {
    "rela": "The paper's: a linear layer on raw features, Adam, fixed epochs; test accuracy at the end",
    "lbfgs": "Logistic regression on standardised features, converged; regulariser chosen on held-out train",
    "knn": "Weighted nearest neighbours by cosine; nothing is trained",
    "sgd_grid": "SGD on raw features, momentum, cosine; the rate from a grid of eight, chosen on held-out train",
    "few_shot": "Logistic regression on a few labelled samples a class, mean over draws",
    "finetune": "All weights and a linear head, on a share of the labels, beside the same network from scratch",
    "segment": "Mean IoU of a linear head and of an FCN head on the frozen feature map, of datasets with masks",
}
CARDED = ("prior", "learner")  # groups whose yamls have a card
PRIOR_HEADS = ("features", "params", "licence", "labels seen")
SENTENCE = re.compile(r"(?:`[^`]*`|[^`])*?(?<!\.)(?<!\bal)(?<!\be\.g)(?<!\bi\.e)\.(?=\s|$)")  # a command in `` is whole
PLURALS = {"switch": "switches", "matching": "matching"}


def main(argv: list[str]) -> int:
    """Print the groups that `argv` names, or all of them."""
    names = plurals()
    asked = [PLURALS.get(word, word) for word in parser().read(argv).groups]
    unknown = [word for word in asked if word not in (*names, *GROUPS)]
    if unknown:
        raise ConfigError(f"unknown group {unknown[0]}{did_you_mean(unknown[0], names)} (allowed: {', '.join(names)})")
    chosen = defaults()
    for name, group in names.items():
        if not asked or name in asked or group in asked:
            show = print_cards if group in CARDED else print_group
            show(name, group, options(group), chosen.get(group))
    return 0


def plurals() -> dict[str, str]:
    """What `rela list` calls each group."""
    return {PLURALS.get(group, f"{group}s"): group for group in GROUPS}


def parser() -> Parser:
    """The command line of `rela list`."""
    made = Parser(
        "list", "Lists what can be chosen; * is the default.", ["rela list priors", "rela list methods learners"]
    )
    made.add("groups", nargs="*", metavar="GROUP", help=f"{', '.join(plurals())} (default: all)", offers=plurals)
    return made


def options(group: str) -> dict[str, str]:
    """Each choice of a group with one sentence about it."""
    if group == "probe":
        return PROTOCOL_SENTENCES
    return {
        path.stem: first_sentence(path.read_text(encoding="utf-8"))
        for path in sorted((CONF_DIR / group).glob("*.yaml"))
    }


def first_sentence(text: str) -> str:
    """The first sentence of the comment that a yaml starts with; a `@package` line is not part of it."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines if "@package" not in line)
    found = SENTENCE.match(comment)
    return found[0].removesuffix(".") if found else comment


def defaults() -> dict[str, str]:
    """The choice of each group in rela.yaml."""
    text = (CONF_DIR / "rela.yaml").read_text(encoding="utf-8")
    return dict(re.findall(r"^  - (\w+): (\w+)", text, flags=re.MULTILINE))


def print_cards(name: str, group: str, choices: dict[str, str], default: str | None) -> None:
    """A table: one line a choice, with what its card says."""
    heads = PRIOR_HEADS if group == "prior" else PRIOR_HEADS[:2]
    rows = {choice: facts(card(group, choice))[: len(heads)] for choice in choices}
    widths = [max(len(head), *(len(row[i]) for row in rows.values())) for i, head in enumerate(heads)]
    print(f"{name} ({group}=...)")
    column = 4 + max(map(len, choices))
    print(" " * column + "  ".join(head.rjust(width) for head, width in zip(heads, widths, strict=True)))
    for choice, sentence in choices.items():
        columns = "  ".join(fact.rjust(width) for fact, width in zip(rows[choice], widths, strict=True))
        head = f" {'*' if choice == default else ' '} {choice:<{column - 3}}{columns}"
        item(head, sentence, len(head) + 2)
    print()


def card(group: str, choice: str) -> dict[str, Any]:
    """The card of a choice's yaml."""
    import yaml

    tree = yaml.safe_load((CONF_DIR / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    return dict(tree.get("card") or {})


def facts(card: dict[str, Any]) -> tuple[str, ...]:
    """Width of the features, millions of parameters, licence, label sets; what a card leaves open is a dash."""
    size = f"{card['parameters']:.{3 if card['parameters'] > 1 else 2}g} M" if "parameters" in card else "-"
    seen = card.get("labels_seen") or card.get("pretrained_labels_seen") or []
    labels = ", ".join(seen) or ("none" if "trained_on" in card else "-")
    return str(card.get("features", "-")), size, card.get("licence", "-"), labels


def print_group(name: str, group: str, choices: dict[str, str], default: str | None) -> None:
    """One block: the plural, how it is written on the command line, and its choices."""
    spelling = "probe.protocols=[...]" if group == "probe" else f"{group}=..."
    print(f"{name} ({spelling})")
    column = 4 + max(map(len, choices))
    for choice, sentence in choices.items():
        mark = "*" if choice == default or group == "probe" else " "
        item(f" {mark} {choice}", sentence, max(column, 19))
    print()
