"""The whole configuration of a run as typed, frozen models.

A key is stated once, as a field of its model (:mod:`fedhubert.config.keys`); ``conf/`` holds what
choices and experiments change. :mod:`fedhubert.compose` turns them into a :class:`Config`, and
everything else takes the part that it needs. An unknown key, a wrong type or a value out of range
is refused by its dotted name.
"""

from fedhubert.config.base import from_json, validate
from fedhubert.config.client import ClientConfig, FaultsConfig
from fedhubert.config.data import DataConfig, PartitionConfig
from fedhubert.config.federated import FederatedConfig
from fedhubert.config.finetune import ClassifyConfig, CtcConfig, FineTuneTask
from fedhubert.config.job import ClientJob, ClientTerms, job_with
from fedhubert.config.masked import MaskedTask
from fedhubert.config.model import NUM_SPECIAL_ROWS, ModelConfig
from fedhubert.config.recipe import PLACEHOLDER, Recipe, Stage
from fedhubert.config.run import Config
from fedhubert.config.secure import SecureConfig
from fedhubert.config.targets import TargetsConfig
from fedhubert.config.task import DistillConfig, ObjectivesConfig, Task, TaskConfig

__all__ = [
    "NUM_SPECIAL_ROWS",
    "PLACEHOLDER",
    "ClassifyConfig",
    "ClientConfig",
    "ClientJob",
    "ClientTerms",
    "Config",
    "CtcConfig",
    "DataConfig",
    "DistillConfig",
    "FaultsConfig",
    "FederatedConfig",
    "FineTuneTask",
    "MaskedTask",
    "ModelConfig",
    "ObjectivesConfig",
    "PartitionConfig",
    "Recipe",
    "SecureConfig",
    "Stage",
    "TargetsConfig",
    "Task",
    "TaskConfig",
    "from_json",
    "job_with",
    "validate",
]
