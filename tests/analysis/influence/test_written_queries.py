"""Queries as users write them: alone, in a file, as a function of their own."""

import functools
import json
from pathlib import Path

import pytest
from tiny_run import tiny_run

from analysis.influence.queries.parsing import build_queries, read_file
from analysis.run.run import Run, open_run
from capture.errors import CaptureError


@functools.cache
def run() -> Run:
    return open_run(tiny_run())


def test_many_queries_come_from_one_file(tmp_path: Path):
    file = tmp_path / "facts.jsonl"
    lines = [{"prompt": "w1", "completion": "w2"}, {"kind": "token", "token": "w3"}]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    queries = build_queries(run(), [str(file), "loss", "loss"])
    names = [query.name for query in queries]
    assert names == ["w1 → w2", "log p of w3", "held-out loss", "held-out loss #2"]


def test_a_users_function_is_a_query(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(
        "def total(model, weights):\n    return weights['decoder.bias'].sum()\n"
        "def pair(model, weights):\n    return weights['decoder.bias'][:2]\n"
        "def fixed(model, weights):\n    return weights['decoder.bias'].sum().detach()\n"
    )
    monkeypatch.chdir(tmp_path)
    own = {name: own.double() for name, own in run().network().named_parameters()}
    total, pair, fixed = build_queries(
        run(), [f"function:mine:{n}" for n in ("total", "pair", "fixed")]
    )
    assert total.value(own) == float(own["decoder.bias"].sum())
    with pytest.raises(CaptureError, match="wanted a tensor with one entry"):
        pair.value(own)
    with pytest.raises(CaptureError, match="does not depend on the weights"):
        fixed.gradient(own)
    with pytest.raises(CaptureError, match="cannot be loaded"):
        build_queries(run(), ["function:mine:absent"])


def test_a_users_function_that_raises_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "faulty.py").write_text("def total(model, weights):\n    return 1 + 'a'\n")
    monkeypatch.chdir(tmp_path)
    (query,) = build_queries(run(), "function:faulty:total")
    own = dict(run().network().named_parameters())
    with pytest.raises(CaptureError, match=r"faulty:total: raised TypeError \(.*faulty.py, line 2"):
        query.value(own)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(CaptureError, match="broken:total: cannot be loaded"):
        build_queries(run(), "function:broken:total")


def test_files_cannot_name_a_function(tmp_path: Path):
    file = tmp_path / "queries.jsonl"
    file.write_text('{"kind": "function", "function": "os:getcwd"}')
    with pytest.raises(CaptureError, match="files do not run code"):
        read_file(str(file))


def test_a_single_query_needs_no_list() -> None:
    opened = run()
    for one in ("loss", {"prompt": "w1", "completion": "w2"}):
        found, (wanted,) = build_queries(opened, one), build_queries(opened, [one])
        assert [query.name for query in found] == [wanted.name]
