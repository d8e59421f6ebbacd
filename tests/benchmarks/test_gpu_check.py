"""The check of a GPU, tried without one: a part that fails costs no other part's result."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.body.workloads import WORKLOADS
from benchmarks.gpu_check import __main__ as check
from benchmarks.gpu_check.ceilings import ceilings
from benchmarks.gpu_check.parts import Part, run_part
from benchmarks.gpu_check.summary import summary


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_parts_fail_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    made = [
        Part("fails", python("raise SystemExit('out of memory')"), 60),
        Part("hangs", python("import time; time.sleep(600)"), 1),
        Part("is missing", ("/no/such/program",), 60),
        Part("says nothing", python("print('no JSON')"), 60, from_output=True),
        Part(
            "works", python("print('begins'); print('{\"copy_bytes\": 2e9}')"), 60, from_output=True
        ),
    ]
    monkeypatch.setattr(check, "parts", lambda *_: made)
    place = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--device", "cpu", "--json", str(place)])
    assert check.main() == 1
    found = json.loads(place.read_text())
    problems = {name: part["problem"] for name, part in found["parts"].items()}
    assert problems["fails"] == "ended with 1"
    assert problems["hangs"] == "took longer than 1 s"
    assert problems["is missing"].startswith("did not start: ")
    assert problems["says nothing"] == "gave no result"
    assert problems["works"] == ""
    assert found["parts"]["works"]["result"] == {"copy_bytes": 2e9}
    assert found["device"]
    told = capsys.readouterr().out
    assert "fails FAILED: ended with 1\nout of memory" in told
    assert "copy_bytes: 2e+09 a second" in told


def test_without_a_gpu_the_check_says_so(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert check.main() == 2
    assert "no CUDA device" in capsys.readouterr().out


def test_the_parts_take_at_most_eight_minutes(tmp_path: Path) -> None:
    assert sum(part.seconds for part in check.parts("cuda", "gpt2-small", tmp_path)) <= 480


def test_ceilings_are_numbers() -> None:
    assert all(value > 0 for value in ceilings("cpu").values())


@pytest.mark.slow
def test_gpt2_small_has_its_size() -> None:
    assert WORKLOADS["gpt2-small"].parameters() == 124_439_808


@pytest.mark.slow
def test_steps_are_timed_and_told(tmp_path: Path) -> None:
    parts = {part.name: part for part in check.parts("cpu", "tiny", tmp_path)}
    found = run_part(parts["steps in bfloat16"])
    assert found["problem"] == "", found["output"]
    lines = summary("steps", found).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["plain", *["record"] * 3]
    assert "1.00 × plain" in lines[0]
