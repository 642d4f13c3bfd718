"""Training that starts from a trained network: all of it, or what is above a frozen part.

What is frozen stays as it was in every way: its BatchNorm uses the stored statistics and its dropout is off. So its
outputs never change; where the whole encoder of drugs, that of proteins, or all before the decoder is frozen, they are
computed once (``frozen_outputs``) and read from there in every step. Frozen layers above trained ones, and single lower
layers, are computed in each step, without a backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array
from jax.typing import ArrayLike

from jaxdti.config import Config, ModelConfig
from jaxdti.console import say
from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape, one_bucket, pair_batch, plan_evaluation
from jaxdti.data.pairs.device import DeviceFeatures, device_features
from jaxdti.data.pairs.table import FeatureStore, InteractionTable
from jaxdti.errors import DataError
from jaxdti.inference.encode import block_name, drug_entities, encoded_rows, program_key, protein_entities
from jaxdti.inference.joint_features import make_joint_features
from jaxdti.inference.trained import Weights
from jaxdti.layers.means import masked_mean
from jaxdti.models.drugban import PARTS, DrugBAN, depth, init_variables, parts_of, score, share_proteins
from jaxdti.studies.transfer.modes import Stage, layer_scale, stages, whole_modules, with_fresh
from jaxdti.training.compilation import told_jit
from jaxdti.training.objective import Objective
from jaxdti.training.optimizer import make_optimizer
from jaxdti.training.partition import Path, partition, select
from jaxdti.training.plans import BucketPlan
from jaxdti.training.supervised import label_losses
from jaxdti.training.task import Scorer, Task, Trial, Variables, label_scale

_MOST_BUCKETS = 4  # lengths of drugs, and lengths of proteins, for their encoders


class Encodings(flax.struct.PyTreeNode):
    """What an encoder gives for its entities, one after the other without padding."""

    values: Array  # [total atoms or residues, F] in the compute dtype
    offsets: Array  # int32 [E + 1]

    def batch(self, index: ArrayLike, width: int) -> tuple[Array, Array]:
        """Entities int32 [B], none longer than ``width`` -> [B, width, F], 0 at padding, and bool [B, width]."""
        start, count = self.offsets[index], self.offsets[jnp.asarray(index) + 1] - self.offsets[index]
        mask = jnp.arange(width)[None, :] < count[:, None]
        rows = start[:, None] + jnp.arange(width)[None, :]
        return jnp.where(mask[..., None], self.values.at[rows].get(mode="clip"), 0.0), mask


class FrozenOutputs(flax.struct.PyTreeNode):
    """The features, and what the frozen part of the network makes of them; None where a part is not frozen."""

    features: DeviceFeatures
    drugs: Encodings | None = None
    proteins: Encodings | None = None
    joint: Array | None = None  # float32 [N, joint_features], by row of the table


def transferred(
    config: Config,
    sources: Sequence[Weights],
    plain: Task,
    trials: Sequence[Trial],
    table: InteractionTable,
    features: DeviceFeatures | FeatureStore,
) -> Task:
    """Training from trained weights, as ``transfer`` of the configuration says.

    Args:
      sources: a trained network of the configured architecture, or one for each trial (whose seeds then differ), all
        with the same frozen part. The last layer starts so that it predicts the same affinities as the source.
      plain: plain training of the trials.
      features: of the whole table; where a part is frozen, those of a store are put on the device.

    Raises:
      DataError: a pattern names nothing, everything is frozen, a part is frozen and fresh at once, or the outputs of
        the frozen part are larger than ``data.device_gib``.
    """
    scale, plan = label_scale(trials[0], config.task), plain.plan
    networks = [rescaled(source.variables, source.label_scale, scale) for source in sources]
    network = networks[0]
    frozen, fresh = frozen_and_fresh(config, network["params"])
    seeds = [trial.seed for trial in trials]
    start = partial(_start, config.model, networks, seeds, frozen, fresh)
    scale = partial(layer_scale, depth, config.model, config.transfer.layer_decay)
    task = replace(plain, init=start, optimizer=partial(make_optimizer, share_of=scale))
    if not frozen:
        return task

    if isinstance(features, FeatureStore):
        say("the frozen part takes all features onto the device")
        features = device_features(features)
    inputs = frozen_outputs(config, network, frozen, trials, table, features, plan.buckets)
    forward = partial(_forward, DrugBAN(config.model), _freeze_interceptor(network["params"], frozen))
    task = replace(task, objective=partial(_objective, config.task, forward))
    if inputs.joint is None and inputs.drugs is None and inputs.proteins is None:
        return task
    buckets, batch = plan.buckets, plan.batch
    distinct = plan.distinct if inputs.joint is None and inputs.proteins is None else lambda chunk: None
    if inputs.joint is not None:
        # A pair is one row of numbers: there are no lengths, and the batch names rows of the table.
        buckets, batch = one_bucket(table, Shape(0, 0, 0)), partial(row_batch, table)
    plan = BucketPlan(trials, buckets, plan.batch_size, plan.steps, batch, distinct)
    scorer = outputs_scorer(config.model, inputs, batch, buckets, config.training.batch_size)
    return replace(task, inputs=inputs, plan=plan, selector=replace(task.selector, scorer=scorer))


def frozen_and_fresh(config: Config, params: dict[str, Any]) -> tuple[frozenset[Path], frozenset[Path]]:
    """The paths that ``transfer.mode`` and ``transfer.frozen`` freeze, and those that ``transfer.fresh`` names.

    Raises:
      DataError: a pattern names nothing, nothing is left to train, or something is named in both.
    """
    transfer, parts = config.transfer, parts_of(config.model)
    fresh = select(params, transfer.fresh, parts, "transfer.fresh")
    if transfer.mode != "feature":
        return frozenset(), fresh
    frozen = select(params, transfer.frozen, parts, "transfer.frozen")
    if both := frozen & fresh:
        raise DataError(f"transfer.frozen and transfer.fresh both name {'/'.join(min(both))}")
    if not partition(params, frozen)[0]:
        raise DataError(f"transfer.frozen={','.join(transfer.frozen)}: nothing is left to train")
    return frozen, fresh


def unfreezing_stages(config: Config) -> list[Config]:
    """The configuration of each of the ``stages`` of a transfer."""
    return [_stage_config(config, stage) for stage in stages(config.transfer)]


def _stage_config(config: Config, stage: Stage) -> Config:
    plain = replace(config.transfer, unfreeze=(), fresh=stage.fresh)
    if stage.frozen:
        scratch = plain.scratch and plain.mode == "feature"  # beside the last stage alone
        plain = replace(plain, mode="feature", frozen=stage.frozen, scratch=scratch)
    training = replace(config.training, learning_rate=config.training.learning_rate * stage.rate)
    return replace(config, transfer=plain, training=training)


def check_parts(config: Config, params: dict[str, Any]) -> None:
    """Raises DataError unless the parts that are frozen or fresh are there, and each stage freezes less than the last.

    See ``frozen_and_fresh``.
    """
    stages = [frozen_and_fresh(stage, params)[0] for stage in unfreezing_stages(config)]
    for i in range(1, len(stages) - 1):
        if not stages[i] < stages[i - 1]:
            before, after = config.transfer.unfreeze[i - 1 : i + 1]
            raise DataError(
                f"transfer.unfreeze={','.join(config.transfer.unfreeze)}: {after} is not a part of {before}, but each "
                "stage freezes less of the same than the one before it"
            )


def rescaled(source: Variables, source_scale: tuple[float, float], scale: tuple[float, float]) -> Variables:
    """The network whose outputs, times sd plus mean of ``scale``, are those of ``source`` with ``source_scale``."""
    (old_mean, old_sd), (mean, sd) = source_scale, scale
    params: dict[Path, Any] = flatten_dict(source["params"])
    kernel, bias = ("decoder", "output", "dense", "kernel"), ("decoder", "output", "dense", "bias")
    params[kernel] = params[kernel] * (old_sd / sd)
    params[bias] = (params[bias] * old_sd + (old_mean - mean)) / sd
    return source | {"params": unflatten_dict(params)}


def _start(
    model: ModelConfig,
    sources: Sequence[Variables],
    seeds: Sequence[int],
    frozen: frozenset[Path],
    fresh: frozenset[Path],
    seed: int | Array,
) -> Variables:
    """The source's network with the fresh parts of another one; the frozen parameters apart.

    Of several sources it is the one at the place of ``seed`` in ``seeds``.
    """
    source = sources[0]
    if len(sources) > 1:
        place = jnp.argmax(jnp.asarray(seeds) == seed)
        source = jax.tree.map(lambda *leaves: jnp.stack(leaves)[place], *sources)
    if fresh:
        source = with_fresh(source, init_variables(model, seed), fresh)
    params, kept = partition(source["params"], frozen)
    return {"params": params, "batch_stats": source["batch_stats"], "frozen": kept}


def _freeze_interceptor(params: dict[str, Any], frozen: frozenset[Path]) -> Callable[..., Any]:
    """A Flax interceptor by which wholly frozen modules run as in scoring: stored statistics, no dropout."""
    modules = whole_modules(params, frozen)

    def intercept(call, arguments, keywords, context):
        if "train" in keywords and context.module.path in modules:
            keywords = keywords | {"train": False}
        return call(*arguments, **keywords)

    return intercept


def _no_interceptor(call, arguments, keywords, context):
    return call(*arguments, **keywords)


def _forward(
    model: DrugBAN,
    stored: Callable[..., Any],
    variables: Variables,
    inputs: FrozenOutputs | DeviceFeatures,
    batch: PairBatch,
    shape: Shape,
    proteins: int | None = None,
    rate: float | Array = 0.0,
    rng: Array | None = None,
) -> tuple[Array, Any]:
    """Logits [B, K] and running statistics; in training if there is a key, and then with dropout at ``rate``."""
    outputs = inputs if isinstance(inputs, FrozenOutputs) else FrozenOutputs(inputs)
    train = rng is not None

    def run(network: Any) -> Array:
        if outputs.joint is not None:
            joint = outputs.joint[batch.drug]
        else:
            atoms, atom_mask = _drugs(network, outputs, batch, shape, train)
            residues, residue_mask = _proteins(network, outputs, batch, shape, proteins, train)
            masks = (atom_mask, residue_mask, jnp.asarray(batch.row_mask))
            joint = network.bilinear(atoms, residues, *masks, rate, train=train)
        return network.decoder(joint.astype(jnp.dtype(model.config.dtype)), batch.row_mask, train=train)

    keys = {} if rng is None else {"dropout": rng}
    with nn.intercept_methods(stored):
        logits, updates = model.apply(variables, method=run, rngs=keys, mutable=["batch_stats"])
    return logits, updates["batch_stats"]


def _drugs(network: Any, outputs: FrozenOutputs, batch: PairBatch, shape: Shape, train: bool) -> tuple[Array, Array]:
    if outputs.drugs is None:
        return network.encode_drug(outputs.features.drugs(batch.drug, shape), batch.row_mask, train=train)
    values, mask = outputs.drugs.batch(batch.drug, shape.atoms)
    return values, mask & jnp.asarray(batch.row_mask)[:, None]


def _proteins(
    network: Any, outputs: FrozenOutputs, batch: PairBatch, shape: Shape, proteins: int | None, train: bool
) -> tuple[Array, Array]:
    if outputs.proteins is not None:
        values, mask = outputs.proteins.batch(batch.protein, shape.residues)
        return values, mask & jnp.asarray(batch.row_mask)[:, None]
    if proteins is None:
        return network.encode_protein(outputs.features.proteins(batch.protein, shape), batch.row_mask, train=train)
    distinct, shared = share_proteins(batch.protein, batch.row_mask, proteins)
    found = network.encode_protein(outputs.features.proteins(distinct, shape), shared.uses, train=train)
    return found[0][shared.rows], found[1][shared.rows]


def _objective(
    task: str, forward: Callable[..., tuple[Array, Any]], features: Any, shape: Shape, proteins: int | None
) -> Objective:
    """As ``pair_objective``, with the frozen modules as in scoring."""

    def objective(variables: Variables, batch: PairBatch, rng: Array, hyper: dict[str, Array]):
        logits, statistics = forward(variables, features, batch, shape, proteins, hyper["dropout"], rng)
        total = masked_mean(label_losses(task, logits, batch.label, batch.row_mask, hyper), batch.row_mask)
        return total, (statistics, {"loss": jax.lax.stop_gradient(total)})

    return objective


def outputs_scorer(
    model: ModelConfig,
    inputs: FrozenOutputs,
    batch: Callable[[np.ndarray], PairBatch],
    buckets: Buckets,
    batch_size: int,
) -> Scorer:
    """As ``make_scorer``, from what a frozen part gave: right for networks with that part alone."""

    def program(shape: Shape):
        def run(variables: Variables, inputs: FrozenOutputs, batch: PairBatch) -> Array:
            return score(_forward(DrugBAN(model), _no_interceptor, variables, inputs, batch, shape)[0])

        def name(variables, inputs, batch: PairBatch) -> str:
            return f"scores of {len(batch.drug)} pairs of {shape.atoms} atoms, {shape.residues} residues"

        return told_jit(run, name, ("scores above frozen parts", model, shape))

    programs = [program(shape) for shape in buckets.shapes]

    def scores(variables: Variables, rows: np.ndarray) -> np.ndarray:
        found = np.zeros(len(buckets.of_row), np.float32)
        for chunk in plan_evaluation(np.unique(rows), buckets, batch_size):
            members = chunk.rows[0]
            part = np.asarray(programs[chunk.bucket](variables, inputs, batch(members)))
            found[members[members >= 0]] = part[members >= 0]
        return found[rows]

    return scores


def row_batch(table: InteractionTable, rows: np.ndarray) -> PairBatch:
    """As ``pair_batch``, but ``drug`` holds the row itself, which ``FrozenOutputs.joint`` goes by."""
    return pair_batch(table, rows).replace(drug=np.maximum(rows, 0).astype(np.int32))


def frozen_outputs(
    config: Config,
    source: Variables,
    frozen: frozenset[Path],
    trials: Sequence[Trial],
    table: InteractionTable,
    features: DeviceFeatures,
    buckets: Buckets,
) -> FrozenOutputs:
    """Everything that the frozen part of the network computes for the pairs at hand and that training can start from.

    Raises:
      DataError: it is larger than ``data.device_gib``.
    """
    whole = lambda part: select(source["params"], (part,), PARTS, "") <= frozen
    rows = np.unique(np.concatenate([rows for trial in trials for rows in trial.rows.values()]))
    size, model = config.training.batch_size, config.model
    if whole("pooling"):
        _check_size(config, len(table) * model.joint_features, 4)
        joint = np.zeros((len(table), model.joint_features), np.float32)
        joint[rows] = make_joint_features(model, features, table, buckets, size)(source, rows)
        return FrozenOutputs(features, joint=jnp.asarray(joint))
    if model.reference:  # its padding counts, so that its encodings are as large as they can be
        return FrozenOutputs(features)

    def encode(kind: str, index: np.ndarray) -> Encodings | None:
        return encode_entities(config, source, features, kind, np.unique(index)) if whole(f"{kind}_encoder") else None

    return FrozenOutputs(features, encode("drug", table.drug[rows]), encode("protein", table.protein[rows]))


def encode_entities(
    config: Config, variables: Variables, features: DeviceFeatures, kind: str, index: np.ndarray
) -> Encodings:
    """The encodings of the drugs or proteins ``index``, distinct; the others have none.

    Raises:
      DataError: they are larger than ``data.device_gib``.
    """
    model, drugs = DrugBAN(config.model), kind == "drug"
    offsets = np.asarray(features.atom_offsets if drugs else features.residue_offsets)
    uses, most = np.bincount(index, minlength=len(offsets) - 1).astype(float), config.training.batch_size
    if drugs:
        entities = drug_entities(config.model, features, uses, _MOST_BUCKETS, most)
    else:
        entities = protein_entities(config.model, features, most)
    lengths = np.diff(offsets)
    placed = np.concatenate([[0], np.cumsum(np.where(uses > 0, lengths, 0))]).astype(np.int32)
    width, dtype = config.model.drug_features if drugs else config.model.protein_features, jnp.dtype(config.model.dtype)
    _check_size(config, int(placed[-1]) * width, dtype.itemsize)

    def program(bucket: int):
        name = lambda *_: f"frozen encoder of {block_name(entities, bucket)}"
        key = ("frozen encoder", config.model, *program_key(entities, bucket))
        return told_jit(partial(encoded_rows, model, "encode", entities, bucket), name, key)

    programs = [program(bucket) for bucket in range(len(entities.shapes))]
    values = np.zeros((placed[-1], width), dtype)
    for block in entities.blocks(index):
        encoded = np.asarray(programs[block.bucket](variables, features, block.index, block.start))
        for entity, start in zip(block.index.tolist(), block.start.tolist(), strict=True):
            if entity >= 0:
                values[placed[entity] : placed[entity + 1]] = encoded[start : start + lengths[entity]]
    return Encodings(jnp.asarray(values), jnp.asarray(placed))


def _check_size(config: Config, numbers: int, width: int) -> None:
    size = numbers * width / 2**30
    if size > config.data.device_gib:
        raise DataError(
            f"transfer.frozen={','.join(config.transfer.frozen)}: the outputs of the frozen part take {size:.3g} GiB, "
            f"more than data.device_gib={config.data.device_gib}; raise that, or freeze through pooling"
        )
