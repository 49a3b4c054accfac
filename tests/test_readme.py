"""What the README shows is what happens: its snippets run as they stand, but for the address of the service."""

import asyncio
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.harness import ACCOUNT, Running

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SHOWN_URL = "http://127.0.0.1:8080"
SHOWN_TOKEN = "eyJhbGciOiJFZERTQSIsImtpZCI6..."
SHOWN_SECRET = "hubble"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


PYTHON = blocks("python")
NODE = blocks("js")
CURL = [
    (found[1].strip(), found[2])
    for block in blocks("console")
    for found in re.finditer(r"^\$ (curl (?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", block, flags=re.MULTILINE)
]


async def output(*command: str, directory: Path) -> str:
    """What a command prints that succeeds."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        told, errors = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return told.decode()


async def token_of(running: Running) -> str:
    await running.add(secret=SHOWN_SECRET)
    answer = await running.authenticate(SHOWN_SECRET)
    return str(answer.body["token"])


def members(text: str) -> set[str]:
    return set(re.findall(r'"(\w+)":', text.partition("{")[2]))


def test_the_readme_has_a_snippet_for_each_way() -> None:
    assert [re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE) for block in PYTHON] == [
        ["jwt"],
        ["authlib"],
    ]
    assert len(NODE) == 1
    assert [re.findall(rf"{SHOWN_URL}(\S+)", command) for command, _ in CURL] == [
        *(["/auth"], ["/oauth/token"], ["/oauth/token"], ["/introspect"], ["/revoke"])
    ]


async def test_python_gets_a_token_and_verifies_it(running: Running, tmp_path: Path) -> None:
    await running.add(secret=SHOWN_SECRET)
    verify, get = PYTHON
    script = f"{get}\n{verify}\nprint(claims['sub'])".replace(SHOWN_URL, running.url)
    assert await output(sys.executable, "-c", script, directory=tmp_path) == f"{ACCOUNT}\n"


@pytest.mark.slow
async def test_node_verifies_a_token(running: Running, node: Path) -> None:
    token = await token_of(running)
    script = f"const token = process.argv[2];\n{NODE[0]}\nconsole.log(payload.sub);".replace(SHOWN_URL, running.url)
    (node / "readme.mjs").write_text(script)
    assert await output("node", "readme.mjs", token, directory=node) == f"{ACCOUNT}\n"


@pytest.mark.parametrize(("command", "shown"), CURL)
async def test_curl_is_answered_as_shown(running: Running, tmp_path: Path, command: str, shown: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not there")
    token = await token_of(running)
    script = command.replace(SHOWN_URL, running.url).replace(SHOWN_TOKEN, token)
    told = await output("sh", "-c", script.replace("curl ", "curl -sS ", 1), directory=tmp_path)
    head, _, body = told.rpartition("\r\n\r\n")
    assert json.loads(body).keys() >= members(shown)
    assert "error" not in json.loads(body)
    shown_head = [line.partition(":")[0] for line in shown.partition("{")[0].splitlines() if line]
    assert [name for name in shown_head if name not in head] == []
