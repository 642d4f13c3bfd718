"""The one configuration tree: frozen dataclasses, read from YAML, every field overridable on the command line.

The text below a field is its help on the command line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from jaxdti.config.adaptation import AdaptationConfig
from jaxdti.config.data import DataConfig
from jaxdti.config.model import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.config.response import ResponseConfig
from jaxdti.config.rules import Section
from jaxdti.config.training import OutputConfig, TrainingConfig
from jaxdti.config.transfer import TransferConfig
from jaxdti.config.tree import Leaf, branches_of, build, check_keys, leaves_of, plant, read_yaml, value_of_text
from jaxdti.config.vectors import VectorsConfig
from jaxdti.errors import DataError
from jaxdti.files import atomic

Task = Literal["classification", "regression"]
TASKS: tuple[str, ...] = get_args(Task)


@dataclass(frozen=True, kw_only=True)
class Config(Section, path=""):
    """The whole tree. YAML files in ``configs/`` hold exactly these keys."""

    task: Task = "classification"
    """{choices}"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    vectors: VectorsConfig = field(default_factory=VectorsConfig)
    response: ResponseConfig = field(default_factory=ResponseConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self):
        super().__post_init__()
        if self.task == "regression":
            self._check_regression()
        elif self.data.replicates != "keep":
            raise ValueError(
                f"data.replicates={self.data.replicates} is about measured values; task=classification keeps one row "
                "of a pair"
            )
        if self.vectors.given:
            self._check_vectors()
        self._check_adaptation()
        if self.transfer.mode != "none":
            self._check_transfer()
        for name, most in (("max_atoms", REFERENCE_ATOMS), ("max_residues", REFERENCE_RESIDUES)):
            if self.model.reference and (size := getattr(self.data, name)) > most:
                raise ValueError(
                    f"data.{name}={size}: model.reference=true pads to {most} as the published code does; at most that "
                    "many are expected"
                )

    def _check_regression(self) -> None:
        """Refuses what works with classes."""
        adaptation = self.adaptation
        if adaptation.method not in ("none", "dann", "mmd", "coral"):
            raise ValueError(
                f"adaptation.method={adaptation.method} works with class predictions; task=regression takes dann, mmd "
                "or coral"
            )
        if adaptation.target_entropy or adaptation.selection == "information":
            raise ValueError(
                "adaptation.target_entropy and adaptation.selection=information work with class predictions, which "
                "task=regression has not"
            )
        if self.training.class_weight:
            raise ValueError("training.class_weight=true weights classes, which task=regression has not")
        if self.model.logits != 1:
            raise ValueError(
                f"model.logits={self.model.logits} is a classification head; task=regression needs model.logits=1"
            )

    def _check_adaptation(self) -> None:
        """Refuses settings of an adaptation that would never act, and what cannot be trained beside it."""
        adaptation = self.adaptation
        if self.training.distributed and adaptation.method != "none" and adaptation.source_only:
            raise ValueError(
                "training.distributed=true trains one run at a time: set adaptation.source_only=false, and train "
                "without adaptation in a run of its own"
            )
        if not self.vectors.given and adaptation.method == "none" and adaptation.selection != "source":
            raise ValueError(f"adaptation.selection={adaptation.selection} needs an adaptation.method")
        adapts = adaptation.method != "none" or (self.vectors.given and self.vectors.methods != ("none",))
        if adapts and adaptation.start >= self.training.epochs:
            raise ValueError(
                f"adaptation.start={adaptation.start!r}: adaptation would never begin, as training.epochs="
                f"{self.training.epochs}; fewer epochs are expected, or a share below 1"
            )

    def _check_vectors(self) -> None:
        """Refuses what a run on feature vectors would not heed."""
        if self.adaptation.method != "none" or self.task != "classification":
            raise ValueError(
                f"adaptation.method={self.adaptation.method}, task={self.task}: on feature vectors vectors.methods "
                "names the methods, and the task is classification"
            )
        idle = {
            f"data.{name}": getattr(self.data, name) for name in ("dataset", "train", "test", "target", "table")
        } | {
            "training.frozen": ",".join(self.training.frozen),
            "training.distributed": self.training.distributed,
            "training.chunk_steps": self.training.chunk_steps,
            "training.patience": self.training.patience if self.vectors.select == "last" else None,
            "adaptation.oracle": self.adaptation.oracle,
            "adaptation.selection": self.adaptation.selection if self.adaptation.selection != "source" else None,
        }
        if self.transfer.mode != "none":
            idle["vectors.methods"] = ",".join(self.vectors.methods) if self.vectors.methods != ("none",) else None
            idle["transfer.scratch"] = self.transfer.scratch
        if found := [f"{name}={value}" for name, value in idle.items() if value]:
            raise ValueError(
                f"{', '.join(found)}: without effect on feature vectors, so leave them out; the epoch is chosen by "
                f"vectors.select, found {self.vectors.select}"
            )

    def _check_transfer(self) -> None:
        """Refuses what does not go with ``transfer.mode``."""
        mode = f"transfer.mode={self.transfer.mode}"
        if self.adaptation.method != "none" or self.training.frozen or self.training.distributed:
            raise ValueError(f"{mode} excludes adaptation.method, training.frozen and training.distributed")
        if self.transfer.unfreeze and self.training.patience is None:
            raise ValueError("transfer.unfreeze needs training.patience, which ends each stage")
        if self.vectors.given:
            if self.vectors.select not in ("last", "source"):
                raise ValueError(f"vectors.select={self.vectors.select}: {mode} takes last or source")
            return
        if self.transfer.mode == "shallow" and (self.task == "regression" or self.training.replicas > 1):
            raise ValueError(f"{mode} needs task=classification and training.replicas=1: no network is trained")


def config_fields() -> dict[str, Leaf]:
    """The leaves of the tree by path, such as ``training.epochs``, in the order of the classes."""
    return leaves_of(Config)


def config_sections() -> dict[str, str]:
    """The branches of the tree by path, such as ``data.planted``, with the first line of their description."""
    return branches_of(Config)


def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a YAML file, or the default one, with some fields set anew.

    Args:
      path: YAML file with the keys of ``Config``; None for the defaults.
      overrides: flags as on the command line, such as ``--training.epochs=30`` (with or without the dashes).
      defaults: paths and values in place of the defaults, for keys that the file leaves out.

    Raises:
      DataError: no such file, not YAML, an unknown or repeated key, or a value of the wrong type or size.
    """
    source = str(path) if path else ""
    tree = read_yaml(Path(path)) if path else {}
    check_keys(Config, tree, source)
    for key, value in (defaults or {}).items():
        section, _, name = key.rpartition(".")
        if name not in (tree.get(section) or {} if section else tree):
            plant(tree, key, value)
    for override in overrides:
        key, equals, text = override.removeprefix("--").partition("=")
        check_keys(Config, plant({}, key, None), "the overrides")
        if key not in config_fields() or not equals:
            raise DataError(f"override {override!r}: KEY=VALUE is expected, such as training.epochs=30")
        plant(tree, key, value_of_text(config_fields()[key].kind, text, key))
    return config_from_dict(tree, f"{source} with the overrides" if path and overrides else source)


def config_from_dict(mapping: Mapping[str, Any], source: str = "") -> Config:
    """Builds the tree from nested mappings; what is left out keeps its default.

    Args:
      mapping: as ``config_to_dict`` gives it, or a part of that.
      source: where it comes from, for messages.

    Raises:
      DataError: an unknown key, or a value of the wrong type or size; the message names the key and the value.
    """
    check_keys(Config, mapping, source)
    try:
        return build(Config, mapping)
    except ValueError as error:
        raise DataError(f"{source}: {error}" if source else str(error)) from error


def config_to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dictionaries and lists, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def save_config(config: Config, path: Path) -> None:
    """Writes every field as YAML for ``load_config``; the file appears whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value
