"""Small models, ragged rows, and trainers of Hugging Face whose recordings tests compare."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.shifts.outliers import OutlierConfig

V = 11
FULL: dict[str, Any] = {
    "outliers": OutlierConfig(k=5),
    "factors": FactorConfig(enabled=True),
    "segment_steps": 1,
}
"""Records the gradient of every datum, and the weights before every step."""
Row = dict[str, list[int]]
ShareOf = Callable[[nn.Module, int, int], Tensor]
"""Model, step and datum → the datum's part of the loss of that step."""


def llama(seed: int = 0, **more: Any) -> Any:
    import transformers

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = transformers.LlamaConfig(vocab_size=V, **shape, **heads, **special, **more)
    return transformers.LlamaForCausalLM(config)


def ragged_rows(number: int = 13, seed: int = 0) -> list[Row]:
    """Return rows of 3 to 8 tokens, of which some are no targets (label -100)."""
    generator, rows = np.random.default_rng(seed), []
    for _ in range(number):
        tokens = generator.integers(1, V, generator.integers(3, 9)).tolist()
        labels = [token if generator.random() > 0.3 else -100 for token in tokens]
        labels[-1] = tokens[-1]
        rows.append({"input_ids": tokens, "labels": labels, "attention_mask": [1] * len(tokens)})
    return rows


ROWS = ragged_rows()


def pad(items: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Tensor]:
    """Pad rows at their end, as the collators of transformers do."""
    width = max(len(item["input_ids"]) for item in items)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        key: torch.tensor([[*item[key], *[value] * (width - len(item[key]))] for item in items])
        for key, value in fill.items()
    }


def trainer(
    folder: Path, model: nn.Module, callbacks: Sequence[Any], *, kind: Any = None, **more: Any
) -> Any:
    """Return a ``Trainer`` of 13 ragged rows, 6 in a step (2 in each of 3 micro-batches).

    ``more``: arguments of ``TrainingArguments``, or of the trainer, to be changed.
    """
    import transformers

    settings: dict[str, Any] = {
        "output_dir": str(folder / "trainer"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    data: dict[str, Any] = {"train_dataset": ROWS, "data_collator": pad}
    for name, value in more.items():
        (data if name in OF_TRAINER else settings)[name] = value
    kind = kind or transformers.Trainer
    arguments = transformers.TrainingArguments(**settings)
    return kind(model=model, args=arguments, callbacks=list(callbacks), **data)


OF_TRAINER = {"train_dataset", "eval_dataset", "data_collator", "compute_loss_func", "optimizers"}


def counting_trainer(kind: Any = None) -> Any:
    """Return a class of trainers that note the tokens by which they divide each step's loss."""
    import transformers

    base: Any = kind or transformers.Trainer

    class Counting(base):
        counts: list[Any]

        def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
            batches, count = super().get_batch_samples(*args, **kwargs)
            self.counts = [*getattr(self, "counts", []), count]
            return batches, count

    return Counting


def own_loss(counts: Sequence[Any], rows: Sequence[Row] = ROWS) -> ShareOf:
    """Return the loss of one datum, by the trainer's own model and number of tokens."""

    def share(model: nn.Module, step: int, datum: int) -> Tensor:
        return model(**pad([rows[datum]]), num_items_in_batch=counts[step]).loss

    return share


def largest_error(uri: str, model: nn.Module, share: ShareOf, *, unchecked: str = "") -> float:
    """Return the largest error of a recorded gradient, relative to the largest of its step.

    The reference is a backward pass of one datum at the weights before the step. ``unchecked``: why
    steps may not have been checked while they were recorded.
    """
    run, worst = open_run(uri), 0.0
    reasons = {reason for segment in run.segments for reason in segment.unchecked}
    assert all(unchecked and unchecked in reason for reason in reasons), reasons
    parameters = dict(model.named_parameters())
    units = {name: parameters[name] for name in run.layout.names}
    model.eval()
    for step, datums in enumerate(run.steps()["datums"]):
        model.load_state_dict(run.checkpoint(step), strict=False)
        errors, sizes = [0.0], [0.0]
        for datum in datums:
            grads = torch.autograd.grad(
                share(model, step, int(datum)), list(units.values()), materialize_grads=True
            )
            for name, grad in zip(units, grads, strict=True):
                found = torch.from_numpy(np.asarray(run.gradient(step, int(datum), name)))
                errors.append(float((found - grad).abs().max()))
                sizes.append(float(grad.abs().max()))
        worst = max(worst, max(errors) / max(sizes))
    return worst


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Return whether all weights are the same, bit for bit."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == again and torch.equal(x, y) for (name, x), (again, y) in pairs)


def datums_of(run: Run) -> list[list[int]]:
    """Return the datums of each step."""
    return [list(map(int, datums)) for datums in run.steps()["datums"]]


def sorted_datums(run: Run, steps: slice = slice(None)) -> list[int]:
    """Return the datums of some steps, sorted, each as often as it was trained on."""
    return sorted(datum for step in datums_of(run)[steps] for datum in step)
