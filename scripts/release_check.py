"""All that can be checked of a release before it is published: `make release-check [TAG=v0.2.0]`.

The package and CITATION.cff say the same version; with a tag, the tag and the newest section of CHANGELOG.md say it
too. The source archive and the wheel are built, their metadata is read, and the wheel is tried in another folder.
"""

from __future__ import annotations

import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
NEEDED = ("Name", "Version", "Summary", "Requires-Python", "License-Expression", "Description-Content-Type")


def main() -> int:
    """Print each check; 1 if one failed."""
    tag = sys.argv[1] if len(sys.argv) > 1 else ""
    version = package_version()
    problems = versions(version, tag)
    if not problems:
        build()
        problems = [*metadata(version), *contents(), *tried(version)]
    for problem in problems:
        print(f"release-check: {problem}", file=sys.stderr)
    print(f"rela-cli {version}: {'not ready' if problems else 'ready; dist/ has what a release uploads'}")
    return bool(problems)


def package_version() -> str:
    """The version that the package says."""
    return found(r'__version__ = "(.+)"', "rela_cli/__init__.py")


def found(pattern: str, name: str) -> str:
    """What a pattern captures in a file; empty if it is not there."""
    match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    return match.group(1) if match else ""


def versions(version: str, tag: str) -> list[str]:
    """Places that say another version."""
    said = {"CITATION.cff": found(r"^version: (.+)$", "CITATION.cff")}
    if tag:
        said |= {"CHANGELOG.md": found(r"^## (.+?)(?: |$)", "CHANGELOG.md"), "the tag": tag.removeprefix("v")}
    return [
        f"{place} says {other or 'no version'}, the package {version}"
        for place, other in said.items()
        if other != version
    ]


def build() -> None:
    """dist/ with the source archive and the wheel, from nothing."""
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT], check=True, stdout=subprocess.DEVNULL
    )


def wheel() -> Path:
    """The wheel in dist/."""
    return next(DIST.glob("*.whl"))


def metadata(version: str) -> list[str]:
    """Fields that an index wants and the wheel lacks."""
    with zipfile.ZipFile(wheel()) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.parser.Parser().parsestr(archive.read(name).decode())
    problems = [f"the wheel's metadata has no {field}" for field in NEEDED if not fields[field]]
    if fields["Version"] != version:
        problems.append(f"the wheel says version {fields['Version']}")
    return problems


def contents() -> list[str]:
    """Files that have to be in the archives, and those that must not be."""
    with zipfile.ZipFile(wheel()) as archive:
        inside = set(archive.namelist())
    with tarfile.open(next(DIST.glob("*.tar.gz"))) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"rela_cli/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")} | {"rela_cli/py.typed"}
    problems = [f"the wheel lacks {name}" for name in sorted(wanted - inside)]
    problems += [f"the wheel has {name}" for name in sorted(inside) if name.startswith(("tests/", "outputs/"))]
    problems += [
        f"the source archive lacks {name}"
        for name in ("Makefile", "docs/runs.md", "examples/README.md", "tests/conftest.py")
        if name not in source
    ]
    return problems


def tried(version: str) -> list[str]:
    """The wheel, unpacked in an empty folder, says its version and composes the default run."""
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel()).extractall(folder)
        for words in (["--version"], ["train", "--cfg", "job"]):
            done = subprocess.run(
                [sys.executable, "-m", "rela_cli", *words],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": folder},
                capture_output=True,
                text=True,
            )
            if done.returncode or (words == ["--version"] and version not in done.stdout):
                return [f"from the wheel, rela {' '.join(words)} fails: {(done.stderr or done.stdout).strip()}"]
    return []


if __name__ == "__main__":
    sys.exit(main())
