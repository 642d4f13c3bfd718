"""The one configuration tree: frozen dataclasses, read from YAML, every field overridable on the command line."""

from jaxdti.config.adaptation import ADAPTATION_METHODS, AdaptationConfig
from jaxdti.config.data import PLANTED_KINDS, SPLITS, DataConfig, PlantedConfig
from jaxdti.config.model import DTYPES, POOLS, REFERENCE_ATOMS, REFERENCE_RESIDUES, ModelConfig
from jaxdti.config.response import (
    ERRORS,
    PROTOCOLS,
    RESPONSE_BASELINES,
    RESPONSE_DATASETS,
    RESPONSE_KINDS,
    RESPONSE_METHODS,
    HeadConfig,
    PlantedExpressionConfig,
    PretrainingConfig,
    ResponseConfig,
)
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
from jaxdti.config.training import OPTIMIZERS, SCHEDULES, OutputConfig, TrainingConfig
from jaxdti.config.transfer import TRANSFER_MODES, SizesConfig, TransferConfig
from jaxdti.config.vectors import VECTOR_DATASETS, VectorsConfig

__all__ = [
    "ADAPTATION_METHODS",
    "AdaptationConfig",
    "Config",
    "DTYPES",
    "DataConfig",
    "ERRORS",
    "HeadConfig",
    "ModelConfig",
    "OPTIMIZERS",
    "OutputConfig",
    "PLANTED_KINDS",
    "POOLS",
    "PROTOCOLS",
    "PlantedConfig",
    "PlantedExpressionConfig",
    "PretrainingConfig",
    "REFERENCE_ATOMS",
    "REFERENCE_RESIDUES",
    "RESPONSE_BASELINES",
    "RESPONSE_DATASETS",
    "RESPONSE_KINDS",
    "RESPONSE_METHODS",
    "ResponseConfig",
    "SCHEDULES",
    "SPLITS",
    "SizesConfig",
    "TASKS",
    "TRANSFER_MODES",
    "TrainingConfig",
    "TransferConfig",
    "VECTOR_DATASETS",
    "VectorsConfig",
    "config_fields",
    "config_from_dict",
    "config_sections",
    "config_to_dict",
    "load_config",
    "save_config",
]
