"""The models that are timed, their data, and the plain training loop that every method extends.

Shapes: N datum, T token of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.workbench import zipf_tokens


@dataclass(frozen=True)
class Workload:
    """A model of transformers, its batches, and the parameters that are captured."""

    name: str
    family: str
    settings: dict[str, Any]
    """Settings of the family, by the library's names."""
    vocabulary: int
    window: int
    batch: int
    units: tuple[str, ...]
    """Glob patterns of the captured parameters."""
    datums: int = 2_000
    """Number of datums in the corpus."""

    def model(self) -> nn.Module:
        """Return the model with the weights of seed 0."""
        settings = self.settings | {"vocab_size": self.vocabulary}
        config = transformers.AutoConfig.for_model(self.family, **settings)
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config).train()

    def parameters(self) -> int:
        """Return the number of parameters, without making them."""
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in self.model().parameters())

    def tokens(self) -> np.ndarray:
        """Return random tokens with Zipf's frequencies, int32 [datums, T + 1]."""
        stream = zipf_tokens(self.datums * (self.window + 1), self.vocabulary)
        return stream.reshape(self.datums, self.window + 1)

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return self.datums // self.batch

    def datum_N(self, step: int) -> np.ndarray:
        """Return the datums of a step: all in order, again and again."""
        return np.arange(self.batch) + self.batch * (step % self.batches)


LLAMA = Workload(
    name="llama",
    family="llama",
    settings={
        "hidden_size": 200,
        "intermediate_size": 200,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    },
    vocabulary=2_000,
    window=35,
    batch=20,
    units=("model.layers.*",),
)
"""3 layers of width 200: 841,200 captured weights, two thirds of the products of a step."""
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
"""Settings of GPT-2."""
GPT2 = Workload(
    name="gpt2",
    family="gpt2",
    settings={
        **{"n_embd": 384, "n_layer": 6, "n_head": 6, "n_positions": 256},
        **NO_DROPOUT,
    },
    vocabulary=2_000,
    window=256,
    batch=4,
    units=("transformer.h.*",),
    datums=400,
)
"""6 layers of width 384 with windows of 256 tokens: 10.6 million captured weights."""
GPT2_SMALL = Workload(
    name="gpt2-small",
    family="gpt2",
    settings={
        **{"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1_024},
        **NO_DROPOUT,
    },
    vocabulary=50_257,
    window=1_024,
    batch=4,
    units=("transformer.h.*",),
    datums=80,
)
"""GPT-2 small with its whole window, for a GPU: 85 million captured weights."""
TINY = Workload(
    name="tiny",
    family="gpt2",
    settings={
        **{"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8},
        **NO_DROPOUT,
    },
    vocabulary=50,
    window=8,
    batch=2,
    units=("transformer.h.*",),
    datums=20,
)
"""A GPT-2 in miniature, to try the benchmark itself."""
WORKLOADS = {each.name: each for each in (LLAMA, GPT2, GPT2_SMALL, TINY)}


class Loop:
    """A training loop in plain torch, as a user writes it: clipping, then the optimizer."""

    def __init__(
        self, workload: Workload, optimizer: str, device: str = "cpu", precision: str = "float32"
    ) -> None:
        """``optimizer``: adamw or sgd. ``precision``: float32, or bfloat16 under autocast."""
        self.workload, self.device, self.precision = workload, device, precision
        self.model = workload.model().to(device)
        self.token_NT = torch.from_numpy(workload.tokens()).long().to(device)
        self.kind, self.rate = optimizer, 1e-3 if optimizer == "adamw" else 0.1
        parameters = self.model.parameters()
        kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
        self.optimizer = kind(parameters, self.rate)
        self.steps = 0

    def is_captured(self, name: str) -> bool:
        """Return whether a parameter is captured."""
        return any(fnmatchcase(name, pattern) for pattern in self.workload.units)

    def take_step(self, before_forward: Callable[[np.ndarray], None] | None = None) -> None:
        """Take one step; ``before_forward`` is called with the datums of the batch."""
        datum_N = self.workload.datum_N(self.steps)
        token_NT = self.token_NT[torch.from_numpy(datum_N).to(self.device)]
        if before_forward:
            before_forward(datum_N)
        loss = self.loss(token_NT)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1

    def loss(self, token_NT: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logit_NTV = self.model(input_ids=token_NT[:, :-1], use_cache=False).logits
        return F.cross_entropy(logit_NTV.float().flatten(0, 1), token_NT[:, 1:].flatten())
