"""Which datums ``ontogeny.Callback`` records of the ``Trainer``'s dataset, and their tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainer_runs import (
    FULL,
    ROWS,
    counting_trainer,
    datums_of,
    largest_error,
    llama,
    own_loss,
    sorted_datums,
    trainer,
)

import ontogeny
from analysis.run.run import open_run
from capture.errors import ConfigError

pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves
EXACT = 1e-5


def test_a_table_of_the_datasets_library_gives_its_tokens(uri: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    table = datasets.Dataset.from_list(ROWS).select(range(12, -1, -1))
    trainer(tmp_path, llama(), [ontogeny.Callback(uri)], train_dataset=table, max_steps=5).train()
    run = open_run(uri)
    assert run.num_datums == 13
    wanted = [" ".join(map(str, row["input_ids"][:-1])) for row in reversed(ROWS)]
    assert set(run.shifts()["datum"]) == set(wanted)
    assert not any(segment.unchecked for segment in run.segments)


class Images(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that are not stored, and have no tokens."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, number: int) -> dict[str, Any]:
        x = np.random.default_rng(number).normal(size=6)
        return {"x": torch.tensor(x, dtype=torch.float32), "labels": number % 3}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("workers", [0, 2])
def test_datums_without_tokens_are_rows_of_the_dataset(
    workers: int, uri: str, tmp_path: Path
) -> None:
    model, data = Classifier(), Images()
    training = trainer(
        tmp_path,
        model,
        [ontogeny.Callback(uri, **FULL)],
        train_dataset=data,
        data_collator=None,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        dataloader_num_workers=workers,
        num_train_epochs=1,
    )
    training.train()
    sizes = [[3, 3], [3, 1]]

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        slot = datums_of(open_run(uri))[step].index(datum)
        row = data[datum]
        lost = model(row["x"][None], torch.tensor([row["labels"]]))["loss"]
        return lost / sizes[step][slot // 3] / 2

    assert largest_error(uri, model, share) < EXACT
    assert sorted_datums(open_run(uri)) == [*range(10)]


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(ROWS[:12])


def test_rows_of_a_stream_are_found_by_their_tokens(uri: str, tmp_path: Path) -> None:
    model, tokens = llama(), [row["input_ids"] for row in reversed(ROWS)]
    training = trainer(
        tmp_path,
        model,
        [ontogeny.Callback(uri, datums=tokens, **FULL)],
        kind=counting_trainer(),
        train_dataset=Stream(),
        max_steps=2,
    )
    training.train()
    assert largest_error(uri, model, own_loss(training.counts, ROWS[::-1])) < EXACT
    assert sorted_datums(open_run(uri)) == [*range(1, 13)]


def test_names_of_datums_are_as_many_as_rows(uri: str, tmp_path: Path) -> None:
    callback = ontogeny.Callback(uri, datums=["one", "two"])
    with pytest.raises(ConfigError, match="datums: are 2, the dataset has 13"):
        trainer(tmp_path, llama(), [callback]).train()
