"""A loop of packed rows for one process or several: each rank has rows of its own."""

import warnings
from pathlib import Path

import torch
from packed_models import DOCUMENTS, LENGTHS, Packed, packed, summed_loss
from recorded_ranks import Numbered
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from capture.config.records import FactorConfig
from capture.custom_loop.record import record
from capture.process_group import Group, SingleProcess
from capture.shifts.outliers import OutlierConfig

ROWS = [
    [[[0, 2], [1]], [[3, 5, 4]]],
    [[[4, 1]], [[5, 0]]],
    [[[2], [3]], [[1, 5, 2], [0, 4]]],
]
"""Documents in each row, by step and rank; ranks differ in rows and in documents."""


def train_packed(folder: Path, name: str, group: Group, *, sharded: bool = False) -> None:
    """Record the loop; each rank calls this. One process takes the rows of all ranks in turn."""
    alone = isinstance(group, SingleProcess)
    ranks: list[Group] = [Numbered(rank, 2) for rank in range(2)] if alone else [group]
    model: nn.Module = Packed()
    if not alone and sharded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fully_shard(model)
    elif not alone:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    run, outliers = str(folder / name), OutlierConfig(k=20)
    factors = FactorConfig(enabled=True)
    with record(
        model,
        optimizer,
        run=run,
        datums=DOCUMENTS,
        outliers=outliers,
        factors=factors,
        segment_steps=2,
    ) as recorder:
        for rows_of in ROWS:
            for rank in ranks:
                rows = rows_of[rank.rank]
                ids = [i for row in rows for i in row]
                tokens, places, labels = packed(rows)
                recorder.datums(ids)
                count = sum(LENGTHS[i] for i in ids)
                (summed_loss(model(tokens, places), labels, count) / len(ranks)).backward()
            optimizer.step()
            optimizer.zero_grad()
