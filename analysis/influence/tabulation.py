"""Turn what a method found into the tables of ``ontogeny influence``.

Shapes: Q query, D training datum, T position, W window, U unit, S step.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.influence.config import PREVIEWS, InfluenceConfig
from analysis.influence.queries.query import Query
from analysis.influence.sums import InfluenceSums
from analysis.influence.tables import SCHEMAS, Influence
from analysis.jobs.tables import concat_frames
from analysis.run.run import Run
from capture.unrolled.horizon import Horizon, horizon


def swept_tables(
    run: Run,
    queries: Sequence[Query],
    config: InfluenceConfig,
    steps: range,
    sums: InfluenceSums,
    *,
    from_factors: bool = False,
) -> Influence:
    """Return the tables of a method that went through the steps.

    ``from_factors``: whether factors were read; influence is then not known by position.
    """
    times_D = np.zeros(run.num_datums, np.int64)
    for row in run.steps().iloc[steps.start : steps.stop]["datums"]:
        np.add.at(times_D, np.asarray(row), 1)
    frames: dict[str, list[pd.DataFrame]] = {name: [] for name in SCHEMAS}
    for q, query in enumerate(queries):
        own = {"query": query.name}
        found = seen_horizon(sums, q)
        numbers = query_row(query, config, steps) | {"number": q} | sweep_numbers(sums, q, found)
        numbers["from_factors"] = from_factors
        frames["queries"].append(pd.DataFrame([numbers]))
        frames["datums"].append(
            pd.DataFrame(
                {
                    **own,
                    "datum": np.arange(run.num_datums),
                    "influence": sums.total_QD[q],
                    "unreliable": sums.unreliable_QD[q],
                    "times": times_D,
                }
            )
        )
        if not from_factors:
            frames["positions"] += positions_of(run, sums, q, query.name, config.positions_of)
        frames["windows"].append(pd.DataFrame(list(window_rows(sums, q, query.name))))
        frames["steps"].append(pd.DataFrame(list(step_rows(sums, q, query.name))))
        if config.units:
            frames["units"].append(
                pd.DataFrame(
                    {
                        **own,
                        "unit": run.layout.names,
                        "influence": sums.unit_QDU[q].sum(0),
                        "absolute": np.abs(sums.unit_QDU[q]).sum(0),
                    }
                )
            )
    return made(frames)


def query_row(query: Query, config: InfluenceConfig, steps: range) -> dict[str, Any]:
    return {
        "query": query.name,
        "method": config.method,
        "preview": config.method in PREVIEWS,
        "better": query.better or "",
        "description": json.dumps(dict(query.description)),
        "first_step": steps.start,
        "end_step": steps.stop,
    }


def seen_horizon(sums: InfluenceSums, q: int) -> Horizon | None:
    """Return the growth of a query's adjoint; None for a method without one."""
    if sums.norm_at_end_Q is None:
        return None
    norm_S = sums.column("adjoint_norm")[:, q]
    return horizon(norm_S, float(sums.norm_at_end_Q[q]), min(sums.steps))


def sweep_numbers(sums: InfluenceSums, q: int, found: Horizon | None) -> dict[str, float]:
    """Return completeness of path influence, or the horizon of unrolled influence."""
    raised_S, lowered_S = sums.column("raised")[:, q], sums.column("lowered")[:, q]
    absolute, datums = float((raised_S - lowered_S).sum()), float((raised_S + lowered_S).sum())
    numbers = {"absolute": absolute, "datums": datums}
    if found is not None:
        return numbers | {
            "growth": found.growth,
            "largest_growth": found.largest,
            "exponent": found.exponent.per_step,
            "exponent_low": found.exponent.low,
            "exponent_high": found.exponent.high,
            "reliable_from": found.first_reliable,
            "computed_from": found.computed_from,
        }
    decay_S, rest_S = sums.column("decay")[:, q], sums.column("rest")[:, q]
    before, after = sums.column("before")[0, q], sums.column("after")[-1, q]
    inherited = sums.column("inherited")[0, q]
    parts = absolute + float(np.abs(decay_S).sum()) + abs(inherited)
    off = abs(datums + decay_S.sum() + inherited - (after - before))
    return numbers | {
        "before": before,
        "after": after,
        "decay": float(decay_S.sum()),
        "inherited": inherited,
        "incompleteness": off / parts if parts else 0.0,
        "quadrature": float(np.abs(rest_S).sum()) / parts if parts else 0.0,
        "reliable_from": min(sums.steps),
    }


def positions_of(
    run: Run, sums: InfluenceSums, q: int, name: str, most: int
) -> Iterator[pd.DataFrame]:
    """Yield the influence by position of the datums that raised and lowered a query most."""
    order_D = np.argsort(sums.total_QD[q], kind="stable")
    chosen = dict.fromkeys([*order_D[::-1][:most].tolist(), *order_D[:most].tolist()])
    for datum in chosen:
        influence_T = sums.reliable_QDT[q, datum]
        yield pd.DataFrame(
            {
                "query": name,
                "datum": datum,
                "position": np.arange(len(influence_T)),
                "token": [run.tokens[token] for token in run.target_NT[datum]],
                "influence": influence_T,
            }
        )


def window_rows(sums: InfluenceSums, q: int, name: str) -> Iterator[dict[str, Any]]:
    for number, steps in enumerate(sums.shape.windows):
        rows = [sums.steps[step] for step in steps if step in sums.steps]
        is_whole = len(rows) == len(steps)
        yield {
            "query": name,
            "window": number,
            "first_step": steps.start,
            "end_step": steps.stop,
            "raised": sum(float(row["raised"][q]) for row in rows) if is_whole else np.nan,
            "lowered": sum(float(row["lowered"][q]) for row in rows) if is_whole else np.nan,
            "decay": sum(float(row["decay"][q]) for row in rows if "decay" in row),
            "reliable": is_whole and all(bool(row["reliable"][q]) for row in rows),
        }


def step_rows(sums: InfluenceSums, q: int, name: str) -> Iterator[dict[str, Any]]:
    for step, row in sorted(sums.steps.items()):
        growth = np.nan
        if sums.norm_at_end_Q is not None:
            growth = row["adjoint_norm"][q] / max(sums.norm_at_end_Q[q], 1e-300)
        yield {
            "query": name,
            "step": step,
            "raised": float(row["raised"][q]),
            "lowered": float(row["lowered"][q]),
            "decay": float(row["decay"][q]) if "decay" in row else 0.0,
            "growth": growth,
            "reliable": bool(row["reliable"][q]),
        }


# --- from scores alone ----------------------------------------------------------------------------


def scored_tables(
    run: Run, queries: Sequence[Query], config: InfluenceConfig, score_QD: np.ndarray
) -> Influence:
    """Return the tables of a baseline, which has scores of datums and nothing else."""
    steps, frames = range(run.steps_done), {name: [] for name in SCHEMAS}
    for q, query in enumerate(queries):
        numbers = query_row(query, config, steps) | {
            "number": q,
            "absolute": float(np.abs(score_QD[q]).sum()),
            "datums": float(score_QD[q].sum()),
            "reliable_from": 0,
            "from_factors": False,
        }
        frames["queries"].append(pd.DataFrame([numbers]))
        frames["datums"].append(
            pd.DataFrame(
                {
                    "query": query.name,
                    "datum": np.arange(run.num_datums),
                    "influence": score_QD[q],
                    "unreliable": 0.0,
                    "times": None,
                }
            )
        )
    return made(frames)


def made(frames: dict[str, list[pd.DataFrame]]) -> Influence:
    """Concatenate the frames of each table, with all columns of its schema."""
    whole = {
        name: [frame.reindex(columns=SCHEMAS[name].names) for frame in own]
        for name, own in frames.items()
    }
    return Influence(**{name: concat_frames(own, SCHEMAS[name]) for name, own in whole.items()})
