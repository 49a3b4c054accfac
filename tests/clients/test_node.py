"""Clients of Node, as they come, against a service that runs: `openid-client` and `jose`."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.harness import ACCOUNT, SECRET, Running


async def flow(running: Running, node: Path, method: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *("node", "flow.mjs", running.url, ACCOUNT, SECRET, method),
        cwd=node,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["basic", "post"])
@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
async def test_node_clients_discover_get_verify_introspect_and_revoke(
    start: Start, node: Path, method: str, algorithm: str
) -> None:
    running = await start(tokens={"algorithm": algorithm})
    await running.add()
    found = await flow(running, node, method)
    assert found["granted"] == {"type": "bearer", "expiresIn": 3600}
    assert (found["header"]["alg"], found["header"]["typ"]) == (algorithm, "at+jwt")
    claims = found["payload"]
    assert (claims["iss"], claims["aud"], claims["sub"]) == (running.url, running.url, ACCOUNT)
    assert found["before"] == {"active": True, **claims, "token_type": "Bearer"}
    assert found["after"] == {"active": False}
    challenge = {"scheme": "basic", "parameters": {"realm": "hubler-auth", "charset": "UTF-8"}}
    assert found["refused"] == {"code": "OAUTH_WWW_AUTHENTICATE_CHALLENGE", "status": 401, "challenges": [challenge]}
    assert running.types(claims["jti"])[-1] == "auth.granted"
    revoked = [event["jti"] for event in running.events() if event["type"] == "token.revoked"]
    assert revoked == [claims["jti"]]
