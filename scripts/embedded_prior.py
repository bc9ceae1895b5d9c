"""Pack a finished run as the prior that ships with rela: backbone, config, what it wants to be fed, what it scores.

    python scripts/embedded_prior.py outputs/runs/latest

Places and hosts are left out; the backbone is the run's own, byte for byte. The card's sha256 goes into
conf/prior/embedded.yaml by hand, from what this prints.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml

from rela_cli.store.files import file_sha256
from rela_cli.weights.run_folder import EMBEDDED

TRAIN = ("steps", "samples_seen", "switch_step", "phase1_steps", "feature_dim", "target_dim", "seconds", "flops")
FED = ("image_size", "mean", "std")
RESULT = ("dataset", "prior", "learner", "method", "budget", "seed", "epochs", "batch_size", "train_samples", "probe")


def pack(run: Path) -> None:
    """The files of a run that a prior needs, and the facts that a reader wants."""
    EMBEDDED.mkdir(exist_ok=True)
    shutil.copyfile(run / "backbone.safetensors", EMBEDDED / "backbone.safetensors")
    tree = yaml.safe_load((run / "config.yaml").read_text())
    tree["dataset"]["root"] = "FOLDER"
    del tree["paths"], tree["logger"], tree["runtime"]
    (EMBEDDED / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    manifest, result = (json.loads((run / name).read_text()) for name in ("manifest.json", "result.json"))
    train = {key: manifest["train"][key] for key in (*TRAIN, *FED)}
    write("manifest.json", {"status": "finished", "versions": manifest["versions"], "train": train})
    baselines = {name: numbers for name, numbers in result["baselines"].items() if numbers}
    facts = {key: result[key] for key in RESULT}
    write("result.json", {**facts, "labels_seen": result.get("labels_seen", []), "baselines": baselines})
    print(f"sha256: {file_sha256(EMBEDDED / 'backbone.safetensors')}")


def write(name: str, value: object) -> None:
    """Readable JSON."""
    (EMBEDDED / name).write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
