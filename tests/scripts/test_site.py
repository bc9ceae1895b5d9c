"""The site has every page, every group of settings, and no link that leads nowhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import rela_cli
from rela_cli.config.schema import CONF_DIR, GROUPS
from scripts import site, site_api
from tests.conftest import ROOT

if sys.version_info >= (3, 11):
    import tomllib


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(site, "PAGES", tmp_path / "pages")
    return tmp_path / "pages"


def test_no_link_leads_nowhere(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.main() == 0, capsys.readouterr().err
    assert "](runs.md)" in (pages / "index.md").read_text()


def test_a_link_that_leads_nowhere_is_named(pages: Path) -> None:
    pages.mkdir()
    (pages / "one.md").write_text("[a](docs/two.md) [b](https://x.example/y.md) [c](#here) [d](../README.md#there)")
    assert site.relinked(pages / "one.md") == ["one.md: two.md is not there", "one.md: index.md is not there"]
    assert "[d](index.md#there)" in (pages / "one.md").read_text()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="reads toml")
def test_every_page_is_in_the_navigation(pages: Path) -> None:
    named = set(re.findall(r"\S+\.md", str(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])))
    names = {name.strip("'\"") for name in named}
    site.main()
    assert names == {page.name for page in pages.glob("*.md")}


def test_the_reference_has_every_choice_and_what_keys_may_hold() -> None:
    text = site.reference()
    for path in CONF_DIR.glob("*/*.yaml"):
        if path.parent.name in GROUPS:
            assert f"### {path.parent.name}={path.stem}\n" in text
    assert "| `budget` | a number, above 0 and at most 1 |" in text
    assert "| `protocols` | a list: one of rela, lbfgs, knn" in text
    assert "| `extract_precision` | one of fp32, tf32, fp16, bf16 |" in text
    assert "| `threads` | a whole number, at least 1; or null |" in text


def test_no_word_in_angle_brackets_is_taken_for_a_tag(pages: Path) -> None:
    site.main()
    for page in pages.rglob("*.md"):
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        assert not re.findall(r"<(?!https?:|br>)[^>\n]*>", text), page.name


def test_the_reference_of_the_api_has_every_name_as_it_is_called() -> None:
    text = site_api.api_reference()
    for name in set(rela_cli.__all__) - {"__version__"}:
        assert f"\n## rela.{name}\n" in text
    assert '>>> data = rela.open("efficient")' in text and "open_folder" not in text
    assert "rela.Matching(\n" in text and "### EfficientDataset.labels" in text
    assert "### EfficientDataset.\\_\\_getitem\\_\\_" in text
    assert "Raises: `KeyError`" not in text and "`KeyError`: a path that is no sample's." in text
