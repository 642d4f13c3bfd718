"""The sweep of CODE-AE's paper, 7 drugs x 60 settings x 5 folds, as replicas, one model at a time, and in PyTorch.

python benchmarks/response_sweep.py --json results.json

Each part of the sweep is timed on some of its models, the three ways in turn, and stands for all of them: steps of the
autoencoder (60 settings) and epochs of the classifiers (7 x 60 x 5) on its codes. Compilation stands apart.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from harness import (
    Row,
    cores,
    interleaved,
    median_ratio,
    parse,
    peak_device_bytes,
    peak_host_bytes,
    show,
    torch_installed,
    write,
)

from jaxdti.config import HeadConfig, PlantedExpressionConfig, ResponseConfig
from jaxdti.data.expression.study import load_study
from jaxdti.models.response_head import Encoder, ResponseHead
from jaxdti.studies.response.heads import _init, _training, _trials, encoders_together
from jaxdti.studies.response.pretraining import _programs, plan_batches, settings_of
from jaxdti.training.codeae import Profiles
from jaxdti.training.fit import fit
from jaxdti.training.supervised import row_task

DRUGS, SETTINGS, FOLDS = 7, 60, 5
GENES, SOURCE, TARGET = 1426, 600, 2000  # about the paper's
STEPS = 8  # of the autoencoder in one call
EPOCHS = 10  # of the classifiers
COLUMNS = (
    *(
        "stage",
        "models",
        "together",
        "seconds_a_model",
        "ratio_to_one_by_one",
        "peer_threads",
        "ratio_to_peer",
        "ratio_low",
        "ratio_high",
    ),
    *("sweep_hours", "peer_sweep_hours", "compile_seconds", "peak_host_mib", "peak_device_mib"),
)
FULL_STEPS, FULL_EPOCHS = 1000, 100  # of a sweep, for the estimate of its hours


def main() -> None:
    options = parse(__doc__.splitlines()[0])
    planted = PlantedExpressionConfig(genes=GENES, source=SOURCE, target=TARGET, drugs=DRUGS)
    accelerator = jax.default_backend() != "cpu"
    together = SETTINGS if accelerator else 4 if options.quick else 8
    config = ResponseConfig(dataset="planted-expression", planted=planted, seeds=together)
    study = load_study(config)
    rows = [autoencoders(study, config, 3 if options.quick else 5)]
    rows.append(classifiers(study, SETTINGS if accelerator else 2 if options.quick else 6, 2 if options.quick else 3))
    show(rows, COLUMNS)
    write(options.json, "response_sweep", rows)


def row(
    stage: str, models: int, seconds: dict[str, list[float]], counts: dict[str, int], full: float, compiled: float
) -> Row:
    """``counts``: models of a call, if more than 1; ``full``: calls of one model that a whole sweep amounts to.

    Of PyTorch's numbers of threads the fastest is the peer.
    """
    each = {name: [s / counts.get(name, 1) for s in values] for name, values in seconds.items()}
    ours = float(np.median(each["together"]))
    host, device = peak_host_bytes(), peak_device_bytes()
    result: Row = {
        "stage": stage,
        "models": models,
        "together": counts["together"],
        "seconds_a_model": ours,
        "ratio_to_one_by_one": median_ratio(each["one by one"], each["together"]),
        "sweep_hours": ours * full / 3600,
        "compile_seconds": compiled,
        "peak_host_mib": host / 2**20 if host else None,
        "peak_device_mib": device / 2**20 if device else None,
    }
    peers = {threads: each[name] for threads in peer_threads() if (name := peer_name(threads)) in each}
    if peers:
        threads, peer = min(peers.items(), key=lambda item: np.median(item[1]))
        ratios = np.array(peer) / np.array(each["together"])
        result |= {
            "peer_threads": threads,
            "ratio_to_peer": float(np.median(ratios)),
            "ratio_low": float(ratios.min()),
            "ratio_high": float(ratios.max()),
            "peer_sweep_hours": float(np.median(peer)) * full / 3600,
        }
    return result


def autoencoders(study, config: ResponseConfig, repeats: int) -> Row:
    """``STEPS`` steps of CODE-AE-BASE of the paper's sizes."""
    profiles = Profiles(
        jnp.asarray(study.source), jnp.asarray(study.target), jnp.zeros(SOURCE, jnp.int32), jnp.zeros(TARGET, jnp.int32)
    )
    pre, rows_of = config.pretraining, {"transductive": np.arange(TARGET)}
    settings = settings_of("codeae_base", config)
    kept, programs, batches = {}, {}, {}
    compiled = 0.0
    for name, chosen in (("together", settings), ("one by one", settings[:1])):
        state, run, _ = _programs(chosen, profiles, 0, pre, None)
        kept[name], programs[name] = state, run
        batches[name] = plan_batches(chosen, profiles, rows_of, pre.batch_size, 0, STEPS, 1)
        start = time.perf_counter()
        kept[name] = jax.block_until_ready(run(state, batches[name], profiles)[0])
        compiled += time.perf_counter() - start if name == "together" else 0.0

    def advance(name: str) -> None:
        kept[name] = jax.block_until_ready(programs[name](kept[name], batches[name], profiles)[0])

    functions = {name: partial(advance, name) for name in programs}
    if torch_installed():
        for threads in peer_threads():
            functions[peer_name(threads)] = torch_autoencoder(study, pre, STEPS, threads)
    interleaved(functions, 1)
    seconds = interleaved(functions, repeats)
    counts = {"together": len(settings)}
    return row("autoencoder", SETTINGS, seconds, counts, SETTINGS * FULL_STEPS / STEPS, compiled)


def classifiers(study, encoders: int, repeats: int) -> Row:
    """``EPOCHS`` epochs of the classifiers of ``encoders`` settings, every drug and fold, on codes of length 128."""
    heads = HeadConfig(epochs=EPOCHS, patience=EPOCHS)
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(encoders, SOURCE, 128)).astype(np.float32)
    model = ResponseHead(heads.widths)
    size = encoders_together(study, FOLDS)
    groups = []
    for first in range(0, encoders, size):
        part = codes[first : first + size]
        seeds = range(first, first + len(part))
        replicas = _trials(study, [Encoder("ae", seed, None) for seed in seeds], FOLDS, heads)
        groups.append((part.reshape(-1, part.shape[-1]), replicas))
    own = groups[0][1][0]
    init = _init(model, 128)

    def train(features, trials):
        task = row_task(model, init, features, trials, heads.batch_size, select="loss")
        return fit(task, trials, _training(heads))

    functions = {
        "together": lambda: [train(*group) for group in groups],
        "one by one": lambda: train(codes[0], [own]),
    }
    start = time.perf_counter()
    functions["together"]()
    first = time.perf_counter() - start
    if torch_installed():
        for threads in peer_threads():
            functions[peer_name(threads)] = torch_classifier(codes[0], own, heads, threads)
    interleaved(functions, 1)
    seconds = interleaved(functions, repeats)
    counts = {"together": encoders * DRUGS * FOLDS}
    full = DRUGS * SETTINGS * FOLDS * FULL_EPOCHS / EPOCHS
    compiled = first - float(np.median(seconds["together"]))
    result = row("classifier", DRUGS * SETTINGS * FOLDS, seconds, counts, full, compiled)
    return result | {"together": len(groups[0][1])}


# The peer: the same networks, losses and numbers of steps as a PyTorch user would write them.


def torch_layers(torch, inputs: int, widths, outputs: int, rate: float):
    layers = []
    for width in widths:
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Dropout(rate)]
        inputs = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(inputs, outputs))


def peer_threads() -> list[int]:
    """1 and all cores: threads that wait for each other cost networks this small more than they give."""
    return sorted({1, cores()})


def peer_name(threads: int) -> str:
    return f"PyTorch, {threads} threads"


def torch_setup():
    import torch

    return torch, "cuda" if torch.cuda.is_available() else "cpu"


def torch_autoencoder(study, pre, steps: int, threads: int):
    torch, device = torch_setup()
    functional, rate = torch.nn.functional, pre.dropout[0]
    source, target = (torch.tensor(x, device=device) for x in (study.source, study.target))
    build = partial(torch_layers, torch, GENES, pre.widths, pre.latent, rate)
    shared, private_source, private_target = (build().to(device) for _ in range(3))
    decoder = torch_layers(torch, 2 * pre.latent, tuple(reversed(pre.widths)), GENES, rate).to(device)
    modules = torch.nn.ModuleList([shared, private_source, private_target, decoder])
    optimiser = torch.optim.AdamW(modules.parameters(), lr=pre.learning_rate[0], weight_decay=0.0, fused=True)
    orders = [torch.randperm(len(x), device=device) for x in (source, target)]

    def run() -> None:
        torch.set_num_threads(threads)
        for step in range(steps):
            x, y = (
                data[order[(torch.arange(pre.batch_size, device=device) + step * pre.batch_size) % len(order)]]
                for data, order in zip((source, target), orders, strict=True)
            )
            both = functional.normalize(shared(torch.cat([x, y])), dim=-1)
            private = functional.normalize(torch.cat([private_source(x), private_target(y)]), dim=-1)
            rebuilt = decoder(torch.cat([private, both], -1))
            loss = ((rebuilt - torch.cat([x, y])) ** 2).mean()
            for part in (slice(0, len(x)), slice(len(x), None)):
                loss = loss + pre.orthogonality[0] * ((both[part].T @ private[part]) ** 2).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def torch_classifier(codes: np.ndarray, trial, heads: HeadConfig, threads: int):
    torch, device = torch_setup()
    x, label = torch.tensor(codes, device=device), torch.tensor(trial.label, dtype=torch.float32, device=device)
    train, validation = (torch.tensor(rows, device=device) for rows in (trial.rows["train"], trial.rows["validation"]))
    loss_of = torch.nn.BCEWithLogitsLoss()

    def run() -> None:
        torch.set_num_threads(threads)
        model = torch_layers(torch, 128, heads.widths, 1, heads.dropout).to(device)
        optimiser = torch.optim.AdamW(
            model.parameters(), lr=heads.learning_rate, weight_decay=heads.weight_decay, fused=True
        )
        best, kept = float("inf"), None
        for _ in range(EPOCHS):
            model.train()
            for rows in train[torch.randperm(len(train), device=device)].split(heads.batch_size):
                optimiser.zero_grad(set_to_none=True)
                loss_of(model(x[rows])[:, 0], label[rows]).backward()
                optimiser.step()
            model.eval()
            with torch.no_grad():
                value = loss_of(model(x[validation])[:, 0], label[validation]).item()
            if value < best:
                best, kept = value, {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert kept is not None

    return run


if __name__ == "__main__":
    main()
