"""Options from a file: ``[tool.irprune]`` of ``pyproject.toml`` in the working folder, or the file
of ``--config``.

A table named as a command holds options for it, as their flags are called without dashes in front;
options outside such a table count for every command that has them. The command line comes first."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from irprune.base.near import meant
from irprune.errors import IrpruneError

__all__ = ["defaults"]

# A file that lies in the working folder may be anybody's: it starts no code.
_RUNS_CODE = ("trust", "load", "eval")


def defaults(cli: click.Group, command: str, file: str | None) -> dict[str, Any]:
    """The defaults of the parameters of ``cli``'s command, as click takes them. Raises
    IrpruneError for a file that cannot be read and for options that there are not."""
    path = Path("pyproject.toml" if file is None else file)
    if file is None and not path.is_file():
        return {}
    table = _table(path, found=file is None)
    context = click.Context(cli)
    known = cli.get_command(context, command)
    assert known is not None
    commands = cli.list_commands(context)
    names = {o.lstrip("-"): p for p in known.params if isinstance(p, click.Option) for o in p.opts}
    shared = {k: v for k, v in table.items() if k not in commands}
    own = table.get(command, {})
    if not isinstance(own, Mapping):
        raise IrpruneError(f"{command} is no table", str(path), f"write [tool.irprune.{command}]")
    for name in own:
        if name not in names:
            hint = meant(name, names, f"`irprune {command} --help` lists them")
            raise IrpruneError(f"{command} has no option {name!r}", str(path), hint)
    _check_shared(cli, shared, path)
    given = {**{k: v for k, v in shared.items() if k in names}, **own}
    for name in given:
        if file is None and name in _RUNS_CODE:
            raise IrpruneError(
                f"{name} may run code and is not taken from a file that merely lies there",
                str(path),
                f"say --{name}, or name the file with --config",
            )
    return {command: {names[k].name: _value(names[k], v) for k, v in given.items()}}


def _table(path: Path, found: bool) -> dict[str, Any]:
    """The options in the file: a pyproject.toml has them under [tool.irprune]; another file may
    have them at its top."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IrpruneError("no such file", str(path), "check the path of --config") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as broken:
        if found and isinstance(broken, tomllib.TOMLDecodeError):
            return {}  # it may belong to something else altogether
        raise IrpruneError(f"cannot be read: {broken}", str(path), "it is a TOML file") from broken
    tool = data.get("tool", {}).get("irprune")
    table = tool if tool is not None else {} if path.name == "pyproject.toml" else data
    if not isinstance(table, dict):
        raise IrpruneError("tool.irprune is no table", str(path), "write [tool.irprune]")
    return table


def _check_shared(cli: click.Group, shared: Mapping[str, Any], path: Path) -> None:
    """Raises IrpruneError for an option that no command has."""
    if not shared:
        return
    context = click.Context(cli)
    known: dict[str, None] = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            known |= {o.lstrip("-"): None for o in parameter.opts}
    for name in shared:
        if name not in known:
            hint = meant(name, known, "options are called as their flags")
            raise IrpruneError(f"no command has an option {name!r}", str(path), hint)


def _value(option: click.Parameter, value: Any) -> Any:
    """A value of the file as the command line would give it."""
    if option.multiple:
        return tuple(map(str, value)) if isinstance(value, list) else (str(value),)
    return value if isinstance(value, bool) else str(value)
