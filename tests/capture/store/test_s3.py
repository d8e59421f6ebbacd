"""Whole runs on a real S3 server: commands, secrets, settings, errors, and other readers."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow.fs
import pytest
import s3fs
from pyarrow import dataset
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, Server, environment
from tiny import contents, make_run, tiny_config

from analysis.run.run import open_run
from capture.config.settings import Config
from capture.format.chain import read_segments
from capture.format.markers import segment_key
from capture.maintenance.verify import verify
from capture.store import Store
from cluster.cli import main

pytestmark = pytest.mark.s3

TOKEN = "FwoGZXIvYXdzTESTINGTOKEN7Zr3Xv+bT0mWc2Ld8"
BAD_INPUT = 2


@pytest.fixture(scope="module")
def run_uri(s3_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a captured tiny run on the server; tests must not change it."""
    uri = f"s3://{BUCKET}/shared/tiny"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(s3_server.endpoint).items():
            patch.setenv(name, value)
        make_run(tiny_config(tmp_path_factory.mktemp("tiny"), f"run.uri={uri}"))
        yield uri


def command_line(config: Config) -> list[str]:
    """Return the tiny configuration as overrides of a command."""
    corpus, model = config.corpus, config.model
    return [
        *("corpus.kind=text", f"corpus.path={corpus.path}", f"corpus.window={corpus.window}"),
        *(f"corpus.validation_share={corpus.validation_share}", f"model.layers={model.layers}"),
        *(f"model.width={model.width}", f"model.hidden={model.hidden}", "model.heads=3"),
        *("training.epochs=2", "training.batch=4", "training.device=cpu"),
        *("capture.segment_steps=8", "capture.outliers.k=30"),
    ]


# --- every command --------------------------------------------------------------------------------


def test_every_command_works_on_s3_as_in_a_folder(s3, tmp_path, capsys) -> None:
    make_run(tiny_config(tmp_path, name="local"))
    settings = command_line(tiny_config(tmp_path))
    assert main(["capture", "wikitext2", f"run.uri={s3}", *settings]) == 0
    assert contents(s3) == contents(str(tmp_path / "local"))
    assert main(["capture", "wikitext2", f"run.uri={s3}", *settings]) == BAD_INPUT
    assert main(["capture", "wikitext2", f"run.uri={s3}", *settings, "--resume"]) == 0
    for command in (["info"], ["verify"], ["attribute", "--min-count=2"], ["ablate"], ["verify"]):
        assert main([*command[:1], s3, *command[1:]]) == 0, command
    output = capsys.readouterr()
    assert f"{s3}: 28 of 28 steps" in output.out
    assert "Intact" in output.out
    assert "holds a run already" in output.err
    assert Store(s3).keys("analysis")


def test_a_run_resumes_after_its_last_segment(s3, tmp_path) -> None:
    config = tiny_config(tmp_path, f"run.uri={s3}")
    make_run(config)
    wanted, store = contents(s3), Store(s3)
    last = read_segments(store)[-1]
    store.delete(segment_key(3))
    for file in last.files:
        store.delete(file.key)
    make_run(config, resume=True)
    assert contents(s3) == wanted
    assert verify(store) == []


# --- secrets --------------------------------------------------------------------------------------


def test_no_secret_is_stored_logged_or_printed(
    s3, s3_server, tmp_path, caplog, capsys, monkeypatch
):
    """No secret appears in the run, in logs at DEBUG level, or in error messages."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    settings = command_line(tiny_config(tmp_path))
    settings += [f"store.endpoint_url={s3_server.endpoint}", "store.region=us-east-1"]
    assert main(["capture", "wikitext2", f"run.uri={s3}", *settings]) == 0
    assert main(["attribute", s3, "--min-count=2"]) == 0
    main(["info", f"s3://{BUCKET}/nothing-here"])
    main(["info", "s3://no-such-bucket/run"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASOMEONEELSE00000")
    main(["info", s3])
    output = capsys.readouterr()
    monkeypatch.undo()
    everywhere = [output.out.encode(), output.err.encode(), caplog.text.encode()]
    files = [path for path in s3_server.folder.rglob("*") if path.is_file()]
    everywhere += [path.read_bytes() for path in files if s3.rsplit("/", 1)[1] in str(path)]
    assert len(everywhere) > 10
    for text in everywhere:
        for secret in (SECRET_KEY, TOKEN, ACCESS_KEY):
            assert secret.encode() not in text
    assert s3_server.endpoint.encode() in b"".join(everywhere), (
        "the endpoint, which is not secret, is recorded"
    )


# --- settings -------------------------------------------------------------------------------------


@pytest.fixture
def no_aws_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")


@pytest.mark.parametrize("source", ["default", "AWS_PROFILE", "store.profile"])
def test_aws_files_and_profiles_are_read(
    no_aws_settings, s3_server, run_uri, monkeypatch, tmp_path, source
):
    name = "default" if source == "default" else "lab"
    section = "default" if source == "default" else "profile lab"
    (tmp_path / "config").write_text(
        f"[{section}]\nregion = eu-central-1\nendpoint_url = {s3_server.endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        f"[{name}]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    if source == "AWS_PROFILE":
        monkeypatch.setenv("AWS_PROFILE", "lab")
    config = tiny_config(tmp_path, *(["store.profile=lab"] if source == "store.profile" else []))
    assert open_run(run_uri, config.store).steps_done == 28


def test_store_settings_take_precedence_over_the_environment(
    run_uri, s3_server, monkeypatch, tmp_path
):
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    config = tiny_config(tmp_path, f"store.endpoint_url={s3_server.endpoint}")
    assert open_run(run_uri, config.store).steps_done == 28


def test_newer_checksums_are_sent_only_on_request(s3, s3_server, monkeypatch, tmp_path) -> None:
    from capture.store.config import StoreConfig
    from capture.store.s3_client import make_client

    def calculation(config: StoreConfig) -> str:
        return make_client(config).meta.config.request_checksum_calculation

    assert calculation(StoreConfig()) == "when_required"
    assert calculation(StoreConfig(checksums="when_supported")) == "when_supported"
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert calculation(StoreConfig()) == "when_supported"
    assert calculation(StoreConfig(checksums="when_required")) == "when_required"


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "uri", "text"),
    [
        ({}, "s3://no-such-bucket/run", "no-such-bucket/run: there is no such bucket. Make it"),
        ({}, f"s3://{BUCKET}/nowhere", "nowhere: holds no run. Make one with: ontogeny capture"),
        ({}, "s3://NO BUCKET/run", "cannot be used: Parameter validation failed: Invalid bucket"),
        ({}, f"s3://key:{SECRET_KEY}@{BUCKET}/run", "s3://…: holds credentials, and a run would"),
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            f"s3://{BUCKET}/run",
            "forbidden (HTTP 403). Check the credentials and the bucket's policy",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            f"s3://{BUCKET}/run",
            "no usable AWS credentials (NoCredentials). Set AWS_ACCESS_KEY_ID and",
        ),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            f"s3://{BUCKET}/run",
            "cannot be reached: Could not connect to the endpoint URL",
        ),
        ({"AWS_ENDPOINT_URL": "nonsense"}, f"s3://{BUCKET}/run", "Invalid endpoint: nonsense"),
        ({"AWS_PROFILE": "absent"}, f"s3://{BUCKET}/run", "AWS_PROFILE is not in ~/.aws/config"),
    ],
)
def test_an_error_is_one_line(s3, monkeypatch, capsys, tmp_path, change, uri, text) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    commands = [["info", uri]]
    if "nowhere" not in uri:
        settings = command_line(tiny_config(tmp_path))
        commands.append(["capture", "wikitext2", f"run.uri={uri}", *settings])
    messages = []
    for command in commands:
        assert main(command) == BAD_INPUT
        messages.append(capsys.readouterr().err)
        assert len(messages[-1].splitlines()) == 1
        assert "Traceback" not in messages[-1]
        assert SECRET_KEY not in messages[-1]
    assert text in messages[0]


# --- other readers --------------------------------------------------------------------------------


@pytest.fixture
def outliers(run_uri: str, s3: str) -> pd.DataFrame:
    """All outlier rows of the shared run, read by us; the environment points to the server."""
    return normalized(open_run(run_uri).shifts())


def normalized(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in a common order, with common column names and types."""
    frame = frame.rename(columns={"datum_ix": "slot", "diff": "shift"})
    columns = ["step", "slot", "unit", "index", "shift", "position"]
    return (
        frame[columns]
        .astype({"unit": str, "step": "int64", "index": "int64"})
        .sort_values(["step", "slot", "unit", "index"], ignore_index=True)
    )


def same_rows(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(normalized(found), wanted, check_dtype=False)


def test_pandas_reads_a_run_through_s3fs(run_uri, outliers, s3_server, monkeypatch) -> None:
    """``pandas.read_parquet("s3://…")`` with storage options goes through s3fs, and gets all rows.

    s3fs is a dependency for this: pandas, DuckDB and other fsspec readers open runs with it.
    """
    opened: list[str] = []
    open_with_s3fs = s3fs.S3FileSystem._open

    def recording_open(server: s3fs.S3FileSystem, path: str, *args, **options):
        opened.append(path)
        return open_with_s3fs(server, path, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_open", recording_open)
    options = {
        "key": ACCESS_KEY,
        "secret": SECRET_KEY,
        "client_kwargs": {"endpoint_url": s3_server.endpoint},
    }
    same_rows(pd.read_parquet(f"{run_uri}/outliers", storage_options=options), outliers)
    shards = Store(run_uri).keys("outliers")
    assert {path.rpartition("/")[2] for path in opened} == {Path(key).name for key in shards}


def test_pyarrow_reads_a_run(run_uri, outliers, s3_server) -> None:
    server = pyarrow.fs.S3FileSystem(
        access_key=ACCESS_KEY,
        secret_key=SECRET_KEY,
        endpoint_override=s3_server.endpoint.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )
    rows = dataset.dataset(f"{run_uri.removeprefix('s3://')}/outliers", filesystem=server)
    same_rows(rows.to_table().to_pandas(), outliers)


def test_duckdb_reads_a_run_through_s3fs(run_uri, outliers) -> None:
    """Through s3fs, because DuckDB's own httpfs extension would have to be downloaded."""
    with duckdb.connect() as connection:
        connection.register_filesystem(s3fs.S3FileSystem(skip_instance_cache=True))
        rows = connection.sql(f"SELECT * FROM read_parquet('{run_uri}/outliers/*.parquet')").df()
    same_rows(rows, outliers)
