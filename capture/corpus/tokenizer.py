"""Tokenize text with a Hugging Face tokenizer, for models with a vocabulary of their own."""

from collections.abc import Sequence
from typing import Any

from capture.errors import ConfigError
from capture.models.hub import (
    library_errors,
    load_transformers,
    pretrained_arguments,
    quiet_libraries,
    unreadable_error,
)

KEY = "corpus.tokenizer"


class HFTokenizer:
    """A fast tokenizer of the transformers library, from a folder or from an id on the hub.

    A token is given by its name in the tokenizer's own spelling, such as ``Ġthe``. Every id has a
    different name. Raises ``ConfigError`` if the tokenizer does not exist or is not a fast one.
    """

    def __init__(self, path: str) -> None:
        place = pretrained_arguments(KEY, path)
        try:
            with quiet_libraries():
                self.own: Any = load_transformers(KEY).AutoTokenizer.from_pretrained(
                    **place, trust_remote_code=False
                )
        except library_errors() as error:
            raise unreadable_error(KEY, path, error) from error
        if not getattr(self.own, "is_fast", False):
            problem = f"got {path!r}, which has no tokenizer.json"
            raise ConfigError(KEY, problem, "Convert it to a fast tokenizer and save it")
        found = self.own.convert_ids_to_tokens(range(len(self.own)))
        self.names = [f"<{i}>" if name is None else name for i, name in enumerate(found)]

    def tokens(self, text: str) -> list[str]:
        """Return the token names of a text, without special tokens at its start or end."""
        return self.own.backend_tokenizer.encode(text, add_special_tokens=False).tokens

    def joined(self, names: Sequence[str]) -> str:
        """Convert token names back to text."""
        return self.own.convert_tokens_to_string(list(names))
