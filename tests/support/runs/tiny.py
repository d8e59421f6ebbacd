"""A run that takes seconds to capture and has every kind of file."""

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from capture.config.reading import make_config
from capture.config.settings import Config
from capture.format.markers import FOLDER
from capture.store import DEFAULT, Store
from capture.store.config import StoreConfig
from capture.training.loop import Event, capture_run

TEXT = (
    "the cat sat on the mat . a dog ran in the park , and the cat saw it ! was the dog quick ? "
    "no , but the park was wide and the mat was warm ; so the cat slept . "
) * 12


def tiny_config(folder: Path, *overrides: str, name: str = "run") -> Config:
    """Return the configuration of a run at ``folder/name``: 28 steps in segments of 8."""
    text = folder / "text.txt"
    if not text.exists():  # several workers may ask for the same run
        text.write_text(TEXT)
    values = {
        "run": {"uri": str(folder / name)},
        "corpus": {"kind": "text", "path": str(text), "window": 8, "validation_share": 0.05},
        "model": {"layers": 2, "width": 12, "hidden": 10, "heads": 3},
        "training": {"epochs": 2, "batch": 4, "device": "cpu"},
        "capture": {"segment_steps": 8, "outliers": {"k": 30}},
    }
    return make_config(values, overrides)


def make_run(config: Config, *, resume: bool = False, overwrite: bool = False) -> list[Event]:
    """Capture a run; returns all events that it reported."""
    reports: list[Event] = []
    capture_run(config, reports.append, resume=resume, overwrite=overwrite)
    return reports


def contents(uri: str, config: StoreConfig = DEFAULT) -> dict[str, bytes]:
    """Return a run's files except markers and run.yaml, which contain times."""
    store = Store(uri, config)
    keys = [key for key in store.keys() if key != "run.yaml" and not key.startswith(FOLDER)]
    return {key: store.get(key) for key in keys}


def read_outliers(uri: str) -> pa.Table:
    """Return all outlier rows of a run, shard after shard."""
    keys = Store(uri).keys("outliers")
    return pa.concat_tables([parquet.read_table(f"{uri}/{key}") for key in keys])
