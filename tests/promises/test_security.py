"""What comes from elsewhere runs nothing, leads nowhere outside, and secrets stay where they were (SECURITY.md)."""

from __future__ import annotations

import ast
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from rela_cli.config.compose import compose
from rela_cli.config.parts import import_target, instantiate
from rela_cli.config.schema import CONF_DIR, Card, Part
from rela_cli.data.files.archives import unpack
from rela_cli.errors import ConfigError, MissingError
from rela_cli.pipeline.run_record import SAFE_LOADER
from rela_cli.store.files import write_json
from rela_cli.store.secrets import redact
from rela_cli.weights import sources
from tests.conftest import NO_TORCH, ROOT, Rela
from tests.promises.helpers import FAKE, SHORT, go

# -------------------------------------------------------------------------------------------------- what would run code


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_is_not_run(rela: Rela, tmp_path: Path) -> None:
    """As weights by a path, and in a process of its own; tests/weights/test_weights.py has every suffix and wrapper."""
    mark = tmp_path / "ran"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil(mark)}))
    words = ("prior=checkpoint", "prior.model=resnet20", "prior.weights=evil.pth", "prior.trust=true")
    done = rela("extract", *FAKE, *SHORT, *words)
    assert done.returncode == 3, done.stderr
    assert "evil.pth cannot be read" in done.stderr
    assert not mark.exists()
    pickle.loads((tmp_path / "evil.pth").read_bytes())
    assert mark.exists(), "so it would have run"


def test_every_load_is_of_weights_only() -> None:
    """No other way to unpickle is in the source."""
    assert issubclass(SAFE_LOADER, yaml.constructor.SafeConstructor)
    assert not issubclass(SAFE_LOADER, yaml.constructor.FullConstructor)
    for path in sorted((ROOT / "rela_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(names), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
                assert [ast.unparse(argument) for argument in node.args[1:]] == ["SAFE_LOADER"], path
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, path  # it is off by itself
            if isinstance(node, ast.Attribute):
                assert not node.attr.endswith(("_object_list", "_object")), path  # torch.distributed's, by pickle
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__"), path


def test_what_we_write_is_safetensors_and_json(tmp_path: Path) -> None:
    go(tmp_path, *FAKE, *SHORT, "prior=random", "prior.width=4")
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file() and path.name[0] != "."}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".yaml"}


def test_a_python_tag_in_a_yaml_is_not_run(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "parts" / "prior").mkdir(parents=True)
    tag = f'!!python/object/apply:os.system ["touch {tmp_path}/ran"]'
    (tmp_path / "parts" / "prior" / "evil.yaml").write_text(f"name: evil\n_target_: x.Y\nsize: {tag}\n")
    done = rela("train", "--config-dir", "parts", "prior=evil", "allow=[x]", stub=NO_TORCH)
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "ran").exists()


FOREIGN = ["os.system", "urllib.request.urlretrieve", "subprocess.run", "builtins.exec", "torch.hub.load"]
OURS = [
    *(
        "rela_cli.store.files.write_json",
        "rela_cli.weights.locate.import_module",
        "rela_cli.launch.sweep.scrub",
        "rela_cli.cli.main",
    ),
    *(
        "rela_cli.data.files.archives.unpack",
        "rela_cli.data.files.downloads.fetch_archive",
        "rela_cli.data.decoding.undecodable.write_json",
    ),
    *(
        "rela_cli.priors.checkpoint.fill",
        "rela_cli.learners.build.load_file",
        "rela_cli.learners.torchvision.torchvision",
    ),
]


@pytest.mark.parametrize("target", [*FOREIGN, *OURS])
@pytest.mark.parametrize("group", ["prior", "learner"])
def test_a_config_calls_nothing_but_parts(tmp_path: Path, target: str, group: str) -> None:
    folder = tmp_path / "parts" / group
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"name: evil\n_target_: {target}\ncommand: touch {tmp_path}/ran\n")
    home = target.startswith("rela_cli.priors" if group == "prior" else "rela_cli.learners")
    if not home:
        with pytest.raises(ConfigError, match=target.replace(".", r"\.")):
            compose([f"{group}=evil"], str(tmp_path / "parts"))
    part = Part("evil", target, {})
    if target in OURS:  # also deep inside another part, where no group says what is expected
        with pytest.raises(ConfigError, match=r"is no part that a config can choose|cannot be imported"):
            instantiate(part)


def test_every_part_of_ours_is_one() -> None:
    import yaml

    for path in sorted(CONF_DIR.glob("*/*.yaml")):
        tree = yaml.safe_load(path.read_text()) or {}
        if "_target_" in tree:
            assert callable(import_target(Part.from_tree(tree)))


def test_hydras_rerun_of_a_pickle_is_switched_off(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for words in (("--experimental-rerun", "x.pickle"), ("--experimental-rerun=x.pickle",), ("--exp", "x.pickle")):
        assert rela("train", *words, stub=NO_TORCH).returncode == 2
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------------- archives


def tar_with(path: Path, name: str, link: str = "", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w") as tar:
        for member, data in (("good.txt", b"good"), (name, b"evil")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            if member == name:
                info.type, info.linkname = kind, link
                info.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(data[: info.size]))
    return path


MEMBERS = [
    ("../evil", "", tarfile.REGTYPE),
    ("a/../../evil", "", tarfile.REGTYPE),
    ("/tmp/rela-evil", "", tarfile.REGTYPE),
    ("link", "../..", tarfile.SYMTYPE),
    ("link", "/etc", tarfile.SYMTYPE),
    ("link", "../../etc/passwd", tarfile.LNKTYPE),
    ("pipe", "", tarfile.FIFOTYPE),
    ("disk", "", tarfile.BLKTYPE),
]


@pytest.mark.parametrize(("name", "link", "kind"), MEMBERS)
def test_a_tar_that_leads_outside_is_refused_whole(tmp_path: Path, name: str, link: str, kind: bytes) -> None:
    archive, folder = tar_with(tmp_path / "x.tar", name, link, kind), tmp_path / "in" / "here"
    with pytest.raises(MissingError, match="is refused"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "x.tar"]
    assert not Path("/tmp/rela-evil").exists()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/rela-evil", "..\\evil"])
def test_a_zip_that_leads_outside_is_refused_whole(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr(name, "evil")
    with pytest.raises(MissingError, match="is refused"):
        unpack(tmp_path / "x.zip", tmp_path / "in" / "here")
    assert list((tmp_path / "in" / "here").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 and no more", b"\x1f\x8b\x08"])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(MissingError, match=r"x\.tar\.gz cannot be unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "in")


def test_a_chain_of_links_leaves_nothing(tmp_path: Path) -> None:
    """Each link alone stays inside; one behind the other they lead out, which is seen when some lie there already."""
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as tar:
        for name, target in (("a", "."), ("a/b", ".."), ("a/b/c", "..")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("good.txt"))
    with pytest.raises(MissingError, match="Nothing was unpacked"):
        unpack(archive, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_good_archives_are_unpacked(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "x.tar", "a/link", "../good.txt", tarfile.SYMTYPE)
    unpack(archive, tmp_path / "in")
    assert (tmp_path / "in" / "a" / "link").read_text() == "good"


# -------------------------------------------------------------------------------------------------------------- secrets

KEY, TOKEN = "k3y-8Zt0pQ-do-not-tell", "t0k3n-4Jx9aa-do-not-tell"
OWN = '''
import os
import torch
from rela_cli.priors.base import Prior
class Remote(Prior):
    """Wants a key, and is not discreet about it."""
    def __init__(self, api_key, login, note, fails):
        super().__init__()
        self.feature_dim, self.api_key, self.fails = 3, api_key, fails
    def forward(self, images):
        if self.fails:
            raise ValueError(f"api_key={self.api_key} was refused; the environment says {os.environ['HF_TOKEN']}")
        return images.float().mean((2, 3))
'''
WANDB = """
import json, sys, types
wandb = types.ModuleType("wandb")
class Run:
    def log(self, record, step=None): pass
    def finish(self, *a, **k): pass
wandb.Settings = dict
def init(**keywords):
    open("tracker.json", "a").write(repr((keywords, sys.argv)))
    return Run()
wandb.init = init
sys.modules["wandb"] = wandb
"""


def test_no_secret_in_any_file_or_line(rela: Rela, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text(OWN)
    (tmp_path / "parts" / "prior").mkdir(parents=True)
    yaml = tmp_path / "parts" / "prior" / "remote.yaml"
    head = f"# R.\nname: remote\n_target_: own.Remote\napi_key: {KEY}\n"
    yaml.write_text(head + "login: {password: x}\nnote: x\nfails: false\n")
    flags = ("--config-dir", "parts", "allow=[own]", *FAKE, *SHORT, "prior=remote", "logger=wandb")
    words = (*flags, f"prior.api_key={KEY}", f"prior.login.password={KEY}", "prior.note=${oc.env:HF_TOKEN}")
    environment = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": KEY}
    shown = rela("train", *words, "--cfg", "job", env=environment)
    assert (shown.returncode, "name: remote" in shown.stdout) == (0, True)
    done = rela("train", "-m", *words, "prior.fails=false,true", stub=WANDB, env=environment, kind="full")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "2 cells: 1 run, 0 found, 1 failed"
    assert "api_key=*** was refused" in done.stdout
    yaml.unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and ".stub" not in path.parts]
    assert {"config.yaml", "manifest.json", "result.json", "tracker.json", "traceback.txt", "multirun.yaml"} <= {
        path.name for path in written
    }
    said = [shown.stdout, shown.stderr, done.stdout, done.stderr]
    for text in (*said, *(path.read_text(errors="ignore") for path in written)):
        assert KEY not in text and TOKEN not in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"api_key": "abc", "lr": 0.1}, {"api_key": "***", "lr": 0.1}),
        ({"a": [{"Password": "abc"}]}, {"a": [{"Password": "***"}]}),
        ({"credentials": {"user": "me", "pins": ["1"]}}, {"credentials": {"user": "***", "pins": ["***"]}}),
        ({"class_token": True, "token_dim": 8, "tokens": "abc", "pool": "token"}, None),
        ({"max_tokens": 5, "token": None, "secret": ""}, None),
        ("rela train prior.api_key=abc budget=0.5", "rela train prior.api_key=*** budget=0.5"),
        ("password='a b' x", "password=*** x"),
        ("learner.class_token=true", None),
        ("https://me:pw@host/x and http://host/y", "https://***@host/x and http://host/y"),
        (f"hf_{'a' * 30} ghp_{'b' * 36} AKIA{'C' * 16}", "*** *** ***"),
        ("unexpected token: x = 3", None),
        (3, None),
    ],
)
def test_what_a_secret_is(given: Any, expected: Any) -> None:
    assert redact(given) == (given if expected is None else expected)


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefghij")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true")
    assert redact("abcdefghij abc false-or-true") == "*** abc false-or-true"
    write_json(tmp_path / "x.json", {"why": "refused abcdefghij"})
    assert "abcdefghij" not in (tmp_path / "x.json").read_text()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("seed=${oc.env:LENT}", "seed=${oc.env:LENT} must be a whole number"),
        ("budget=${seed} seed=${oc.env:LENT}", "budget=${seed} must be a number"),
        ("probe.protocols=[knn,'${oc.env:LENT}']", "probe.protocols[1]=${oc.env:LENT} must be one of"),
        ("on_collapse=a-${oc.env:LENT}", "on_collapse=a-${oc.env:LENT} must be one of"),
        ("seed=${oc.env:LENT} batch_size=${budget} budget=0.5", "batch_size=0.5 must be a whole number"),
    ],
)
@pytest.mark.parametrize("value", ["hunter2hunter2", "pin7"])
def test_what_the_environment_says_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, words: str, shown: str, value: str
) -> None:
    """In a variable of any name: a mistyped key is no reason to print it."""
    monkeypatch.setenv("LENT", value)
    with pytest.raises(ConfigError) as refused:
        compose(("dataset=fake", "prior=random", *words.split()))
    assert shown in str(refused.value)
    assert value not in str(refused.value)


def test_a_fetched_file_is_checked_against_its_card(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"x")
    part = Part("mine", "rela_cli.priors.timm.TimmPrior", {}, Card(sha256="ab" * 32))
    with pytest.raises(MissingError, match="is not the file that prior=mine names"):
        sources._check_sha256(part, tmp_path / "w.safetensors")
