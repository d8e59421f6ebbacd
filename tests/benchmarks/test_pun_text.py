"""The text of the study of puns: what is said of its rules holds."""

import json
from collections import Counter
from pathlib import Path

from benchmarks.studies.puns.text import (
    IDIOMS,
    TRADES,
    every_pair,
    exchanged,
    held_out_pairs,
    made_text,
    punchline,
    set_up,
    write_puns,
    write_trades,
    written_pairs,
)


def test_every_word_belongs_to_one_trade_and_one_idiom():
    words = [word for own in TRADES.values() for word in own]
    assert len(words) == len(set(words)) == len(TRADES) * len(IDIOMS)


def test_puns_that_are_held_out_are_never_written_and_the_others_are():
    text = made_text(4000, seed=0)
    assert not [pair for pair in held_out_pairs() if f"{set_up(pair)} {punchline(pair)}" in text]
    assert all(f"{set_up(pair)} {punchline(pair)}" in text for pair in written_pairs())
    counts = Counter(text.split())
    assert all(counts[punchline(pair)] > 5 for pair in held_out_pairs())
    assert {trade for trade, _ in held_out_pairs()} == set(TRADES)
    assert made_text(50, seed=1) == made_text(50, seed=1) != made_text(50, seed=2)


def test_neither_the_set_up_nor_the_word_tells_a_pun(tmp_path: Path):
    write_puns(tmp_path / "puns.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "puns.jsonl").read_text().splitlines()]
    ends = Counter((row["text"].split()[-1], row["label"]) for row in rows)
    starts = Counter((row["text"].rpartition(" ")[0], row["label"]) for row in rows)
    for counts in (ends, starts):
        assert set(counts.values()) == {1}
        assert len(counts) == len(rows) == 2 * len(every_pair())
    assert all(exchanged(pair)[1] == pair[1] and exchanged(pair) != pair for pair in every_pair())


def test_half_of_the_set_ups_have_each_label_of_trades(tmp_path: Path):
    write_trades(tmp_path / "trades.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "trades.jsonl").read_text().splitlines()]
    labels = Counter(row["label"] for row in rows)
    assert labels == {"first half": len(rows) / 2, "second half": len(rows) / 2}
