"""A server interceptor: a message that is no message is INVALID_ARGUMENT, without a trace in the log of grpc."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Strict(grpc.aio.ServerInterceptor):
    """For calls with one request; those with a stream of them get DecodeError where they read."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or handler.request_streaming:
            return handler
        decode = handler.request_deserializer

        def tolerant(data: bytes) -> Any:
            try:
                return decode(data)
            except DecodeError:
                return None

        kind = "unary_stream" if handler.response_streaming else "unary_unary"
        behavior = getattr(handler, kind)

        async def checked(request: Any, context: Any) -> Any:
            if request is None:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request: not the message of this call")
            return await behavior(request, context)

        return handler._replace(request_deserializer=tolerant, **{kind: checked})
