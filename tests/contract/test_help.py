"""Every command shows its help, and every option in it says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from firewall import __version__
from firewall.cli.app import app


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group, with its words."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(app)))


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    assert "Traceback" not in done.output
    return done.output


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "firewall")
def test_every_command_shows_help_for_every_option(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    output = " ".join(shown(*path, "--help").split())
    summary = (command.help or "").split("\n\n")[0].split()
    assert len(summary) >= 2, "no text says what the command does"
    assert " ".join(summary) in output
    for parameter in command.params:
        if getattr(parameter, "hidden", False):
            continue
        text = " ".join((getattr(parameter, "help", None) or "").split())
        assert text.endswith((".", "]")), f"{parameter.name}: {text!r} is no sentence"
        assert len(text.split()) >= 2, f"{parameter.name}: {text!r} says too little"
        # Unresolved markup would be swallowed: the text is shown as it is written.
        assert text.split()[0] in output


def test_walking_finds_nested_commands() -> None:
    assert {
        ("serve",),
        ("admin", "quarantine", "list"),
        ("gan", "study", "plan"),
    } <= COMMANDS.keys()


def test_the_flags_of_serve_show_square_brackets_as_they_are() -> None:
    assert "[default: 8081]" in shown("serve", "--help")


def test_the_version_is_printed() -> None:
    assert shown("--version") == f"firewall {__version__}\n"
