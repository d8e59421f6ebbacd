"""The model of a custom training loop, called as its user says, as a module that returns logits."""

from torch import Tensor, nn

from capture.errors import ConfigError
from capture.parts import ModelParts
from capture.parts.finding import call
from capture.parts.stack import logits_of


class CalledModel(nn.Module):
    """Token ids [N, T] in, logits [N, T, V] out."""

    def __init__(self, network: nn.Module, given: ModelParts | None) -> None:
        super().__init__()
        self.network = network
        self.given = given or ModelParts()

    def forward(self, token_NT: Tensor) -> Tensor:
        """Raises ``ConfigError`` if the model returns something else than logits."""
        output = call(self.network, token_NT, self.given)
        logits = logits_of(output)
        if logits is None:
            problem = f"returns {type(output).__name__} for token ids, not logits [N, T, V]"
            remedy = "Say how to get them: ModelParts(logits=lambda model, tokens: …)"
            raise ConfigError(type(self.network).__name__, problem, remedy)
        return logits
