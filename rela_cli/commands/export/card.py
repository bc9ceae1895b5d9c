"""README.md of an exported folder, a model card: what was trained on what, what it reaches, and what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rela_cli import __version__
from rela_cli.commands.export.backbone import Backbone
from rela_cli.pipeline.judging import result_lines as on_dataset
from rela_cli.pipeline.screen import cost
from rela_cli.store.beside import files_in
from rela_cli.store.files import Facts, read_json, section
from rela_cli.terminal import as_percent
from rela_cli.weights.run_folder import run_config

FRONT = """---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- transformers
- self-supervised-learning
- rela
{licence}---
"""
NOT_KNOWN = "not known"
NO_WEIGHTS = "none, since it has no weights from elsewhere"


def model_card(backbone: Backbone, form: str, apart: float) -> str:
    """The card; of `huggingface` with what the hub reads in front."""
    result, config = backbone.run.result, run_config(backbone.run.folder)
    licence = f"license: {backbone.licence}\n" if backbone.licence else ""
    front = FRONT.format(licence=licence) if form == "huggingface" else ""
    sections = (
        (f"# {backbone.run.folder.name}", "\n".join(items(backbone, config, result))),
        ("## Use", usage(backbone, form, apart)),
        ("## Numbers", numbers_table(backbone, result)),
        ("## Cost", cost_text(result)),
        ("## Prior and labels", "\n".join(origin(backbone, config, result))),
        ("## How it was made", made(backbone)),
    )
    return front + "\n\n".join(f"{title}\n\n{text}" for title, text in sections) + "\n"


def items(backbone: Backbone, config: Facts, result: Facts) -> Iterator[str]:
    """What it is, line by line."""
    fed, called = backbone.preprocessing, section(result, "called")
    prior = called.get("prior", config["prior"]["name"])
    method = config["method"]["name"]
    how = method if prior == "none" else f"ReLA (targets of the prior {prior}), then {method}"
    mean, std = (", ".join(f"{value:.4f}" for value in fed[key]) for key in ("mean", "std"))
    yield f"- **Network**: {backbone.title}, {backbone.network}; {backbone.width} features, no classifier"
    budget = config.get("budget") or 1.0
    yield f"- **Method**: {how}; budget {budget:g}, {config['epochs']} epochs, seed {config['seed']}"
    yield f"- **Data**: {called.get('dataset', config['dataset']['name'])}, {image_count(result)}"
    square = f"shorter side to {fed['resize']} px ({fed['interpolation']}), centre {fed['size']} px"
    yield f"- **Preprocessing**: RGB, {square}; [0, 1], mean {mean}, std {std}"


def image_count(result: Facts) -> str:
    """How many images it was trained on."""
    count = result.get("train_samples")
    return f"{count:,} train images" if isinstance(count, int) else "number of images not known"


def usage(backbone: Backbone, form: str, apart: float) -> str:
    """The lines that load it."""
    own = {"huggingface": '\nOr without load.py: `timm.create_model("local-dir:FOLDER", pretrained=True)`.\n'}
    own["timm"] = own["huggingface"]
    return f"""```python
from PIL import Image
from load import embed, load  # load.py of this folder

model = load()
features = embed(model, [Image.open("photo.jpg")])  # (1, {backbone.width})
```
{own.get(form, "")}
Loaded back when it was written, it gave the features of the trained network (largest difference {apart:.0e} of the
largest feature)."""


def numbers_table(backbone: Backbone, result: Facts) -> str:
    """A table of top-1 by protocol, with n, beside what it is compared with; and what it reaches on other datasets."""
    rows = [row(result, key, number) for key, number in section(result, "probe").items() if isinstance(number, dict)]
    head = "| protocol | network | top-1 % | untrained | prior alone |\n| --- | --- | ---: | ---: | ---: |"
    table = f"Not probed: {result.get('probe_skipped', 'no number was measured')}."
    if rows:
        table = "\n".join([head, *rows]) + f"\n\n{result.get('test_samples')} test images, 1 seed."
    judged = [read_json(path) or {} for path in files_in(backbone.run.folder)]  # on other datasets, after training
    other = [f"- {facts.get('dataset', '?')}: {text}" for facts in judged for text in on_dataset(facts)]
    more = "\n\nOn other data:\n\n" + "\n".join(other) if other else ""
    return table + more


def row(result: Facts, key: str, number: Facts) -> str:
    """A protocol's line."""
    protocol = key.partition("@")[0]
    compared = [section(section(section(result, "baselines"), name), protocol) for name in ("untrained", "prior_alone")]
    cells = [as_percent(each.get("top1"), "-") for each in (number, *compared)]
    return f"| {protocol} | {number.get('network', 'online')} | {' | '.join(cells)} |"


def cost_text(result: Facts) -> str:
    """Seconds and operations, the prior's pass included."""
    spent = cost(result)
    return f"{spent}. The prior's pass is included; device: {result.get('device', NOT_KNOWN)}." if spent else NOT_KNOWN


def origin(backbone: Backbone, config: Facts, result: Facts) -> Iterator[str]:
    """Where the targets came from, under which licence, and whose labels were seen on the way."""
    prior, card = config["prior"], section(config["prior"], "card")
    if prior["name"] == "none":
        yield "- **Prior**: none, the plain method"
    else:
        licence = card.get("licence") or (NOT_KNOWN if prior.get("weights") or prior.get("run") else NO_WEIGHTS)
        yield f"- **Prior**: {result.get('prior', prior['name'])}; its licence: {licence}"
        yield f"- **The prior was trained on**: {card.get('trained_on') or NOT_KNOWN}"
    seen = NOT_KNOWN if result.get("labels_unknown", True) else ", ".join(result.get("labels_seen") or []) or "none"
    yield f"- **Labels seen on the way, the prior's included**: {seen}"
    yield f"- **Licence of these weights**: {backbone.licence or 'not stated'}"


def made(backbone: Backbone) -> str:
    """The command, and the versions. Of paths the last name is shown: a card is for everybody."""
    facts = backbone.run.facts
    command = re.sub(r"(?:~|\.\.?)?/(?:[^\s/'\",\]]+/)+", ".../", str(facts.get("command", NOT_KNOWN)))
    return f"```\n{command}\n```\n\nrela {section(facts, 'versions').get('rela', '?')}; exported by rela {__version__}."
