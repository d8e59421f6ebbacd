"""Time attribution over outliers against SQL: ``python -m benchmarks.attribution``.

Ours is the pass of ``ontogeny attribute`` over the outlier shards with default settings. It counts
rows by (neuron, target token) with estimates of the number of their origins, by (neuron, datum),
and by text position for some datums. DuckDB reads the same Parquet files with the same number of
threads and counts by the first two keys only, in two different ways. All methods must find the
same counts before anything is timed. Rounds interleave the methods and alternate their order.

The rows are those of a run, or (``--synthetic``) random ones in the shape of a run's: the given
number of millions, 1,000 per datum, most of them in a few neurons at a few positions, with tokens
of Zipf's frequencies.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb  # pyright: ignore[reportMissingImports]
import numpy as np
import pyarrow as pa

from analysis.attribution.collect import CollectEvidence
from analysis.attribution.outlier_weights import RowReader, RowWeighting
from analysis.attribution.sparse_sums import SparseSums
from analysis.levels import MLP_UNITS, groups_at
from analysis.run.run import open_run
from analysis.run.scan import Shard
from benchmarks.harness.report import machine
from benchmarks.harness.timing import quartiles
from capture.device import available_cores
from capture.format.markers import File
from capture.gradients.layout import Layout
from capture.shards import encoding as shards
from capture.shards.schema import OUTLIERS
from capture.store.store import Store
from cluster.local.threads import run_job

WIDTH, WINDOW, VOCABULARY, DATUMS = 200, 35, 28_782, 58_560
"""Shape of synthetic rows: that of the study's run."""
STEPS, BATCH, KEPT = 100, 20, 1000
"""Shape of a synthetic shard: steps, datums per step, rows per datum."""
NEURONS = """
    SELECT units.ordinal * 100000 + index % units.fan_in AS neuron, targets.token, datum
    FROM read_parquet(?) AS rows JOIN units USING (unit) JOIN targets USING (datum, position)"""
QUERIES = {
    "DuckDB, a query for each": (
        f"SELECT neuron, token, count(*) FROM ({NEURONS}) GROUP BY ALL",
        f"SELECT neuron, datum, count(*) FROM ({NEURONS}) GROUP BY ALL",
    ),
    "DuckDB, grouping sets": (
        f"SELECT neuron, token, datum, count(*) FROM ({NEURONS}) "
        "GROUP BY GROUPING SETS ((neuron, token), (neuron, datum))",
    ),
}


@dataclass(frozen=True)
class OutlierRows:
    """Outlier shards, with the layout and the targets that their columns refer to."""

    layout: Layout
    target_NT: np.ndarray
    num_tokens: int
    shards: list[Shard]
    what: str
    """Description for the output."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def units(self) -> list[str]:
        """The units whose columns are neurons."""
        return [name for name in self.layout.names if name.endswith(MLP_UNITS)]

    @property
    def job(self) -> CollectEvidence:
        reader = RowReader(self.layout, *self.target_NT.shape, units=tuple(self.units))
        groups = groups_at("neuron", self.layout, heads=1)
        return CollectEvidence(
            reader, groups, RowWeighting("count"), self.target_NT, self.num_tokens
        )


@dataclass(frozen=True)
class Line:
    """Measurements of a method."""

    name: str
    seconds: tuple[float, float, float]
    """First quartile, median and third quartile."""
    million_rows_per_second: float
    """Rate at the median time."""
    samples: list[float]
    """Seconds of every round."""


def main() -> None:
    arguments = parse_arguments()
    threads = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.run:
            outliers = rows_of_run(arguments.run)
        else:
            outliers = synthetic_rows(folder, max(1, round(arguments.synthetic * 1e6)))
        print(f"{outliers.what}: {outliers.rows:,} rows in {len(outliers.shards)} shards")
        methods = make_methods(outliers, threads)
        require_same(methods)
        lines = measure(methods, outliers.rows, arguments.rounds)
    for line in lines:
        rate = f"{line.million_rows_per_second:>7.1f} million rows/s"
        print(f"{line.name:<26} {line.seconds[1]:>8.2f} s {rate}")
    if arguments.json:
        found = {"rows": outliers.rows, "what": outliers.what, "threads": threads}
        found |= {"machine": machine(), "lines": [asdict(line) for line in lines]}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run", nargs="?", metavar="RUN", help="a run on this machine's disk")
    source.add_argument(
        "--synthetic", type=float, metavar="MILLIONS", help="use so many millions of random rows"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


# --- rows -----------------------------------------------------------------------------------------


def rows_of_run(uri: str) -> OutlierRows:
    run = open_run(uri)
    shards = run.require_shards("outliers")
    return OutlierRows(run.layout, run.target_NT, run.num_tokens, shards, f"run {uri}")


def synthetic_rows(folder: str, num_rows: int) -> OutlierRows:
    """Write at least one shard of random rows to the folder; whole shards, rounded down."""
    rng = np.random.default_rng(0)
    square = (WIDTH, WIDTH)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(3):
        shapes[f"layers.{layer}.self_attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
        for name in ("self_attn.out_proj.weight", "linear1.weight", "linear2.weight"):
            shapes[f"layers.{layer}.{name}"] = square
    layout, per_shard = Layout(shapes), STEPS * BATCH * KEPT
    made = [
        write_shard(folder, number, random_rows(layout, number, rng))
        for number in range(max(1, num_rows // per_shard))
    ]
    target_NT = np.minimum(rng.zipf(1.2, size=(DATUMS, WINDOW)) - 1, VOCABULARY - 1)
    return OutlierRows(layout, target_NT.astype(np.int32), VOCABULARY, made, "synthetic rows")


def random_rows(layout: Layout, number: int, rng: np.random.Generator) -> pa.Table:
    """Return the rows of a shard, in the order that the recorder writes.

    Each datum's rows lie in at most 200 pairs of neuron and position, most of them in a few.
    """
    visit_M = np.repeat(np.arange(STEPS * BATCH), KEPT)
    pair_M = np.minimum(rng.zipf(1.4, size=len(visit_M)), 200)
    # A hash of visit and pair: equal pairs of a datum get equal unit, column and position.
    mixed_M = (visit_M * 1009 + pair_M * 7919 + number * 104_729) % 2**31
    unit_M = mixed_M % len(layout.names)
    rows_U = np.array([shape[0] for shape in layout.shapes.values()])
    order = np.array(sorted(range(len(layout.names)), key=layout.names.__getitem__))
    columns = {
        "step": number * STEPS + visit_M // BATCH,
        "slot": visit_M % BATCH,
        "datum": rng.permutation(DATUMS)[: STEPS * BATCH][visit_M],
        "unit": pa.DictionaryArray.from_arrays(unit_M.astype(np.int16), layout.names),
        "index": rng.integers(rows_U[unit_M]) * WIDTH + mixed_M // 31 % WIDTH,
        "shift": rng.normal(scale=1e-3, size=len(visit_M)),
        "position": mixed_M // 6211 % WINDOW,
    }
    rank_U = np.argsort(order)
    sorted_M = np.lexsort((columns["step"], columns["index"], rank_U[unit_M]))
    return pa.table(columns).cast(OUTLIERS).take(sorted_M)


def write_shard(folder: str, number: int, rows: pa.Table) -> Shard:
    data, key = shards.encode(rows), f"outliers/segment-{number:06d}-w00.parquet"
    store = Store(folder)
    store.put(key, data)
    file = File.of(key, "outliers", data, len(rows))
    return Shard(store, file, number * STEPS, (number + 1) * STEPS)


# --- methods --------------------------------------------------------------------------------------

Answer = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Counts by (neuron, token) and by (neuron, datum): columns neuron, item, rows, in any order."""
Methods = dict[str, Callable[[], Answer]]


def make_methods(outliers: OutlierRows, threads: int) -> Methods:
    """Return ours and those of DuckDB, by name; ours comes first."""
    connection = duckdb.connect(config={"threads": threads})
    N, T = outliers.target_NT.shape
    names = outliers.units
    fan_in = [outliers.layout.shapes[name][-1] for name in names]
    targets = pa.table(
        {
            "datum": np.repeat(np.arange(N, dtype=np.int32), T),
            "position": np.tile(np.arange(T, dtype=np.int16), N),
            "token": outliers.target_NT.ravel(),
        }
    )
    units = pa.table({"unit": names, "ordinal": range(len(names)), "fan_in": fan_in})
    for name, table in {"targets": targets, "units": units}.items():
        connection.register("made", table)
        connection.execute(f"CREATE TABLE {name} AS SELECT * FROM made")
    first_U = np.cumsum([0, *fan_in[:-1]])

    def by_sql(queries: tuple[str, ...]) -> Answer:
        files = [shard.where for shard in outliers.shards]
        found = [query_columns(connection, query, files) for query in queries]
        if len(found) == 1:  # grouping sets: in each set, the other set's key is null
            (both,) = found
            own = ~np.ma.getmaskarray(both["token"])
            found = [{name: x[rows] for name, x in both.items()} for rows in (own, ~own)]
        return columns_of(found[0], "token"), columns_of(found[1], "datum")

    def columns_of(found: dict[str, np.ndarray], item: str) -> dict[str, np.ndarray]:
        unit, column = np.divmod(np.asarray(found["neuron"]), 100_000)
        values = first_U[unit] + column, found[item], found["count_star()"]
        return dict(zip(("neuron", "item", "rows"), map(np.asarray, values), strict=True))

    def ours() -> Answer:
        found = run_job(outliers.job, outliers.shards, threads=threads)
        return as_columns(found.tokens), as_columns(found.datums)

    others = {name: (lambda queries=queries: by_sql(queries)) for name, queries in QUERIES.items()}
    return {"ontogeny": ours, **others}


def query_columns(connection: Any, query: str, files: list[str]) -> dict[str, np.ndarray]:
    """Return the columns of a query's result, masked where they are null."""
    return connection.execute(query, [files]).fetchnumpy()


def as_columns(sums: SparseSums) -> dict[str, np.ndarray]:
    return {"neuron": sums.group_K, "item": sums.item_K, "rows": sums.value_CK[0]}


def require_same(methods: Methods) -> None:
    """Assert that every method finds the counts of the first one."""
    (first, wanted), *others = [(name, do()) for name, do in methods.items()]
    for name, found in others:
        for ours, theirs in zip(wanted, found, strict=True):
            order_K = np.lexsort((theirs["item"], theirs["neuron"]))
            for column, values in ours.items():
                assert np.array_equal(values, theirs[column][order_K]), f"{first}, {name}: {column}"


def measure(methods: Methods, rows: int, rounds: int) -> list[Line]:
    """Time the methods round by round; every second round in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for number in range(rounds):
        for name in list(methods)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            methods[name]()
            seconds[name].append(time.perf_counter() - start)
    return [
        Line(name, quartiles(taken), rows / quartiles(taken)[1] / 1e6, taken)
        for name, taken in seconds.items()
    ]


if __name__ == "__main__":
    main()
