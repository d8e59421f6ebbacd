"""DeepSpeed's settings, and the initialization of its engine around a model."""

import importlib.util
import logging
import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from capture.errors import ConfigError
from capture.models.dropout import Masks
from capture.optim.config import TrainingConfig
from capture.optim.deepspeed_config import DeepSpeedConfig
from capture.process_group import Group

MAX_BUCKET_NUMBERS = 5 * 10**8
"""Most numbers that are sent at once; DeepSpeed's default."""


def require_installed() -> None:
    """Raise ``ConfigError`` if DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        problem = "got deepspeed, which is not installed here"
        raise ConfigError("engine", problem, "Install it: pip install 'ontogeny[cluster]'")


class AutocastModel(nn.Module):
    """A model whose training forward passes run under bfloat16 autocast if ``wanted``.

    DeepSpeed ends an autocast context that is entered outside its engine, so the context is entered
    inside.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, wanted: bool) -> None:
        super().__init__()
        self.model = model
        self.device_type = device.type
        self.wanted = wanted

    def forward(self, token_NT: Tensor, masks: Masks | None = None) -> Tensor:
        enabled = self.wanted and self.training
        with torch.autocast(self.device_type, torch.bfloat16, enabled=enabled):
            return self.model(token_NT, masks)


def initialise_deepspeed(
    model: nn.Module,
    config: TrainingConfig,
    zero: DeepSpeedConfig,
    chosen: torch.optim.Optimizer,
    device: torch.device,
    group: Group,
) -> Any:
    """Return DeepSpeed's engine around the model, whose weights stage 3 partitions."""
    local = torch.cuda.current_device() if device.type == "cuda" else 0
    os.environ["LOCAL_RANK"] = str(local)  # DeepSpeed uses it only to choose the node's device
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed
    from deepspeed.ops import __compatible_ops__ as compiled
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's own calls
    compiled["deepspeed_shm_comm"] = False  # it would run a C++ compiler; gloo does the same work
    wrapped = AutocastModel(model, device, wanted=config.precision == "bfloat16")
    numbers = sum(parameter.numel() for parameter in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=wrapped,
        optimizer=chosen,
        config=deepspeed_settings(config, zero, numbers=numbers, workers=group.size),
        dist_init_required=False,
    )
    return engine


def deepspeed_settings(
    config: TrainingConfig, zero: DeepSpeedConfig, *, numbers: int, workers: int
) -> dict[str, Any]:
    """Return DeepSpeed's settings; ``numbers``: number of the model's parameters."""
    bucket = min(MAX_BUCKET_NUMBERS, numbers)
    host = {"device": "cpu"}
    offloaded = {"offload_optimizer": host} if zero.offload != "none" else {}
    offloaded |= {"offload_param": host} if zero.offload == "all" else {}
    return {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.batch // workers // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip,
        "steps_per_print": 2**31,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the audit knows the formula of torch's optimizer
        "zero_optimization": {
            "stage": zero.stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "memory_efficient_linear": False,  # it would hide calls of F.linear from the tape
            **offloaded,
        },
    }
