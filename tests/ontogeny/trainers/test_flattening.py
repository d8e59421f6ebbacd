"""``ontogeny.Callback`` where the collator of transformers flattens each batch into one row."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from trainer_runs import (
    FULL,
    ROWS,
    counting_trainer,
    largest_error,
    llama,
    pad,
    same_weights,
    sorted_datums,
    trainer,
)

import ontogeny
from analysis.run.run import open_run
from capture.errors import SplitError

pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves
FLAT = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in ROWS]


def flattening(
    folder: Path, model: nn.Module, callbacks: list[Any], *, cached: bool = False, **collator: Any
) -> Any:
    import transformers

    collate = transformers.DataCollatorWithFlattening(**collator)
    kind = counting_trainer()
    return trainer(
        folder,
        model,
        callbacks,
        kind=kind,
        train_dataset=FLAT,
        data_collator=collate,
        num_train_epochs=1,
        use_cache=cached,
    )


@pytest.mark.parametrize("boundaries", [pytest.param(False, marks=pytest.mark.slow), True])
def test_each_row_of_the_dataset_is_a_datum(uri: str, tmp_path: Path, boundaries: bool) -> None:
    plain, recorded = (llama() for _ in range(2))
    collator = {"return_flash_attn_kwargs": boundaries}
    flattening(tmp_path, plain, [], **collator).train()
    training = flattening(tmp_path, recorded, [ontogeny.Callback(uri, **FULL)], **collator)
    training.train()
    assert same_weights(plain, recorded)
    assert sorted_datums(open_run(uri)) == [*range(13)]

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        return model(**pad([ROWS[datum]]), num_items_in_batch=training.counts[step]).loss

    assert largest_error(uri, llama(), share) < 1e-5


def test_rows_that_attend_to_each_other_are_refused(uri: str, tmp_path: Path) -> None:
    """With a cache, models of transformers do not block attention by ``position_ids``."""
    callback = ontogeny.Callback(uri)
    with pytest.raises(SplitError, match=r"attend to each other.*config\.use_cache is False"):
        flattening(tmp_path, llama(), [callback], cached=True).train()
