"""Training whose batches stream to the device, one program call a chunk."""

import time
from collections import deque

import jax
import optax
from jax.sharding import Mesh

from jaxdti.data.pairs.buckets import Buckets, PairBatch, Shape
from jaxdti.data.pairs.device import DeviceFeatures, chunk_features
from jaxdti.data.pairs.table import FeatureStore
from jaxdti.memory import release_freed_memory
from jaxdti.training.compilation import kept_program, signature
from jaxdti.training.mesh import BATCHES, REPLICATED, over_replicas, put
from jaxdti.training.progress import Reporter
from jaxdti.training.state import TrainState
from jaxdti.training.step import make_chunk, make_train_step
from jaxdti.training.task import Method

_IN_FLIGHT = 2  # chunks whose own features are on the device: one runs, one waits


def chunk_programs(
    method: Method,
    features: DeviceFeatures | FeatureStore,
    buckets: Buckets,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    report: Reporter,
):
    """``run(state, bucket, batches, proteins=None)``: the bucket's program, compiled and reported at first use.

    ``proteins``, if given, is how many distinct ones to encode a batch; it makes a program of its own.
    """
    compiled = {}
    running: deque[jax.Array] = deque()

    def place(batches: PairBatch, shape: Shape) -> tuple[DeviceFeatures, PairBatch]:
        if not isinstance(features, FeatureStore):
            return features, put(batches, mesh, BATCHES)
        chosen, batches = chunk_features(features, batches, shape)
        # Programs are only queued, so the lines above ran beside the device. Without a limit a fast host would queue a
        # whole epoch of features there.
        if len(running) == _IN_FLIGHT:
            jax.block_until_ready(running.popleft())
        return put(chosen, mesh, REPLICATED), put(batches, mesh, BATCHES)

    def run(
        state: TrainState, bucket: int, batches: PairBatch, proteins: int | None = None
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        shape = buckets.shapes[bucket]
        chosen, batches = place(batches, shape)
        if (bucket, proteins) not in compiled:

            def program(state, features, batches):
                step = make_train_step(method.objective(features, shape, proteins), tx)
                return jax.vmap(make_chunk(step))(state, batches)

            def compile():
                start = time.perf_counter()
                made = over_replicas(program, mesh).lower(state, chosen, batches).compile()
                release_freed_memory()
                replicas, steps, size = batches.drug.shape
                together = f"{replicas} replicas x " if replicas > 1 else ""
                distinct = f", {proteins} proteins" if proteins else ""
                name = f"{together}{steps} x {size} pairs of {shape.atoms} atoms, {shape.residues} residues{distinct}"
                report.compiled(name, time.perf_counter() - start)
                return made

            key = ("train", method.key, shape, proteins, mesh, signature(state, chosen, batches))
            compiled[bucket, proteins] = compile() if method.key is None else kept_program(key, compile)
        state, metrics = compiled[bucket, proteins](state, chosen, batches)
        if isinstance(features, FeatureStore):
            running.append(metrics["loss"])
        return state, metrics

    return run
