"""Makes the run directories in old_runs/: ``python tests/golden/make_old_runs.py``.

They stand for what users have on their disks, so a later version reads them and does not make them anew. Only where a
release breaks with them on purpose is this called again.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PAIRS = {
    "data": {"train": "tables/train.csv", "validation": "tables/validation.csv", "test": "tables/test.csv"},
    "model": {
        "drug_features": 8,
        "drug_layers": 1,
        "protein_features": 8,
        "protein_kernels": [3],
        "joint_features": 8,
        "pool_size": 1,
        "decoder_features": [16],
        "dropout": 0.1,
    },
    "training": {"epochs": 3, "batch_size": 8, "learning_rate": 3e-4, "buckets": 1, "chunk_steps": 1},
    "output": {"baselines": False, "tensorboard": False, "bootstrap": 20},
}
VECTORS = {
    "vectors": {
        **{part: f"tables/vectors_{part}.csv" for part in ("source", "target", "test")},
        "methods": ["san"],
        "features": [6, 4],
    },
    "training": {"epochs": 4, "batch_size": 16, "learning_rate": 3e-4, "replicas": 2},
    "adaptation": {"discriminator_features": [4]},
    "output": {"baselines": False},
}
SIZES = {
    "data": {
        "table": "tables/families_pairs.csv",
        "drugs": "tables/families_drugs.csv",
        "proteins": "tables/families_proteins.csv",
    },
    "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-4},
    "transfer": {
        "sizes": {
            "targets": ["a"],
            "compounds": [4],
            "repeats": 2,
            "test_compounds": 36,
            "fingerprint_bits": 32,
            "features": [8, 4],
            "batch_size": 8,
            "learning_rate": 1e-4,
            "epochs": 2,
            "updates": 2,
        }
    },
    "output": {"bootstrap": 20},
}
# The command line, which a signal ends once it says that the first epoch is over.
STOPPED = """
import os, signal, sys
from jaxdti.cli import main

class Listening:
    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        if "epoch 1/" in text:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout, sys.stderr = Listening(sys.stdout), Listening(sys.stderr)
sys.exit(main(sys.argv[1:]))
"""
WHOLE = "import sys; from jaxdti.cli import main; sys.exit(main(sys.argv[1:]))"


def make_old_runs(output: Path) -> None:
    """Writes four run directories, without the files that are only looked at."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(HERE / "tables", folder / "tables")
        for config, tree in (("pairs", PAIRS), ("vectors", VECTORS), ("sizes", SIZES)):
            (folder / f"{config}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        _run(folder, WHOLE, 0, "train", "pairs.yaml", "--output", "pairs_finished")
        _run(folder, STOPPED, 128 + signal.SIGTERM, "train", "pairs.yaml", "--output", "pairs_interrupted")
        _run(folder, WHOLE, 0, "train", "vectors.yaml", "--output", "vectors_finished")
        _run(folder, WHOLE, 0, "transfer", "--protocol", "sizes", "sizes.yaml", "--output", "sizes_interrupted")
        _thin(folder)
        for run in ("pairs_finished", "pairs_interrupted", "vectors_finished", "sizes_interrupted"):
            shutil.rmtree(output / run, ignore_errors=True)
            shutil.copytree(folder / run, output / run)


def _run(folder: Path, script: str, code: int, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAXDTI_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=folder, env=environment)
    if done.returncode != code:
        raise RuntimeError(f"exit code {done.returncode}, expected {code}: {arguments}")


def _thin(folder: Path) -> None:
    """Leaves out pictures, all but the last checkpoint, and what the protocol would have written after its sources."""
    for picture in folder.rglob("*.png"):
        picture.unlink()
    shutil.rmtree(folder / "pairs_finished" / "checkpoints")
    steps = sorted((folder / "pairs_interrupted" / "checkpoints").iterdir(), key=lambda path: int(path.name))
    for step in steps[:-1]:
        shutil.rmtree(step)
    for note in folder.rglob("commit_success.txt"):  # names the directory, in which nobody looks for it
        note.write_text(note.read_text(encoding="utf-8").replace(f"{folder.resolve()}/", ""), encoding="utf-8")
    sizes = folder / "sizes_interrupted"
    for file in (sizes / "scores" / "a_from_b.npz", *sizes.glob("results.*"), *sizes.glob("means.*")):
        file.unlink()
    (sizes / "sizes.md").unlink()


if __name__ == "__main__":
    make_old_runs(HERE / "old_runs")
