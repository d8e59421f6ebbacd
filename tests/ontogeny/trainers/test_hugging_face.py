"""``ontogeny.Callback`` in the ``Trainer`` of transformers itself.

Laws: each captured gradient equals the backward pass of one datum in the trainer's own loss, and
recording leaves the weights bit-identical.
"""

from collections.abc import Callable
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
    largest_error,
    llama,
    own_loss,
    pad,
    same_weights,
    sorted_datums,
    trainer,
)

import ontogeny
from analysis.run.run import open_run
from capture.errors import RunError, SplitError, UnitError

pytest.importorskip("accelerate", reason="accelerate is not installed, which Trainer needs")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries about themselves
EXACT = 1e-5


def gpt2() -> Any:
    import transformers

    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    off: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=11, **shape, **off, **special)
    return transformers.GPT2LMHeadModel(config)


def adapted() -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    adapters = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    return peft.get_peft_model(llama(), adapters)


KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "micro-batches of ragged rows": (llama, {"num_train_epochs": 2}),
    "a model that counts the first label": (gpt2, {"gradient_accumulation_steps": 2}),
    "rows grouped by length": (llama, {"train_sampling_strategy": "group_by_length"}),
    "adapters (LoRA)": (adapted, {}),
    "gradient checkpointing": (llama, {"gradient_checkpointing": True}),
    "SGD without clipping": (llama, {"optim": "sgd", "max_grad_norm": 0.0}),
    "workers that load": (llama, {"dataloader_num_workers": 1}),
}
SLOW = {"rows grouped by length", "SGD without clipping", "workers that load"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in KINDS]
)
def test_gradients_are_those_of_the_trainers_own_loss(kind: str, uri: str, tmp_path: Path) -> None:
    make, settings = KINDS[kind]
    settings = {"num_train_epochs": 1} | settings
    plain, recorded = make(), make()
    trainer(tmp_path, plain, [], **settings).train()
    training = trainer(
        tmp_path, recorded, [ontogeny.Callback(uri, **FULL)], kind=counting_trainer(), **settings
    )
    training.train()
    assert same_weights(plain, recorded)
    assert largest_error(uri, recorded, own_loss(training.counts)) < EXACT
    run = open_run(uri)
    assert len(run.steps()) == training.state.global_step
    epochs = settings["num_train_epochs"]
    assert sorted_datums(run) == sorted([*range(13)] * epochs)
    assert set(run.steps()["epoch"]) == {*range(epochs)}


def summed(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A sum over all tokens: each datum's share does not depend on its batch."""
    logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum") / 50


def mean_of_means(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """A mean over datums of each one's mean: short datums weigh as much as long ones."""
    scored = labels[:, 1:] != -100
    lost = F.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
    )
    return (lost.sum(1) / scored.sum(1)).sum() / 6


def weighted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Tokens weigh by their number: a custom reduction."""
    targets = labels[:, 1:]
    lost = F.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return (lost * targets.clamp(min=0)).sum() / 100


def normalized(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """Scores each datum against its batch: datums interact."""
    score = outputs.logits.mean((1, 2))
    return (score - score.mean()).square().sum()


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(summed, marks=pytest.mark.slow),
        pytest.param(mean_of_means, marks=pytest.mark.slow),
        weighted,
    ],
)
def test_a_loss_of_the_users_is_split_as_it_is(loss: Any, uri: str, tmp_path: Path) -> None:
    model = llama()
    callbacks = [ontogeny.Callback(uri, **FULL)]
    trainer(tmp_path, model, callbacks, compute_loss_func=loss, max_steps=2).train()

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        batch = pad([ROWS[datum]])
        labels = batch.pop("labels")
        return loss(model(**batch), labels)

    assert largest_error(uri, model, share) < EXACT


def test_a_datum_without_a_label_has_no_shift(uri: str, tmp_path: Path) -> None:
    model, rows = llama(), [dict(row) for row in ROWS[:6]]
    rows[2]["labels"] = [-100] * len(rows[2]["labels"])
    callbacks = [ontogeny.Callback(uri, **FULL)]
    training = trainer(
        tmp_path, model, callbacks, kind=counting_trainer(), train_dataset=rows, num_train_epochs=1
    )
    training.train()
    run = open_run(uri)
    labels = sum(label != -100 for row in rows for label in row["labels"][1:])
    assert [int(count) for count in training.counts] == [labels]
    assert largest_error(uri, model, own_loss(training.counts, rows)) < EXACT
    for unit in run.layout.names:
        assert not np.asarray(run.gradient(0, 2, unit)).any()


def test_label_smoothing_is_split(uri: str, tmp_path: Path) -> None:
    model, callbacks = llama(), [ontogeny.Callback(uri, **FULL)]
    training = trainer(
        tmp_path,
        model,
        callbacks,
        kind=counting_trainer(),
        label_smoothing_factor=0.1,
        max_steps=2,
    )
    training.train()

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        batch = pad([ROWS[datum]])
        outputs, labels = model(**batch), batch["labels"]
        return training.label_smoother(
            outputs, labels, shift_labels=True, num_items_in_batch=training.counts[step]
        )

    assert largest_error(uri, model, share) < EXACT


def test_a_loss_in_which_datums_interact_is_refused(uri: str, tmp_path: Path) -> None:
    callback = ontogeny.Callback(uri, **FULL)
    training = trainer(tmp_path, llama(), [callback], compute_loss_func=normalized)
    with pytest.raises(SplitError, match="loss"):
        training.train()
    assert open_run(uri).steps_done == 0


def test_noise_in_the_embeddings_is_refused(uri: str, tmp_path: Path) -> None:
    """NEFTune draws other noise for a datum alone, so its split cannot be checked."""
    callback = ontogeny.Callback(uri)
    with pytest.raises(SplitError, match="from that of a pass of this datum alone"):
        trainer(tmp_path, llama(), [callback], neftune_noise_alpha=5.0).train()


def test_evaluations_of_several_datasets_are_stored(uri: str, tmp_path: Path) -> None:
    trainer(
        tmp_path,
        llama(),
        [ontogeny.Callback(uri)],
        eval_dataset={"one": ROWS[:4], "two": ROWS[4:]},
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
    ).train()
    found = open_run(uri).evaluations()
    assert list(zip(found["step"], found["split"], strict=True)) == [
        (step, f"eval_{name}") for step in (2, 4) for name in ("one", "two")
    ]


def test_bfloat16_autocast_is_recorded_and_changes_nothing(uri: str, tmp_path: Path) -> None:
    plain, recorded = llama(), llama()
    trainer(tmp_path, plain, [], bf16=True, max_steps=3).train()
    trainer(tmp_path, recorded, [ontogeny.Callback(uri, **FULL)], bf16=True, max_steps=3).train()
    assert same_weights(plain, recorded)
    assert open_run(uri).steps_done == 3


def test_weights_in_bfloat16_are_refused(uri: str, tmp_path: Path) -> None:
    model = llama().to(torch.bfloat16)
    with pytest.raises(UnitError, match="is bfloat16, must be float32"):
        trainer(tmp_path, model, [ontogeny.Callback(uri)]).train()


def test_several_gpus_of_one_process_are_refused(uri: str, tmp_path: Path) -> None:
    training = trainer(tmp_path, llama(), [ontogeny.Callback(uri)])
    training.args._n_gpu = 2
    with pytest.raises(RunError, match=r"splits each batch over 2 GPUs .* torchrun"):
        ontogeny.Callback(uri).on_train_begin(
            training.args,
            training.state,
            training.control,
            model=training.model,
            optimizer=torch.optim.SGD(training.model.parameters()),
            train_dataloader=training.get_train_dataloader(),
        )


def test_the_callback_is_one_of_transformers() -> None:
    import transformers

    callback = ontogeny.Callback("memory://unused")
    assert isinstance(callback, ontogeny.Callback)
    assert isinstance(callback, transformers.TrainerCallback)
    assert type(callback) is type(ontogeny.Callback("memory://other"))
    assert type(callback).__name__ == "Callback"
