"""The trace that a call of an upstream classifier belongs to."""

from __future__ import annotations

from contextvars import ContextVar

#: Trace metadata for calls to an upstream classifier, set in the thread that makes the call. A
#: batch carries the trace of the request that leads it.
TRACE_CONTEXT: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("trace_context", default=())
