"""How the text of an argument becomes the value that a command gets.

Typer has Pydantic do this, which takes longer to import than most commands take in all. So the function that Typer
asks is replaced here. It is a private one: pyproject.toml holds Typer to the minor version that this was tried with.
"""

from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
import typer.core
from attrs import frozen


@frozen
class _Conversion:
    """Of one parameter: of kind `str`, `Path` or an `Enum`, or what its `parser` makes of the text."""

    kind: Any
    parser: Any

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """What Typer calls. `value` is a text, or a default; several where the parameter may be repeated."""
        if value is None:
            return None
        if get_origin(self.kind) is list:
            (kind,) = get_args(self.kind)
            return [self._convert(kind, one) for one in value]
        return self._convert(self.kind, value)

    def _convert(self, kind: Any, text: Any) -> Any:
        if self.parser is not None:
            return self.parser(text)
        if issubclass(kind, Enum):
            if text not in list(kind):
                raise typer.BadParameter(f"must be one of {', '.join(kind)}")
            return kind(text)
        assert kind in (str, Path), "give the option a parser"
        return kind(text)


def _conversion(descriptor: Any) -> _Conversion:
    return _Conversion(descriptor.annotation, descriptor.parameter_info.parser)


def do_without_pydantic() -> None:
    """Have Typer convert arguments as this module says."""
    typer.core.build_runtime_param = _conversion  # type: ignore[assignment, attr-defined]
