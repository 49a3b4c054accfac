"""What is there to be read: a body that is made once, its ETag, and how the two are answered.

Knows nothing of what a document says. Nothing here goes on record.
"""

import hashlib
from collections.abc import Mapping

from aiohttp import web
from attrs import field, frozen

from service import contract
from service.handler import answer, answer_headers, new_request_id


@frozen
class Document:
    """A body, and what of its headers is its own. RFC 9110: to GET and HEAD alone, 304 to whoever has it already."""

    body: bytes = field(repr=False)
    cache_control: str
    content_type: str = "application/json"
    more: Mapping[str, str] = field(factory=dict)
    etag: str = field(init=False)

    @etag.default
    def _of_body(self) -> str:
        return hashlib.sha256(self.body).hexdigest()[:32]

    async def get(self, request: web.Request) -> web.Response:
        request_id = new_request_id()
        if request.method not in ("GET", "HEAD"):
            return answer(contract.ONLY_TO_BE_READ, request_id).of_aiohttp()
        fields = {
            **answer_headers(request_id),
            "Cache-Control": self.cache_control,
            "Content-Type": self.content_type,
            "ETag": f'"{self.etag}"',
            **self.more,
        }
        known = [tag.value for tag in request.if_none_match or ()]
        if self.etag in known or "*" in known:
            del fields["Content-Type"]
            return web.Response(status=304, headers=fields)
        return web.Response(body=self.body, headers=fields)
