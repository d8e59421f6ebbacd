"""Small custom loops, recorded with factors, under four optimizers."""

from collections.abc import Sequence

import torch
from custom_loops import Small, Sometimes, loss_of, tokens, uri

from analysis.run.run import Run, open_run
from capture.config.records import FactorConfig
from capture.custom_loop.record import record


def recorded(
    folder,
    optimizer_of,
    *,
    model=None,
    factors: bool = True,
    factor_steps: Sequence[str] = (),
    **options,
) -> Run:
    model, data = model or Small(), tokens()
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 3))
    stored = FactorConfig(enabled=factors, steps=list(factor_steps))
    options = {"factors": stored, "segment_steps": 4} | options
    with record(model, optimizer, run=uri(folder), datums=data, **options) as recorder:
        for step in range(10):
            ids = [(4 * step + slot) % 12 for slot in range(4)]
            if isinstance(model, Sometimes):
                model.step = step
            recorder.datums(ids)
            optimizer.zero_grad()
            loss_of(model, data[ids]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
    return open_run(uri(folder))


def two_groups(model: Small) -> list[dict[str, object]]:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    return [{"params": weights, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.3),
    "momentum": lambda model: torch.optim.SGD(
        model.parameters(), 0.3, 0.9, weight_decay=0.1, nesterov=True
    ),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 0.02, weight_decay=0.1),
    "adamw": lambda model: torch.optim.AdamW(two_groups(model), 0.02),
}
