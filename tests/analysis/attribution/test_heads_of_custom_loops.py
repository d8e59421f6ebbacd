"""A custom loop's run does not know how many heads its model has, and does not guess."""

from pathlib import Path

import pytest
import torch
from custom_loops import tokens, uri
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.behaviour.tables import captured_levels
from analysis.levels import groups_at
from analysis.run.run import Run, open_run
from capture.custom_loop.record import record
from capture.errors import RunError

HEADS, WIDTH = 2, 8


class Encoder(nn.Module):
    """One layer of ``nn.TransformerEncoder``, whose weights have the names of the study's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.out = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, token_NT: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(token_NT.shape[1])
        return self.out(self.encoder(self.embedding(token_NT), mask=mask, is_causal=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, model, token_NT = tmp_path_factory.mktemp("heads"), Encoder(), tokens()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(model, optimizer, run=uri(folder), datums=token_NT) as recorder:
        for ids in ([0, 1, 2, 3], [4, 5, 6, 7]):
            recorder.datums(ids)
            logits = model(token_NT[ids, :-1])
            F.cross_entropy(logits.flatten(0, 1), token_NT[ids, 1:].flatten()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return folder


def levels_of(run: Run) -> dict[str, list[str]]:
    found = captured_levels(run.layout, run.num_heads, run.head_blocks)
    return {groups.level: groups.units for groups in found}


def test_heads_need_the_model(folder: Path) -> None:
    run = open_run(uri(folder))
    with pytest.raises(RunError, match=r"level head: .* by --model MODULE:FUNCTION .*ModelParts"):
        groups_at("head", run.layout, heads=run.num_heads, blocks=run.head_blocks)
    assert "head" not in levels_of(run)


def test_with_the_model_there_are_as_many_as_it_has(folder: Path) -> None:
    assert len(levels_of(open_run(uri(folder), model=Encoder()))["head"]) == HEADS
