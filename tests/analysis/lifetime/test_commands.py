"""Commands and the Python API by lifetime shifts: what they record, say and refuse."""

import functools
import json

import pytest
from tiny_run import copied, make_run

import ontogeny
from analysis.attribution.config import AttributionConfig
from analysis.jobs.tables import read_question, table_set
from analysis.lifetime.run import lifetime_run
from analysis.run.run import open_run
from capture.errors import ConfigError
from capture.store import Store
from cluster.cli import main

ADAMW = (
    *("training.learning_rate=0.01", "training.optimizer.kind=adamw"),
    *("training.optimizer.weight_decay=0.3", "training.epochs=1", "capture.segment_steps=5"),
)


@functools.cache
def made_under_adamw() -> str:
    """Return the URI of a run that has its record of lifetime shifts."""
    uri = make_run("memory://lifetime-analyses-adamw", *ADAMW)
    lifetime_run(open_run(uri))
    return uri


@pytest.fixture
def adamw(tmp_path) -> str:
    copied(made_under_adamw(), f"file://{tmp_path}/run")
    return f"{tmp_path}/run"


def test_tables_say_which_kind_of_shift_they_count(adamw, capsys):
    assert main(["attribute", adamw, "--max-q", "1"]) == 0
    assert "lifetime" not in capsys.readouterr().out
    before = Store(adamw).get("analysis/attribute/tokens.parquet")
    assert main(["attribute", adamw, "--max-q", "1", "--lifetime"]) == 2
    said = capsys.readouterr().err
    assert "holds the tables of another question (lifetime=false, now" in said
    assert "--name lifetime. Or" in said
    assert Store(adamw).get("analysis/attribute/tokens.parquet") == before
    Store(adamw).delete("analysis/lifetime/tables.json")
    options = ["--max-q", "1", "--lifetime", "--name", "whole-life"]
    assert main(["attribute", adamw, *options]) == 0
    assert "Lifetime shifts are counted" in capsys.readouterr().out
    run = open_run(adamw)
    asked = [read_question(run, table_set("attribute", n)).options for n in ("", "whole-life")]
    assert [options["lifetime"] for options in asked] == [False, True]
    assert read_question(run, "lifetime").options["k"] == 50
    assert main(["verify", adamw, "--quiet"]) == 0


def test_tables_of_an_earlier_version_are_of_one_step(adamw, capsys):
    assert main(["attribute", adamw, "--quiet"]) == 0
    run = open_run(adamw)
    question = read_question(run, "attribute")
    del question.options["lifetime"]
    from analysis.jobs.claims import difference, extends
    from analysis.jobs.question import Question

    config = AttributionConfig.recommended(tallies=True)
    now, lifetime = (
        Question.of("attribute", c)
        for c in (config, AttributionConfig.recommended(tallies=True, lifetime=True))
    )
    assert extends(now, question)
    assert not extends(lifetime, question)
    assert difference(lifetime, question).startswith("lifetime=null, now")


@pytest.mark.parametrize(
    "command",
    [
        ["behaviour", "--contains", "w3"],
        ["neurons", "--min-rows", "1", "--min-cluster", "3", "--bootstraps", "2"],
        ["attribute", "--level", "parameter", "--parameters", "20", "--min-count", "1"],
        ["attribute", "--study", "--min-count", "1", "--confirm", "--confirm-datums", "4"],
    ],
)
def test_commands_count_lifetime_shifts(adamw, command, capsys):
    name, *options = command
    assert main([name, adamw, *options, "--lifetime", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert read_question(open_run(adamw), name).options["lifetime"] is True


def test_the_python_api_offers_them(adamw):
    run = ontogeny.open_run(adamw)
    found = run.attribute(lifetime=True)
    config = AttributionConfig.recommended(tallies=True, lifetime=True)
    assert found.tokens.equals(ontogeny.attribute(run, config).tokens)
    assert not found.groups["weight"].equals(run.attribute().groups["weight"])


def test_the_ablation_estimate_has_no_lifetime(adamw, capsys):
    options = ["--evidence", "ablation-estimate", "--lifetime"]
    assert main(["attribute", adamw, *options]) == 2
    assert "got ablation-estimate, which has no shifts" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="which has no shifts, for lifetime shifts"):
        AttributionConfig(evidence="input-ablation-estimate", lifetime=True)


def test_commands_without_it_refuse_the_option(adamw, capsys):
    for command in ("bigrams", "ablate", "faithfulness"):
        assert main([command, adamw, "--lifetime"]) == 2
        assert "--lifetime" in capsys.readouterr().err


def test_the_report_says_which_kind_of_shift_it_shows(adamw):
    few = ["--neurons", "2"]
    for options, words in (([], "Shifts of one step are counted"), (["--lifetime"], "Lifetime sh")):
        evidence = ["--evidence", "target", "--select", "study", "--min-count", "1"]
        assert main(["attribute", adamw, *evidence, *options, "--replace", "--quiet"]) == 0
        assert main(["report", adamw, *few, "--quiet"]) == 0
        keys = Store(adamw).keys("report")
        pages = sorted(key for key in keys if key.startswith("report/neuron") and "html" in key)
        assert len(pages) == 3
        texts = [Store(adamw).get(key).decode() for key in pages]
        with_tokens = [text for text in texts if "what the neuron would be" in text]
        assert with_tokens
        assert all(words in text for text in [texts[-1], *with_tokens])
    assert sum("largest lifetime shift" in text for text in texts) == 2
    assert "lifetime" in Store(adamw).get("report/index.html").decode()
