"""Runs of custom loops answer with the model that the user gives, and refuse others in a line."""

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_run
from tiny_families import VOCABULARY, ByHand, Encoder
from tiny_tasks import tiny_task
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.run.run import Run, open_run
from capture.errors import CaptureError, RunError, UnitError
from capture.parts import ModelParts, Parted
from cluster.cli import main
from ontogeny import AblationConfig, AttributionConfig, ablate, attribute, record

DATUMS = torch.randint(VOCABULARY, (12, 7), generator=torch.Generator().manual_seed(0))
WORDS = [f"w{number}" for number in range(VOCABULARY)]


class Renamed(nn.Module):
    """Attention and MLP under names that say nothing, and logits of the last position alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, 16)
        self.stages = nn.ModuleList(Stage() for _ in range(2))
        self.read = nn.Linear(16, VOCABULARY)

    def forward(self, token_NT: Tensor, every: bool = False) -> Tensor:
        x_NTD = self.table(token_NT)
        for stage in self.stages:
            x_NTD = stage(x_NTD)
        return self.read(x_NTD if every else x_NTD[:, [-1]])


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x_NTD: Tensor) -> Tensor:
        parts = self.a(x_NTD).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed_NHTE = F.scaled_dot_product_attention(*parts, is_causal=True)
        return x_NTD + self.b(mixed_NHTE.transpose(1, 2).flatten(2))


PARTS = ModelParts(
    layers="stages",
    heads=4,
    attention_out="b.weight",
    logits=lambda model, token: model(token, True),
)


@functools.cache
def recorded(kind: str) -> str:
    """Record two steps of a model; return the run's URI."""
    uri, how = f"memory://given-model/{kind}", {"every": True} if kind == "renamed" else {}
    torch.manual_seed(0)
    model = made(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    units = {"hand": ["blocks.*"], "encoder": ["encoder.*"], "renamed": ["stages.*"]}[kind]
    with record(model, optimizer, run=uri, datums=DATUMS, vocabulary=WORDS, units=units) as seen:
        for ids in (range(6), range(6, 12)):
            seen.datums(list(ids))
            logits = model(DATUMS[list(ids), :-1], **how)
            F.cross_entropy(logits.flatten(0, 1), DATUMS[list(ids), 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    attribute(open_run(uri), AttributionConfig(level="row"), save=True)
    return uri


def made(kind: str) -> nn.Module:
    return {"hand": ByHand, "encoder": lambda: Encoder(batch_first=True), "renamed": Renamed}[
        kind
    ]()


def heads_of(run: Run) -> np.ndarray:
    found = ablate(run, AblationConfig(level="head", everything=True)).neurons
    return found["change"].to_numpy()


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("hand", ByHand()),
        ("hand", ByHand),
        ("encoder", lambda: (made("encoder"), ModelParts(heads=4))),
        ("renamed", (Renamed(), PARTS)),
    ],
)
def test_a_given_model_answers_with_the_weights_of_checkpoints(kind: str, given: Any) -> None:
    run = open_run(recorded(kind), model=given)
    model = run.parted()
    assert isinstance(model, Parted)
    weights = run.checkpoint()
    own = dict(model.network.named_parameters())
    assert all(torch.equal(own[name], weights[name]) for name in own)
    change = heads_of(run)
    assert len(change) == 8
    assert (change != 0).all()


def test_opening_a_run_leaves_the_given_module_alone() -> None:
    module = ByHand()
    before = {name: own.clone() for name, own in module.state_dict().items()}
    open_run(recorded("hand"), model=module).parted()
    assert all(torch.equal(before[name], own) for name, own in module.state_dict().items())
    assert module.training


def wanted(_: int) -> nn.Module:
    return ByHand()


def none() -> None:
    return None


def boom() -> nn.Module:
    raise ValueError("a\nb")


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        ("hand", None, "was recorded in a custom training loop, and only its code can build the"),
        (
            "hand",
            3,
            "model: got int, must be a module, its ModelParts, or both. Or give a function",
        ),
        ("hand", none, "test_given_model:none returned None, must be a module, its ModelParts"),
        (
            "hand",
            boom,
            f"test_given_model:boom raised ValueError (a b) at {__file__}, line ",
        ),
        (
            "hand",
            Renamed(),
            "model: got a Renamed that is not the model of the run: it has read.bias, the run has ",
        ),
        ("hand", lambda: ByHand().double(), " of float64, the run as "),
        (
            "renamed",
            Renamed,
            "Renamed: gives logits at 1 of 6 positions. Looked for a",
        ),
        (
            "renamed",
            (Renamed(), ModelParts(logits=lambda model, token: model(token, True), layers="stage")),
            "ModelParts.layers: got 'stage', which is no module that holds layers. Modules with ch",
        ),
        (
            "renamed",
            (Renamed(), ModelParts(logits=lambda model, token: model(token, nothing=3))),
            "Renamed: fails on token ids of shape [3, 6]: Renamed.forward() got an unexpected key",
        ),
        (
            "hand",
            (ByHand(), ModelParts(unembedding="blocks.0.up.weight")),
            "ByHand: blocks.0.up.weight does not give its logits",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(kind: str, given: Any, text: str) -> None:
    with pytest.raises(CaptureError) as found:
        open_run(recorded(kind), model=given).parted()
    assert text in str(found.value)
    assert "\n" not in str(found.value)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


def test_without_heads_the_error_says_how_to_name_them() -> None:
    parts = ModelParts(logits=lambda model, token: model(token, True))
    with pytest.raises(UnitError, match=r"no heads.*attention_out=…, heads=…"):
        heads_of(open_run(recorded("renamed"), model=(Renamed(), parts)))


def test_datums_of_different_length_are_refused_in_one_line() -> None:
    uri, model = "memory://given-model/ragged", ByHand()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    datums = [[1, 2, 3, 4], [5, 6, 7]]
    with record(model, optimizer, run=uri, datums=datums, units=["blocks.*"]) as seen:
        seen.datums([0, 1])
        logits = model(torch.tensor([[1, 2, 3], [5, 6, 0]]))
        target = torch.tensor([[2, 3, 4], [6, 7, -100]])
        F.cross_entropy(logits.flatten(0, 1), target.flatten()).backward()
        optimizer.step()
    with pytest.raises(RunError, match="has datums of different length, which the model is not"):
        open_run(uri, model=ByHand).parted()


# --- the command line -----------------------------------------------------------------------------

CODE = """
from test_given_model import PARTS, Renamed

def make():
    return Renamed(), PARTS

def wants(size):
    return Renamed()
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the user's in the working directory."""
    (tmp_path / "mine_given.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.usefixtures("code")
def test_a_command_takes_a_function_of_a_file_here(capsys: pytest.CaptureFixture[str]) -> None:
    heads = ["ablate", recorded("renamed"), "--level", "head", "--all", "--model"]
    assert main([*heads, "mine_given:make"]) == 0, capsys.readouterr().err
    assert "stages.1" in capsys.readouterr().out


@pytest.mark.usefixtures("code")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("mine_given", "--model: got 'mine_given', must be MODULE:FUNCTION. For example mine:make"),
        (
            "nowhere_here:make",
            "--model: cannot import nowhere_here: No module named 'nowhere_here'",
        ),
        ("mine_given:build", "--model: mine_given has no function build."),
        ("mine_given:wants", "--model: mine_given:wants wants arguments. Name a function without"),
    ],
)
def test_a_function_that_cannot_be_used_is_one_line(
    text: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ablate", recorded("renamed"), "--model", text]) == 2
    assert line in capsys.readouterr().err


def test_a_perceptron_has_no_parts(tmp_path: Path) -> None:
    config = tiny_task(tmp_path, "digits")
    make_run(config)
    with pytest.raises(
        RunError, match="has a perceptron, which has no layers of neurons and heads"
    ):
        open_run(config.run.uri).parted()
