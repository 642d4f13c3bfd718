"""How far apart source and target lie in a network's features: a number, a table and a picture."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_COLOURS = {"source": "tab:blue", "target": "tab:orange"}
_PANELS_SIDE_BY_SIDE = 3


def proxy_a_distance(source: np.ndarray, target: np.ndarray, *, seed: int = 0) -> float:
    """``2 (1 - 2 e)`` with e the balanced error of a linear classifier of the domain on held-out halves.

    0 where the domains cannot be told apart, 2 where they always can (Ben-David et al., Machine Learning 2010).

    Args:
      source, target: float [N, F] and [M, F], at least two rows each.
    """
    x = np.concatenate([source, target])
    domain = np.repeat([0, 1], [len(source), len(target)])
    halves = train_test_split(x, domain, test_size=0.5, stratify=domain, random_state=seed)
    train_x, test_x, train_domain, test_domain = halves
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))
    wrong = classifier.fit(train_x, train_domain).predict(test_x) != test_domain
    error = np.mean([wrong[test_domain == each].mean() for each in (0, 1)])
    return max(0.0, float(2.0 * (1.0 - 2.0 * error)))


def domain_accuracy(source: np.ndarray, target: np.ndarray, seed: int = 0) -> float:
    """How well a logistic regression tells the domains apart by codes [N, D] and [M, D]: balanced accuracy.

    0.5 is chance. Two halves of each domain, both scored by the model of the others. NaN where a domain has one sample.
    ``proxy_a_distance`` is another scale of the same question, for features of a network instead of short codes: its
    classifier is penalised a hundredfold, and scores one half alone.
    """
    if min(len(source), len(target)) < 2:
        return float("nan")
    x = np.concatenate([source, target])
    scale = x.std(0)
    x = (x - x.mean(0)) / np.where(scale > 0, scale, 1.0)
    domain = np.repeat([0, 1], [len(source), len(target)])
    rng = np.random.default_rng(seed)
    half = np.concatenate([rng.permutation(len(part)) % 2 for part in (source, target)])
    called = np.empty_like(domain)
    for side in (0, 1):
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        called[half == side] = model.fit(x[half != side], domain[half != side]).predict(x[half == side])
    return float(balanced_accuracy_score(domain, called))


def principal_components(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of the rows of both domains together: float [N, 2] and [M, 2].

    The second is 0 of features [N, 1] and [M, 1].
    """
    x = np.concatenate([source, target])
    x = np.pad(x, ((0, 0), (0, max(0, 2 - x.shape[1]))))
    components = PCA(2, svd_solver="full").fit_transform(x - x.mean(0))
    return components[: len(source)], components[len(source) :]


def domain_table(features: dict[str, tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    """Columns network, domain, x and y: the principal components of (source, target) features of each network."""
    columns: dict[str, list] = {"network": [], "domain": [], "x": [], "y": []}
    for network, (source, target) in features.items():
        for domain, points in zip(_COLOURS, principal_components(source, target), strict=True):
            columns["network"] += [network] * len(points)
            columns["domain"] += [domain] * len(points)
            columns["x"] += points[:, 0].tolist()
            columns["y"] += points[:, 1].tolist()
    return pa.table(columns)


def plot_domains(table: pa.Table, titles: dict[str, str], path: Path) -> None:
    """Draws ``domain_table`` as PNG, a panel for each network in ``titles``, at most three side by side."""
    from matplotlib.figure import Figure

    columns = min(len(titles), _PANELS_SIDE_BY_SIDE)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(5 * columns, 4.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for empty in panels[len(titles) :]:
        empty.set_axis_off()
    network, domain = (np.array(table[name].to_pylist()) for name in ("network", "domain"))
    x, y = table["x"].to_numpy(), table["y"].to_numpy()
    for panel, (name, title) in zip(panels[: len(titles)], titles.items(), strict=True):
        for each, colour in _COLOURS.items():
            chosen = (network == name) & (domain == each)
            panel.scatter(x[chosen], y[chosen], s=8, alpha=0.5, linewidths=0, color=colour, label=each)
        panel.set(title=title, xlabel="first principal component", ylabel="second principal component")
        panel.legend(frameon=False, markerscale=2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
