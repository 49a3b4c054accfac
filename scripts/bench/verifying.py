"""What introspection is held against: an aiohttp handler that verifies a token's signature, and nothing else.

Arguments: the public key's file and the port.
"""

import sys
from pathlib import Path

import uvloop
from aiohttp import web
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import PyJWS

KEY = load_pem_public_key(Path(sys.argv[1]).read_bytes())
PORT = int(sys.argv[2])
JWS = PyJWS(algorithms=["EdDSA"])


async def introspect(request: web.Request) -> web.Response:
    form = await request.post()
    claims = JWS.decode(str(form["token"]), KEY, algorithms=["EdDSA"])  # type: ignore[arg-type]
    return web.Response(body=claims, content_type="application/json")


def main() -> None:
    app = web.Application()
    app.router.add_post("/introspect", introspect)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)


if __name__ == "__main__":
    main()
