"""The ceiling: an aiohttp handler that signs the same claims with the same key, and keeps nothing."""

import json
import sys
import time
import uuid
from pathlib import Path

import uvloop
from aiohttp import web
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jwt import PyJWS

KEY = load_pem_private_key(Path(sys.argv[1]).read_bytes(), password=None)
PORT = int(sys.argv[2])
KID = Path(sys.argv[1]).stem
ISSUER = f"http://127.0.0.1:{PORT}"
JWS = PyJWS(algorithms=["EdDSA"])


async def auth(request: web.Request) -> web.Response:
    body = json.loads(await request.read())
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": body["account"],
        "aud": ISSUER,
        "client_id": body["account"],
        "account": body["account"],
        "iat": now,
        "nbf": now,
        "exp": now + 3600,
        "jti": uuid.uuid4().hex,
    }
    token = JWS.encode(json.dumps(claims).encode(), KEY, "EdDSA", headers={"typ": "at+jwt", "kid": KID})  # type: ignore[arg-type]
    return web.json_response({"status": "success", "token": token})


def main() -> None:
    app = web.Application()
    app.router.add_post("/auth", auth)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)


if __name__ == "__main__":
    main()
