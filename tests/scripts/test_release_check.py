"""A release is refused whose version, changelog or archives do not agree; workflows and the image name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from scripts import release_check
from tests.conftest import ROOT


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rela_cli").mkdir()
    (tmp_path / "rela_cli" / "__init__.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 (2026-01-01)\n\n## 1.1.0\n")
    monkeypatch.setattr(release_check, "ROOT", tmp_path)
    return tmp_path


def test_versions_that_agree(project: Path) -> None:
    assert release_check.package_version() == "1.2.0"
    assert release_check.versions("1.2.0", "v1.2.0") == []


def test_versions_that_differ_are_all_named(project: Path) -> None:
    (project / "CITATION.cff").write_text("version: 1.1.0\n")
    (project / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 1.1.0\n")
    assert release_check.versions("1.2.0", "v1.3.0") == [
        "CITATION.cff says 1.1.0, the package 1.2.0",
        "CHANGELOG.md says Unreleased, the package 1.2.0",
        "the tag says 1.3.0, the package 1.2.0",
    ]
    assert release_check.versions("1.2.0", "") == ["CITATION.cff says 1.1.0, the package 1.2.0"], "between releases"


def workflow(name: str) -> str:
    return (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["test.yml", "docs.yml", "release.yml"])
def test_workflows_call_targets_that_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    jobs = yaml.safe_load(workflow(name))["jobs"]
    called = [
        step["run"].partition(" TAG=")[0].split() for job in jobs.values() for step in job["steps"] if "run" in step
    ]
    assert called
    for words in called:
        assert words[0] == "make"
        assert {word for word in words[1:] if "=" not in word} <= targets


def test_every_python_that_the_package_names_is_tested() -> None:
    tested = yaml.safe_load(workflow("test.yml"))["jobs"]["test"]["strategy"]["matrix"]["python"]
    lowest = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert lowest and tested[0] == lowest.group(1)


def test_only_the_job_that_publishes_may_ask_for_an_identity() -> None:
    """Trusted publishing: no token in the repository, and no other job with the right to ask for one."""
    jobs = yaml.safe_load(workflow("release.yml"))["jobs"]
    assert [name for name, job in jobs.items() if "id-token" in job.get("permissions", {})] == ["publish"]
    assert "secrets." not in workflow("release.yml")


def test_the_image_is_built_from_files_that_are_let_in() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert names and all((ROOT / name).exists() and f"!{name}" in let_in for name in names)
