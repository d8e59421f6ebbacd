"""Whether a model's logits follow from its own and earlier tokens, before it is trained on them.

Targets are the next tokens, so a logit may depend on its own position and earlier ones alone. A
model that also sees later tokens (BERT) would read its targets instead of predicting them. Nor may
it depend on random numbers, which are drawn for a whole batch: a datum's gradient would change with
the batch.

Shapes: T token, V vocabulary.
"""

import torch
from torch import Tensor

from capture.errors import ConfigError
from capture.models.hub import first_line, library_errors
from capture.models.huggingface import HFModel, known_settings
from capture.models.kept_mode import kept_mode

TOLERANCE = 1e-5
"""Largest change of earlier logits, relative to the largest logit. A causal model computes the same
products again; attention to later tokens moves logits by more than 1e-4."""


def require_causal(model: HFModel, token_1T: Tensor) -> None:
    """Raise ``ConfigError`` if the model sees later tokens, or cannot run on the corpus at all."""
    family = model.whole.config.model_type
    last = token_1T.shape[1] - 1
    changed_1T = token_1T.clone()
    changed_1T[:, last] = (changed_1T[:, last] + 1) % model.whole.config.vocab_size
    logit_1TV, other_1TV = (logits(model, token, family) for token in (token_1T, changed_1T))
    moved = float((logit_1TV - other_1TV)[:, :last].abs().max()) if last else 0.0
    most = float(logit_1TV.abs().max())
    if moved > TOLERANCE * most:
        problem = (
            f"got {family}, which sees later tokens, so also the token that it is trained to "
            f"predict: changing the last token moves earlier logits by up to {moved / most:.1e} of "
            "the largest"
        )
        decoder = "is_decoder" in known_settings(family) and not model.whole.config.is_decoder
        remedy = "Choose a causal model"
        remedy += ", or set model.hf.settings.is_decoder=true" if decoder else ""
        raise ConfigError("model.hf.family", problem, remedy)


@torch.no_grad()
def require_no_randomness(model: HFModel, token_1T: Tensor) -> None:
    """Raise ``ConfigError`` if random numbers change the logits of a pass in training mode."""
    family = model.whole.config.model_type
    kept = [buffer.clone() for buffer in model.buffers()]
    devices = [token_1T.device] if token_1T.device.type == "cuda" else []
    with kept_mode(model), torch.random.fork_rng(devices=devices):
        model.train()
        before_state = random_state(token_1T.device)
        one, other = model(token_1T), model(token_1T)
        draws = not torch.equal(before_state, random_state(token_1T.device))
    for buffer, before in zip(model.buffers(), kept, strict=True):
        if not torch.equal(buffer, before):
            buffer.copy_(before)
    # OPT draws a number for each layer that it never drops, which changes nothing.
    if draws and not torch.equal(one, other):
        problem = f"got {family}, which draws random numbers while it is trained, so that a datum's"
        problem += " gradient would depend on its batch"
        raise ConfigError("model.hf.family", problem, "Choose another family")


def random_state(device: torch.device) -> Tensor:
    """Return the state of torch's random generator of a device."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state()


@torch.no_grad()
def logits(model: HFModel, token_1T: Tensor, family: str) -> Tensor:
    """Return logits of one datum, without dropout, [1, T, V]."""
    with kept_mode(model):
        model.eval()
        try:
            return model.whole(input_ids=token_1T, use_cache=False).logits
        except library_errors() as error:
            cause = first_line(error).partition(", but expected")[0]  # torch lists all signatures
            problem = f"got {family}, which fails on the corpus's tokens: {cause}"
            remedy = "See which model.hf.settings the family needs, such as pad_token_id"
            raise ConfigError("model.hf.family", problem, remedy) from error
