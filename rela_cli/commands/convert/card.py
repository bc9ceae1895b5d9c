"""The card of an efficient dataset: README.md with yaml front matter, as dataset hubs read it."""

from __future__ import annotations

from typing import Any

from rela_cli.data.efficient.folder import CARD, FACTS, IMAGES, MAP, SHARD_COLUMNS
from rela_cli.store.files import Facts
from rela_cli.store.secrets import redact

SIZE_CATEGORIES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
)
COSTS = ("seconds", "flops")
MIRROR = "An image and its mirror image have the same target: match both to it."
VIEWS_TEXT = """
- Beside it {count} light views of each train image have targets of their own, in `train-views-*.safetensors`: `targets`
  (n, {count} x {width}), and `boxes` (n, {count}, 5) int16, which are top, left, height, width and whether the view is
  mirrored, in pixels of the stored image. Match a view that is cut and mirrored so to its own target."""
UNSURE = "; of other members of the ensemble it is not known"
MAPS = "; 0. and so on before the names say of which prior, columns and factors how their targets are joined"
IMAGES_IN_WORDS = {  # what stands of the images, in words
    "copy": "The images are in images/, as a pack that `dataset=packed` reads too. Their own licence holds for them.",
    "link": "The images are not in this folder; efficient.json says where they lay.",
    "none": "The images are not in this folder: `dataset.images=FOLDER` says where they lie.",
}
CARD_TEXT = """\
# {title}

{samples} images of {dataset}, each with the target that {prior} gives it: its features of the whole image
(one clean view, not mirrored), mapped by `{transport}` to {width} numbers{ordered}. A network is matched to them
before, or instead of, self-supervised training ([ReLA](https://arxiv.org/abs/2405.14669)).

```
hf download OWNER/NAME --repo-type dataset --local-dir FOLDER
rela train dataset=efficient dataset.root=FOLDER        # the run that prior and dataset had given, bit for bit
rela data check FOLDER                                  # names every file that is not what was written
```

```python
import rela_cli as rela
data = rela.open("FOLDER")     # data[3], data[torch.tensor([3, 5])]: targets; data.labels, data.names
```

- Prior: {prior_line}
- Labels that the prior's training used: {seen}
- Cost: {cost}
- {kept}
- {mirror}

| file | what is in it |
| --- | --- |
{table}

Columns of a shard:

{columns}
"""


def card_text(facts: Facts, files: Facts) -> str:
    """The whole README.md; `files` are all the others, with their hashes."""
    import yaml

    front = front_matter(facts, files)
    head: str = yaml.safe_dump(redact(front), sort_keys=False, allow_unicode=True, width=120)
    return f"---\n{head}---\n\n{redact(body(facts))}"


def front_matter(facts: Facts, files: Facts) -> Facts:
    """What programs read: the keys of dataset hubs first, then our own under `rela`."""
    prior, made = facts["prior"], facts["made"]
    train = facts["splits"]["train"]
    return {
        "pretty_name": title(facts),
        "task_categories": ["image-feature-extraction"],
        "tags": ["rela", "self-supervised-learning", "targets"],
        "size_categories": [next((name for most, name in SIZE_CATEGORIES if train["samples"] < most), "100M<n<1B")],
        "viewer": False,  # hubs show tables and images; these are tensors and packs
        "rela": {
            "format": facts["format"],
            "dataset": {key: facts["dataset"][key] for key in ("name", "called", "limits", "label_set", "flip")},
            "prior": {key: value for key, value in prior.items() if key != "identity"} | {"weights": weights_of(prior)},
            "preprocessing": made["features"].get("preprocessing") or "as the prior of this name does it",
            "image_size": made["images"].get("size"),
            "transport": {"name": facts["transport"]["name"], **facts["transport"]["options"], **map_facts(made)},
            "samples": {split: part["samples"] for split, part in facts["splits"].items()},
            "width": train["width"],
            "images": facts["images"],
            "cost": {stage: {key: made[kind].get(key) for key in COSTS} for stage, kind in STAGE_ARTIFACTS.items()},
            "versions": facts["versions"],
            "files": {name: file["sha256"] for name, file in sorted(files.items()) if name != CARD},
        },
    }


STAGE_ARTIFACTS = {"extract": "features", "transport": "targets"}


def title(facts: Facts) -> str:
    """`cifar10, targets of dinov2_vits14`."""
    return f"{facts['dataset']['called']}, targets of {facts['prior']['called']}"


def weights_of(prior: Facts) -> Any:
    """The sha256 of the prior's weights, or what stands for them; None for a prior without any; of an ensemble each."""
    if members := prior["identity"].get("members"):
        return {member["name"]: weights_of({"identity": member}) for member in members}
    return prior["identity"].get("weights") or prior["identity"].get("run")


def map_facts(made: Facts) -> Facts:
    """What the map says of itself: dimensions, dead components, explained variance."""
    return {key: made["targets"][key] for key in ("dim", "dead", "explained_variance") if key in made["targets"]}


def body(facts: Facts) -> str:
    """What people read."""
    prior, train, made = facts["prior"], facts["splits"]["train"], facts["made"]
    licence, trained = prior["licence"], prior["trained_on"]
    seen = prior["labels_seen"]
    views = facts.get("views")
    is_joined = "members" in prior["identity"]
    seconds = {stage: made[kind].get("seconds") or 0.0 for stage, kind in STAGE_ARTIFACTS.items()}
    names = {
        "*-00000-of-*.safetensors": "some samples of a split, in order: the columns below",
        MAP: "the fitted map: mean, axes, scale, and the spectrum (eigenvalues) where it has one" + MAPS * is_joined,
        FACTS: "all facts, with the sha256 of each file and of itself",
        **({f"{IMAGES}/": "the images"} if facts["images"] == "copy" else {}),
    }
    return CARD_TEXT.format(
        title=title(facts),
        samples=f"{train['samples']:,}",
        dataset=facts["dataset"]["called"],
        prior=prior["called"],
        transport=facts["transport"]["name"],
        width=train["width"],
        ordered=", the most important first" if facts["transport"]["ordered"] else "",
        prior_line=f"{prior['called']}; licence: {licence or 'not known'}; trained on: {trained or 'not known'}",
        seen="not known" if seen is None else (", ".join(seen) or "none") + UNSURE * prior.get("labels_unknown", False),
        cost=", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items()),
        kept=IMAGES_IN_WORDS[facts["images"]],
        table="\n".join(f"| `{name}` | {what} |" for name, what in names.items()),
        columns="\n".join(f"- `{name}`: {what}" for name, what in SHARD_COLUMNS.items()),
        mirror=MIRROR + (VIEWS_TEXT.format(**views) if views else ""),
    )
