"""`rela push`: what a dry run shows, what the hub's library is handed, what is said when that cannot be; datasets."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from rela_cli import cli
from rela_cli.data.efficient.folder import EfficientFolder
from rela_cli.store.files import load_json
from tests.commands.test_convert import PIXELS, PRIOR
from tests.commands.test_export import RESNET, VIT, trained

TIMM_FILES = ["README.md", "config.json", "load.py", "model.safetensors", "preprocessing.json", "rela.json"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Stands for the hub: a token is there, what is handed over is noted, and of a dataset it keeps the files."""
    calls: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **more: Any) -> None:
            calls.append((repository, more))

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, repo_type: str) -> str:
            front = yaml.safe_load((folder_path / "README.md").read_text().split("---")[1])
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message, front))
            if repo_type == "dataset":
                shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


def test_a_folder_that_timm_opens_is_uploaded(tmp_path: Path, hub: list[Any], capsys: Any) -> None:
    run = trained(tmp_path / "run", *VIT)
    assert cli.main(["push", str(run), "alice/net", "--private", "--licence", "mit"]) == 0
    made, sent = hub
    assert made == ("alice/net", {"private": True, "repo_type": "model", "exist_ok": True})
    assert sent[:3] == ("alice/net", TIMM_FILES, "rela: run")
    assert (sent[3]["license"], sent[3]["library_name"]) == ("mit", "timm")
    assert "uploaded  https://huggingface.co/alice/net" in capsys.readouterr().out


def test_a_dry_run_needs_neither_token_nor_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", *RESNET, size=8)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: pytest.fail("it asks for a token"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it uses the network"))
    assert cli.main(["push", str(run), "alice/net", "--format", "torchvision", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "a dry run: nothing was sent to alice/net (public model)" in out
    assert "model.safetensors" in out


def test_what_the_hub_refuses_is_one_line(tmp_path: Path, hub: list[Any], monkeypatch: Any, capsys: Any) -> None:
    run = trained(tmp_path / "run", *RESNET, size=8)

    class Refused(Exception):
        response = type("Response", (), {"status_code": 403})

    def refuse(*_: Any, **__: Any) -> None:
        raise Refused("403 Forbidden: you may not\n\nRequest ID: 1")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    assert cli.main(["push", str(run), "alice/net", "--format", "torchvision"]) == 1
    error = capsys.readouterr().err
    assert "alice/net was not uploaded: 403 Forbidden: you may not; the token may not write there" in error
    assert "Request ID" not in error and "Traceback" not in error


def test_bad_input(tmp_path: Path, hub: list[Any], monkeypatch: Any, capsys: Any) -> None:
    run = str(trained(tmp_path / "run", *RESNET, size=8))
    wrong = {
        ("push", "alice/net"): "say a run, and a repository as OWNER/NAME",
        ("push", run, "net"): "(given: net)",
        ("push", run, "alice/net"): "no network of timm: say --format torchvision or onnx or pt2",
        ("push", run, "alice/net", "--format", "onxn"): "did you mean onnx?",
    }
    for words, part in wrong.items():
        assert cli.main(list(words)) == 2
        assert part in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(["push", run, "alice/net", "--format", "pt2"]) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert cli.main(["push", run, "alice/net", "--format", "pt2"]) == 2
    assert "no token for the Hugging Face hub: say `hf auth login`" in capsys.readouterr().err
    assert hub == []


# --------------------------------------------------------------------------------------------------- efficient datasets


def converted(place: Path, images: str) -> Path:
    """A small efficient dataset."""
    words = ["convert", *PIXELS, *PRIOR, "--images", images, "--to", str(place / images), f"--outputs={place / 'out'}"]
    assert cli.main(words) == 0
    return place / images


def test_an_efficient_dataset_comes_back_from_the_hub_as_it_was(tmp_path: Path, hub: list[Any], capsys: Any) -> None:
    folder = converted(tmp_path, "copy")
    edited = (folder / "README.md").read_text() + "\nHow these images were chosen.\n"
    (folder / "README.md").write_text(edited)
    assert cli.main(["push", str(folder), "alice/set", "--licence", "cc-by-4.0", "--dry-run"]) == 0
    assert "nothing was sent to alice/set (public dataset)" in capsys.readouterr().out and hub == []
    assert cli.main(["push", str(folder), "alice/set", "--licence", "cc-by-4.0"]) == 0
    made, sent = hub
    assert made == ("alice/set", {"private": False, "repo_type": "dataset", "exist_ok": True})
    front = sent[3]
    assert (front["license"], front["task_categories"], front["viewer"]) == (
        "cc-by-4.0", ["image-feature-extraction"], False)  # fmt: skip
    assert front["size_categories"] == ["n<1K"] and front["rela"]["width"] == 16
    back = tmp_path / "hub"
    text = (back / "README.md").read_text()
    assert "hf download alice/set --repo-type dataset" in text and "How these images were chosen." in text
    assert cli.main(["data", "check", str(back)]) == 0
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} >= {*EfficientFolder(back).facts["files"]}
    assert (folder / "README.md").read_text() == edited and "hf download alice/set" in capsys.readouterr().out


def test_what_is_no_dataset_to_publish(tmp_path: Path, hub: list[Any], capsys: Any) -> None:
    linked, folder = converted(tmp_path, "link"), converted(tmp_path, "none")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "converting.json").write_text("{}")
    wrong = {
        ("push", str(linked), "alice/set"): (2, "says where images lie on this machine"),
        ("push", str(begun), "alice/set"): (3, "the same `rela convert` goes on with it"),
        ("push", str(folder), "alice/set", "--format", "onnx"): (2, "--format is about networks: leave it out"),
    }
    for words, (code, part) in wrong.items():
        assert cli.main([*words]) == code
        assert part in capsys.readouterr().err
    (folder / "README.md").write_text("nothing")
    EfficientFolder(folder)  # training needs no card
    assert cli.main(["push", str(folder), "alice/set"]) == 3
    assert "does not begin with yaml" in capsys.readouterr().err
    facts = load_json(folder / "efficient.json")[0]
    (folder / facts["splits"]["train"]["shards"][0]).write_bytes(b"")
    assert cli.main(["push", str(folder), "alice/set"]) == 3
    assert "train-00000-of-00001.safetensors has 0 bytes" in capsys.readouterr().err and hub == []
