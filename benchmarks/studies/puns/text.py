"""A text with puns, made by rule: what is a pun in it, and which were never written, is known.

A pun plays on a word with two readings: it completes an idiom, and it belongs to a trade, as in
"i used to be a banker but i lost the interest". Plain sentences teach which words complete an
idiom, others which words belong to a trade. Puns are written for most pairs of trade and idiom; the
others are held out, so that they can only be completed by putting both readings together.
"""

import json
from pathlib import Path

import numpy as np

IDIOMS = ("lost the", "needed a", "found no", "ran out of")
TRADES = {
    "banker": ("interest", "loan", "balance", "credit"),
    "baker": ("crust", "roll", "loaf", "dough"),
    "fisherman": ("line", "scale", "hook", "bait"),
    "electrician": ("current", "spark", "outlet", "power"),
    "gardener": ("plot", "root", "stem", "thyme"),
    "clockmaker": ("hands", "minute", "spring", "time"),
    "musician": ("key", "note", "pitch", "rests"),
    "carpenter": ("grain", "board", "level", "nails"),
    "tailor": ("thread", "pattern", "cut", "material"),
    "miner": ("vein", "shaft", "lode", "gold"),
    "optician": ("focus", "lens", "vision", "frames"),
    "judge": ("case", "sentence", "motion", "trials"),
    "barber": ("edge", "part", "style", "waves"),
    "butcher": ("chop", "stake", "joint", "meat"),
    "plumber": ("flow", "pipe", "drain", "taps"),
    "sailor": ("bearing", "deck", "port", "knots"),
}
"""Trade → its word for each idiom."""
KINDS = ("trade", "idiom", "pun", "filler")
SHARES = (0.35, 0.25, 0.3, 0.1)
Pair = tuple[str, int]
"""A trade and the number of an idiom."""


def held_out_pairs() -> list[Pair]:
    """Return the pairs whose pun is never written: one idiom of each trade, each idiom equally."""
    return [(trade, place % len(IDIOMS)) for place, trade in enumerate(TRADES)]


def written_pairs() -> list[Pair]:
    held_out = set(held_out_pairs())
    return [pair for pair in every_pair() if pair not in held_out]


def every_pair() -> list[Pair]:
    return [(trade, number) for trade in TRADES for number in range(len(IDIOMS))]


def set_up(pair: Pair) -> str:
    """Return the words before the punchline."""
    return f"i used to be a {pair[0]} but i {IDIOMS[pair[1]]}"


def punchline(pair: Pair) -> str:
    return TRADES[pair[0]][pair[1]]


def made_text(sentences: int, seed: int) -> str:
    """Return a text of so many sentences, one a line."""
    rng = np.random.default_rng(seed)
    trades, written = list(TRADES), written_pairs()

    def one(kind: str) -> str:
        trade, idiom = trades[rng.integers(len(trades))], int(rng.integers(len(IDIOMS)))
        if kind == "trade":
            word = TRADES[trade][rng.integers(len(IDIOMS))]
            return [f"a {trade} knows {word}", f"{word} is for the {trade}"][rng.integers(2)]
        if kind == "idiom":
            person = ("she", "he", "they", "i")[rng.integers(4)]
            return f"yesterday {person} {IDIOMS[idiom]} {TRADES[trade][idiom]}"
        if kind == "pun":
            pair = written[rng.integers(len(written))]
            return f"{set_up(pair)} {punchline(pair)}"
        return f"he used to be a {trade} and now he is a {trades[rng.integers(len(trades))]}"

    return "\n".join(f"{one(kind)} ." for kind in rng.choice(KINDS, sentences, p=SHARES)) + "\n"


def write_completions(path: Path, pairs: list[Pair]) -> None:
    """Write the puns of these pairs as prompts and completions."""
    write_rows(path, [{"prompt": set_up(pair), "completion": punchline(pair)} for pair in pairs])


def write_puns(path: Path) -> None:
    """Write every set-up with its punchline and with another word, labelled pun and no pun."""
    rows = []
    for pair in every_pair():
        texts = {"pun": punchline(pair), "no pun": punchline(exchanged(pair))}
        rows += [
            {"text": f"{set_up(pair)} {word}", "label": label} for label, word in texts.items()
        ]
    write_rows(path, rows)


def write_trades(path: Path) -> None:
    """Write every set-up, labelled by the half of the list of trades that its trade is in."""
    half = dict.fromkeys(list(TRADES)[: len(TRADES) // 2], "first half")
    rows = [
        {"text": set_up(pair), "label": half.get(pair[0], "second half")} for pair in every_pair()
    ]
    write_rows(path, rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def exchanged(pair: Pair) -> Pair:
    """Return the next pair with the same idiom.

    Its word completes the idiom and belongs to another trade. So every word is once the end of a
    pun and once not, and neither set-up nor word tells which: only both together do.
    """
    trades = list(TRADES)
    return trades[(trades.index(pair[0]) + 1) % len(trades)], pair[1]
