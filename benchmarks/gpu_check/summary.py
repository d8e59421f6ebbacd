"""A part's result in a few lines, for the terminal."""

from statistics import median
from typing import Any

FLOPS_OF_A_PARAMETER = 6
"""Forward and backward pass of a token: two products, each a multiplication and an addition."""


def summary(name: str, found: dict[str, Any]) -> str:
    """Return what a part has found, or what went wrong with the end of its output."""
    if found["problem"]:
        end = "\n".join(found["output"].strip().splitlines()[-5:])
        return f"  {name} FAILED: {found['problem']}\n{end}"
    result = found["result"]
    if isinstance(result, dict) and "samples" in result:
        return "\n".join(step_lines(result))
    if isinstance(result, dict):
        return "\n".join(f"  {key}: {value:.3g} a second" for key, value in result.items())
    end = found["output"].strip().rpartition("\n")[2]
    return f"  {end} ({found['seconds']} s)"


def step_lines(result: dict[str, Any]) -> list[str]:
    """Return a line for each method: time, ratio to plain, FLOP of the model a second, memory."""
    setting, lines = result["setting"], []
    walls = {name: median(s["wall_ms"] for s in own) for name, own in result["samples"].items()}
    flops = FLOPS_OF_A_PARAMETER * setting["parameters"] * setting["batch"] * setting["window"]
    for name, own in result["samples"].items():
        peak = max(sample["device_bytes"] or sample["peak_bytes"] or 0 for sample in own)
        lines.append(
            f"  {name}: {walls[name]:.1f} ms, {walls[name] / walls['plain']:.2f} × plain, "
            f"{flops / walls[name] * 1000:.3g} FLOP a second, {peak / 1e9:.2f} GB at most"
        )
    return lines
