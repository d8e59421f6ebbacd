"""Tables of analyses of something that is no run, such as a folder of checkpoints.

They lie under ``analysis/<job>/`` at a place of the user's choice, with the same marker as those of
a run. Its ``previous`` is empty, because they follow no run.
"""

from collections.abc import Mapping

import pandas as pd
import pyarrow as pa

from analysis.jobs.claims import difference, extends
from analysis.jobs.question import Question
from analysis.jobs.tables import (
    check_set_name,
    encode_marker,
    marker_key,
    put_files,
    table_key,
    table_set,
)
from analysis.run.scan import Shard
from capture.errors import RunError, ShardError
from capture.format import markers
from capture.format.markers import Marker, read_marker
from capture.store import Store
from capture.store.access import require_writable


def claim_place(store: Store, question: Question, name: str, *, replace: bool) -> None:
    """Return if the tables of a question may be written at a place under this name.

    Raises ``ConfigError`` for a name that no folder can have, ``RunError`` if tables of another
    question or of a run stand there, and ``StoreError`` if the place cannot be written.
    """
    if name:
        check_set_name("--name", name)
    job = table_set(question.command, name)
    if not replace and store.exists(marker_key(job)):
        where = f"{store.uri}/analysis/{job}"
        remedy = "Keep both: --name NAME. Or replace them: --replace"
        try:
            values = markers.read_values(store, marker_key(job))
        except ShardError:
            values = {}  # damaged: nothing could read these tables
        if values.get("previous"):
            raise RunError(where, "holds tables of a run", remedy)
        asked = values.get("question")
        options = asked.get("options") if isinstance(asked, dict) else None
        known = Question(question.command, options if isinstance(options, dict) else {}, {})
        if values and not extends(question, known):
            problem = f"holds the tables of another question ({difference(question, known)})"
            raise RunError(where, problem, remedy)
    require_writable(store, f"analysis/{job}")


def write_loose_tables(
    store: Store,
    job: str,
    frames: Mapping[str, pd.DataFrame],
    schemas: Mapping[str, pa.Schema],
    question: Question,
    pages: Mapping[str, bytes],
) -> None:
    """Write a set of tables and its pages, in place of those that it wrote before."""
    files = put_files(store, job, frames, schemas, pages)
    marker = Marker(0, question.steps, files, retries=store.take_retries())
    store.put(marker_key(job), encode_marker(marker, question))


def read_loose_table(store: Store, job: str, name: str, schema: pa.Schema) -> pd.DataFrame:
    """Return one table of a set, with the columns of the schema.

    Raises ``RunError`` if there is no such set, ``ShardError`` if it is damaged.
    """
    if not store.exists(marker_key(job)):
        raise RunError(store.uri, f"has no tables of {job}")
    marker = read_marker(store, marker_key(job))
    key = table_key(job, name)
    file = next((file for file in marker.files if file.key == key and file.rows is not None), None)
    if file is None:
        raise ShardError(f"{store.uri}/{marker_key(job)}", f"does not name {key}")
    return Shard(store, file, 0, marker.end_step).rows_of(schema).to_pandas()
