"""Read WikiText-2 (Merity et al. 2016) and its splits from a folder or the Hugging Face hub."""

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from capture.corpus.text import Text, list_names, read_file
from capture.errors import CorpusError
from capture.models.hub import ANSWER_TIMEOUT_SECONDS, first_line, hub_problem, quiet_libraries

Split = Literal["train", "validation", "test"]

FILE_NAMES: dict[Split, tuple[str, str]] = {
    "train": ("train.txt", "wiki.train.tokens"),
    "validation": ("valid.txt", "wiki.valid.tokens"),
    "test": ("test.txt", "wiki.test.tokens"),
}
"""Accepted file names of each split in a folder. The first one that exists is read."""
REPOSITORY = "Salesforce/wikitext"
HUB_FILES: dict[Split, str] = {
    "train": "wikitext-2-v1/train-00000-of-00001.parquet",
    "validation": "wikitext-2-v1/validation-00000-of-00001.parquet",
    "test": "wikitext-2-v1/test-00000-of-00001.parquet",
}
REMEDY = (
    f"Either set corpus.path to a folder with {' or '.join(FILE_NAMES['train'])}, "
    "or download with a network and: pip install 'ontogeny[hf]'"
)


def read_wikitext(folder: Path | None) -> dict[Split, Text]:
    """Return the splits that exist. ``train`` is always among them."""
    return read_hub() if folder is None else read_splits(folder)


def read_splits(folder: Path) -> dict[Split, Text]:
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise CorpusError(str(folder), problem, REMEDY)
    found: dict[Split, Text] = {}
    for split, names in FILE_NAMES.items():
        files = [folder / name for name in names if (folder / name).is_file()]
        if files:
            found[split] = read_file(files[0])
    if "train" not in found:
        problem = f"has no {' or '.join(FILE_NAMES['train'])}; it holds {list_names(folder)}"
        raise CorpusError(str(folder), problem, f"{REMEDY}. corpus.kind=text reads any .txt files")
    return found


def read_hub() -> dict[Split, Text]:
    return {split: read_parquet(download(filename)) for split, filename in HUB_FILES.items()}


def download(filename: str) -> Path:
    """Return a file of the data set in the user's Hugging Face cache; download it if needed."""
    where = f"{REPOSITORY} on the Hugging Face hub"
    try:
        import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise CorpusError(where, "huggingface_hub is not installed", REMEDY) from error
    try:
        cached = hub.try_to_load_from_cache(REPOSITORY, filename, repo_type="dataset")
        if isinstance(cached, str):
            return Path(cached)
        if problem := hub_problem():
            raise CorpusError(where, f"{filename} cannot be fetched ({problem})", REMEDY)
        timeout = ANSWER_TIMEOUT_SECONDS
        with quiet_libraries():
            return Path(
                hub.hf_hub_download(REPOSITORY, filename, repo_type="dataset", etag_timeout=timeout)
            )
    except CorpusError:
        raise
    except Exception as error:  # the hub, its HTTP client and its transfer library share no base
        cause = error.__cause__ or error
        problem = f"{filename} could not be fetched ({type(cause).__name__}: {first_line(cause)})"
        raise CorpusError(where, problem, REMEDY) from error


def read_parquet(path: Path) -> Text:
    """Read the column ``text`` of a hub file, which has one row per line of the original."""
    try:
        rows = pq.read_table(path, columns=["text"])["text"].to_pylist()
    except (pa.ArrowException, KeyError, OSError) as error:
        problem = f"is not a Parquet file with a column 'text' ({first_line(error)})"
        raise CorpusError(str(path), problem, "Delete it and run again to fetch it anew") from error
    return Text(str(path), "\n".join(row or "" for row in rows))
