"""GET /docs: a page that shows /openapi.json, from files of this package alone.

The browser is told to load nothing from anywhere else: neither the page nor what a
document could smuggle into it reaches another host.
"""

from importlib.resources import files

from service.documents import Document

PAGE_PATH = "/docs"
SCRIPT_PATH = "/docs/rapidoc-min.js"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page() -> Document:
    security = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
    return Document(_read("docs.html"), "public, max-age=300", "text/html; charset=utf-8", security)


def script() -> Document:
    """RapiDoc. The page names its version in the query string, so that a cache may keep it for a year."""
    return Document(_read("rapidoc-min.js"), "public, max-age=31536000, immutable", "text/javascript; charset=utf-8")


def _read(name: str) -> bytes:
    return (files("service") / "static" / name).read_bytes()
