"""What is there to be read: a body that is made once, its ETag, and how the two are answered.

Knows nothing of what a document says. Nothing here goes on record.
"""

import hashlib
from collections.abc import Mapping

from aiohttp import BytesPayload, web
from aiohttp.abc import AbstractStreamWriter
from attrs import field, frozen

from service import contract
from service.handler import answer, answer_headers, new_request_id

# https://fetch.spec.whatwg.org/#http-cors-protocol: a page of any origin may read it, without credentials.
ANY_ORIGIN = {"Access-Control-Allow-Origin": "*"}
PREFLIGHT = {
    **ANY_ORIGIN,
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "86400",
}

SLICE_BYTES = 65_536


@frozen
class Document:
    """A body, and what of its headers is its own. RFC 9110: to GET and HEAD alone, 304 to whoever has it already.

    With `any_origin` scripts in browsers may read it, whatever page they are from.
    """

    body: bytes = field(repr=False)
    cache_control: str
    content_type: str = "application/json"
    more: Mapping[str, str] = field(factory=dict)
    any_origin: bool = False
    etag: str = field(init=False)

    @etag.default
    def _of_body(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]

    async def get(self, request: web.Request) -> web.Response:
        request_id = new_request_id()
        shared = ANY_ORIGIN if self.any_origin else {}
        if self.any_origin and _is_preflight(request):
            fields = {**answer_headers(request_id), **PREFLIGHT}
            del fields["Content-Type"]
            return web.Response(status=204, headers=fields)
        if request.method not in ("GET", "HEAD"):
            return answer(contract.ONLY_TO_BE_READ, request_id, beside=shared).of_aiohttp()
        fields = {
            **answer_headers(request_id),
            **shared,
            "Cache-Control": self.cache_control,
            "Content-Type": self.content_type,
            "ETag": f'"{self.etag}"',
            **self.more,
        }
        known = [tag.value for tag in request.if_none_match or ()]
        if self.etag in known or "*" in known:
            del fields["Content-Type"]
            return web.Response(status=304, headers=fields)
        return web.Response(body=_Shared(self.body), headers=fields)


def _is_preflight(request: web.Request) -> bool:
    asks = "Origin" in request.headers and "Access-Control-Request-Method" in request.headers
    return request.method == "OPTIONS" and asks


class _Shared(BytesPayload):
    """Bytes that all answers share: none copies them, and the next slice waits until the caller has read the last."""

    async def write(self, writer: AbstractStreamWriter) -> None:
        writer.send_headers()  # else they and the first slice become one copy
        whole = memoryview(self._value)
        for start in range(0, len(whole), SLICE_BYTES):
            await writer.write(whole[start : start + SLICE_BYTES])
            await writer.drain()
