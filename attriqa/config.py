"""The command line of a recipe (a script run by path), and its claim to an output folder.

A recipe keeps one frozen dataclass ``Config`` at its top; a field's help text is its metadata, made by `opt`. The
command line is derived from it, so that the configuration, the help page and the JSON beside the results cannot
disagree. A recipe with several commands has a dataclass and a function for each (`run_command`).

This is argparse and not tyro for reasons that users would meet; tests/test_config.py holds each. tyro 1.0 refuses
``--finetune "--init FILE"``, takes ``--weights`` without a value for an empty tuple and ``None`` for no path, joins the
lines of a docstring's paragraphs, lists inherited fields first and without their title, and breaks errors over the
lines of a box.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from attriqa.files import as_dict, write_json

ConfigT = TypeVar("ConfigT")


def opt(default: Any, text: str, *, bare: bool = False) -> Any:
    """A ``Config`` field with its default and its one-line description, unit included.

    Words in front of all flags are those of the field that is ``bare``: ``tune.py raws`` is ``tune.py --images raws``.
    """
    return dataclasses.field(default=default, metadata={"help": text, "bare": bare})


def required(text: str, *, bare: bool = False) -> Any:
    """A ``Config`` field that the command line must give; see `opt`."""
    return dataclasses.field(metadata={"help": text, "bare": bare})


def parse_config(config: type[ConfigT], argv: Sequence[str] | None = None, description: str | None = None) -> ConfigT:
    """Read the command line into ``config``, a frozen dataclass.

    Field types may be ``int``, ``float``, ``str``, ``Path``, ``bool`` (``--flag`` / ``--no-flag``), ``Literal``,
    ``tuple[T, ...]`` (one or more values), ``tuple[T, T]`` (exactly so many) and any of these ``| None``. Unknown flags
    are refused with the nearest known one, never abbreviated. A ``ValueError`` of the dataclass (its ``__post_init__``)
    ends the program with the usage and the message, as any other wrong flag does.

    ``--help`` lists what a dataclass inherits after its own fields, below the first line of the base's docstring.

    Args:
        config: the dataclass to fill.
        argv: the words after the script's name; ``sys.argv[1:]`` when ``None``.
        description: printed at the top of ``--help``.

    Raises:
        TypeError: a field has a type that no command line can give.
        SystemExit: the command line is wrong (status 2), or asked for help (status 0).
    """
    return _parse(config, sys.argv[1:] if argv is None else argv, _Parser(description=description))


def run_command(
    commands: Mapping[str, Callable[[Any], None]], argv: Sequence[str] | None = None, description: str | None = None
) -> None:
    """Run the function that the first word names, with the rest of the command line read into its dataclass.

    Args:
        commands: functions by their word. Each has one argument, annotated with a frozen dataclass, which is read as
            `parse_config` does; its docstring heads the command's ``--help``. The one named ``""`` runs where the first
            word is no command.
        argv: the words after the script's name; ``sys.argv[1:]`` when ``None``.
        description: heads ``--help`` of the script itself.

    Raises:
        TypeError: a field has a type that no command line can give.
        SystemExit: as `parse_config`; or the function raised ``OSError`` or ``ValueError``, with its message.
    """
    name, *words = argv = list(sys.argv[1:] if argv is None else argv) or [""]
    if name not in commands and "" not in commands:
        _refuse(commands, argv, description)
    if name not in commands:
        name, words = "", argv
    run = commands[name]
    config = _config_of(run)
    parser = _Parser(description=inspect.getdoc(config) if name else description)
    parser.prog = f"{parser.prog} {name}".rstrip()
    try:
        run(_parse(config, words, parser))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def check_least(config: Any, **least: float) -> None:
    """Refuse fields below their least values; ``None``, for a default, passes. For a ``__post_init__``.

    Raises:
        ValueError: naming the flag of the first such field, what was expected and what came.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise ValueError(f"{_flag(name)}: expected at least {bound}, got {value}")


def claim_folder(out: Path, config: Any) -> None:
    """Take an output folder for a configuration: ``OUT/config.json`` is written, or compared when it is there.

    Raises:
        SystemExit: the folder holds a run with another configuration; each differing field is named with both values.
    """
    path = out / "config.json"
    mine = as_dict(config)
    if not path.exists():
        write_json(path, mine)
        return
    theirs = json.loads(path.read_text(encoding="utf-8"))
    fields = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    if fields:
        listed = "; ".join(f"{name}: {theirs.get(name)!r} there, {mine.get(name)!r} now" for name in fields)
        raise SystemExit(f"{out} holds a run with another configuration ({listed}); choose another --out")


class _Parser(argparse.ArgumentParser):
    """Keeps a description as it is written, and adds to an error what each unknown flag may have meant."""

    words: Sequence[str] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        known = self._option_string_actions
        for flag in (word.partition("=")[0] for word in self.words if word.startswith("--")):
            # A word with a space is a value, as in --finetune "--init FILE".
            near = [] if flag in known or " " in flag else difflib.get_close_matches(flag, known, n=1)
            message += "".join(f"; {flag}: did you mean {some}?" for some in near)
        super().error(message)


def _parse(config: type[ConfigT], words: Sequence[str], parser: _Parser) -> ConfigT:
    """Fill ``config`` with ``words``, or end as `parse_config` says."""
    hints, fields = typing.get_type_hints(config), dataclasses.fields(config)  # type: ignore[arg-type]
    for owner in config.__mro__:
        mine = [field for field in fields if _owner(config, field.name) is owner]
        group: argparse._ActionsContainer = parser
        if mine and owner is not config:
            group = parser.add_argument_group((owner.__doc__ or owner.__name__).partition("\n")[0].rstrip("."))
        for field in mine:
            _add(group, field, hints[field.name])
    bare = [_flag(field.name) for field in fields if field.metadata.get("bare")]
    parser.words = [*bare, *words] if words and not words[0].startswith("-") else words
    values = vars(parser.parse_args(parser.words))
    try:
        return config(**values)
    except ValueError as error:
        parser.error(str(error))


def _config_of(run: Callable[[Any], None]) -> type:
    """The dataclass of a command: what its function's argument is annotated with."""
    return typing.cast(type, next(iter(typing.get_type_hints(run).values())))


def _refuse(commands: Mapping[str, Callable[[Any], None]], words: Sequence[str], description: str | None) -> None:
    """End with the help that is asked for, or with an error that names the commands."""
    parser = _Parser(description=description)
    listed = parser.add_subparsers(title="commands", dest="command", required=True)
    for name, run in commands.items():
        listed.add_parser(name, help=(inspect.getdoc(_config_of(run)) or "").partition("\n")[0].replace("%", "%%"))
    parser.parse_args([word for word in words[:1] if word])


def _owner(config: type, name: str) -> type:
    """The class that brings a field in. One below it may repeat the field, with another default or text."""
    return next(base for base in reversed(config.__mro__) if name in inspect.get_annotations(base))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(parser: argparse._ActionsContainer, field: "dataclasses.Field[Any]", hint: Any) -> None:
    """One field's flag and line of help."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    needed = default is dataclasses.MISSING
    text = field.metadata.get("help", "") + "; may be given without the flag" * field.metadata.get("bare", False)
    text = (text + (" [required]" if needed else f" [{default}]")).replace("%", "%%")
    parser.add_argument(_flag(field.name), dest=field.name, required=needed, help=text, **_settings(field.name, hint))
    if not needed:
        # Not as an argument of add_argument: before Python 3.13 a BooleanOptionalAction prints such a default again.
        parser.set_defaults(**{field.name: default})


def _settings(name: str, hint: Any) -> dict[str, Any]:
    """How argparse reads a value of the type ``hint``."""
    arms = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        arms = tuple(arm for arm in arms if arm is not type(None))
        if len(arms) == 1:
            return _settings(name, arms[0])
    elif hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    elif typing.get_origin(hint) is typing.Literal:
        if len({type(arm) for arm in arms}) == 1 and type(arms[0]) in (int, float, str):
            return {"choices": arms, "type": type(arms[0])}
    elif typing.get_origin(hint) is tuple:
        count = "+" if arms[1:] == (Ellipsis,) else len(arms)
        if arms and set(arms) <= {arms[0], Ellipsis} and arms[0] is not bool:
            return {**_settings(name, arms[0]), "nargs": count, "action": _AsTuple}
    elif hint in (int, float, str, Path):
        return {"type": hint}
    raise TypeError(f"{name}: a field of type {hint} cannot be read from a command line")


class _AsTuple(argparse.Action):
    """Stores several words as a tuple, where argparse would store a list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))
