"""Commands without ``--lifetime`` say why, and it is in no help; all others have it."""

import pytest

from cluster.cli import main
from cluster.options.lifetime import NOT_OFFERED

ARGUMENTS = {"influence": ["loss"]}
OFFERED = ("attribute", "behaviour", "neurons")


@pytest.mark.parametrize("command", NOT_OFFERED)
def test_a_command_without_it_says_why(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "runs/none", *ARGUMENTS.get(command, []), "--lifetime"]) == 2
    reason, instead = NOT_OFFERED[command]
    told = capsys.readouterr().err
    assert f"--lifetime: is not offered: {reason}" in told
    assert instead in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("command", [*NOT_OFFERED, *OFFERED])
def test_help_shows_it_where_it_is_offered(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert ("--lifetime" in capsys.readouterr().out) == (command in OFFERED)
