"""What is uploaded of an efficient dataset: its files as they are, and a card with licence and repository."""

from __future__ import annotations

from pathlib import Path

from rela_cli.data.efficient.folder import BEGUN, CARD, FACTS, EfficientFolder
from rela_cli.errors import ConfigError, MissingError
from rela_cli.store.files import file_sha256, write_json
from rela_cli.terminal import as_size, line

PLACE = "hf download OWNER/NAME"  # of the card: the name is not known before


def is_dataset(folder: Path) -> bool:
    """Whether a folder is an efficient dataset, finished or not."""
    return (folder / FACTS).exists() or (folder / BEGUN).exists()


def fill_dataset(root: Path, folder: Path, licence: str | None, repository: str) -> None:
    """Links to all files that `rela convert` wrote, and the card and efficient.json that go with them.

    The card may have been edited; what is uploaded holds the sha256 of the card that is uploaded.

    Raises:
        ConfigError: it says where images lie on this machine. MissingError: it is not finished, or not whole.
    """
    source = EfficientFolder(root, whole=False)
    if source.facts["images"] == "link":
        raise ConfigError(
            f"{root} says where images lie on this machine and does not hold them: for publishing convert again with "
            f"--images copy, or --images none where the images may not be passed on"
        )
    names = [name for name in source.facts["files"] if name != CARD]
    if problems := list(source.problems(contents=True, names=names, afresh=True)):
        raise MissingError("\n".join(problems[:5]))
    line(f"  checked   {len(names)} files, {as_size(sum(source.facts['files'][name]['bytes'] for name in names))}")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to((root / name).resolve())
    (folder / CARD).write_text(card_for(root / CARD, licence, repository), encoding="utf-8")
    card = {"bytes": (folder / CARD).stat().st_size, "sha256": file_sha256(folder / CARD)}
    write_json(folder / FACTS, {**source.facts, "files": {**source.facts["files"], CARD: card}})


def card_for(path: Path, licence: str | None, repository: str) -> str:
    """The card with the licence as the hub reads it, and with the repository's name.

    Raises:
        MissingError: it has no front matter any more.
    """
    import yaml

    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    empty, _, rest = text.partition("---\n")
    head, found, body = rest.partition("\n---\n")
    if empty or not found or not isinstance(front := yaml.safe_load(head), dict):
        raise MissingError(f"{path} does not begin with yaml between lines of ---: remove it and convert again")
    if licence:
        front = {"license": licence, **{key: value for key, value in front.items() if key != "license"}}
        head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=120).rstrip()
    line(f"  licence   {front.get('license') or 'none: the card states none; --licence NAME, such as cc-by-4.0, does'}")
    return f"---\n{head}\n---\n{body.replace(PLACE, f'hf download {repository}')}"
