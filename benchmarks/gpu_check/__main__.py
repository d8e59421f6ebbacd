"""Try this project on a GPU: ``make gpu-check``, or ``python -m benchmarks.gpu_check``.

Takes at most eight minutes on one card. Each part runs in a process of its own with a limit of its
own, so a part that fails or hangs costs no other part's result. The JSON is written anew after each
part, with the device's name. ``--device cpu --model tiny`` tries the script itself without a GPU.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.body.__main__ import device_name
from benchmarks.body.workloads import WORKLOADS
from benchmarks.gpu_check.parts import Part, run_part
from benchmarks.gpu_check.summary import summary
from benchmarks.harness.report import machine


def main() -> int:
    """Run all parts; return 1 if one of them has failed."""
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: this machine has no CUDA device. Try the script with --device cpu")
        return 2
    results: dict[str, dict[str, object]] = {}
    found = {"device": device_name(arguments.device), "machine": machine(), "parts": results}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts(arguments.device, arguments.model, Path(folder)):
            print(f"{part.name} (at most {part.seconds} s) …", flush=True)
            results[part.name] = run_part(part)
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
            print(summary(part.name, results[part.name]), flush=True)
    return int(any(result["problem"] for result in results.values()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", choices=WORKLOADS, default="gpt2-small")
    parser.add_argument("--json", type=Path, metavar="PATH", default=Path("gpu-check.json"))
    return parser.parse_args()


def parts(device: str, model: str, folder: Path) -> list[Part]:
    """Return the parts, the most telling first; their limits add up to eight minutes."""
    python = (sys.executable, "-m")
    demo = f"run.uri={folder / 'demo'}"
    step = ("benchmarks.body", "--model", model, "--device", device)
    methods = ("--only", "plain", "record:", "--steps", "5", "--rounds", "2")
    return [
        Part("ceilings", (*python, "benchmarks.gpu_check.ceilings", device), 40, from_output=True),
        *(
            Part(
                f"steps in {precision}",
                (*python, *step, "--precision", precision, *methods),
                100,
                json_option="--json",
            )
            for precision in ("bfloat16", "float32")
        ),
        Part("tests", (*python, "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"), 110),
        Part(
            "the study's run",
            (*python, "cluster", "demo", f"training.device={device}", demo, "--quiet"),
            130,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
