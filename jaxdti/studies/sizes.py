"""Transfer between protein families by the size of the training set (Dalkıran et al. 2023).

The protocol of doi 10.1093/bioinformatics/btad234, on families whose compounds are known with their structures.
A network on ECFP4 learns which compounds bind a source family, and is carried to a target family of few compounds:

- ``mode1``: all its weights go on learning;
- ``mode2``: its lower layers stay, with stored BatchNorm statistics and no dropout, and the rest learns; what they give
  is computed once;
- ``mode3_*``: a shallow classifier learns on its last hidden layer;
- ``source``: nothing learns.

Beside them, without a source: ``scratch``, the same network from random weights, and ``shallow_*``, the same
classifiers on the fingerprints. All methods get the same training sets and are scored on the same test set.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdti.config import Config, SizesConfig, TrainingConfig, load_config
from jaxdti.console import say
from jaxdti.data.fingerprints import ecfp4
from jaxdti.data.pairs.splits import scaffold_groups
from jaxdti.data.vectors.families import (
    EVERY,
    NO_SOURCE,
    FamilyCompounds,
    TargetSets,
    draw_target,
    draw_training,
    load_families,
    plain_smiles,
    without,
)
from jaxdti.errors import DataError, Interrupted, NonFiniteLoss
from jaxdti.files import save_arrays, write_json
from jaxdti.models.fnn import FNN, init_fnn, split
from jaxdti.studies.report.sizes import SizeTable, measure, write_size_results
from jaxdti.studies.run_directory import (
    SIZES_PROTOCOL,
    Study,
    interruptible,
    not_resumable,
    resume_study,
    run_study,
)
from jaxdti.studies.transfer.classifiers import CLASSIFIERS, classifier_scores, logistic_regressions
from jaxdti.studies.transfer.vectors import fit_above, for_each, hidden_outputs
from jaxdti.training.replicas import predict_vectors
from jaxdti.training.task import FitResult, Trial, Variables

__all__ = ["Interrupted", "NonFiniteLoss", "resume_sizes", "run_sizes"]

_SMALL_FAMILY = 1000  # compounds; below, the test set is a third as large
_SMALL_SET = 16  # compounds; training sets up to it make a program of their own, as their batches are smaller
_VALIDATION = 0.1  # of the compounds of a source
_STRENGTH = 1.0  # of the logistic regressions, as scikit-learn's default

Scores = dict[str, np.ndarray]  # method/size -> float32 [repeats, test compounds], above 0 for active


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What all target families share; compounds are rows of ``fingerprints``."""

    config: Config
    compounds: FamilyCompounds
    plain: np.ndarray  # str objects [D], SMILES without stereochemistry
    fingerprints: jax.Array  # uint8 [D, bits]
    sets: dict[str, TargetSets]  # by target family
    lines: list[str]  # what is said of the data

    @property
    def sizes(self) -> SizesConfig:
        return self.config.transfer.sizes

    @property
    def model(self) -> FNN:
        return FNN(self.sizes.features)

    def sources(self, target: str) -> list[str]:
        """Each other family, and all of them together where there are several."""
        others = [name for name in self.compounds.names if name != target]
        return [*others, EVERY] if len(others) > 1 else others

    def training_sets(self, target: str) -> dict[int, list[np.ndarray]]:
        """Size -> the rows of each repeat."""
        sets, seed = self.sets[target], self.config.training.seed
        repeats = range(self.sizes.repeats)
        return {size: [draw_training(sets, size, repeat, seed) for repeat in repeats] for size in sets.sizes}


def run_sizes(config: Config, output: Path) -> SizeTable:
    """Runs the protocol and writes into ``output``: results.csv, means.csv, results.json, sizes.md, sizes.png, and
    what resuming needs.

    Raises:
      DataError: the data or a setting are unfit, or ``output`` holds something.
      Interrupted: a signal arrived; what is finished is kept.
      NonFiniteLoss: a training diverged.
    """
    return run_study(SizesStudy(), config, output, overwrite=None)


def resume_sizes(output: Path) -> SizeTable:
    """Goes on with an interrupted protocol; the sources, once all are trained, and finished pairs are kept.

    Raises:
      DataError: not the output of ``run_sizes``, or the data are no longer those it began with.
    """
    if not (output / "data.json").is_file() or not (output / "config.yaml").is_file():
        raise not_resumable(output, "transfer protocol", "config.yaml and data.json")
    return resume_study(SizesStudy(), load_config(output / "config.yaml"), output)


class SizesStudy(Study[Experiment, SizeTable]):
    """The protocol as a run; see ``run_sizes``."""

    noun = "protocol"

    def load(self, config: Config) -> Experiment:
        return _prepare(config)

    def record(self, config: Config, data: Experiment, folder: Path) -> None:
        (sha256,) = self.sha256(data)
        write_json(folder / "data.json", {"protocol": SIZES_PROTOCOL, "sha256": sha256})

    def sha256(self, data: Experiment) -> list[str]:
        """Of the compounds and what is known of them."""
        compounds = data.compounds
        total = hashlib.sha256("\n".join([*compounds.names, *compounds.smiles]).encode())
        total.update(compounds.measured.tobytes() + compounds.active.tobytes())
        return [total.hexdigest()]

    def lines(self, data: Experiment) -> Sequence[str]:
        return data.lines

    def run(self, config: Config, data: Experiment, folder: Path) -> SizeTable:
        units = [(target, source) for target in data.sets for source in (NO_SOURCE, *data.sources(target))]
        missing = [unit for unit in units if not _scores_file(folder, *unit).exists()]
        with interruptible() as check:
            any_source = any(source != NO_SOURCE for _, source in missing)
            models = _source_models(data, folder / "sources.npz", check) if any_source else {}
            for target, source in missing:
                if source == NO_SOURCE:
                    scores = _without_source(data, target, check)
                else:
                    scores = _with_source(data, target, models[_model_name(target, source)], check)
                save_arrays(_scores_file(folder, target, source), {}, **scores)  # in the order of the report
                say(f"target {target}, source {source}: done")
                check()
        scores_of: dict[tuple[str, str], Mapping[str, np.ndarray]] = {}
        for unit in units:
            with np.load(_scores_file(folder, *unit)) as saved:
                scores_of[unit] = dict(saved)
        labels = {target: _activity(data, target)[sets.test] for target, sets in data.sets.items()}
        table = measure(scores_of, labels, resamples=config.output.bootstrap, seed=config.training.seed)
        write_size_results(table, folder)
        return table


def _prepare(config: Config) -> Experiment:
    if config.task != "classification":
        raise DataError(f"task={config.task}: the size protocol is about classification")
    sizes, compounds = config.transfer.sizes, load_families(config.data)
    targets = sizes.targets or compounds.names
    scaffolds, plain = scaffold_groups(compounds.smiles), plain_smiles(compounds.smiles)
    seed, sets, lines = config.training.seed, {}, [*compounds.lines]
    for target in targets:
        count = int(compounds.measured[compounds.number(target)].sum())
        test = sizes.test_compounds // (3 if count < _SMALL_FAMILY else 1) // 2 * 2
        drawn = draw_target(compounds, target, scaffolds, plain, test=test, sizes=sizes.compounds, seed=seed)
        actives, others = len(drawn.pool[True]), len(drawn.pool[False])
        pool = f"{actives:,} actives and {others:,} others"
        lines.append(f"target {target}: {test} test compounds; training sets from {pool}")
        sets[target] = drawn
    fingerprints = jnp.asarray(ecfp4(list(compounds.smiles), bits=sizes.fingerprint_bits))
    return Experiment(
        config=config, compounds=compounds, plain=plain, fingerprints=fingerprints, sets=sets, lines=lines
    )


def _scores_file(output: Path, target: str, source: str) -> Path:
    return output / "scores" / f"{target}_from_{source}.npz"


def _model_name(target: str, source: str) -> str:
    return source if source != EVERY else f"all but {target}"


def _source_models(experiment: Experiment, path: Path, check: Callable[..., None]) -> dict[str, dict[str, Any]]:
    """Name -> variables of the epoch with the best AUROC on held-out compounds of the source.

    The compounds of all test sets are removed from all sources, so that a family's network serves every target.
    """
    wanted = {
        _model_name(target, source): (target, source)
        for target in experiment.sets
        for source in experiment.sources(target)
    }
    if path.exists():
        like = jax.eval_shape(partial(init_fnn, experiment.model, experiment.fingerprints.shape[1]), 0)
        with np.load(path) as saved:
            leaves = [jnp.asarray(saved[str(i)]) for i in range(len(jax.tree.leaves(like)))]
        stacked = jax.tree.unflatten(jax.tree.structure(like), leaves)
    else:
        stacked = _train_sources(experiment, wanted, check)
        save_arrays(path, {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(stacked))})
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i, name in enumerate(wanted)}


def _train_sources(
    experiment: Experiment, wanted: Mapping[str, tuple[str, str]], check: Callable[..., None]
) -> Variables:
    """The networks of all sources, stacked on axis 0.

    Args:
      wanted: name -> target and source.
    """
    config, trials = experiment.config, []
    test = np.concatenate([sets.test for sets in experiment.sets.values()])
    for name, (target, source) in wanted.items():
        compounds, active = experiment.compounds.source(source, target)
        kept = without(compounds, test, experiment.plain)
        say(f"source {name}: {kept.sum():,} compounds; {np.sum(~kept):,} removed, as test sets have them")
        label = np.full(len(experiment.plain), np.nan, np.float32)
        label[compounds] = active
        order = np.random.default_rng(config.training.seed).permutation(compounds[kept])
        held_out = max(round(_VALIDATION * len(order)), 1)
        rows = {"train": order[held_out:], "validation": order[:held_out]}
        hyper = {"learning_rate": config.training.learning_rate, "dropout": experiment.sizes.dropout}
        trials.append(Trial(rows=rows, label=label, seed=config.training.seed, hyper=hyper))
    result = fit_above(
        experiment.model, 0, experiment.fingerprints, trials, config.training, select="auroc", progress=check
    )
    _need_finite(result, "a source")
    for name, value, epoch in zip(wanted, result.best_value, result.best_epoch, strict=True):
        say(f"source {name}: validation AUROC {value:.3f} after {epoch} epochs")
    return result.variables


def _without_source(experiment: Experiment, target: str, check: Callable[..., None]) -> Scores:
    scores = _trained(experiment, target, "scratch", 0, None, experiment.fingerprints, check)
    return scores | _shallow(experiment, target, "shallow", experiment.fingerprints, check)


def _with_source(experiment: Experiment, target: str, variables: Variables, check: Callable[..., None]) -> Scores:
    model, sets, features = experiment.model, experiment.sets[target], experiment.fingerprints
    source = jax.tree.map(lambda leaf: leaf[None], variables)  # one network, stacked
    scores = {"source/0": predict_vectors(model, source, features, sets.test)[..., 0]}
    scores |= _trained(experiment, target, "mode1", 0, source, features, check)
    frozen, last = experiment.sizes.frozen_layers, len(model.features)
    rows = np.unique(
        np.concatenate([sets.test, *(np.concatenate(x) for x in experiment.training_sets(target).values())])
    )

    def outputs(layers: int) -> np.ndarray:
        """[D, width], computed once as it never changes; 0 for compounds that this target does not use."""
        hidden = np.zeros((len(features), model.features[layers - 1]), np.float32)
        hidden[rows] = hidden_outputs(model, source, layers, features, rows)[0]
        return hidden

    scores |= _trained(experiment, target, "mode2", frozen, source, jnp.asarray(outputs(frozen)), check)
    return scores | _shallow(experiment, target, "mode3", outputs(last), check)


def _trained(
    experiment: Experiment,
    target: str,
    method: str,
    layers: int,
    source: Variables | None,
    features: jax.Array,
    check: Callable[..., None],
) -> Scores:
    """Networks trained on every size and repeat at once, above so many frozen ``layers`` that give ``features``.

    They start from the one network of ``source``, or from random weights.
    """
    sizes, sets = experiment.sizes, experiment.training_sets(target)
    upper = split(experiment.model, layers)[1] if layers else experiment.model
    scores = {}
    for group in ([n for n in sets if n <= _SMALL_SET], [n for n in sets if n > _SMALL_SET]):
        if not group:
            continue
        trials, training = _trials(experiment, target, group)
        start = None if source is None else for_each(source, len(trials))
        result = fit_above(experiment.model, layers, features, trials, training, start=start, progress=check)
        _need_finite(result, f"{method} on {target}")
        logits = predict_vectors(upper, result.variables, features, experiment.sets[target].test)[..., 0]
        for i, size in enumerate(group):
            scores[f"{method}/{size}"] = logits[i * sizes.repeats : (i + 1) * sizes.repeats]
    return scores


def _trials(experiment: Experiment, target: str, group: Sequence[int]) -> tuple[list[Trial], TrainingConfig]:
    """A trial for each size in ``group`` and each repeat, in this order, and how they train together."""
    sizes, sets, label = experiment.sizes, experiment.training_sets(target), _activity(experiment, target)
    batch_size = min(sizes.batch_size, max(group))
    epochs = {size: max(sizes.epochs, -(-sizes.updates // -(-size // batch_size))) for size in group}
    trials = [
        Trial(
            rows={"train": rows},
            label=label,
            epochs=epochs[size],
            seed=experiment.config.training.seed + repeat,
            hyper={"learning_rate": sizes.learning_rate, "dropout": sizes.dropout},
        )
        for size in group
        for repeat, rows in enumerate(sets[size])
    ]
    return trials, TrainingConfig(epochs=max(epochs.values()), batch_size=batch_size)


def _shallow(
    experiment: Experiment, target: str, method: str, features: np.ndarray | jax.Array, check: Callable[..., None]
) -> Scores:
    """Shallow classifiers on the features of every training set."""
    sets, test = experiment.training_sets(target), experiment.sets[target].test
    label, seed = _activity(experiment, target), experiment.config.training.seed
    rows = np.unique(np.concatenate([np.concatenate(repeats) for repeats in sets.values()]))
    x, query = (np.asarray(features[part], np.float32) for part in (rows, test))
    training_sets = [(size, repeat) for size, repeats in sets.items() for repeat in repeats]
    weight = np.stack([np.isin(rows, used) for _, used in training_sets])
    # All logistic regressions in one program, which takes the rows of all training sets.
    strength = np.full(len(training_sets), _STRENGTH)
    w, b = logistic_regressions(x, np.tile(label[rows], (len(training_sets), 1)), weight, strength)
    scores = {"logistic": w @ query.T + b[:, None]}
    others = [name for name in CLASSIFIERS if name not in scores]
    scores |= {name: np.zeros((len(training_sets), len(test)), np.float32) for name in others}
    for i, used in enumerate(weight):
        for name in others:
            scores[name][i] = classifier_scores(name, x[used], label[rows][used], query, seed + i)
        check()
    count = experiment.sizes.repeats
    return {
        f"{method}_{name}/{size}": values[i * count : (i + 1) * count].astype(np.float32)
        for name, values in scores.items()
        for i, size in enumerate(sets)
    }


def _activity(experiment: Experiment, target: str) -> np.ndarray:
    """float32 [D], 1 for compounds that bind the family."""
    return experiment.compounds.active[experiment.compounds.number(target)].astype(np.float32)


def _need_finite(result: FitResult, what: str) -> None:
    if np.any(result.first_bad >= 0):
        raise NonFiniteLoss(f"{what}: the loss or its gradient is not finite; try a lower learning rate")
