"""An independent PyTorch DrugBAN that computes what the published code computes, to be timed beside jaxdti.

Written from the paper (Bai et al., Nature Machine Intelligence 2023, doi 10.1038/s42256-022-00605-1) and from notes on
the published code's behaviour: everything padded to 290 atoms and 1,200 residues, nothing masked, one attention map a
head, every pair featurised again each epoch. In place of DGL a batch of molecules is one list of edges.

    python benchmarks/peer.py --task train --rows 256
"""

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from harness import malloc_setting, peak_host_bytes
from rdkit import Chem, rdBase
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from jaxdti.config import DataConfig
from jaxdti.data.molecules import ELEMENTS, HYBRIDISATIONS
from jaxdti.data.pairs.load import load_data
from jaxdti.data.pairs.sequences import encode_sequence

ATOMS = 290
RESIDUES = 1200
ATOM_FEATURES = 75  # the last marks a virtual node, one that only pads
WIDTH = 128
KERNELS = (3, 6, 9)
HEADS = 2
JOINT = 256
POOL = 3
RANK = JOINT * POOL
LEARNING_RATE = 5e-5


# The network. Parameters have the published names, which jaxdti.interop.drugban reads too.


class WeightNormLinear(nn.Module):
    """``x W^T + b`` with ``W = g V / ||V||``, one gain and one Frobenius norm for the whole matrix."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight_v = start.weight
        self.weight_g = nn.Parameter(start.weight.detach().norm())
        self.bias = start.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm()), self.bias)


class Projection(nn.Module):
    """Dropout on the input, weight-normalised linear layer, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.main = nn.Sequential(nn.Dropout(0.2), WeightNormLinear(inputs, outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class GraphConv(nn.Module):
    """``A h W + b``: messages summed over the edges, nothing normalised; the weight is stored (in, out)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, width)))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        # On 1 and 2 CPU cores 8 and 3 times as fast as a dense [B, 290, 290] product, backward included.
        summed = torch.zeros_like(h).index_add(0, target, h.index_select(0, source))
        return summed @ self.weight + self.bias


class GraphLayer(nn.Module):
    """``BN(ReLU(A h W + b) + ReLU(h R^T + r))``, the statistics over all nodes of all molecules."""

    def __init__(self, width: int):
        super().__init__()
        self.graph_conv = GraphConv(width)
        self.res_connection = nn.Linear(width, width)
        self.bn_layer = nn.BatchNorm1d(width)

    def forward(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        return self.bn_layer(torch.relu(self.graph_conv(h, source, target)) + torch.relu(self.res_connection(h)))


class GraphLayers(nn.Module):
    def __init__(self, width: int, count: int):
        super().__init__()
        self.gnn_layers = nn.ModuleList(GraphLayer(width) for _ in range(count))

    def forward(self, h: Tensor, source: Tensor, target: Tensor) -> Tensor:
        for layer in self.gnn_layers:
            h = layer(h, source, target)
        return h


class DrugExtractor(nn.Module):
    """Atoms [B, 290, 75] and edges over the B * 290 nodes -> [B, 290, 128]."""

    def __init__(self):
        super().__init__()
        self.init_transform = nn.Linear(ATOM_FEATURES, WIDTH, bias=False)
        with torch.no_grad():
            self.init_transform.weight[-1] = 0.0  # the published start: an output unit, where a feature was meant
        self.gnn = GraphLayers(WIDTH, 3)

    def forward(self, atoms: Tensor, source: Tensor, target: Tensor) -> Tensor:
        h = self.init_transform(atoms).flatten(0, 1)
        return self.gnn(h, source, target).view(len(atoms), ATOMS, WIDTH)


class ProteinExtractor(nn.Module):
    """Letters int64 [B, 1200] -> [B, 1185, 128]: three unpadded convolutions, each followed by ReLU and BN."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(26, WIDTH, padding_idx=0)
        self.conv1, self.conv2, self.conv3 = (nn.Conv1d(WIDTH, WIDTH, kernel) for kernel in KERNELS)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm1d(WIDTH) for _ in KERNELS)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embedding(letters).transpose(1, 2)
        x = self.bn1(torch.relu(self.conv1(x)))
        x = self.bn2(torch.relu(self.conv2(x)))
        x = self.bn3(torch.relu(self.conv3(x)))
        # The published code reads the memory of [128, 1185] as [1185, 128], where a transpose was needed.
        return x.contiguous().view(x.shape[0], x.shape[2], x.shape[1])


class BilinearAttention(nn.Module):
    """Nodes [B, 290, 128] and protein rows [B, 1185, 128] -> [B, 256]: a map a head, each pooled, summed over heads."""

    def __init__(self):
        super().__init__()
        self.v_net = Projection(WIDTH, RANK)
        self.q_net = Projection(WIDTH, RANK)
        start = torch.randn(1, HEADS, 1, RANK)
        self.h_mat_v = nn.Parameter(start)
        self.h_mat_g = nn.Parameter(start.norm())
        self.h_bias = nn.Parameter(torch.randn(1, HEADS, 1, 1))
        self.bn = nn.BatchNorm1d(JOINT)

    def maps(self, v: Tensor, q: Tensor) -> Tensor:
        """The attention map of every head, [B, heads, atoms, residues]."""
        heads = self.h_mat_v * (self.h_mat_g / self.h_mat_v.norm())
        weighted = (v[:, None] * heads).flatten(1, 2)  # both heads in one product
        return torch.bmm(weighted, q.transpose(1, 2)).view(len(v), HEADS, v.shape[1], q.shape[1]) + self.h_bias

    def forward(self, drug: Tensor, protein: Tensor) -> Tensor:
        v, q = self.v_net(drug), self.q_net(protein)
        context = torch.bmm(self.maps(v, q).flatten(1, 2), q).view(len(v), HEADS, v.shape[1], RANK)
        pooled = (v[:, None] * context).sum((1, 2))
        return self.bn(pooled.view(len(v), JOINT, POOL).sum(2))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(JOINT, 512), nn.Linear(512, 512), nn.Linear(512, 128)
        self.fc4 = nn.Linear(128, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(512), nn.BatchNorm1d(512), nn.BatchNorm1d(128)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(torch.relu(self.fc1(x)))
        x = self.bn2(torch.relu(self.fc2(x)))
        x = self.bn3(torch.relu(self.fc3(x)))
        return self.fc4(x)


class Batch(NamedTuple):
    """B pairs, padded as published."""

    atoms: Tensor  # float32 [B, 290, 75]
    source: Tensor  # int64 [edges], nodes of the whole batch: node n of pair b is 290 b + n
    target: Tensor  # int64 [edges]
    letters: Tensor  # int64 [B, 1200]
    labels: Tensor  # float32 [B], 0 or 1

    def to(self, device: str) -> "Batch":
        return Batch(*(x.to(device) for x in self))


class PeerDrugBAN(nn.Module):
    """Logits float32 [B, 1] of a ``Batch``; the state dict has the published names and shapes."""

    def __init__(self):
        super().__init__()
        self.drug_extractor = DrugExtractor()
        self.protein_extractor = ProteinExtractor()
        self.bcn = BilinearAttention()
        self.mlp_classifier = Decoder()

    def forward(self, batch: Batch) -> Tensor:
        drug = self.drug_extractor(batch.atoms, batch.source, batch.target)
        return self.mlp_classifier(self.bcn(drug, self.protein_extractor(batch.letters))).float()


# Training and evaluation.


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)


def forward(model: nn.Module, batch: Batch, dtype: torch.dtype) -> Tensor:
    """Probabilities float32 [B]; products in bfloat16 by autocast where ``dtype`` says so."""
    with torch.autocast(batch.atoms.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(batch)
    return torch.sigmoid(logits).squeeze(1)


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, dtype: torch.dtype = torch.float32
) -> float:
    """One step on the mean binary cross-entropy of the sigmoid; returns the loss, as published after every step."""
    model.train()
    optimizer.zero_grad()
    loss = functional.binary_cross_entropy(forward(model, batch, dtype), batch.labels)
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Iterable[Batch], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels float32 [N] of all pairs of ``loader``, in its order."""
    model.eval()
    scored = [(forward(model, batch.to(device), dtype).cpu(), batch.labels) for batch in loader]
    probabilities, labels = (torch.cat(parts).numpy() for parts in zip(*scored, strict=True))
    return probabilities, labels


# Data.


class Pair(NamedTuple):
    """One drug, one protein and their label, as the files have them."""

    smiles: str
    sequence: str
    label: float


class Features(NamedTuple):
    """One padded pair; edges include the self-loops, twice for atoms and once for virtual nodes."""

    atoms: Tensor  # float32 [290, 75]
    source: Tensor  # int64 [edges]
    target: Tensor  # int64 [edges]
    letters: Tensor  # int64 [1200]
    label: float


# Where each block of the atom features begins; the widths are the published featuriser's.
_ELEMENT, _DEGREE, _IMPLICIT, _CHARGE, _RADICALS, _HYBRID, _AROMATIC, _HYDROGENS, _VIRTUAL = np.cumsum(
    [0, len(ELEMENTS), 11, 7, 1, 1, len(HYBRIDISATIONS), 1, 5]
).tolist()
_ELEMENT_PLACE = {symbol: i for i, symbol in enumerate(ELEMENTS)}
_HYBRID_PLACE = {kind: i for i, kind in enumerate(HYBRIDISATIONS)}


def _atom_places(atom: Chem.Atom) -> Iterator[tuple[int, float]]:
    """The nonzero features of one atom; what is off a list leaves its block zero."""
    if (element := _ELEMENT_PLACE.get(atom.GetSymbol())) is not None:
        yield _ELEMENT + element, 1.0
    for start, end, count in (
        (_DEGREE, _IMPLICIT, atom.GetDegree()),
        (_IMPLICIT, _CHARGE, atom.GetValence(Chem.ValenceType.IMPLICIT)),
        (_HYDROGENS, _VIRTUAL, atom.GetTotalNumHs()),
    ):
        if start + count < end:
            yield start + count, 1.0
    if (hybrid := _HYBRID_PLACE.get(atom.GetHybridization())) is not None:
        yield _HYBRID + hybrid, 1.0
    yield _CHARGE, atom.GetFormalCharge()
    yield _RADICALS, atom.GetNumRadicalElectrons()
    yield _AROMATIC, float(atom.GetIsAromatic())


def featurise(pair: Pair) -> Features:
    """Reads the SMILES with RDKit and pads; the atoms are in the published order (canonical ranks used as an order).

    Raises:
      ValueError: RDKit cannot read the SMILES, or it has more than 290 atoms.
    """
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(pair.smiles)
    if molecule is None or molecule.GetNumAtoms() > ATOMS:
        raise ValueError(f"{pair.smiles!r} is not a molecule of at most {ATOMS} atoms")
    molecule = Chem.RenumberAtoms(molecule, list(Chem.CanonicalRankAtoms(molecule)))
    count = molecule.GetNumAtoms()
    atoms = np.zeros((ATOMS, ATOM_FEATURES), np.float32)
    for row, atom in zip(atoms, molecule.GetAtoms(), strict=False):
        for place, value in _atom_places(atom):
            row[place] = value
    atoms[count:, _VIRTUAL] = 1.0
    bonds = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in molecule.GetBonds()]
    begin, end = np.array(bonds, np.int64).reshape(-1, 2).T
    loops = np.concatenate([np.arange(count), np.arange(ATOMS)])
    letters = np.zeros(RESIDUES, np.int64)
    codes = encode_sequence(pair.sequence, RESIDUES)
    letters[: len(codes)] = codes
    source, target = np.concatenate([begin, end, loops]), np.concatenate([end, begin, loops])
    return Features(
        atoms=torch.from_numpy(atoms),
        source=torch.from_numpy(source),
        target=torch.from_numpy(target),
        letters=torch.from_numpy(letters),
        label=pair.label,
    )


def collate(pairs: Sequence[Features]) -> Batch:
    """One batch; node numbers are shifted so that the molecules become one graph."""
    return Batch(
        atoms=torch.stack([pair.atoms for pair in pairs]),
        source=torch.cat([pair.source + i * ATOMS for i, pair in enumerate(pairs)]),
        target=torch.cat([pair.target + i * ATOMS for i, pair in enumerate(pairs)]),
        letters=torch.stack([pair.letters for pair in pairs]),
        labels=torch.tensor([pair.label for pair in pairs], dtype=torch.float32),
    )


class PairDataset(Dataset):
    """Featurises a pair whenever it is asked for, as published; with ``cached`` all pairs once, here."""

    def __init__(self, pairs: Sequence[Pair], cached: bool):
        self.pairs = pairs
        self.features = [featurise(pair) for pair in pairs] if cached else None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Features:
        return featurise(self.pairs[index]) if self.features is None else self.features[index]


class PairLoader(DataLoader):
    """Batches of pairs: shuffled and without a short last one to train, in order and complete to evaluate."""

    def __init__(self, pairs: Sequence[Pair], batch: int, *, train: bool, cached: bool = False, workers: int = 0):
        dataset = PairDataset(pairs, cached)
        super().__init__(dataset, batch, shuffle=train, drop_last=train, num_workers=workers, collate_fn=collate)


def read_pairs(dataset: str, part: str) -> list[Pair]:
    """The pairs of one part ("train", "validation" or "test") of a named dataset."""
    data = load_data(DataConfig(dataset=dataset), "classification")
    rows, table = data.parts[part], data.table
    return [
        Pair(str(table.drugs[drug]), str(table.proteins[protein]), float(label))
        for drug, protein, label in zip(table.drug[rows], table.protein[rows], table.label[rows], strict=True)
    ]


# The measurement.


def at_least(batches: Iterator[Batch], rows: int) -> Iterator[Batch]:
    """As many batches as it takes to see so many rows."""
    seen = 0
    while seen < rows:
        batch = next(batches)
        seen += len(batch.labels)
        yield batch


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Warms up, then times at least ``rows`` rows, data loading included; see ``main`` for the arguments."""
    torch.manual_seed(0)
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    model = PeerDrugBAN().to(device)
    optimizer = make_optimizer(model)
    if arguments.compile:
        model.compile()  # in place
    train = arguments.task == "train"
    pairs = read_pairs(arguments.dataset, "train" if train else "test")
    if len(pairs) < arguments.batch:
        raise SystemExit(f"--batch {arguments.batch}: there are only {len(pairs)} pairs")
    loader = PairLoader(pairs, arguments.batch, train=train, cached=arguments.cached, workers=arguments.workers)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    # A short last batch would be another shape, which torch.compile compiles again.
    batches = (batch for batch in epochs if len(batch.labels) == arguments.batch)

    def run(count: int) -> int:
        """Trains or evaluates on at least ``count`` rows; returns how many."""
        rows = 0
        if train:
            for batch in at_least(batches, count):
                train_step(model, optimizer, batch.to(device), dtype)
                rows += len(batch.labels)
        else:
            rows = len(evaluate(model, at_least(batches, count), device, dtype)[1])
        if device == "cuda":
            torch.cuda.synchronize()
        return rows

    # Compiled code is made for the first number of edges and made again, for any number, at the second.
    run((3 if arguments.compile else 2) * arguments.batch)
    start = time.perf_counter()
    rows = run(arguments.rows)
    seconds = time.perf_counter() - start
    return {
        "samples_per_second": rows / seconds,
        "seconds": seconds,
        "rows": rows,
        "peak_host_bytes": peak_host_bytes(),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "malloc": malloc_setting(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the PyTorch DrugBAN on one named dataset.")
    parser.add_argument("--task", choices=("train", "evaluate"), required=True)
    parser.add_argument("--rows", type=int, required=True, help="time at least so many pairs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dataset", default="human/random", help="train uses its train part, evaluate its test part")
    parser.add_argument("--cached", action="store_true", help="featurise once, before the clock starts")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    result = json.dumps(measure(arguments), indent=2)
    print(result)
    if arguments.json:
        arguments.json.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
