"""The corpus as tables of a run, so that replaying needs neither the text nor its tokenizer.

Shapes: N datum, T token.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from pyarrow import compute

from capture.corpus.datums import Corpus, Datums, Vocabulary
from capture.corpus.planting import Planted
from capture.errors import ShardError
from capture.format.markers import File, Marker
from capture.shards import encoding as shards
from capture.shards.schema import DATUMS, PLANTED, VOCABULARY
from capture.store import Store

REMEDY = "Run: ontogeny verify"
PLANTED_KEY = "corpus/planted.parquet"


def read_corpus(store: Store, start: Marker, *, window: int, scored: int | None = None) -> Corpus:
    """Read the corpus that the marker ``start`` lists.

    ``scored``: number of positions at the end of the window at which the loss counts; None: all.

    Raises ``ShardError`` for a table that is missing, damaged or not the one that ``start`` lists.
    """
    files = {file.key: file for file in start.files_of("corpus")}
    rows = read_table(store, files, "vocab", VOCABULARY)
    tokens, counts = rows["token"].to_pylist(), rows["count"].to_numpy()
    splits = {
        name: replace(read_datums(store, files, name, len(tokens), window), scored=scored)
        for name in ("datums", "validation", "test")
        if f"corpus/{name}.parquet" in files or name == "datums"
    }
    others = splits.get("validation"), splits.get("test")
    return Corpus(Vocabulary(tokens, counts), splits["datums"], *others)


def read_datums(
    store: Store, files: dict[str, File], name: str, num_tokens: int, window: int
) -> Datums:
    """Read one split. Raises ``ShardError`` for datums that do not fit vocabulary or window."""
    rows = read_table(store, files, name, DATUMS)
    token_M = rows["tokens"].combine_chunks().flatten().to_numpy().copy()
    last_N = rows["last_target"].to_numpy()
    lengths = compute.list_value_length(rows["tokens"]).unique().to_pylist()
    token_ids = np.concatenate([token_M, last_N])
    known = not len(token_ids) or 0 <= token_ids.min() <= token_ids.max() < num_tokens
    if lengths not in ([], [window]) or not known:
        where = f"{store.uri}/corpus/{name}.parquet"
        raise ShardError(where, "has datums that its vocabulary or window does not allow", REMEDY)
    token_NT = token_M.reshape(-1, window)
    return Datums(token_NT, np.hstack([token_NT[:, 1:], last_N[:, None]]))


def read_table(store: Store, files: dict[str, File], name: str, schema: pa.Schema) -> pa.Table:
    key = f"corpus/{name}.parquet"
    where = f"{store.uri}/{key}"
    try:
        data = store.get(key)
    except FileNotFoundError as error:
        raise ShardError(where, "is missing", REMEDY) from error
    file = files.get(key)
    if file is None or File.of(key, "corpus", data, file.rows) != file:
        raise ShardError(where, "is not the file that its marker names", REMEDY)
    try:
        return shards.decode(data, where).select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise ShardError(where, f"is not readable: {error}", REMEDY) from error


def corpus_tables(corpus: Corpus) -> dict[str, pa.Table]:
    """Return the tables of a corpus by their keys in a run."""
    splits = {"datums": corpus.train, "validation": corpus.validation, "test": corpus.test}
    tables = {"corpus/vocab.parquet": vocabulary_table(corpus.vocabulary)} | {
        f"corpus/{name}.parquet": datum_table(datums, corpus.vocabulary)
        for name, datums in splits.items()
        if datums is not None
    }
    if corpus.planted:
        tables[PLANTED_KEY] = planted_table(corpus.planted)
    return tables


def planted_table(planted: Planted) -> pa.Table:
    columns = [planted.datum_P, planted.kind_P, planted.position_P]
    return pa.table(dict(zip(PLANTED.names, columns, strict=True))).cast(PLANTED)


def vocabulary_table(vocabulary: Vocabulary) -> pa.Table:
    columns = [np.arange(len(vocabulary.tokens)), vocabulary.tokens, vocabulary.counts]
    return pa.table(dict(zip(VOCABULARY.names, columns, strict=True))).cast(VOCABULARY)


def datum_table(datums: Datums, vocabulary: Vocabulary) -> pa.Table:
    names = np.array(vocabulary.tokens, dtype=object)
    columns = {
        "datum": np.arange(len(datums)),
        "tokens": list(datums.token_NT),
        "last_target": datums.target_NT[:, -1],
        "text": datums.texts
        or [vocabulary.joined(names[token_T].tolist()) for token_T in datums.token_NT],
    }
    return pa.table(columns).cast(DATUMS)
