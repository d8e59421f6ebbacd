"""``ontogeny.Callback`` in TRL's ``SFTTrainer`` itself: its fused head, packing, completions."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn
from trainer_runs import (
    FULL,
    ROWS,
    V,
    counting_trainer,
    largest_error,
    llama,
    pad,
    same_weights,
    sorted_datums,
)

import ontogeny
from analysis.run.run import open_run

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves
METRICS = "numbers that left torch (item)"
"""TRL computes its metrics between loss and backward pass; they could have entered the loss."""


def tokenizer() -> Any:
    import tokenizers
    import transformers

    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(V)}, unk_token="w0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="w0", eos_token="w0"
    )


def train(
    folder: Path, model: nn.Module, callbacks: list[Any], rows: Any = None, **more: Any
) -> Any:
    """Train with 4 rows in a step, 2 in each of 2 micro-batches."""
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    rows = rows or [{"input_ids": row["input_ids"]} for row in ROWS[:8]]
    training = counting_trainer(trl.SFTTrainer)(
        model=model,
        args=trl.SFTConfig(**(settings | more)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer(),
        callbacks=callbacks,
    )
    training.train()
    return training


def own_loss(training: Any) -> Any:
    """Return the loss of one datum: without a fused head, packing or padding."""

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        row = training.train_dataset[datum]
        labels = row.get("labels", row["input_ids"])
        batch = pad([{**row, "labels": labels, "attention_mask": [1] * len(labels)}])
        return model(**batch, num_items_in_batch=training.counts[step]).loss

    return share


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("selects", [False, True])
def test_the_fused_head_is_split(
    tied: bool, selects: bool, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, TRL scores only the rows that have a label; the same is done here on a CPU."""
    if selects:
        monkeypatch.setattr("trl.trainer.utils._use_triton", lambda device: True)
    plain, recorded = (llama(tie_word_embeddings=tied) for _ in range(2))
    train(tmp_path, plain, [])
    training = train(tmp_path, recorded, [ontogeny.Callback(uri, **FULL)])
    assert same_weights(plain, recorded)
    assert sorted_datums(open_run(uri)) == [*range(8)]
    plain.load_state_dict(recorded.state_dict())
    assert (
        largest_error(uri, llama(tie_word_embeddings=tied), own_loss(training), unchecked=METRICS)
        < 1e-5
    )
    assert open_run(uri).vocabulary().token[3] == "w3"


def test_completions_alone_are_targets(uri: str, tmp_path: Path) -> None:
    rows = [
        {"input_ids": row["input_ids"], "completion_mask": [0, 0, *[1] * (len(row["labels"]) - 2)]}
        for row in ROWS
    ]
    training = train(tmp_path, llama(), [ontogeny.Callback(uri, **FULL)], rows)
    assert largest_error(uri, llama(), own_loss(training), unchecked=METRICS) < 1e-5


@pytest.mark.parametrize("checkpoints", [pytest.param(False, marks=pytest.mark.slow), True])
def test_dropout_and_checkpointing_are_recorded(
    checkpoints: bool, uri: str, tmp_path: Path
) -> None:
    plain, recorded = (llama(attention_dropout=0.3) for _ in range(2))
    settings = {"max_steps": 2, "gradient_checkpointing": checkpoints}
    train(tmp_path, plain, [], **settings)
    train(tmp_path, recorded, [ontogeny.Callback(uri)], **settings)
    assert same_weights(plain, recorded)
    reasons = " ".join(open_run(uri).segments[0].unchecked)
    assert ("dropout within checkpointed blocks" in reasons) == checkpoints


def test_rows_that_are_packed_and_cut_are_datums(uri: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"packing": True, "packing_strategy": "wrapped", "max_length": 8}
    training = train(tmp_path, llama(), [ontogeny.Callback(uri, **FULL)], **more)
    assert sorted_datums(open_run(uri)) == [*range(len(training.train_dataset))]
    assert largest_error(uri, llama(), own_loss(training), unchecked=METRICS) < 1e-5


PACKED: dict[str, Any] = {"packing": True, "packing_strategy": "bfd", "max_length": 16}


@pytest.mark.parametrize("rows_per_batch", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_packed_documents_are_datums(rows_per_batch: int, uri: str, tmp_path: Path) -> None:
    settings = PACKED | {"per_device_train_batch_size": rows_per_batch}
    plain, recorded = llama(), llama()
    train(tmp_path, plain, [], **settings)
    training = train(tmp_path, recorded, [ontogeny.Callback(uri, **FULL)], **settings)
    assert same_weights(plain, recorded)
    documents = packed_documents(training.train_dataset)
    assert len(documents) == 8 > len(training.train_dataset)
    assert sorted_datums(open_run(uri)) == [*range(8)]

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        batch = training.data_collator([{"input_ids": documents[datum]}])
        return model(**batch, use_cache=False, num_items_in_batch=training.counts[step]).loss

    assert largest_error(uri, llama(), share, unchecked=METRICS) < 1e-5
    assert [list(own) for own in open_run(uri).datums().tokens] == [own[:-1] for own in documents]


def packed_documents(dataset: Any) -> list[list[int]]:
    """Return the tokens of each document in the rows, by the lengths that TRL stores."""
    found = []
    for row in dataset:
        at = 0
        for length in row["seq_lengths"]:
            found.append(list(row["input_ids"][at : at + length]))
            at += length
    return found
