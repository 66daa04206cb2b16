"""OpenTelemetry spans of loads, refreshes and commits, each connected with the request that caused it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from swr.cache import Cache
from swr.engine.flights import Finished, Flight
from swr.engine.results import Failed
from swr.errors import ConfigurationError
from swr.loaders.batch import Part

try:
    from opentelemetry import context, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, Tracer
except ImportError as error:
    raise ImportError("swr.otel needs opentelemetry-api: pip install 'swr[otel]'") from error

# The key in a context for the background run of the app (`_Replay`) that is under way.
_REPLAY: Final = context.create_key("swr-replay")
# Until the program has set up its SDK, this tracer does nothing; then it forwards to the tracer of the SDK.
_TRACER: Final = trace.get_tracer("swr")


class _Open(NamedTuple):
    """The span of a load that runs.

    Parameters:
        span: the span.
        parent: the span of the request to whose trace the load belongs; invalid, or None, if there is none.
    """

    span: Span
    parent: SpanContext | None

    def link(self, waiting: Span) -> None:
        """Add a link to this load to the span of a waiting request, unless the load belongs to that request."""
        if waiting.get_span_context() != self.parent:
            waiting.add_link(self.span.get_span_context())


class _Replay:
    """The span of a background run of the app, which is also the span of the load within that run.

    Parameters:
        key: the key that the load refreshes.
        span: the span.
    """

    def __init__(self, key: str, span: Span) -> None:
        self.key = key
        self.span = span
        self._has_failed = False
        # The parts that have not ended: the run of the app, and the load, whose task may end after that run.
        self._parts = 1

    def begin(self) -> None:
        """Keep the span open until one more part ends."""
        self._parts += 1

    def end(self) -> None:
        """Note that a part has ended; the last one ends the span."""
        self._parts -= 1
        if not self._parts:
            self.span.end()

    def fail(self, error: BaseException) -> None:
        """Mark the span as failed, once: an error of the load may end the run, too."""
        if not self._has_failed:
            self._has_failed = True
            _fail(self.span, error)


class _Spans:
    """The spans of one cache; see `swr.engine.tracing.Tracing`.

    Parameters:
        cache: the cache whose loads are traced.
        tracer: makes the spans.
    """

    def __init__(self, cache: Cache, tracer: Tracer) -> None:
        self._cache = cache
        self._tracer = tracer
        # By flight, and by batch: a call of a batch loader has one span for all its flights.
        self._open: dict[object, _Open] = {}
        # The spans of requests that wait for a flight whose load has not begun.
        self._joined: dict[Flight, list[Span]] = {}

    def cause(self) -> Context:
        return context.get_current()

    @contextlib.contextmanager
    def load(self, flight: Flight, cause: Context, *, is_behind: bool) -> Iterator[None]:
        batch = _loaded_by(flight)
        if batch in self._open:
            self._link(flight, self._open[batch])
            yield
            return
        replay = cause.get(_REPLAY)
        if isinstance(replay, _Replay) and replay.key == flight.key:
            with self._load_in(replay, flight):
                yield
            return
        caused_by = trace.get_current_span(cause).get_span_context()
        span, around = self._refresh(cause) if is_behind else (self._tracer.start_span("swr load", cause), cause)
        span.set_attributes(self._attributes(flight))
        opened = _Open(span, None if is_behind else caused_by)
        self._open[flight] = self._open[batch] = opened
        self._link(flight, opened)
        token = context.attach(trace.set_span_in_context(span, around))
        try:
            yield
        except BaseException as error:
            # If swr gives up a load, it also cancels it; then the finished flight has the reason.
            if isinstance(error, Exception) or not flight.is_finished:
                _fail(span, error)
            raise
        finally:
            context.detach(token)
            self._end(flight, span)
            self._open.pop(flight, None)
            self._open.pop(batch, None)

    def _refresh(self, cause: Context) -> tuple[Span, Context]:
        """Begin the span of a refresh; return it, and the context around it."""
        # A refresh is a trace of its own, with a link, because it may end long after the request, which does not wait.
        caused_by = trace.get_current_span(cause).get_span_context()
        around = Context()
        links = [Link(caused_by)] if caused_by.is_valid else []
        return self._tracer.start_span("swr refresh", around, links=links), around

    @contextlib.contextmanager
    def replay(self, key: str, cause: Context) -> Iterator[None]:
        span, around = self._refresh(cause)
        span.set_attribute("swr.cache", self._cache.namespace)
        replay = _Replay(key, span)
        token = context.attach(context.set_value(_REPLAY, replay, trace.set_span_in_context(span, around)))
        try:
            yield
        except Exception as error:
            replay.fail(error)
            raise
        finally:
            context.detach(token)
            replay.end()

    @contextlib.contextmanager
    def _load_in(self, replay: _Replay, flight: Flight) -> Iterator[None]:
        """Let a load within a background run of the app share the span of that run."""
        replay.begin()
        self._open[flight] = opened = _Open(replay.span, None)
        self._link(flight, opened)
        try:
            yield
        finally:
            replay.span.set_attributes(self._attributes(flight))
            error = _failure(flight)
            if error is not None:
                replay.fail(error)
            del self._open[flight]
            replay.end()

    def join(self, flight: Flight) -> None:
        waiting = trace.get_current_span()
        if not waiting.is_recording():
            return
        opened = self._open.get(_loaded_by(flight))
        if opened is not None:
            opened.link(waiting)
        elif flight in self._joined:
            self._joined[flight].append(waiting)
        else:
            self._joined[flight] = [waiting]
            # The load may never begin here, because another process may load instead.
            flight.then = (*flight.then, self._forget)

    def _forget(self, flight: Flight) -> None:
        self._joined.pop(flight, None)

    def _link(self, flight: Flight, opened: _Open) -> None:
        """Link the requests that already wait to the load that now begins."""
        for waiting in self._joined.pop(flight, ()):
            opened.link(waiting)

    @contextlib.contextmanager
    def commit(self, flight: Flight) -> Iterator[None]:
        opened = self._open.get(flight)
        if opened is None:
            yield
            return
        of_load = trace.set_span_in_context(opened.span, context.get_current())
        with self._tracer.start_as_current_span("swr commit", of_load, attributes=self._attributes(flight)):
            yield

    def _end(self, flight: Flight, span: Span) -> None:
        # The route is known only now, and so are failures that the loader itself did not raise.
        span.set_attributes(self._attributes(flight))
        error = _failure(flight)
        if error is not None:
            _fail(span, error)
        span.end()

    def _attributes(self, flight: Flight) -> dict[str, str]:
        tally = self._cache.engine.counts.of(flight.job.loader)
        found = {"swr.cache": self._cache.namespace, "swr.loader": tally.loader, "swr.route": tally.route}
        return {name: value for name, value in found.items() if value}


def _loaded_by(flight: Flight) -> object:
    """Return the unit that one call of a loader loads: a flight, or a batch of several flights."""
    return flight.job.batch if isinstance(flight.job, Part) else flight


def _failure(flight: Flight) -> BaseException | None:
    """Return why a flight failed, or None. Its waiters learn that only after its lease is released."""
    result = flight.state.result if isinstance(flight.state, Finished) else None
    return result.error if isinstance(result, Failed) else None


def _fail(span: Span, error: BaseException) -> None:
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, type(error).__name__))


def trace_loads(cache: Cache, tracer: Tracer = _TRACER) -> Callable[[], None]:
    """Make OpenTelemetry spans of the loads of `cache` from now on: `swr load`, `swr refresh` and `swr commit`.

    A load belongs to the trace of the request that waits for it, and the spans of its loader belong to the load's span.
    A refresh in the background is a trace of its own, with a link to the request that caused it. If a request waits for
    another request's load, its span has a link to the load's span. A batch loader has one span for each call. No span
    contains a key; the attributes `swr.cache`, `swr.loader` and `swr.route` tell where a load belongs.

    Parameters:
        cache: its `namespace` is the attribute `swr.cache`.
        tracer: makes the spans; by default the tracer "swr" of the global tracer provider.

    Returns:
        A function that ends the tracing, from the next load on.

    Raises:
        ConfigurationError: `cache` is not a cache, or is traced already.
    """
    if not isinstance(cache, Cache):
        raise ConfigurationError(f"cache={cache!r}: give a swr.Cache")
    runtime = cache.engine.runtime
    if runtime.tracing is not None:
        raise ConfigurationError(f"the cache {cache.namespace!r} is already traced: end that tracing first")
    runtime.tracing = spans = _Spans(cache, tracer)

    def end() -> None:
        if runtime.tracing is spans:
            runtime.tracing = None

    return end
