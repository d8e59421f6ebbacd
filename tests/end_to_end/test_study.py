"""The study's setting on real text: one epoch, from corpus to ablation."""

import os
from pathlib import Path

import pandas as pd
import pytest

from analysis.run.run import open_run
from capture.config.reading import read_config
from capture.maintenance.verify import verify
from capture.store import Store
from capture.training.loop import capture_run
from cluster.cli import main

FOLDER = Path(
    os.environ.get("ONTOGENY_WIKITEXT2") or Path(__file__).parents[2] / "../shared/data/wikitext-2"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (FOLDER / "valid.txt").is_file(),
        reason=f"no WikiText-2 at {FOLDER}; set ONTOGENY_WIKITEXT2 to its folder",
    ),
]


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    """The URI of a run of one epoch over the validation and test splits, 3 % of it held out."""
    uri = str(tmp_path_factory.mktemp("study") / "run")
    overrides = [f"run.uri={uri}", "corpus.kind=text", f"corpus.path={FOLDER}"]
    config = read_config("wikitext2", [*overrides, "training.epochs=1"])
    capture_run(config, lambda event: None)
    return uri


def test_a_run_on_real_text_learns_passes_the_audit_and_is_small(uri):
    run = open_run(uri)
    assert run.steps_done == run.num_steps == 632
    assert (run.steps()["audit_error"] < 1e-5).all()
    assert run.evaluations()["loss"].iloc[-1] < 6.2
    files = [file for segment in run.segments for file in segment.files_of("outliers")]
    assert sum(file.rows or 0 for file in files) == 632 * 20 * 1000
    assert sum(file.num_bytes for file in files) / (632 * 20 * 1000) <= 9.0
    assert verify(Store(uri)) == []


def test_pandas_alone_reads_the_outliers(uri):
    filters = [("unit", "==", "layers.2.linear2.weight"), ("index", "<", 200)]
    found = pd.read_parquet(f"{uri}/outliers", filters=filters)
    assert set(found["unit"]) == {"layers.2.linear2.weight"}
    assert found["index"].between(0, 199).all()
    wanted = open_run(uri).shifts("layers.2.linear2.weight", range(200))
    assert len(found) == len(wanted) > 0
    assert found["shift"].abs().sum() == pytest.approx(wanted["abs_diff"].sum())


def test_attribution_and_ablation_print_and_store_their_tables(uri, capsys):
    assert main(["attribute", uri]) == 0
    assert main(["ablate", uri, "--neurons", "5", "--datums", "300"]) == 0
    out = capsys.readouterr().out
    assert "Token evidence per neuron" in out
    assert "By unit, mean over its ablated neurons" in out
    flips = pd.read_parquet(f"{uri}/analysis/ablate/flips.parquet")
    assert flips["proportion"].between(0, 1).all()
    assert (flips["flips"] <= flips["count"]).all()
