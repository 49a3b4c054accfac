"""/openapi.json is what the service does: all answers that it documents, and no other; and /docs shows it."""

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from service import docs, openapi
from service.contract import NOT_FOUND, OAUTH, TABLE, UNPARSABLE, Answers, Row, body
from service.handler import PATHS
from tests.conftest import Start
from tests.faults.test_table import FAULTS, VALIDATE, Fault
from tests.harness import ACCOUNT, JSON, OTHER_ACCOUNT, SECRET, USER, Answer, Running, answers, until
from tests.http import test_introspect
from tests.http.test_oauth_token import MALFORMED

Json = dict[str, Any]

DESCRIBED = openapi.describe("http://x", "0", TABLE, OAUTH)
METHODS = ("get", "head", "options", "post")
READ = [path for path, item in DESCRIBED["paths"].items() if "get" in item]
DOCUMENTED = [
    pytest.param(method, path, status, id=f"{method}-{path}-{status}")
    for path, item in DESCRIBED["paths"].items()
    for method in METHODS
    if method in item
    for status in item[method]["responses"]
]


async def ask(
    running: Running, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None
) -> Answer:
    async with running.session.request(method, running.url + path, data=data, headers=headers) as response:
        text = await response.read()
        fields = {name.decode(): value.decode() for name, value in response.raw_headers}
        return Answer(response.status, fields, json.loads(text or b"null"))


async def described(running: Running) -> Json:
    document: Json = (await ask(running, "GET", openapi.PATH)).body
    return document


def resolved(document: Json, node: Json) -> Json:
    for name in node.get("$ref", "#").split("/")[1:]:
        document = document[name]
    return document if "$ref" in node else node


def check_response(document: Json, response: Json, answer: Answer, *, without_body: bool = False) -> None:
    response = resolved(document, response)
    for name, header in response["headers"].items():
        header = resolved(document, header)
        if header["required"] or name in answer.headers:
            assert Draft202012Validator(header["schema"]).is_valid(answer.headers[name]), name
    not_on_all = {"WWW-Authenticate", "Retry-After", "Allow", "ETag", "Pragma"}
    not_on_all |= {name for name in answer.headers if name.startswith("Access-Control-")}
    assert set(answer.headers) & not_on_all <= set(response["headers"])
    if without_body or "content" not in response:
        assert answer.body is None
    else:
        content = response["content"][answer.headers["Content-Type"]]
        errors = [str(error) for error in Draft202012Validator(content["schema"]).iter_errors(answer.body)]
        assert errors == []
        if "examples" in content and "{" not in str(answer.body["error_description"]):
            known = [example["value"] for example in content["examples"].values()]
            assert answer.body in known or '"' in answer.body["error_description"]


async def check(running: Running, method: str, path: str, answer: Answer) -> None:
    """That the document of the service which gave the answer has it, to the letter."""
    document = await described(running)
    operation = document["paths"][path]["get" if method == "HEAD" else method.lower()]
    check_response(document, operation["responses"][str(answer.status)], answer, without_body=method == "HEAD")


# -- every answer that is documented --------------------------------------------------

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
AUTH = json.dumps({"account": ACCOUNT, "secret": SECRET}).encode()
CLIENT = f"client_id={ACCOUNT}&client_secret={SECRET}".encode()


CORS = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}


def good(path: str, token: str = "x") -> tuple[bytes, dict[str, str]]:
    if path in PATHS:
        return AUTH, JSON
    return CLIENT + (b"&grant_type=client_credentials" if path == "/oauth/token" else f"&token={token}".encode()), FORM


async def granted(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    await running.add(secret=SECRET)
    token = (await running.authenticate(user_id=USER)).body["token"]
    return running, await ask(running, method, path, *good(path, token))


async def read(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, method, path)


async def known(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    tag = (await ask(running, "GET", path)).headers["ETag"]
    return running, await ask(running, method, path, headers={"If-None-Match": tag})


async def empty(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, method, path, b"{}" if path in PATHS else b"x&x", good(path)[1])


async def unparsable(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    (answer,) = answers(await running.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n".encode()))
    return running, answer


async def preflight(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, method, path, headers=CORS)


async def large_head(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    cookie = "a" * 9000
    (answer,) = answers(await running.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n".encode()))
    return running, answer


async def no_room(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start(http={"max_connections": 1})
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    (answer,) = answers(await running.raw(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    writer.close()
    await until(lambda: not running.server.open)
    return running, answer


async def another_secret(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    await running.add(secret="another")
    return running, await ask(running, method, path, *good(path))


async def another_method(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, "DELETE", path)


async def too_large(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, method, path, b" " * 8193, good(path)[1])


async def another_type(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start()
    return running, await ask(running, method, path, b"{}", {"Content-Type": "text/plain"})


async def too_many(start: Start, method: str, path: str) -> tuple[Running, Answer]:
    running = await start(secrets={"hash_queue": 1, "hash_workers": 1, "memory_kib": 16_384, "iterations": 2})
    await running.add(secret="another")
    found = await asyncio.gather(*(ask(running, method, path, *good(path)) for _ in range(8)))
    return running, next(answer for answer in found if answer.status == 503)


Get = Callable[[Start, str, str], Awaitable[tuple[Running, Answer]]]
TO_POST: dict[str, Get] = {
    "200": granted,
    "400": empty,
    "401": another_secret,
    "405": another_method,
    "413": too_large,
    "415": another_type,
    "431": large_head,
    "503": too_many,
}
TO_READ: dict[str, Get] = {
    "200": read,
    "204": preflight,
    "304": known,
    "400": unparsable,
    "405": another_method,
    "431": large_head,
    "503": no_room,
}


@pytest.mark.parametrize(("method", "path", "status"), DOCUMENTED)
async def test_a_documented_answer_is_got_as_it_is_documented(
    start: Start, method: str, path: str, status: str
) -> None:
    get = (TO_READ if path in READ else TO_POST)[status]
    running, answer = await get(start, method.upper(), path)
    assert answer.status == int(status)
    document = await described(running)
    response = document["paths"][path][method]["responses"][status]
    check_response(document, response, answer, without_body=method == "head" and get not in (unparsable, large_head))


def test_every_status_has_a_request_that_gets_it() -> None:
    statuses = {
        status
        for item in DESCRIBED["paths"].values()
        for operation in item.values()
        for status in operation["responses"]
    }
    assert statuses == set(TO_POST) | set(TO_READ)


@pytest.mark.parametrize("path", [path for path in DESCRIBED["paths"] if path not in READ])
async def test_what_is_no_http_is_a_documented_answer_too(start: Start, path: str) -> None:
    running, answer = await unparsable(start, "POST", path)
    await check(running, "POST", path, answer)
    assert answer.body == body(UNPARSABLE)


# -- no answer that is not ------------------------------------------------------------


@pytest.mark.parametrize(("sent", "path"), [pytest.param(row[2], "/auth", id=row[0]) for row in VALIDATE])
async def test_a_refusal_at_validate_is_documented(running: Running, sent: object, path: str) -> None:
    await check(running, "POST", path, await running.post(sent, path=path))


@pytest.mark.parametrize(("reason", "fields", "basic"), MALFORMED)
async def test_a_refusal_of_a_form_is_documented(
    running: Running, reason: str, fields: dict[str, str] | bytes, basic: str | None
) -> None:
    await check(running, "POST", "/oauth/token", await running.form("/oauth/token", fields, basic=basic))


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
@pytest.mark.parametrize(("data", "basic", "status", "reason", "error"), test_introspect.MALFORMED)
async def test_a_refusal_at_the_endpoints_for_tokens_is_documented(
    running: Running, path: str, data: bytes, basic: str | None, status: int, reason: str, error: str
) -> None:
    await check(running, "POST", path, await running.form(path, data, basic=basic))


@pytest.mark.parametrize(("endpoint", "statement", "reason", "exception"), test_introspect.FAULTS)
async def test_a_failure_at_the_endpoints_for_tokens_is_documented(
    running: Running, endpoint: str, statement: str, reason: str, exception: str
) -> None:
    await running.add(secret=SECRET)
    data, headers = good(f"/{endpoint}", (await running.authenticate()).body["token"])
    running.execute(statement)
    answer = await ask(running, "POST", f"/{endpoint}", data, headers)
    assert answer.body["error"] == "server_error"
    await check(running, "POST", f"/{endpoint}", answer)


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
async def test_what_a_client_hears_of_a_token_is_documented(running: Running, path: str) -> None:
    await running.add(secret=SECRET)
    await running.add(OTHER_ACCOUNT)
    client = {"client_id": ACCOUNT, "client_secret": SECRET}
    others = (await running.authenticate(account=OTHER_ACCOUNT)).body["token"]
    foreign = await running.form(path, {**client, "token": others})
    unknown = await running.form(path, {**client, "token": "x"})
    missing = await running.form(path, client)
    unclaimed = "f" * 24
    await running.add(unclaimed)
    nobody = await running.form(path, {**client, "client_id": unclaimed, "token": "x"})
    for answer in (foreign, unknown, missing, nobody):
        await check(running, "POST", path, answer)
    assert [answer.status for answer in (unknown, missing, nobody)] == [200, 400, 401]
    assert foreign.body == {"active": False} or foreign.body["error"] == "unauthorized_client"


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_failure_is_documented(start: Start, fault: Fault) -> None:
    running = await start(**fault.settings)
    await fault.arrange(running)
    if fault.statement is not None:
        running.execute(fault.statement)
    await check(running, "POST", "/auth", await running.authenticate())
    for path in ("/oauth/token", "/introspect", "/revoke"):
        await check(running, "POST", path, await ask(running, "POST", path, *good(path)))


@pytest.mark.parametrize("status", [400, 500, 503])
@pytest.mark.parametrize("errors", ["documented", "uniform"])
async def test_the_document_is_that_of_the_service_as_it_is_configured(start: Start, status: int, errors: str) -> None:
    running = await start(http={"server_error_status": status, "account_errors": errors})
    for path, ask_for in (("/auth", running.authenticate), ("/oauth/token", running.token)):
        await check(running, "POST", path, await ask_for())
    running.execute("ALTER TABLE accounts RENAME TO elsewhere")
    for path, ask_for in (("/auth", running.authenticate), ("/oauth/token", running.token)):
        answer = await ask_for()
        assert answer.status == status
        await check(running, "POST", path, answer)


@pytest.mark.parametrize(("paths", "table"), [(PATHS, TABLE), (["/oauth/token", "/introspect", "/revoke"], OAUTH)])
@pytest.mark.parametrize("uniform", [False, True])
def test_every_row_is_an_example_of_its_status_and_fits_its_schema(
    paths: list[str], table: tuple[Row, ...], uniform: bool
) -> None:
    configured = Answers(500, uniform=uniform, table=table)
    rows = [configured.row(row.reason) for row in table]
    document = openapi.describe("http://x", "0", *((rows, OAUTH) if table is TABLE else (TABLE, rows)))
    for row in rows:
        statuses = [document["paths"][path]["post"]["responses"].get(str(row.status), {}) for path in paths]
        found = [resolved(document, response)["content"]["application/json"] for response in statuses if response]
        found = [content for content in found if row.reason in content["examples"]]
        assert found, row.reason
        for content in found:
            value = content["examples"][row.reason]["value"]
            assert value == body(row, openapi.PARAMETERS.get(row.reason))
            assert Draft202012Validator(content["schema"]).is_valid(value)
            assert not Draft202012Validator(content["schema"]).is_valid({**value, "more": 1})


async def test_there_is_nothing_at_other_paths_as_documented(running: Running) -> None:
    answer = await ask(running, "GET", "/nothing")
    document = await described(running)
    check_response(document, document["components"]["responses"]["NotFound"], answer)
    assert answer.body == body(NOT_FOUND)


async def test_every_path_of_the_service_is_documented(running: Running) -> None:
    served = {resource.canonical.partition("{")[0] for resource in running.service.app.router.resources()}
    assert served - {docs.PAGE_PATH, docs.SCRIPT_PATH} == set((await described(running))["paths"])


# -- the document, the page and its script --------------------------------------------


async def test_the_server_is_the_issuer_and_nothing_of_a_request(start: Start) -> None:
    running = await start(tokens={"issuer": "https://auth.example/a/"})
    answer = await ask(running, "GET", openapi.PATH, headers={"Host": "evil.example"})
    assert answer.body["servers"] == [{"url": "https://auth.example/a"}]
    assert answer.body["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    ("path", "content_type", "cache_control"),
    [
        (openapi.PATH, "application/json", "public, max-age=300"),
        (docs.PAGE_PATH, "text/html; charset=utf-8", "public, max-age=300"),
        (docs.SCRIPT_PATH, "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"),
    ],
)
async def test_a_document_is_read_and_cached_and_not_on_record(
    running: Running, path: str, content_type: str, cache_control: str
) -> None:
    before = len(running.events())
    async with running.session.get(running.url + path) as response:
        text = await response.read()
    assert (response.status, response.headers["Content-Type"]) == (200, content_type)
    assert (response.headers["Cache-Control"], response.headers["X-Content-Type-Options"]) == (cache_control, "nosniff")
    async with running.session.head(running.url + path) as head:
        assert (head.status, await head.read(), head.headers["Content-Length"]) == (200, b"", str(len(text)))
    for tag in (response.headers["ETag"], f'"x", W/{response.headers["ETag"]}', "*"):
        again = await ask(running, "GET", path, headers={"If-None-Match": tag})
        assert (again.status, again.body) == (304, None)
        assert (again.headers["ETag"], again.headers["Cache-Control"]) == (response.headers["ETag"], cache_control)
    assert (await ask(running, "HEAD", path, headers={"If-None-Match": '"x"'})).status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refusal = await ask(running, method, path)
        assert (refusal.status, refusal.headers["Allow"]) == (405, "GET, HEAD")
        assert refusal.body == {"error": "Validation", "error_description": "The method must be GET or HEAD."}
        assert refusal.headers.get("Access-Control-Allow-Origin") == ("*" if path == openapi.PATH else None)
    assert len(running.events()) == before


@pytest.mark.parametrize("path", READ)
async def test_a_page_of_any_origin_may_read_what_anybody_may_know(running: Running, path: str) -> None:
    tag = (await ask(running, "GET", path)).headers["ETag"]
    for method in ("GET", "HEAD", "POST", "OPTIONS"):
        for more in ({}, {"Origin": "https://app.example"}, {"If-None-Match": tag}):
            assert (await ask(running, method, path, headers=more)).headers["Access-Control-Allow-Origin"] == "*"
    answer = await ask(running, "OPTIONS", path, headers={**CORS, "Access-Control-Request-Headers": "if-none-match"})
    assert (answer.status, answer.body) == (204, None)
    allowed = {name: value for name, value in answer.headers.items() if name.startswith("Access-Control-Allow-")}
    assert allowed == {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, HEAD",
        "Access-Control-Allow-Headers": "*",
    }
    for name in CORS:
        assert (await ask(running, "OPTIONS", path, headers={name: CORS[name]})).status == 405


async def test_no_page_of_another_origin_may_use_what_takes_a_secret(running: Running) -> None:
    await running.add(secret=SECRET)
    for path in (*PATHS, "/oauth/token", "/introspect", "/revoke", docs.PAGE_PATH, "/nothing"):
        requested = {**CORS, "Access-Control-Request-Method": "POST"}
        preflight = await ask(running, "OPTIONS", path, headers=requested)
        data, headers = good(path)
        answer = await ask(running, "POST", path, data, {**headers, "Origin": CORS["Origin"]})
        assert preflight.status == (404 if path == "/nothing" else 405)
        for found in (preflight, answer):
            assert not [name for name in found.headers if name.startswith("Access-Control-")]


async def test_the_page_is_made_of_what_the_service_has_and_may_load_nothing_else(running: Running) -> None:
    async with running.session.get(running.url + docs.PAGE_PATH) as response:
        page = await response.text()
    assert "//" not in page
    policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
    assert policy.pop("img-src") == "'self' data:"
    assert policy.pop("style-src") == "'self' 'unsafe-inline'"
    assert policy.pop("script-src") == policy.pop("connect-src") == "'self'"
    assert policy == dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    for target in re.findall(r'(?:src|spec-url|href)="(/[^"]*)"', page):
        async with running.session.get(running.url + target) as found:
            assert found.status == 200, target


def test_the_page_names_the_version_of_its_script() -> None:
    static = Path(docs.__file__).parent / "static"
    (named,) = re.findall(r"rapidoc-min\.js\?([0-9.]+)", (static / "docs.html").read_text())
    assert (static / "rapidoc-min.js").read_text("utf-8").startswith(f"/*! RapiDoc {named} |")
    assert f"RapiDoc {named}" in (static / "rapidoc-min.js.LICENSE.txt").read_text("utf-8")


# -- by a machine ---------------------------------------------------------------------

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.mark.slow
async def test_schemathesis_finds_no_answer_that_is_not_documented(running: Running, tmp_path: Path) -> None:
    await running.add(secret="hubble")
    command = ["-m", "schemathesis.cli", "run", running.url + openapi.PATH, "--checks", ",".join(CHECKS)]
    bounds = ["--max-examples", "20", "--seed", "1", "--workers", "1", "--no-color", "--request-timeout", "10"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command, *bounds),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 55)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode()[-6000:]
