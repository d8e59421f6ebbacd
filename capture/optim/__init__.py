"""Optimizers, schedules, and the split of an update into the datums' part and carry.

The settings exported here need no torch, so that a configuration can be read quickly; the modules
``optimizer`` and ``update`` do. Imports ``capture.errors`` alone.
"""

from capture.optim.config import TrainingConfig as TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig as DeepSpeedConfig
from capture.optim.optimizer_config import OptimizerConfig as OptimizerConfig
from capture.optim.schedule import ScheduleConfig as ScheduleConfig
