"""The first things that a user types: nothing, a word with a typing error, a neuron's name."""

import pytest

from cluster.cli import main


def test_no_arguments_print_the_help_and_exit_with_2(capsys) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: ontogeny")
    assert "ontogeny demo" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("atribute runs/demo", "COMMAND: invalid choice: 'atribute'"),
        ("atribute runs/demo", "Did you mean attribute"),
        ("verfy runs/demo", "Did you mean verify? See: ontogeny --help."),
        ("attribute runs/demo --evidnce target", "Did you mean --evidence? See: ontogeny attr"),
        ("attribute runs/demo --evidnce=target", "unrecognized arguments: --evidnce=target"),
        ("attribute runs/demo --evidnce=target", "Did you mean --evidence?"),
        ("attribute runs/demo --level neurn", "Did you mean neuron?"),
        ("ablate runs/demo --splt test", "Did you mean --split?"),
        ("capture demo --resme", "Did you mean --resume?"),
        ("selfcheck", "the following arguments are required: CONFIG. See: ontogeny selfcheck"),
        ("capture", "the following arguments are required: CONFIG. See: ontogeny capture"),
        ("influence", "the following arguments are required: RUN. See: ontogeny influence"),
        ("transitions", "the following arguments are required: RUN. See: ontogeny transitions"),
        ("info runs/demo --quite", "info: unrecognized arguments: --quite. See: ontogeny info"),
    ],
)
def test_a_typing_error_is_answered_with_the_right_word(line: str, text: str, capsys) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_word_like_nothing_gets_no_suggestion(capsys) -> None:
    assert main(["zzzz"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
