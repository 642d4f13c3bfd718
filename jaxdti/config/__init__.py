"""The one configuration tree: frozen dataclasses, read from YAML, every field overridable on the command line."""

from jaxdti.config.adaptation import ADAPTATION_METHODS, AdaptationConfig
from jaxdti.config.data import PLANTED_KINDS, SPLITS, DataConfig, PlantedConfig
from jaxdti.config.model import REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.config.response import HeadConfig, PlantedExpressionConfig, PretrainingConfig, ResponseConfig
from jaxdti.config.root import (
    TASKS,
    Config,
    config_fields,
    config_from_dict,
    config_sections,
    config_to_dict,
    load_config,
    save_config,
)
from jaxdti.config.training import OutputConfig, TrainingConfig
from jaxdti.config.transfer import SizesConfig, TransferConfig
from jaxdti.config.vectors import VectorsConfig

__all__ = [
    "ADAPTATION_METHODS",
    "AdaptationConfig",
    "Config",
    "DataConfig",
    "HeadConfig",
    "ModelConfig",
    "OutputConfig",
    "PLANTED_KINDS",
    "PlantedConfig",
    "PlantedExpressionConfig",
    "PretrainingConfig",
    "REFERENCE_ATOMS",
    "REFERENCE_RESIDUES",
    "ResponseConfig",
    "SPLITS",
    "SizesConfig",
    "TASKS",
    "TrainingConfig",
    "TransferConfig",
    "VectorsConfig",
    "config_fields",
    "config_from_dict",
    "config_sections",
    "config_to_dict",
    "load_config",
    "save_config",
]
