"""Which datums a batch holds, by the loader's sampler; and what a dataset tells of its datums."""

import logging
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler

import ontogeny
from capture.errors import ConfigError, RunError
from ontogeny.trainers.dataset_tokens import describe_datums, token_names
from ontogeny.trainers.drawn_batches import DrawnBatches, stop_watching, watch


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(5))


@given(number=st.integers(1, 20), batch=st.integers(1, 6), epochs=st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_the_datums_of_each_batch_are_those_in_it(number: int, batch: int, epochs: int) -> None:
    """Law: for a dataset of its own numbers, each batch is what was drawn; nothing changes."""
    plain = DataLoader(range(number), batch, shuffle=True, generator=generator())  # pyright: ignore
    loader = DataLoader(range(number), batch, shuffle=True, generator=generator())  # pyright: ignore
    own = loader.batch_sampler
    drawn = watch(loader)
    assert drawn is not None
    for _ in range(epochs):
        for expected, found in zip(plain, loader, strict=True):
            assert expected.tolist() == found.tolist() == drawn.take()
        drawn.require_all_taken()
    stop_watching(loader)
    assert loader.batch_sampler is own


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_batches_that_a_trainer_skips_are_not_noted() -> None:
    drawn = DrawnBatches(BatchSampler(range(10), 3, False))
    drawn.num_skipped = 2
    assert list(drawn) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [drawn.take(), drawn.take()] == [[6, 7, 8], [9]]
    assert len(list(drawn)) == len(drawn.waiting) == 4, "in the next epoch, all are"


def test_batches_left_out_or_taken_twice_are_errors() -> None:
    drawn = DrawnBatches(BatchSampler(range(4), 2, False))
    list(drawn)
    drawn.take()
    with pytest.raises(RunError, match="left out 1 batches of an epoch unannounced"):
        drawn.require_all_taken()
    drawn.take()
    with pytest.raises(RunError, match=r"did not draw .* Pass datums=tokens"):
        drawn.take()


def test_a_batch_sampler_can_be_reached_through() -> None:
    sampler = RandomSampler(range(4))
    drawn = DrawnBatches(BatchSampler(sampler, 2, True))
    assert (drawn.sampler, drawn.batch_size, drawn.drop_last, len(drawn)) == (sampler, 2, True, 2)
    assert not hasattr(drawn, "set_epoch")


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=2),
        DataLoader(range(4), batch_size=None),  # pyright: ignore
        DataLoader(range(4), batch_size=2, num_workers=1, in_order=False),  # pyright: ignore
        [torch.zeros(2)],
    ],
    ids=["stream", "no batches", "any order", "no loader"],
)
def test_a_loader_without_indices_in_order_is_not_watched(loader: Any) -> None:
    assert watch(loader) is None
    stop_watching(loader)


# --- datasets -------------------------------------------------------------------------------------


def test_stored_rows_give_their_tokens() -> None:
    rows = [{"input_ids": [1, 2, 3]}, {"input_ids": np.array([4, 5])}]
    found = describe_datums(rows)
    assert isinstance(found, list)
    assert [row.tolist() for row in found] == [[1, 2, 3], [4, 5]]


class Unstored(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise AssertionError("asking for a row may draw random numbers")


@pytest.mark.parametrize(
    ("dataset", "found"),
    [(Stream(), None), (Unstored(), 3), ([{"x": 1}], 1), ([1, 2], 2), ([], 0)],
)
def test_other_datasets_give_their_number(dataset: Any, found: int | None) -> None:
    assert describe_datums(dataset) == found


@pytest.mark.parametrize("row", [[1], [[1, 2], [3, 4]], [0.5, 1.5]])
def test_rows_that_are_no_tokens_are_numbers_and_said_so(
    row: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert describe_datums([{"input_ids": [1, 2]}, {"input_ids": row}]) == 2
    assert "Pass datums=tokens for analyses of tokens" in caplog.text


def test_a_table_with_a_transformation_is_not_read() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    table = datasets.Dataset.from_list([{"input_ids": [1, 2]}, {"input_ids": [3, 4, 5]}])
    found = describe_datums(table.with_format("torch"))
    assert isinstance(found, list)
    assert [row.tolist() for row in found] == [[1, 2], [3, 4, 5]]
    assert describe_datums(table.with_transform(lambda rows: rows)) == 2
    assert describe_datums(table.rename_column("input_ids", "other")) == 2


class Names:
    def __len__(self) -> int:
        return 3

    def convert_ids_to_tokens(self, ids: Any) -> list[str | None]:
        return [["a", "b", None][i] for i in ids]


class Gap(Names):
    """Its vocabulary leaves number 1 out."""

    def __len__(self) -> int:
        return 2

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0, "c": 2}

    def convert_ids_to_tokens(self, ids: Any) -> list[str | None]:
        return [["a", None, "c"][i] for i in ids]


def test_tokens_have_the_names_of_the_tokenizer() -> None:
    assert token_names(Gap(), [np.array([0, 2])]) == ["a", "<1>", "c"]
    assert token_names(Names(), [np.array([0, 2])]) == ["a", "b", "<2>"]
    assert token_names(Names(), [np.array([0, 3])]) is None
    assert token_names(Names(), 5) is None
    assert token_names(None, [np.array([0])]) is None


# --- libraries that are not installed -------------------------------------------------------------


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"ontogeny.Callback: needs transformers, which is not"):
        ontogeny.Callback("memory://unused")
    monkeypatch.setattr("ontogeny.trainers.lightning.PACKAGES", ("no_such_package.pytorch",))
    with pytest.raises(ConfigError, match=r"needs Lightning, .* Run: pip install lightning"):
        ontogeny.LightningCallback("memory://unused")


@pytest.mark.parametrize("factors", ["all", True, {"enabled": True}])
def test_settings_of_another_kind_are_refused_when_the_callback_is_made(factors: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    wanted = "must be a FactorConfig. Pass factors=ontogeny.FactorConfig(enabled=True)"
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        ontogeny.Callback("memory://unused", factors=factors)
