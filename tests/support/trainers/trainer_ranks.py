"""One of the processes of a Hugging Face ``Trainer`` that trains in several: FOLDER MODE.

MODE is plain (no callback), recorded, or continued (from the first checkpoint).
"""

import json
import os
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from trainer_runs import FULL, counting_trainer, llama, trainer

import ontogeny

STEPS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_train_epochs": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}


def main(folder: Path, mode: str) -> None:
    torch.set_num_threads(1)
    callbacks = [] if mode == "plain" else [ontogeny.Callback(str(folder / "run"), **FULL)]
    training = trainer(folder, llama(), callbacks, kind=counting_trainer(), **STEPS)
    start = str(folder / "trainer" / "checkpoint-1") if mode == "continued" else None
    training.train(resume_from_checkpoint=start)
    if os.environ["RANK"] == "0":
        save_file(dict(training.model.state_dict()), folder / f"{mode}.safetensors")
        (folder / "counts.json").write_text(json.dumps([int(count) for count in training.counts]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), sys.argv[2])
