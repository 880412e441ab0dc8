"""A server interceptor for calls with one request: it must come soon, and must be a message.

grpc itself waits for it without a limit, which would let idle clients use up the calls that a server takes, and writes
a trace into the log for bytes that are no message.  So such calls are served as if their request were a stream of one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from prover.access import address_of

FIRST_S = 30.0  # for a request
SILENT = 32  # calls of one address whose request is not there yet


class Strict(grpc.aio.ServerInterceptor):
    """The methods of a service must be coroutines.  Those with a stream of requests have limits of their own."""

    def __init__(self, first_s: float = FIRST_S) -> None:
        self._first_s, self._silent = first_s, Counter[str]()

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming:
            return handler
        behavior = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def served(_: Any, context: Any) -> Any:
            return await behavior(await self._request(context), context)

        streaming = handler.response_streaming
        make = grpc.stream_stream_rpc_method_handler if streaming else grpc.stream_unary_rpc_method_handler
        return make(served, handler.request_deserializer, handler.response_serializer)

    async def _request(self, context: Any) -> Any:
        address = address_of(context.peer())
        if self._silent[address] >= SILENT:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls without a request")
        self._silent[address] += 1
        try:
            async with asyncio.timeout(self._first_s):
                request = await context.read()
        except DecodeError:
            request = grpc.aio.EOF
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no request came")
        finally:
            self._silent[address] -= 1
            if not self._silent[address]:
                del self._silent[address]
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: not the message of this call")
        return request
