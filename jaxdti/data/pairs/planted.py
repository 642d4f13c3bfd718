"""The embedded synthetic dataset: real chemistry and protein-like sequences under a rule that is known exactly.

A drug carries zero to three functional groups and a protein zero to three motifs; each group binds one motif, and a
pair interacts where a carried group binds a carried motif. Everything else is arranged to carry no information:

* labels are balanced over every drug and every protein that can have both, so neither side alone tells anything;
* the motifs that a protein does not carry stand in it with their two halves exchanged, so that neither its composition
  nor its short words tell what it carries;
* drugs wear look-alikes of the groups (an ester for the acid), and motifs have alternative residues in each 3-mer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from jaxdti.config import PlantedConfig
from jaxdti.data.pairs.table import InteractionTable
from jaxdti.errors import DataError

PARTS = ("train", "validation", "test")
_SHARES = (0.7, 0.1, 0.2)
_SHIFTED_PARTS = ("train", "validation", "target_train", "test")  # the last two are the target domain
_SHIFTED_SHARES = (0.5, 0.1, 0.2, 0.2)

# Name, SMARTS of the atoms that belong to the group, fragment to attach.
_GROUPS = (
    ("sulfonamide", "[SX4](=O)(=O)[NX3H2]", "[*]S(N)(=O)=O"),
    ("carboxylic acid", "[CX3](=O)[OX2H1]", "[*]C(=O)O"),
    ("nitrile", "[CX2]#[NX1]", "[*]C#N"),
    ("primary amide", "[CX3](=O)[NX3H2]", "[*]C(N)=O"),
    ("trifluoromethyl", "[CX4](F)(F)F", "[*]C(F)(F)F"),
    ("boronic acid", "[BX3]([OX2H1])[OX2H1]", "[*]B(O)O"),
)
GROUP_NAMES = tuple(name for name, _, _ in _GROUPS)
_PATTERNS = tuple(Chem.MolFromSmarts(smarts) for _, smarts, _ in _GROUPS)

# Look-alikes of the groups first, then common small substituents.
_DECOYS = (
    "[*]S(C)(=O)=O [*]S(=O)(=O)N(C)C [*]C(=O)OC [*]C(C)=O [*]C#C [*]CC#C [*]C(=O)NC [*]NC(C)=O [*]C(C)(C)C [*]OC(F)F "
    "[*]C(O)CO [*]N(C)C [H] [*]C [*]F [*]Cl [*]OC [*]O [*]CC [*]N"
).split()

# Cores by scaffold family. Points: 1 takes the linker, 2 and 3 take a group or a decoy. The second half is the target
# domain of the shifted kind.
_CORES = (
    ("[*:1]c1ccc([*:2])c([*:3])c1", "[*:1]c1cc([*:2])cc([*:3])c1", "[*:1]c1ccc([*:2])cc1[*:3]"),
    ("[*:1]c1ccc([*:2])c([*:3])n1", "[*:1]c1cnc([*:2])c([*:3])c1", "[*:1]c1cc([*:2])nc([*:3])c1"),
    ("[*:1]c1ccc2cc([*:2])ccc2c1[*:3]", "[*:1]c1cc([*:2])c2ccccc2c1[*:3]", "[*:1]c1ccc2c([*:2])cccc2c1[*:3]"),
    ("[*:1]c1cc([*:2])c([*:3])s1", "[*:1]c1sc([*:2])cc1[*:3]", "[*:1]c1csc([*:2])c1[*:3]"),
    ("[*:1]c1ccc2nc([*:2])cc([*:3])c2c1", "[*:1]c1cnc2ccc([*:2])cc2c1[*:3]", "[*:1]c1nccc2cc([*:2])c([*:3])cc12"),
    ("[*:1]c1cc2c([*:2])cc([*:3])cc2n1C", "[*:1]c1cn(C)c2cc([*:2])c([*:3])cc12", "[*:1]c1cc2c([*:3])c([*:2])ccc2o1"),
    ("[*:1]c1nc([*:2])cc([*:3])n1", "[*:1]c1ncc([*:2])c([*:3])n1", "[*:1]c1cc([*:2])nc([*:3])n1"),
    ("[*:1]C1CCC([*:2])CC1[*:3]", "[*:1]C1CCN(C)C([*:2])C1[*:3]", "[*:1]C1CC([*:2])OC([*:3])C1"),
)
_LINKERS = (
    "[*:1]O[*:4] [*:1]C[*:4] [*:1]CC[*:4] [*:1]OC[*:4] [*:1]CO[*:4] [*:1]C(=O)N[*:4] [*:1]C(=O)NC[*:4] "
    "[*:1]NC(=O)[*:4] [*:1]CN(C)C[*:4] [*:1]C(=O)N1CCN([*:4])CC1 [*:1]C=C[*:4] [*:1]CCOC[*:4]"
).split()
# Second rings, point 4 to the linker and 5 to a group or a decoy; halved between the domains like the cores.
_RINGS = (
    "[*:4]c1ccc([*:5])cc1 [*:4]c1cccc([*:5])c1 [*:4]c1ccccc1[*:5] [*:4]c1ccc([*:5])nc1 [*:4]c1cc([*:5])ccc1F "
    "[*:4]C1CCC([*:5])CC1 [*:4]c1ccc([*:5])s1 [*:4]c1ccc([*:5])o1 [*:4]c1cc([*:5])n(C)n1 [*:4]c1cnc([*:5])nc1"
).split()
_POINTS = (2, 3, 5)
_SPACERS = ("", "", "", "C", "CC")  # between the ring and a group

_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_FREQUENCIES = np.array(
    [8.3, 1.4, 5.4, 6.7, 3.9, 7.1, 2.3, 5.9, 5.8, 9.7, 2.4, 4.1, 4.7, 3.9, 5.5, 6.6, 5.3, 6.9, 1.1, 2.9]
)  # percent, roughly as in known proteins
_CLASSES = ("ILVM", "DE", "KR", "ST", "FYW", "NQ", "AG", "H", "C", "P")  # residues that replace each other
_CLASS_OF = {letter: members for members in _CLASSES for letter in members}
_MOTIF_LENGTH = 8
_DEGENERATE = (1, 4, 7)  # positions with alternatives: one in each 3-mer
_FAMILIES = 8
_SUBSTITUTED, _EXCHANGED = 0.10, 0.40  # share of the background by which a family member departs from its ancestor
_COUNTS = (0.04, 0.48, 0.40, 0.08)  # probability that an entity carries 0, 1, 2, 3 groups or motifs


@dataclass(frozen=True, kw_only=True)
class PlantedTruth:
    """What decides about every pair. K functional groups, M motifs, D drugs, P proteins."""

    rule: np.ndarray  # bool [K, M], group k binds motif m
    groups: tuple[str, ...]  # K names
    motifs: tuple[str, ...]  # M regular expressions
    drug_groups: np.ndarray  # bool [D, K]
    protein_motifs: np.ndarray  # bool [P, M]
    # Per drug: group -> atom indices, ascending, in the order of RDKit's atoms after reading the canonical SMILES
    # (which is the order in which the SMILES names its heavy atoms).
    group_atoms: tuple[dict[int, tuple[int, ...]], ...]
    motif_spans: tuple[dict[int, tuple[int, int]], ...]  # per protein: motif -> (start, stop), zero-based, half-open
    drug_family: np.ndarray  # int32 [D], scaffold family
    protein_family: np.ndarray  # int32 [P]


@dataclass(frozen=True, kw_only=True)
class PlantedData:
    """N pairs of D drugs and P proteins."""

    config: PlantedConfig
    smiles: list[str]  # D distinct canonical SMILES
    sequences: list[str]  # P distinct sequences
    drug: np.ndarray  # int32 [N], index into ``smiles``
    protein: np.ndarray  # int32 [N], index into ``sequences``
    label: np.ndarray  # float32 [N], 0 or 1, with noise
    clean: np.ndarray  # float32 [N], 0 or 1, by the rule alone
    part: np.ndarray  # str objects [N]: train, validation, test, and target_train in the shifted kind
    truth: PlantedTruth
    bayes_auroc: float  # of the true P(label = 1 | pair) against the noisy test labels; NaN if those are all equal


def make_planted(config: PlantedConfig) -> PlantedData:
    """The dataset of ``config``, the same for the same config.

    Kinds: ``in_domain`` divides the pairs at random, 70/10/20; ``cold`` divides drugs and proteins so that validation
    and test share none with the other parts; ``shifted`` draws train and validation from one half of the scaffold and
    protein families, target_train and test (a random division of the target pairs) from the other half.

    Raises:
      DataError: the drugs and proteins of a part do not allow as many different pairs of each label as asked for.
    """
    seeds = np.random.SeedSequence(config.seed).spawn(5)
    rule_rng, drug_rng, protein_rng, pair_rng, noise_rng = (np.random.default_rng(seed) for seed in seeds)
    count = len(_GROUPS)
    rule = np.eye(count, dtype=bool)[rule_rng.permutation(count)]
    motifs = _draw_motifs(rule_rng, count)

    shifted = config.kind == "shifted"
    drug_family = _families(drug_rng, config.drugs, len(_CORES), shifted)
    smiles, drug_groups, group_atoms = _draw_drugs(drug_rng, drug_family, shifted)
    protein_family = _families(protein_rng, config.proteins, _FAMILIES, shifted)
    sequences, protein_motifs, motif_spans = _draw_proteins(protein_rng, protein_family, motifs)
    truth = PlantedTruth(
        rule=rule,
        groups=GROUP_NAMES,
        motifs=tuple(_expression(motif) for motif in motifs),
        drug_groups=drug_groups,
        protein_motifs=protein_motifs,
        group_atoms=group_atoms,
        motif_spans=motif_spans,
        drug_family=drug_family,
        protein_family=protein_family,
    )
    binds = (drug_groups.astype(np.int64) @ rule @ protein_motifs.T.astype(np.int64)) > 0
    drug, protein, part = _draw_pairs(pair_rng, config, binds, truth)
    clean = binds[drug, protein]
    label = clean ^ (noise_rng.random(len(clean)) < config.noise)
    test = part == "test"
    return PlantedData(
        config=config,
        smiles=smiles,
        sequences=sequences,
        drug=drug.astype(np.int32),
        protein=protein.astype(np.int32),
        label=label.astype(np.float32),
        clean=clean.astype(np.float32),
        part=part,
        truth=truth,
        bayes_auroc=_bayes_auroc(clean[test], label[test], config.noise),
    )


def as_interactions(planted: PlantedData) -> InteractionTable:
    """The pairs as a table; rows count within their part, and target_train is unlabelled (NaN)."""
    row = np.zeros(len(planted.part), dtype=np.int64)
    for part in set(planted.part):
        members = planted.part == part
        row[members] = np.arange(members.sum())
    return InteractionTable(
        drugs=np.array(planted.smiles, dtype=object),
        proteins=np.array(planted.sequences, dtype=object),
        drug=planted.drug,
        protein=planted.protein,
        label=np.where(planted.part == "target_train", np.float32(np.nan), planted.label),
        part=planted.part,
        row=row,
    )


def describe(planted: PlantedData) -> list[str]:
    """Lines for the user: sizes, class balance by part, the rule, and the ceiling that the label noise sets."""
    config, truth = planted.config, planted.truth
    atoms = [Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in planted.smiles]
    lengths = [len(sequence) for sequence in planted.sequences]
    lines = [
        f"planted ({config.kind}, seed {config.seed}): {len(planted.drug)} pairs of {len(atoms)} drugs "
        f"({min(atoms)} to {max(atoms)} heavy atoms) and {len(lengths)} proteins "
        f"({min(lengths)} to {max(lengths)} residues)"
    ]
    for part in _SHIFTED_PARTS if config.kind == "shifted" else PARTS:
        members = planted.part == part
        lines.append(
            f"  {part}: {members.sum()} pairs, {len(np.unique(planted.drug[members]))} drugs, "
            f"{len(np.unique(planted.protein[members]))} proteins, {planted.label[members].mean():.1%} positive"
        )
    pairs = zip(*np.nonzero(truth.rule), strict=True)
    lines.append("  rule: " + "; ".join(f"{truth.groups[k]} binds {truth.motifs[m]}" for k, m in pairs))
    lines.append(f"  Bayes ceiling: test AUROC {planted.bayes_auroc:.4f} at {config.noise:.1%} flipped labels")
    return lines


def _bayes_auroc(clean: np.ndarray, label: np.ndarray, noise: float) -> float:
    """AUROC of P(label = 1 | pair), which takes two values: (1 + true positive rate - false positive rate) / 2."""
    if noise == 0.5:
        return 0.5  # the posterior is then 0.5 for every pair
    if label.all() or not label.any():
        return float("nan")
    return float(0.5 * (1.0 + clean[label].mean() - clean[~label].mean()))


def _families(rng: np.random.Generator, count: int, families: int, shifted: bool) -> np.ndarray:
    """int32 [count]; families in equal shares, in random order; three fifths in the source half where shifted."""
    if not shifted:
        return rng.permutation(np.arange(count) % families).astype(np.int32)
    half = families // 2
    source = round(0.6 * count)
    family = np.concatenate([np.arange(source) % half, half + np.arange(count - source) % half])
    return rng.permutation(family).astype(np.int32)


def _carried(rng: np.random.Generator, count: int) -> np.ndarray:
    """bool [count, K]: which groups or motifs each entity carries."""
    number = rng.choice(len(_COUNTS), size=count, p=_COUNTS)
    rank = rng.random((count, len(_GROUPS))).argsort(axis=1).argsort(axis=1)
    return rank < number[:, None]


# Drugs


def _draw_drugs(rng: np.random.Generator, family: np.ndarray, shifted: bool):
    """Distinct molecules of the given scaffold families -> SMILES, bool [D, K], atoms of each group."""
    carried = _carried(rng, len(family))
    half = len(_RINGS) // 2
    smiles: list[str] = []
    atoms: list[dict[int, tuple[int, ...]]] = []
    seen: set[str] = set()
    for number, groups in zip(family.tolist(), carried, strict=True):
        rings = _RINGS if not shifted else _RINGS[:half] if number < len(_CORES) // 2 else _RINGS[half:]
        while True:
            molecule = _assemble(rng, _CORES[number], rings, np.flatnonzero(groups))
            text = Chem.MolToSmiles(molecule)
            if text in seen or not 12 <= molecule.GetNumAtoms() <= 40:
                continue
            found = _find_groups(Chem.MolFromSmiles(text))
            if sorted(found) == np.flatnonzero(groups).tolist():  # no group arose from joining the parts
                break
        seen.add(text)
        smiles.append(text)
        atoms.append(found)
    return smiles, carried, tuple(atoms)


def _assemble(rng: np.random.Generator, cores: Sequence[str], rings: Sequence[str], groups: np.ndarray) -> Chem.Mol:
    """One molecule: core, linker, second ring, and on the three free points the groups, then decoys."""
    skeleton = ".".join(_pick(rng, options) for options in (cores, _LINKERS, rings))
    fragments = [_GROUPS[group][2].replace("[*]", "[*]" + _pick(rng, _SPACERS)) for group in groups]
    fragments += [_pick(rng, _DECOYS) for _ in range(len(_POINTS) - len(groups))]
    for point, which in zip(_POINTS, rng.permutation(len(_POINTS)), strict=True):
        fragment = fragments[which]
        if fragment.startswith("[*]"):
            skeleton += "." + fragment.replace("[*]", f"[*:{point}]")
        else:
            skeleton = skeleton.replace(f"[*:{point}]", fragment)
    molecule = Chem.molzip(Chem.MolFromSmiles(skeleton))
    return Chem.MolFromSmiles(Chem.MolToSmiles(molecule))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _find_groups(molecule: Chem.Mol) -> dict[int, tuple[int, ...]]:
    """Group -> its atoms, over all matches."""
    found = {}
    for group, pattern in enumerate(_PATTERNS):
        matches = molecule.GetSubstructMatches(pattern)
        if matches:
            found[group] = tuple(sorted({atom for match in matches for atom in match}))
    return found


# Proteins


def _draw_motifs(rng: np.random.Generator, count: int) -> list[tuple[str, ...]]:
    """``count`` motifs; each is the allowed letters of every position. No two share a 3-mer at any offset."""
    motifs: list[tuple[str, ...]] = []
    while len(motifs) < count:
        word = "".join(rng.choice(list(_LETTERS), size=_MOTIF_LENGTH, replace=False))
        motif = tuple(_CLASS_OF[letter] if i in _DEGENERATE else letter for i, letter in enumerate(word))
        varied = all(len(motif[i]) > 1 for i in _DEGENERATE)
        if varied and all(not _share_three(motif, other) for other in motifs):
            motifs.append(motif)
    return motifs


def _share_three(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    windows = range(_MOTIF_LENGTH - 2)
    return any(all(set(one[i + k]) & set(other[j + k]) for k in range(3)) for i in windows for j in windows)


def _expression(motif: tuple[str, ...]) -> str:
    return "".join(letters if len(letters) == 1 else f"[{letters}]" for letters in motif)


def _draw_proteins(rng: np.random.Generator, family: np.ndarray, motifs: list[tuple[str, ...]]):
    """Distinct sequences of the given families -> sequences, bool [P, M], span of each carried motif."""
    carried = _carried(rng, len(family))
    letters = np.array(list(_LETTERS))
    ancestors = []
    for _ in range(_FAMILIES):
        frequencies = rng.dirichlet(_FREQUENCIES)  # each family has a composition of its own
        ancestors.append(rng.choice(letters, size=rng.integers(60, 100), p=frequencies))
    expressions = [re.compile(_expression(motif)) for motif in motifs]
    sequences: list[str] = []
    spans: list[dict[int, tuple[int, int]]] = []
    seen: set[str] = set()
    for number, has in zip(family.tolist(), carried, strict=True):
        while True:
            sequence, planted = _plant(rng, _mutate(rng, ancestors[number]), motifs, has)
            found = {m: [x.span() for x in pattern.finditer(sequence)] for m, pattern in enumerate(expressions)}
            by_chance = any(found[m] != ([planted[m]] if m in planted else []) for m in found)
            if sequence not in seen and not by_chance:
                break
        seen.add(sequence)
        sequences.append(sequence)
        spans.append(planted)
    return sequences, carried, tuple(spans)


def _mutate(rng: np.random.Generator, ancestor: np.ndarray) -> str:
    """Conservative substitutions, and residues that change places, which keeps the composition."""
    member = ancestor.copy()
    for i in np.flatnonzero(rng.random(len(member)) < _SUBSTITUTED):
        member[i] = rng.choice(list(_CLASS_OF[member[i]]))
    moved = np.flatnonzero(rng.random(len(member)) < _EXCHANGED)
    member[moved] = member[rng.permutation(moved)]
    return "".join(member)


def _plant(rng: np.random.Generator, background: str, motifs: list[tuple[str, ...]], has: np.ndarray):
    """Inserts every motif, intact where ``has``, halves exchanged elsewhere -> sequence, span of each intact one."""
    order = rng.permutation(len(motifs))
    cuts = np.sort(rng.integers(0, len(background) + 1, size=len(motifs)))
    pieces: list[str] = []
    spans: dict[int, tuple[int, int]] = {}
    previous = length = 0
    for motif, cut in zip(order, cuts, strict=True):
        residues = [_pick(rng, letters) for letters in motifs[motif]]
        if not has[motif]:
            # A free scramble would break the 3-mers too, and tell carriers apart by their similarity.
            turn = rng.integers(3, _MOTIF_LENGTH - 2)
            residues = residues[turn:] + residues[:turn]
        pieces += [background[previous:cut], "".join(residues)]
        length += cut - previous
        if has[motif]:
            spans[int(motif)] = (int(length), int(length) + _MOTIF_LENGTH)
        length += _MOTIF_LENGTH
        previous = cut
    return "".join(pieces) + background[previous:], spans


# Pairs


def _draw_pairs(rng: np.random.Generator, config: PlantedConfig, binds: np.ndarray, truth: PlantedTruth):
    """Rows in random order -> drug, protein (int64 [N]) and part (str objects [N])."""
    drugs, proteins = np.arange(binds.shape[0]), np.arange(binds.shape[1])
    if config.kind == "cold":
        blocks = zip(_divide(rng.permutation(drugs), _SHARES), _divide(rng.permutation(proteins), _SHARES), strict=True)
        pools = [(*block, (part,), (1.0,), share) for block, part, share in zip(blocks, PARTS, _SHARES, strict=True)]
    elif config.kind == "shifted":
        pools = []
        for first, target in ((0, False), (2, True)):
            shares = _SHIFTED_SHARES[first : first + 2]
            within = tuple(share / sum(shares) for share in shares)
            drug_pool = drugs[(truth.drug_family >= len(_CORES) // 2) == target]
            protein_pool = proteins[(truth.protein_family >= _FAMILIES // 2) == target]
            pools.append((drug_pool, protein_pool, _SHIFTED_PARTS[first : first + 2], within, sum(shares)))
    else:
        pools = [(drugs, proteins, PARTS, _SHARES, 1.0)]

    rows, parts = [], []
    for drug_pool, protein_pool, names, shares, fraction in pools:
        count = round(fraction * config.pairs)
        pairs = _balanced_pairs(
            rng, binds[np.ix_(drug_pool, protein_pool)], count, config.positive, " and ".join(names)
        )
        rows.append(np.stack([drug_pool[pairs[:, 0]], protein_pool[pairs[:, 1]]], axis=1))
        sizes = [len(piece) for piece in _divide(np.arange(count), shares)]
        parts.append(np.repeat(np.array(names, dtype=object), sizes))
    order = rng.permutation(sum(map(len, parts)))
    drug, protein = np.concatenate(rows)[order].T
    return drug, protein, np.concatenate(parts)[order]


def _divide(items: np.ndarray, shares: Sequence[float]) -> list[np.ndarray]:
    return np.split(items, np.round(np.cumsum(shares)[:-1] * len(items)).astype(int))


def _balanced_pairs(rng: np.random.Generator, binds: np.ndarray, count: int, positive: float, what: str) -> np.ndarray:
    """``count`` different pairs, int64 [count, 2] in random order, even over drugs and over proteins in each class."""
    chosen = []
    for wanted, allowed in ((round(count * positive), binds), (count - round(count * positive), ~binds)):
        if wanted > allowed.sum():
            kind = "interacting" if allowed is binds else "non-interacting"
            raise DataError(
                f"data.planted.pairs: {what} would need {wanted} {kind} pairs, but its {binds.shape[0]} drugs and "
                f"{binds.shape[1]} proteins have {allowed.sum()}; expected fewer pairs, or more drugs and proteins"
            )
        weight = _even_weights(allowed)
        # The largest of log(weight) + Gumbel noise are a draw without replacement in proportion to the weights.
        with np.errstate(divide="ignore"):
            key = np.log(weight) + rng.gumbel(size=weight.shape)
        best = np.argpartition(-key, wanted - 1, axis=None)[:wanted] if wanted else np.zeros(0, dtype=np.int64)
        chosen.append(np.stack(np.unravel_index(best, allowed.shape), axis=1))
    return rng.permutation(np.concatenate(chosen))


def _even_weights(allowed: np.ndarray) -> np.ndarray:
    """float64 weights on the allowed pairs whose row sums and column sums are (nearly) equal: Sinkhorn's iteration."""
    weight = allowed.astype(np.float64)
    for _ in range(30):
        for axis in (1, 0):
            total = weight.sum(axis=axis, keepdims=True)
            weight /= np.where(total > 0, total, 1.0)
    return np.where(allowed, np.maximum(weight, 1e-12), 0.0)
