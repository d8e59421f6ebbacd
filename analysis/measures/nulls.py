"""What the nulls of ``attribute --confirm`` say about the count of the record, in sentences.

A null runs the same test where nothing should be confirmed. The count of the record is evidence
only as far as it is above the counts of the nulls.
"""

import pandas as pd

RECORD, UNTRAINED = "record", "untrained model"
SHUFFLED, EXCHANGED = "shuffled words", "exchanged tokens"
"""Values of the column ``case`` of ``analysis.attribution.tables.NULLS``."""
SUBJECTS = {
    UNTRAINED: "A model after 0 steps",
    SHUFFLED: "A text with its words in random order",
    EXCHANGED: "Tokens of another {noun}",
}
"""Case → the beginning of a sentence about it."""
ALLOWED = 0.05
"""Share of groups that a null may confirm without a remark."""


def null_sentences(nulls: pd.DataFrame, noun: str) -> list[str]:
    """Return a sentence for each null that weakens the record's count; [] if none does.

    ``nulls`` has the columns of ``NULLS``, its first row is the record; ``noun`` is neuron, row or
    head.
    """
    if not len(nulls):
        return []
    record, *others = nulls.to_dict("records")
    found = [sentence(record, null, noun) for null in others]
    return [line for line in found if line]


def sentence(record: dict, null: dict, noun: str) -> str:
    """Return what one null says, "" if it confirms clearly less than the record and at most 5 %."""
    of = f"{null['confirmed_groups']:,} of {null['groups']:,} {noun}s"
    against = f"the record confirms {record['confirmed_groups']:,} of {record['groups']:,}"
    subject = SUBJECTS.get(null["case"], f"The null “{null['case']}”").format(noun=noun)
    verb = "confirm" if null["case"] == EXCHANGED else "confirms"
    if 0 < record["confirmed_groups"] <= null["confirmed_groups"]:
        as_many = "as many" if share(record) == share(null) else "as many or more"
        return f"{subject} {verb} {as_many} ({of}; {against}): this is not evidence."
    if null["confirmed_groups"] > ALLOWED * null["groups"]:
        return (
            f"{subject} {verb} more than {ALLOWED:.0%} ({of}; {against}): much of the evidence is "
            "a property of the weights or the text, not learned."
        )
    if record["confirmed_groups"] and null["high"] >= record["low"]:
        return (
            f"{subject} {verb} {of}; {against}. The 95 % intervals overlap: the two cannot be told "
            "apart on this text."
        )
    return ""


def share(case: dict) -> float:
    return case["confirmed_groups"] / max(case["groups"], 1)
