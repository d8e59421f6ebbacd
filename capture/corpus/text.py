"""Read text, and split it into tokens as torchtext's ``basic_english`` does.

``torchtext.data.utils`` defines the tokens by a sequence of regular expressions. The tests contain
that sequence and check that this module agrees with it.
"""

from dataclasses import dataclass
from pathlib import Path

from capture.errors import CorpusError

SPACED = "'.,()!?"
"""Marks that become tokens of their own."""
DROPPED = ";:"
"""Marks that only separate tokens."""


@dataclass(frozen=True)
class Text:
    """A text, and where it came from, for error messages."""

    where: str
    content: str


def basic_english(line: str) -> list[str]:
    """Return the lower-case tokens of a line, or of a whole text: tokens never span lines.

    Double quotes are removed without separating tokens. The order of replacements matters: quotes
    go first, then ``<br />``, then the other marks.
    """
    line = line.lower().replace('"', "").replace("<br />", " ")
    for mark in SPACED:
        line = line.replace(mark, f" {mark} ")
    for mark in DROPPED:
        line = line.replace(mark, " ")
    return line.split()


def python_reference() -> Text:
    """Return the language reference that CPython carries for ``help()``, sorted by topic name."""
    from pydoc_data.topics import topics

    return Text("pydoc_data.topics", "\n".join(topics[name] for name in sorted(topics)))


def read_path(path: Path) -> Text:
    """Read a UTF-8 file, or all ``*.txt`` files below a folder in order of their relative paths."""
    if not path.exists():
        raise CorpusError(str(path), "does not exist", "Give corpus.path a text file or a folder")
    return read_folder(path) if path.is_dir() else read_file(path)


def read_folder(folder: Path) -> Text:
    files = [path for path in folder.rglob("*.txt") if path.is_file()]
    if not files:
        remedy = "Give corpus.path a folder of .txt files, or one text file of any name"
        raise CorpusError(str(folder), f"has no .txt file; it holds {list_names(folder)}", remedy)
    files.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Text(str(folder), "\n".join(read_file(path).content for path in files))


def read_file(path: Path) -> Text:
    """Read a UTF-8 file and drop the byte order mark that some editors write first."""
    try:
        return Text(str(path), path.read_bytes().decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start:,}"
        raise CorpusError(str(path), problem, "Convert the file to UTF-8") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise CorpusError(str(path), problem, "Make the file readable") from error


def list_names(folder: Path, most: int = 6) -> str:
    """List up to ``most`` names in a folder, for an error message."""
    names = sorted(path.name for path in folder.iterdir())
    if len(names) > most:
        names[most:] = [f"{len(names) - most} more"]
    return ", ".join(names) or "nothing"
