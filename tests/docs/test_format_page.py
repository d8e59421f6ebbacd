"""``docs/reference/format.md`` names every column and field of a run's files, and no others."""

import dataclasses
import re
import types
import typing

import pyarrow as pa
import pytest
import torch
from checkout import ROOT

from capture.config.settings import Config
from capture.format import factor_layout, factor_tables, run_yaml, tally_tables
from capture.format.factor_layout import FactorLayout, StoredFactor
from capture.format.markers import File, Marker
from capture.gradients.factors import Kind
from capture.shards import column_chunks, encoding, schema
from capture.store.lease import Lease

PAGE = (ROOT / "docs" / "reference" / "format.md").read_text()
SCHEMAS = {
    "steps/segment-SSSSSS.parquet": schema.STEPS,
    "evaluations/segment-SSSSSS.parquet": schema.TASK_EVALUATIONS,
    "corpus/vocab.parquet": schema.VOCABULARY,
    "corpus/datums.parquet": schema.DATUMS,
    "corpus/planted.parquet": schema.PLANTED,
    "outliers/segment-SSSSSS-wWW.parquet": schema.OUTLIERS,
    "tallies/unit=UNIT/by=BY/window-NNNN.parquet": schema.tally_schema(1),
    "factors/segment-SSSSSS-wWW-TTTTTT-LLLLL.parquet": schema.factor_schema(
        {"NAME": "float16"}, "planes"
    ),
}
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object"}


def tables_in(text: str) -> list[list[list[str]]]:
    """Return the cells of every table of a page, without its head."""
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.split("\n")[2:-1]]
        for block in blocks
    ]


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    return re.split(r"^#+ ", PAGE.split(f"# {heading}\n")[1], flags=re.MULTILINE)[0]


def names_and_types(table: list[list[str]]) -> list[tuple[str, str]]:
    return [(row[0].strip("`"), row[1]) for row in table]


def type_name(kind: pa.DataType) -> str:
    """Return the page's name of an Arrow type."""
    if pa.types.is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    if pa.types.is_dictionary(kind):
        return f"dictionary<{kind.index_type}, {kind.value_type}>"
    return {"float": "float32", "double": "float64"}.get(str(kind), str(kind))


def json_type(kind: object) -> str:
    """Return the page's name of a field's type."""
    if isinstance(kind, types.UnionType):
        return " or ".join(map(json_type, typing.get_args(kind)))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return "string"
    return {**JSON_TYPES, tuple: "array", list: "array", type(None): "null"}[
        typing.cast(type, origin)
    ]


def fields_of(kind: type) -> list[tuple[str, str]]:
    hints = typing.get_type_hints(kind)
    return [(field.name, json_type(hints[field.name])) for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("key", SCHEMAS)
def test_every_column_of_every_table_has_a_row_with_its_type(key):
    (columns, *_) = tables_in(section(f"`{key}`"))
    wanted = [(re.sub(r"_0$", "_N", field.name), type_name(field.type)) for field in SCHEMAS[key]]
    if key.startswith("factors/"):  # one array has one list, one string of bytes or planes
        plain = schema.factor_schema({"NAME": "float32"}, "plain")[4]
        tokens = schema.factor_schema({"NAME": "int32"}, "plain")[4]
        wanted[4:4] = [("NAME", type_name(field.type)) for field in (tokens, plain)]
    assert names_and_types(columns) == wanted
    assert all(row[3] for row in columns)


def test_every_schema_of_the_code_is_on_the_page():
    found = [value for value in vars(schema).values() if isinstance(value, pa.Schema)]
    found.remove(schema.EVALUATIONS)  # the first columns of TASK_EVALUATIONS
    made = [name for name in vars(schema) if name.endswith("_schema")]
    assert len(found) + len(made) == len(SCHEMAS)
    assert all(any(one is known for known in SCHEMAS.values()) for one in found)
    headings = re.findall(r"^### `(.*\.parquet)`$", PAGE, re.MULTILINE)
    assert headings == list(SCHEMAS)


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("Fields of a marker", Marker),
        ("Fields of a file entry", File),
        ("`lease.json`", Lease),
    ],
)
def test_every_field_of_the_json_files_has_a_row_with_its_type(heading, kind):
    (fields,) = tables_in(section(heading))
    assert names_and_types(fields) == fields_of(kind)


def test_every_field_of_a_layout_has_a_row_with_its_type():
    _, outer, inner, kinds = tables_in(section(f"`{list(SCHEMAS)[-1]}`"))
    assert [name for name, _ in names_and_types(outer)] == [
        name for name, _ in fields_of(FactorLayout)
    ]
    assert names_and_types(inner) == fields_of(StoredFactor)
    assert {row[0].strip("`") for row in kinds} == set(typing.get_args(Kind))


def test_every_field_of_run_yaml_has_a_row_with_its_type():
    more = {"transposed": ["weight"], "groups": [{"units": ["weight"]}]}
    written = run_yaml.describe_run(Config(), torch.device("cpu"), **more)
    values = run_yaml.parse_run_yaml(written, "run.yaml")
    fields, groups = tables_in(section("`run.yaml`"))
    known = ["units", "rate", "optimizer", "settings"]
    assert [name for name, _ in names_and_types(groups)] == known
    wanted = [(name, json_type(type(value))) for name, value in values.items()]
    assert names_and_types(fields) == wanted


def test_footer_keys_row_groups_and_statistics_are_those_of_the_code():
    groups, _, keys = tables_in(section("Parquet"))
    code = [encoding.VERSION_KEY, column_chunks.CRC_KEY, factor_layout.KEY]
    assert [row[0] for row in keys] == [f"`{key.decode()}`" for key in code]
    assert [int(row[1].replace(",", "")) for row in groups] == [
        tally_tables.TOKENS_PER_GROUP,
        factor_tables.ROWS_PER_GROUP,
        encoding.ROWS_PER_GROUP,
    ]
    last = tables_in(section("Schema versions"))[0][-1]
    assert int(last[0]) == schema.SCHEMA_VERSION
