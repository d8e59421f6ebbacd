"""Reading an untrusted run runs none of its content, stays in its folder, and ends.

These tests attack by markers, run.yaml and links in the folder.
"""

import contextlib
import os
from pathlib import Path

import pytest
from damage import intact
from hostile import TRACES, Values, changed_run_yaml, forge_marker, with_valid_markers, write_run

from analysis.run.run import open_run
from capture.config.reading import read_config
from capture.config.safe_yaml import MAX_CHARACTERS, read_yaml
from capture.errors import ConfigError, ShardError
from capture.format.markers import MAX_BYTES, START, read_marker, segment_key
from capture.maintenance.garbage import remove_garbage
from capture.maintenance.verify import verify
from capture.store import Store
from capture.training.run_start import clear_run

URI = "memory://hostile"
SHARD = "outliers/segment-000000-w00.parquet"


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch):
    """Assert after each test that no malicious code ran."""
    monkeypatch.setattr(os, "system", TRACES.append)
    yield
    assert TRACES == []


# --- markers --------------------------------------------------------------------------------------


def with_key(key: object):
    return lambda values: values["files"][0].update(key=key)


@pytest.mark.parametrize(
    "key", ["../x", "steps/../../x", "/etc/passwd", "a\\..\\b", "a\0b", "", "..", 7, None, ["a"]]
)
def test_a_marker_that_names_a_file_outside_the_run_is_refused(key):
    store = write_run(URI, {segment_key(0): forge_marker(segment_key(0), with_key(key))})
    with pytest.raises(ShardError, match=r"segment-000000\.json: is not a readable marker"):
        read_marker(store, segment_key(0))
    with pytest.raises(ShardError):
        open_run(URI)
    assert (segment_key(0), "damaged") in [(f.key, f.state) for f in verify(store)]


@pytest.mark.parametrize("number", [-1, 2**60, 10**400, 1.5, True, "7", None, [], float("nan")])
@pytest.mark.parametrize("field", ["num_bytes", "rows"])
def test_absurd_sizes_in_a_marker_are_refused(number, field):
    if field == "rows" and number is None:
        pytest.skip("files that are no tables have this value")
    change = lambda values: values["files"][0].update({field: number})  # noqa: E731
    store = write_run(URI, {segment_key(0): forge_marker(segment_key(0), change)})
    with pytest.raises(ShardError, match="is not a readable marker"):
        read_marker(store, segment_key(0))


@pytest.mark.parametrize("rows", [0, 2**40, 2**53 - 1])
def test_a_wrong_number_of_rows_is_refused_before_memory_is_allocated(rows):
    files = with_valid_markers({"corpus/datums.parquet": intact()["corpus/datums.parquet"]}, rows)
    write_run(URI, files)
    with pytest.raises(ShardError, match=rf"holds 51 rows, its marker says {rows:,}"):
        _ = open_run(URI).num_datums


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" * 100_000, "is not a readable marker"),
        (b'{"a":' * 100_000, "is not a readable marker"),
        (b'{"checksum": ' + b"9" * 100_000 + b"}", "is not a readable marker"),
        (b" " * (MAX_BYTES + 1), "is larger than 4,194,304 bytes"),
        (b'{"checksum": NaN}', "is not a readable marker"),
        (b"\xff\xfe", "is not a readable marker"),
    ],
)
def test_a_marker_with_malicious_text_is_refused(text, problem):
    store = write_run(URI, {START: text})
    with pytest.raises(ShardError, match=problem):
        read_marker(store, START)
    assert (START, "damaged") in [(f.key, f.state) for f in verify(store)]


def test_a_marker_with_two_fields_of_one_name_is_refused():
    """Some readers use the first of the two, others the last."""
    text = intact()[START].replace(b"{\n", b'{\n "first_step": 7,\n', 1)
    with pytest.raises(ShardError, match="its text was changed"):
        read_marker(write_run(URI, {START: text}), START)


# --- run.yaml -------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "has an anchor or alias"),
        ("a: &a\n  b: *a\n", "has an anchor or alias"),
        ("[" * 50_000, "has more than 32 levels"),
        ("? " * 5_000, "has more than 32 levels"),
        ("a: !!python/object/apply:os.system [echo]", "has a tag"),
        ("!!python/name:os.system", "has a tag"),
        ("a: !!binary aaaa", "has a tag"),
        ("a: " + "9" * 5000, "is not valid YAML"),
        ("a: 2001-99-99", "is not valid YAML"),
        ("a" * (MAX_CHARACTERS + 1), "is longer than 131,072 characters"),
        ("{a: 1}: 2", "is not valid YAML"),
    ],
    ids=range(11),
)
def test_malicious_yaml_is_refused(tmp_path, text, problem):
    with pytest.raises(ValueError, match=problem):
        read_yaml(text)
    write_run(URI, with_valid_markers({"run.yaml": text.encode()}))
    with pytest.raises(ShardError, match=r"run\.yaml: is (not readable|larger)"):
        open_run(URI)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        read_config(tmp_path / "c.yaml")


def secret_unit(values: Values) -> None:
    values["config"]["capture"]["units"] = ["${oc.env:HOME}"]


def test_a_configuration_that_reads_the_environment_is_refused():
    write_run(URI, with_valid_markers({"run.yaml": changed_run_yaml(secret_unit)}))
    with pytest.raises(ConfigError, match="interpolations are not supported"):
        open_run(URI)


@pytest.mark.parametrize(
    "model",
    [
        {"width": 2**40, "heads": 1},
        {"layers": 10**9},
        {"hidden": 10**12},
        {"width": 2**20, "hidden": 2**20, "heads": 2},
    ],
)
def test_a_model_larger_than_its_checkpoint_is_never_built(model):
    write_run(
        URI,
        with_valid_markers(
            {"run.yaml": changed_run_yaml(lambda v: v["config"]["model"].update(model))}
        ),
    )
    run = open_run(URI)
    with pytest.raises(ShardError, match=r"holds [\d,]+ bytes, the model of run.yaml needs"):
        run.model()
    with pytest.raises(ShardError, match=r"step-000000\.safetensors"):
        run.shifts("layers.1.linear2.weight")


def test_a_model_for_a_window_of_absurd_length_is_never_built():
    write_run(
        URI,
        with_valid_markers(
            {"run.yaml": changed_run_yaml(lambda v: v["config"]["corpus"].update(window=2**50))}
        ),
    )
    with pytest.raises(ShardError):
        open_run(URI).model()


# --- links ----------------------------------------------------------------------------------------


def run_on_disk(folder: Path) -> Path:
    """Write an intact run below the folder and return its path."""
    return Path(write_run(str(folder / "run"), {}).uri)


@pytest.mark.parametrize("whole_folder", [False, True])
def test_links_out_of_a_run_are_not_followed(tmp_path, whole_folder):
    run = run_on_disk(tmp_path)
    outside = tmp_path / "outside"
    if whole_folder:
        (run / "outliers").rename(outside)
        (run / "outliers").symlink_to(outside)
    else:
        outside.mkdir()
        (run / SHARD).rename(outside / "secret")
        (run / SHARD).symlink_to(outside / "secret")
    before = sorted(path.name for path in outside.iterdir())
    with pytest.raises(ShardError, match="is a link that leads out of the run"):
        open_run(str(run)).shifts()
    assert (SHARD, "damaged") in [(f.key, f.state) for f in verify(Store(str(run)))]
    remove_garbage(Store(str(run)))
    with contextlib.suppress(ShardError):
        clear_run(Store(str(run)))
    assert sorted(path.name for path in outside.iterdir()) == before


def test_a_marker_that_is_a_link_is_not_followed(tmp_path):
    run = run_on_disk(tmp_path)
    (run / START).rename(tmp_path / "start.json")
    (run / START).symlink_to(tmp_path / "start.json")
    with pytest.raises(ShardError, match="is a link that leads out of the run"):
        open_run(str(run))
