"""Text → tokens of a Hugging Face tokenizer, for models that bring their own vocabulary."""

from collections.abc import Sequence
from typing import Any

from capture.errors import ConfigError
from capture.models.hub import foreign_errors, library, quiet, source, unreadable

KEY = "corpus.tokenizer"


class HFTokenizer:
    """The library's fast tokenizer of a folder or a hub's id.

    A token is its name in the tokenizer's own spelling, as in Ġthe: every id has a name, and no two
    the same. Raises ``ConfigError`` if there is no such tokenizer.
    """

    def __init__(self, path: str) -> None:
        place = source(KEY, path)
        try:
            with quiet():
                self.own: Any = library(KEY).AutoTokenizer.from_pretrained(
                    **place, trust_remote_code=False
                )
        except foreign_errors() as error:
            raise unreadable(KEY, path, error) from error
        if not getattr(self.own, "is_fast", False):
            problem = f"got {path!r}, which has no tokenizer.json"
            raise ConfigError(KEY, problem, "Convert it to a fast tokenizer and save it")
        found = self.own.convert_ids_to_tokens(range(len(self.own)))
        self.names = [f"<{i}>" if name is None else name for i, name in enumerate(found)]

    def tokens(self, text: str) -> list[str]:
        """Names of the text's tokens, with none added before or after."""
        return self.own.backend_tokenizer.encode(text, add_special_tokens=False).tokens

    def joined(self, names: Sequence[str]) -> str:
        """The text that tokens stand for."""
        return self.own.convert_tokens_to_string(list(names))
