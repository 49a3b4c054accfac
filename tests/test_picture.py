"""The picture that the code, the README and `config.toml` give is one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from events.records import BY_TYPE
from service import config
from service.__main__ import Imported, app
from service.contract import OAUTH, TABLE, body
from service.pipeline import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONFIG = (ROOT / "config.toml").read_text("utf-8")

NAMES = [stage.name for stage in STAGES]


def readme_table() -> list[tuple[str, ...]]:
    """The rows of the README's table of errors, without its backticks."""
    _, _, behind = README.partition("| stage | reason code | status | error | error_description |\n| --- |")
    rows, _, _ = behind.partition("\n\n")
    return [tuple(cell.strip(" `") for cell in row.strip("|").split("|")) for row in rows.splitlines()[1:]]


def test_stages_on_disk_are_those_of_the_pipeline() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in (ROOT / "service/stages").glob("[!_]*.py"))


def test_readme_names_the_stages_in_their_order() -> None:
    named = [row[0].split(", ") for row in readme_table()]
    assert list(dict.fromkeys(stages[0] for stages in named if stages[0] in NAMES)) == NAMES
    assert {stage for stages in named for stage in stages} == {*NAMES, "any"}


def test_pipeline_runs_the_stages_in_their_order() -> None:
    source = (ROOT / "service/pipeline.py").read_text("utf-8")
    assert re.findall(r"attempt\.step\([A-Z_]+, +([a-z_]+),", source) == NAMES


def test_table_of_errors_names_stages_that_there_are() -> None:
    assert list(dict.fromkeys(stage for row in TABLE for stage in row.stages[:1])) == NAMES
    assert {stage for row in TABLE for stage in row.stages} == set(NAMES)
    assert len({row.reason for row in TABLE}) == len(TABLE)


def test_readme_has_the_table_of_errors() -> None:
    example = {"repeated_parameter": "secret", "unsupported_parameter": "colour"}
    expected = []
    for row in TABLE:
        text = body(row, example.get(row.reason))["error_description"]
        expected.append((", ".join(row.stages) or "any", row.reason, str(row.status), row.error, text))
    assert readme_table() == expected


def test_events_name_stages_that_there_are_and_each_has_its_own() -> None:
    stages = {cls.STAGE for cls in BY_TYPE.values()} - {None}
    assert stages == set(NAMES)
    for stage in STAGES:
        makes = {stage.passed, stage.refused, stage.failed} - {None}
        assert {make.STAGE for make in makes if isinstance(make, type)} == {stage.name}  # type: ignore[attr-defined]


def test_readme_has_the_table_of_errors_of_oauth() -> None:
    _, _, behind = README.partition(
        "\n\n| reason code | status | error | error_description |\n| --- | --- | --- | --- |\n"
    )
    rows, _, _ = behind.partition("\n\n")
    found = [tuple(cell.strip(" `") for cell in row.strip("|").split("|")) for row in rows.splitlines()]
    assert found == [(row.reason, str(row.status), row.error, row.description) for row in OAUTH]


def documented() -> list[str]:
    """Each key that `config.toml` has a line for, set or commented out."""
    found = []
    section = ""
    for line in CONFIG.splitlines():
        if header := re.fullmatch(r"\[([a-z]+)\]", line):
            section = header[1]
        elif member := re.fullmatch(r"(?:# )?([a-z_]+) = .*", line):
            found.append(f"{section}.{member[1]}")
    return found


def test_config_toml_documents_every_key_once_and_in_order() -> None:
    assert documented() == list(config.KEYS)


def verbs(command: object, *path: str) -> Iterator[str]:
    if isinstance(command, Imported):
        command = command.load()
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from verbs(inner, *path, name)
    else:
        yield " ".join(path)


VERBS = list(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("verb", VERBS)
def test_readme_names_the_command(verb: str) -> None:
    assert re.search(rf"(hubler-auth|scripts/|scripts/replay\.py) ?{verb}\b", README)


def test_readme_names_no_command_that_there_is_not() -> None:
    groups = {verb.split()[0] for verb in VERBS if " " in verb}
    named = set(re.findall(rf"hubler-auth (({'|'.join(groups)}) [a-z-]+)", README))
    assert {verb for verb, _ in named} <= set(VERBS)
