"""`rela push`: what a dry run shows, what is handed to the hub's library, and what is said when that cannot be."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from rela_cli import cli
from tests.commands.test_export import RESNET, VIT, trained

TIMM_FILES = ["README.md", "config.json", "load.py", "model.safetensors", "preprocessing.json", "rela.json"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the hub: a token is there, and what is handed over is noted."""
    calls: list[Any] = []

    class Api:
        def create_repo(self, repository: str, **more: Any) -> None:
            calls.append((repository, more))

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> str:
            front = yaml.safe_load((folder_path / "README.md").read_text().split("---")[1])
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message, front))
            return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


def test_a_folder_that_timm_opens_is_uploaded(tmp_path: Path, hub: list[Any], capsys: Any) -> None:
    run = trained(tmp_path / "run", *VIT)
    assert cli.main(["push", str(run), "alice/net", "--private", "--licence", "mit"]) == 0
    made, sent = hub
    assert made == ("alice/net", {"private": True, "exist_ok": True})
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
    assert "a dry run: nothing was sent to alice/net (public)" in out
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
