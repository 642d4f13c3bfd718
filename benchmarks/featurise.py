"""How fast are molecules featurised and read back, and how far is that from only parsing them?

    python benchmarks/featurise.py [--json FILE] [--quick]

The distinct molecules of Human random where JAXDTI_DATA is set, else those of the embedded dataset. The peer is RDKit's
plain ``MolFromSmiles`` on one core: no featuriser that starts from SMILES can be faster.
"""

import os
import statistics
import tempfile
from pathlib import Path

from harness import Row, cores, interleaved, median_ratio, parse, show, write
from rdkit import Chem, rdBase

from jaxdti.config import DataConfig
from jaxdti.data.molecules import featurize_batch
from jaxdti.data.pairs.featurise import featurize_smiles
from jaxdti.data.pairs.load import load_data

QUICK = 300  # molecules
REPEATS = 3


def distinct_molecules(dataset: str) -> list[str]:
    """Canonical SMILES of the drugs of a named dataset."""
    return load_data(DataConfig(dataset=dataset), "classification").table.drugs.tolist()


def parse_only(smiles: list[str]) -> None:
    """The floor: SMILES to molecules, and nothing of them kept."""
    with rdBase.BlockLogs():
        for text in smiles:
            Chem.MolFromSmiles(text)


def measure_one_core(smiles: list[str], repeats: int) -> list[Row]:
    """Parsing and featurising in this process, in turns."""
    functions = {"parse (RDKit)": lambda: parse_only(smiles), "featurise": lambda: _discard(featurize_batch(smiles))}
    seconds = interleaved(functions, repeats)
    peer = seconds["parse (RDKit)"]
    return [
        _row(case, 1, len(smiles), taken, ratio_to_peer=median_ratio(peer, taken)) for case, taken in seconds.items()
    ]


def measure_all_cores(smiles: list[str], workers: int, repeats: int) -> list[Row]:
    """An empty cache filled by all cores, starting the workers and writing the entry included; then read back."""
    fill: list[float] = []
    read: list[float] = []
    size = 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            once = lambda folder=Path(folder): _discard(featurize_smiles(smiles, folder, workers))
            # The same call twice: only the first finds the cache empty.
            seconds = interleaved({"fill": once, "read": once}, 1)
            fill += seconds["fill"]
            read += seconds["read"]
            size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return [
        _row("featurise and cache", workers, len(smiles), fill, bytes_per_molecule=size / len(smiles)),
        _row("read cache", 1, len(smiles), read),
    ]


def _discard(result: object) -> None:
    """Turns a call with a result into one without."""


def _row(case: str, used: int, molecules: int, seconds: list[float], **more: float) -> Row:
    taken = statistics.median(seconds)
    rate = molecules / taken
    row = {"case": case, "cores": used, "molecules": molecules, "seconds": taken, "molecules_per_second": rate}
    return row | {"molecules_per_second_per_core": rate / used} | more


def main() -> None:
    arguments = parse(__doc__ or "")
    dataset = "human/random" if os.environ.get("JAXDTI_DATA") else "planted"
    smiles = distinct_molecules(dataset)[: QUICK if arguments.quick else None]
    repeats = 1 if arguments.quick else REPEATS
    rows = measure_one_core(smiles, repeats) + measure_all_cores(smiles, cores(), repeats)
    print(f"{len(smiles)} distinct molecules of {dataset}, medians of {repeats}")
    columns = ["case", "cores", "seconds", "molecules_per_second", "molecules_per_second_per_core"]
    show(rows, [*columns, "bytes_per_molecule", "ratio_to_peer"])
    write(arguments.json, "featurise", rows, dataset=dataset, repeats=repeats)


if __name__ == "__main__":
    main()
