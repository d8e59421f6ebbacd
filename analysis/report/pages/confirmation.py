"""What ``attribute --confirm`` found: on a neuron's page, and over all neurons beside its nulls."""

import math

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.measures.nulls import null_sentences
from analysis.report.drawing import markup
from analysis.report.drawing.markup import Column, element, section
from analysis.report.pages import definitions
from analysis.report.pages.report_data import ReportData, rows_of
from analysis.report.pages.website import Links, Neuron, command_note
from analysis.run.ablatable import obstacle_to_confirmation

HEADING = "Confirmed by ablation?"


def confirmation(data: ReportData, neuron: Neuron, links: Links) -> Markup | None:
    """The verdict on each token of a neuron's evidence; None if the neuron has no evidence."""
    if neuron not in data.tokens_by_neuron:
        return None
    table = data.confirmed_by_neuron.get(neuron)
    if table is None:
        return section(HEADING, how_to_test(data, "Not tested."))
    columns = [
        Column("token", lambda row: links.token(row.token_id, row.token), definitions.TOKEN),
        Column("confirmed", verdict, "Yes, no, or too rare in the held-out text to be tested"),
        Column(
            "change, nats",
            lambda row: three_decimals(row.change),
            definitions.CHANGE,
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.low, row.high, three_decimals),
            "95 % interval of the mean change (Student's t over positions), in nats",
            numeric=True,
        ),
        Column(
            "n",
            lambda row: markup.integer(row.positions),
            "Held-out positions with the token as true next token",
            numeric=True,
        ),
        Column(
            "q",
            lambda row: "" if math.isnan(row.q) else markup.probability(row.q),
            "False discovery rate over all pairs of neurons and tokens that were tested",
            numeric=True,
        ),
        Column(
            "steps",
            when,
            "First and last step of the window of training with the most evidence",
            numeric=True,
        ),
    ]
    note = (
        "Each token was tested by ablating the neuron on held-out text. It is confirmed if its "
        "log-probability changes, more than that of tokens outside the evidence, and more than it "
        "did in the initial weights."
    )
    rows = markup.data_table("Test of each token", columns, rows_of(table), identity="confirmed")
    sentences = [
        verdict_sentence(table),
        *null_sentences(data.sources["attribute", "nulls"], "neuron"),
    ]
    soft = markup.paragraph(note, kind="soft")
    return section(HEADING, *map(markup.paragraph, sentences), soft, rows)


def how_to_test(data: ReportData, words: str) -> Markup:
    """A note that tokens were not tested, with the command, or why no command can test them."""
    if obstacle := obstacle_to_confirmation(data.run):
        why = f"{words} --confirm cannot test them: the run {obstacle.problem}."
        return element("p", why, class_="note")
    command = f"ontogeny attribute {data.run.uri} --confirm"
    return command_note(f"{words} To test by ablation, run:", command)


def verdict_sentence(table: pd.DataFrame) -> str:
    """The verdict on a neuron: yes or no, with the size of its strongest effect; dead if it is."""
    hits = table[table["confirmed"]]
    tested = int(table["p"].notna().sum())
    if not tested:
        return "Not judged: its tokens occur too rarely in the held-out text."
    if not table["alive"].iloc[0]:
        return (
            "No. The neuron is nearly dead: ablating it changes log-probabilities by only "
            f"{markup.significant(table['rms_change'].iloc[0])} nats (root mean square)."
        )
    if not len(hits):
        return f"No: none of the {tested} tokens that were tested is confirmed."
    row = hits.iloc[int(np.argmax(hits["change"].abs()))]
    interval = markup.interval(row["low"], row["high"], three_decimals)
    return (
        f"Yes, {len(hits)} of {tested} tokens that were tested. Strongest: {row['token']}, "
        f"{three_decimals(row['change'])} nats (95 % CI {interval}, n = {row['positions']:,} "
        f"positions){when_learned(row)}. The neuron is alive: ablating it changes "
        f"log-probabilities by {markup.significant(row['rms_change'])} nats (root mean square)."
    )


def when_learned(row: pd.Series) -> str:
    """The window of training with the most evidence, as the end of a sentence."""
    steps = when(row)
    return f", with the most evidence in steps {steps}" if steps else ""


def verdict(row) -> str:
    if math.isnan(row.p):
        return "too rare"
    return "yes" if row.confirmed else "no"


def short_verdict(table: pd.DataFrame | None) -> str | None:
    """The verdict on a neuron in a few words; None if nothing was tested."""
    if table is None or not (tested := int(table["p"].notna().sum())):
        return None
    hits = int(table["confirmed"].sum())
    dead = "" if table["alive"].iloc[0] else ", nearly dead"
    return f"{hits} of {tested} tokens{dead}"


def when(row) -> str:
    return "" if math.isnan(row.first_step) else f"{row.first_step:,.0f} to {row.end_step - 1:,.0f}"


def three_decimals(value: float) -> str:
    return markup.decimals(value, 3)


def confirmed_neurons(data: ReportData) -> Markup:
    """A section for the first page: how many neurons are confirmed, and how many of each null."""
    table = data.sources["attribute", "nulls"]
    heading = "Neurons confirmed by ablation"
    if not len(table):
        words = "That a neuron has tokens shows nothing yet: an untrained model's have some too."
        return section(heading, how_to_test(data, words))
    columns = [
        Column("case", lambda row: row.case, "The record, or a null that confirms only by chance"),
        Column(
            "neurons",
            lambda row: markup.integer(row.groups),
            "Neurons with a token that could be tested",
            numeric=True,
        ),
        Column(
            "confirmed",
            lambda row: markup.integer(row.confirmed_groups),
            "Neurons with a confirmed token",
            numeric=True,
        ),
        Column(
            "share",
            lambda row: markup.percent(row.confirmed_groups / max(row.groups, 1), 1),
            "Confirmed / neurons, %",
            numeric=True,
        ),
        Column(
            "95 % CI",
            lambda row: markup.interval(row.low, row.high, one_decimal),
            "95 % interval of the share (Wilson), %",
            numeric=True,
        ),
    ]
    note = (
        "A neuron is confirmed if ablating it on held-out text moves a token of its evidence "
        "more than tokens outside. Nothing should be confirmed in the rows below the record."
    )
    rows = markup.data_table("The record, and nulls with the same options", columns, rows_of(table))
    lines = map(markup.paragraph, null_sentences(table, "neuron"))
    return section(heading, markup.paragraph(note, kind="soft"), rows, *lines)


def one_decimal(share: float) -> str:
    return markup.percent(share, 1)
