"""The same model built from other libraries' parts: torch's transformer, and Opacus' hooks.

A twin shares the parameters of the workbench's model, so training a twin trains that model.

Source: ``torch.nn.TransformerEncoder``; Opacus (Yousefpour et al. 2021), ``GradSampleModule``.
Shapes: N datum, T token, S source token, D width, H head, E width of a head, V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.harness.methods import Gradients, Method
from benchmarks.harness.workbench import Workbench, mean_loss
from capture.engine.step_plan import PlannedStep
from capture.models.dropout import Masks
from capture.models.transformer import LanguageModel, ModelConfig


class TorchTwin(nn.Module):
    """The model as a user of torch would write it: ``nn.TransformerEncoder`` and ``nn.Dropout``."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        config = model.config
        self.scale = math.sqrt(config.width)
        self.positions_TD = model.positions_TD
        window = len(self.positions_TD)
        self.mask_TT = nn.Transformer.generate_square_subsequent_mask(window)
        self.dropout = nn.Dropout(config.dropout)
        with torch.device("meta"):
            layer = nn.TransformerEncoderLayer(
                config.width, config.heads, config.hidden, config.dropout, batch_first=True
            )
            self.body = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
            self.encoder = nn.Embedding(model.encoder.num_embeddings, config.width)
            self.decoder = nn.Linear(config.width, model.decoder.out_features)
        weights = dict(model.named_parameters())
        share_weights(
            self, {name.replace("layers.", "body.layers."): weights[name] for name in weights}
        )

    def forward(self, token_NT: Tensor) -> Tensor:
        x_NTD = self.dropout(self.encoder(token_NT) * self.scale + self.positions_TD)
        return self.decoder(self.body(x_NTD, mask=self.mask_TT, is_causal=True))


class LinearAttention(nn.Module):
    """The model's attention with ``nn.Linear`` projections; Opacus refuses bare parameters."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.in_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x_NTD: Tensor, masks: Masks) -> Tensor:
        N, T, D = x_NTD.shape
        qkv = self.in_proj(x_NTD).view(N, T, 3, self.heads, D // self.heads)
        q_NHTE, k_NHSE, v_NHSE = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        score_NHTS = q_NHTE @ k_NHSE.transpose(2, 3) / math.sqrt(D // self.heads)
        future_TS = torch.ones(T, T, dtype=torch.bool).triu(1)
        weight_NHTS = score_NHTS.masked_fill(future_TS, -math.inf).softmax(3)
        mixed_NHTE = masks.drop(weight_NHTS) @ v_NHSE
        return self.out_proj(mixed_NHTE.transpose(1, 2).reshape(N, T, D))


def linear_twin(model: LanguageModel) -> LanguageModel:
    """Return the model with ``LinearAttention`` in every layer and shared parameters."""
    with torch.device("meta"):
        twin = LanguageModel(model.config, vocabulary=model.decoder.out_features, window=1)
        for layer in twin.layers:
            layer.self_attn = LinearAttention(model.config)
    twin.sinusoid_TD = model.sinusoid_TD
    weights = dict(model.named_parameters())
    share_weights(twin, {name.replace("in_proj_", "in_proj."): weights[name] for name in weights})
    return twin


def share_weights(twin: nn.Module, weights: Mapping[str, nn.Parameter]) -> None:
    """Replace all parameters of the twin by these, by name."""
    names = [name for name, _ in twin.named_parameters()]
    assert set(names) == set(weights)
    for name in names:
        module, _, leaf = name.rpartition(".")
        setattr(twin.get_submodule(module), leaf, weights[name])


def torch_transformer(twin: TorchTwin) -> Method:
    """Return a plain forward and backward pass of torch's transformer."""

    def method(bench: Workbench, planned: PlannedStep) -> Gradients:
        token_NT, target_NT = bench.batch(planned)
        mean_loss(twin(token_NT), target_NT).backward()
        return {}

    return method


def opacus(model: LanguageModel, *, body_only: bool) -> Method:
    """Return a pass with ``GradSampleModule`` on the layers alone or on the whole model.

    Needs Opacus. With ``loss_reduction="sum"`` Opacus does not rescale gradients, which stay
    those of the datums' shares of the mean loss.
    """
    from opacus import GradSampleModule  # pyright: ignore[reportMissingImports]

    def hooked(module: nn.Module) -> nn.Module:
        return GradSampleModule(module, batch_first=True, loss_reduction="sum")

    twin: nn.Module = linear_twin(model)
    if body_only:
        twin.layers = nn.ModuleList(map(hooked, twin.layers))
    else:
        twin = hooked(twin)

    def method(bench: Workbench, planned: PlannedStep) -> Gradients:
        token_NT, target_NT = bench.batch(planned)
        mean_loss(twin(token_NT, bench.masks(planned)), target_NT).backward()
        return {
            name: taken
            for name, parameter in bench.model.named_parameters()
            if (taken := take_samples(parameter)) is not None and name in bench.units
        }

    return method


def take_samples(parameter: nn.Parameter) -> Tensor | None:
    """Return Opacus' per-datum gradients of a parameter and remove them from it."""
    taken = getattr(parameter, "grad_sample", None)
    parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
    return taken
