"""Pages of the studies: their figures come from the stored results, whose claims hold."""

import pickle
from collections.abc import Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from benchmarks.studies import __main__ as studies
from benchmarks.studies import induction, side_by_side
from benchmarks.studies.__main__ import (
    NAMES,
    PAGES,
    RESULTS,
    WITH_DATA,
    default_names,
    stored_results,
    study_of,
)
from benchmarks.studies.pages import filled, prose
from benchmarks.studies.study import Study, half_width, mean_and_interval
from capture.config import read_config

STORED = [name for name in (*NAMES, *WITH_DATA) if (RESULTS / f"{name}.json").exists()]


@pytest.mark.parametrize("name", STORED)
def test_the_figures_of_a_page_are_those_of_the_stored_results(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert filled(page, study_of(name).blocks(stored_results(name))) == page


@pytest.mark.parametrize("name", STORED)
def test_what_a_page_claims_holds_in_the_stored_results(name: str) -> None:
    claims = study_of(name).claims(stored_results(name))
    assert claims
    assert all(claims.values()), claims


@pytest.mark.parametrize("name", STORED)
def test_a_page_shows_the_plot_of_its_study(name: str, tmp_path: Path) -> None:
    if not (draw := study_of(name).draw):
        return
    page = (PAGES / f"{name}.md").read_text()
    assert f"]({name}.png)" in prose(page)
    assert (PAGES / f"{name}.png").exists()
    draw(stored_results(name), tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_every_study_has_a_page() -> None:
    assert all((PAGES / f"{name}.md").exists() for name in (*NAMES, *WITH_DATA))


def test_all_studies_run_if_none_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("benchmarks.studies.__main__.MNIST", tmp_path)
    assert set(default_names(seeds=False)) == {*NAMES, *WITH_DATA}
    assert default_names(seeds=True) == NAMES
    monkeypatch.setattr("benchmarks.studies.__main__.MNIST", tmp_path / "none")
    assert set(default_names(seeds=False)) == {*NAMES, "turning-points"}
    assert "mnist-spectrum: left out" in capsys.readouterr().out


def test_blocks_of_a_page_are_replaced_and_the_rest_is_kept() -> None:
    page = "a\n<!-- one -->\nold\n<!-- /one -->\nb\n"
    once = filled(page, {"one": ["new"]})
    assert once == "a\n<!-- one -->\n\nnew\n\n<!-- /one -->\nb\n"
    assert filled(once, {"one": ["new"]}) == once
    with pytest.raises(ValueError, match=r"the page has blocks \['one'\]"):
        filled(page, {"two": []})


def test_an_interval_is_students() -> None:
    assert mean_and_interval([1.0, 2.0, 3.0]) == "2.00 ± 2.48"
    assert mean_and_interval([1.5]) == "1.50"


def test_the_order_of_two_curves_is_read_either_way_round() -> None:
    asked = (("previous_token", "L0H1"), ("induction", "L1H2"))
    columns = ("metric", "component", "other_metric", "other_component", "factor", "low", "high")
    one = ("previous_token", "L0H1", "induction", "L1H2", 2.0, 1.6, 4.0)
    other = ("induction", "L1H2", "previous_token", "L0H1", 0.5, 0.25, 0.625)
    wanted = {"factor": 2.0, "low": 1.6, "high": 4.0, "relation": "before"}
    for row, relation in ((one, "before"), (other, "after")):
        pairs = pd.DataFrame([(*row, relation)], columns=pd.Index([*columns, "relation"]))
        assert induction.order(pairs, *asked) == wanted
    assert induction.order(pd.DataFrame(columns=pd.Index([*columns, "relation"])), *asked) == {}


def test_other_pairs_that_change_before_the_induction_head_are_counted() -> None:
    halves = {"induction L1H2": 50.0, "k_composition L0H1 > L1H2": 10.0}
    halves |= {"k_composition L0H0 > L1H2": 20.0, "k_composition L0H0 > L1H0": 60.0}
    found = {name: {"half_step": half} for name, half in halves.items()}
    found |= {"k_composition L0H1 > L1H0": {"half_step": None}, "copying": {"half_step": 1.0}}
    own = {"heads": {"induction": "L1H2"}, "pair": "L0H1 > L1H2", "transitions": found}
    assert induction.others_before(own) == (1, 3)


def test_the_tokens_of_a_step_are_those_of_the_bundled_configuration() -> None:
    config = read_config("induction")
    assert config.training.batch * config.corpus.window == induction.TOKENS_PER_STEP


def test_one_seed_is_enough_to_try_a_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def measure(folder: Path, seeds: Sequence[int]) -> dict[str, list[int]]:
        asked.append((folder, list(seeds)))
        return {"seeds": list(seeds)}

    def said(results: dict[str, list[int]]) -> dict[str, list[str]]:
        return {"seeds": [str(results["seeds"])]}

    small = Study("induction", measure, lambda _: {"a claim": True}, said, None, (0, 1, 2))
    for module in (studies, side_by_side):
        monkeypatch.setattr(module, "study_of", lambda _: small)
    monkeypatch.setattr(studies, "RESULTS", tmp_path / "results")
    common = ["induction", "--runs", str(tmp_path), "--processes", "1"]
    common += ["--threads", str(torch.get_num_threads())]
    for words, seeds in (([], [0, 1, 2]), (["--seeds", "1"], [1])):
        assert studies.main([*common, *words]) == 0
        assert asked.pop() == (tmp_path, seeds)
    assert "holds: a claim" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


class Pool(Executor):
    """Runs what it is given at once, or with ``held`` only when so much has been given."""

    def __init__(self, size: int, held: int) -> None:
        self.size, self.held, self.given = size, held, []

    def submit(self, fn, /, *words, **named):
        self.given.append((words, done := Future()))
        if len(self.given) >= self.held:
            for others, other in self.given:
                if not other.done():
                    other.set_result(fn(*others))
        return done


def study_named(name: str, after: Sequence[str] = ()) -> Study:
    return Study(
        name,
        lambda folder, seeds: {"seeds": list(seeds)},
        lambda _: {f"claim of {name}": name != "maze"},
        lambda results: {"seeds": [str(results["seeds"])]},
        None,
        (0, 1),
        after=after,
    )


def test_studies_side_by_side_are_reported_once_each_and_claims_fail_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pools = []
    for module in (studies, side_by_side):
        monkeypatch.setattr(module, "study_of", study_named)
    monkeypatch.setattr(side_by_side, "pool_of", lambda n: pools.append(Pool(n, 3)) or pools[-1])
    words = ["--runs", str(tmp_path), "--processes", "2"]
    words += ["--threads", str(torch.get_num_threads())]
    assert studies.main(["induction", "maze", "pun", *words]) == 1
    assert [pool.size for pool in pools] == [2]
    out = capsys.readouterr().out
    for name, verdict in (("induction", "holds"), ("maze", "FAILS"), ("pun", "holds")):
        assert out.count(f"{verdict}: claim of {name}") == 1
    assert studies.main(["pun", *words]) == 0
    assert len(pools) == 1, "one study alone needs no other process"


def test_what_runs_in_another_process_is_no_part_of_the_command() -> None:
    """Fresh processes do not import the module that ``python -m PACKAGE`` runs."""
    assert not side_by_side.measured.__module__.endswith("__main__")
    assert pickle.loads(pickle.dumps(side_by_side.measured)) is side_by_side.measured


def test_a_study_waits_for_those_whose_trainings_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    after = {"induction": ("pun", "maze")}
    monkeypatch.setattr(
        side_by_side, "study_of", lambda name: study_named(name, after.get(name, ()))
    )
    pool = Pool(2, 1)
    monkeypatch.setattr(side_by_side, "pool_of", lambda _: pool)
    threads = torch.get_num_threads()
    found = side_by_side.each_measured(["induction", "maze", "pun"], tmp_path, (), threads, 2)
    names = [next(found)[0]]
    assert [words[0] for words, _ in pool.given] == ["maze", "pun"]
    names += [name for name, *_ in found]
    assert [words[0] for words, _ in pool.given] == ["maze", "pun", "induction"]
    assert names[2] == "induction"
    alone = side_by_side.each_measured(["induction", "seeds"], tmp_path, (), threads, 2)
    assert len(list(alone)) == 2, "what is not asked for is not waited for"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["induction", "--seeds", "0", "--write"], "--seeds goes with neither --write nor --again"),
        (["induction", "--seeds", "0", "--again"], "--seeds goes with neither --write nor --again"),
        (["induction", "--processes", "0"], "--processes and --threads: want 1 or more"),
        (["induction", "--seeds", "0", "0"], "want each seed once"),
        (["seeds", "--seeds", "0"], "pass --seeds with 2 seeds or more"),
    ],
)
def test_seeds_that_a_study_cannot_be_tried_with_are_named(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        studies.main(words)
    assert ended.value.code == 2
    assert wanted in capsys.readouterr().err


def test_a_study_of_one_configuration_has_no_seeds_to_choose() -> None:
    alone = Study("alone", lambda *_: {}, lambda _: {}, lambda _: {}, None, ())
    assert "alone has no seeds to choose" in studies.seeds_problem(alone, [0])


@pytest.mark.parametrize("name", STORED)
def test_the_first_command_of_a_page_leaves_the_page_alone(name: str) -> None:
    assert "--write" not in prose((PAGES / f"{name}.md").read_text())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_an_interval_of_an_accuracy_is_wilsons(share: float) -> None:
    n = 1685
    low, high = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    half = half_width(round(share * n) / n, n)
    np.testing.assert_allclose(half, (high - low) / 2, rtol=1e-3)
