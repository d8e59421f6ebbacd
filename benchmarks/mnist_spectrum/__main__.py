"""The spectrum of training on MNIST, beside the study: ``python -m benchmarks.mnist_spectrum``.

The study flattened the gradient of every step of a small MNIST network, stacked the steps, and
counted singular values above 10 % of the largest: 92.5 ± 11.6 of about 2,000 (ten samples of 400
steps of one training). Here a network 784–64–10 is trained on the 10,000 test digits (batch 10,
2 epochs, 2,000 steps) with several optimizers and seeds, and the spectrum is exact. Beside it stand
the nulls, and trainings that become something else bit by bit.

Results go line by line to ``--json``; what is there already is not trained again.
``benchmarks.mnist_spectrum.tables`` prints the tables of docs/studies/mnist-spectrum.md from such a
file. One training takes 10 to 40 seconds on one core. The digits are read from the folder in
``ONTOGENY_MNIST`` (default ``../shared/data/mnist``).
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.mnist_spectrum.conditions import Condition, conditions
from benchmarks.mnist_spectrum.measured import measure

FOLDER = Path(os.environ.get("ONTOGENY_MNIST", "../shared/data/mnist"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="file of results, a line each")
    arguments = parser.parse_args()
    known = arguments.json.read_text().splitlines() if arguments.json.exists() else []
    done = {Condition(**json.loads(line)["condition"]) for line in known}
    for condition in conditions():
        if condition in done:
            continue
        line = measure(condition, FOLDER)
        with arguments.json.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found = line["gradients"]["as recorded"]
        print(
            f"{condition}: {found['over_cutoff']:.0f} over 10 %, accuracy {line['accuracy']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
