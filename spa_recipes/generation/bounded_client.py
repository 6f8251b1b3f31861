"""An HTTP client that reads an answer within a size and a time, whatever the server sends."""

import asyncio
from typing import Any

import openai


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """The HTTP client of `openai`, with limits on a whole answer.

    Its own time limits are for each packet, so a byte a second would never end. Its own answers have any size, and a
    compressed one takes a thousand times the memory of what is sent. A redirect is reported and not followed: the
    recipe does not name the place that it leads to.

    Args:
        timeout: limits for a connection and for each packet.
        seconds: the longest time from the request to the last byte of the answer.
        max_bytes: the largest answer after decompression.
    """

    def __init__(self, timeout: openai.Timeout, seconds: float, max_bytes: int) -> None:
        super().__init__(timeout=timeout, follow_redirects=False)
        self._seconds, self._max_bytes = seconds, max_bytes

    async def send(self, request: Any, **options: Any) -> Any:
        """Send a request and return its answer, read to the end.

        Raises:
            TimeoutError: the whole takes longer than `seconds`.
            ValueError: the answer is larger than `max_bytes`.
        """
        async with asyncio.timeout(self._seconds):
            response = await super().send(request, **{**options, "stream": True})
            body = bytearray()
            try:
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > self._max_bytes:
                        raise ValueError(f"more than {self._max_bytes // 1024**2} MiB")
            finally:
                await response.aclose()
        # These headers are about the form in which it was sent.
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return type(response)(response.status_code, headers=headers, content=bytes(body), request=request)
