"""The model of a custom loop, which the user gives, as trajectories observe it.

Shapes: N datum, T token, V vocabulary.
"""

from torch import Tensor, nn

from capture.errors import ConfigError
from capture.models.huggingface import HFModel
from capture.parts import ModelParts
from capture.parts.finding import call
from capture.parts.stack import logits_of


class GivenNetwork(nn.Module):
    """A module that maps token ids to logits of all positions; parameters keep its names."""

    def __init__(self, whole: nn.Module, parts: ModelParts) -> None:
        super().__init__()
        for name, child in whole.named_children():
            self.add_module(name, child)
        for name, own in whole.named_parameters(recurse=False):
            self.register_parameter(name, own)
        self.__dict__["whole"] = whole  # as a submodule it would prefix every parameter's name
        self.__dict__["given"] = parts

    def forward(self, token_NT: Tensor) -> Tensor:
        """Return logits, [N, T, V]; raises ``ConfigError`` if the module gives others."""
        whole = self.__dict__["whole"]
        logit_NTV = logits_of(call(whole, token_NT, self.__dict__["given"]))
        if logit_NTV is None or logit_NTV.shape[:2] != token_NT.shape:
            found = "no tensor [N, T, V]" if logit_NTV is None else list(logit_NTV.shape)
            problem = f"maps tokens {list(token_NT.shape)} to {found}; wanted logits [N, T, V]"
            remedy = "Say how to get them: ModelParts(logits=lambda model, tokens: …)"
            raise ConfigError(type(whole).__name__, problem, remedy)
        return logit_NTV


def observable(module: nn.Module, parts: ModelParts | None) -> HFModel | GivenNetwork:
    """Return a given module as a network from tokens to logits.

    A causal language model of Hugging Face's library is one that shows attention and layers.
    """
    module = module.eval().requires_grad_(False)
    if parts is None and type(module).__module__.startswith("transformers."):
        choose = getattr(module, "set_attn_implementation", None)
        if choose is not None:
            choose("eager")  # the only one that returns attention weights
        if getattr(module, "get_output_embeddings", lambda: None)() is not None:
            return HFModel(module)
    return GivenNetwork(module, parts or ModelParts())
