"""What every recipe (a script run by path) shares: its command line and its result files.

A recipe keeps one frozen dataclass ``Config`` at its top; a field's help text is its metadata, made by `opt`. The
command line is derived from it, so that the configuration, the help page and the JSON beside the results cannot
disagree.
"""

import argparse
import dataclasses
import inspect
import json
import os
import types
import typing
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

ConfigT = TypeVar("ConfigT")


def opt(default: Any, text: str) -> Any:
    """A ``Config`` field with its default and its one-line description, unit included."""
    return dataclasses.field(default=default, metadata={"help": text})


def required(text: str) -> Any:
    """A ``Config`` field that the command line must give."""
    return dataclasses.field(metadata={"help": text})


def parse_config(config: type[ConfigT], argv: Sequence[str] | None = None, description: str | None = None) -> ConfigT:
    """Read the command line into ``config``, a frozen dataclass.

    Field types may be ``int``, ``float``, ``str``, ``Path``, ``bool`` (``--flag`` / ``--no-flag``), ``Literal``,
    ``tuple[T, ...]`` (one or more values), ``tuple[T, T]`` (exactly so many) and any of these ``| None``. Unknown flags
    are refused, never abbreviated. A ``ValueError`` of the dataclass (its ``__post_init__``) ends the program with the
    usage and the message, as any other wrong flag does.

    ``--help`` lists what a dataclass inherits after its own fields, below the first line of the base's docstring.

    Args:
        config: the dataclass to fill.
        argv: the words after the script's name; ``sys.argv[1:]`` when ``None``.
        description: printed at the top of ``--help``.

    Raises:
        TypeError: a field has a type that no command line can give.
        SystemExit: the command line is wrong (status 2), or asked for help (status 0).
    """
    parser = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints, fields = typing.get_type_hints(config), dataclasses.fields(config)  # type: ignore[arg-type]
    for owner in config.__mro__:
        mine = [field for field in fields if _owner(config, field.name) is owner]
        group: argparse._ActionsContainer = parser
        if mine and owner is not config:
            group = parser.add_argument_group((owner.__doc__ or owner.__name__).partition("\n")[0].rstrip("."))
        for field in mine:
            _add(group, field, hints[field.name])
    values = vars(parser.parse_args(argv))
    try:
        return config(**values)
    except ValueError as error:
        parser.error(str(error))


def _owner(config: type, name: str) -> type:
    """The class that brings a field in. One below it may repeat the field, with another default or text."""
    return next(base for base in reversed(config.__mro__) if name in inspect.get_annotations(base))


def _add(parser: argparse._ActionsContainer, field: "dataclasses.Field[Any]", hint: Any) -> None:
    flag = "--" + field.name.replace("_", "-")
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    needed = default is dataclasses.MISSING
    text = field.metadata.get("help", "") + (" [required]" if needed else f" [{default}]")
    settings = _settings(field.name, hint)
    parser.add_argument(flag, dest=field.name, required=needed, help=text.replace("%", "%%"), **settings)
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
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON types: a path becomes a string, a tuple a list."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(config), default=_plain)))


def _plain(value: Any) -> Any:
    """What JSON writes for a value it does not know. NumPy's numbers stay numbers: ``str`` would quote them."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no place in a JSON file: {value!r:.80}")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """A temporary path beside ``path`` that is synced and takes its place only when the block ends well.

    Whatever happens inside, a reader of ``path`` sees the old file or the new one, whole. The new file has the
    permissions of the one it replaces, or those of any new file; a symbolic link stays and its target is replaced. Only
    a process that is killed leaves its temporary file (``.NAME.*.tmp``), which nothing reads.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.touch(exist_ok=False)
    try:
        mode = (path if path.exists() else temporary).stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can do so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Paths become strings and NumPy numbers and arrays become numbers and lists.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON cannot hold.
        TypeError: it holds something else that JSON cannot hold, as a tensor.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n"
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
