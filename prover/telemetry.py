"""What the owner sees of a running server: metrics for Prometheus, and logs as text or JSON lines.

Neither says more about a model than its client learned: refused is one cause, whatever the reason, and no message of an
error that nobody foresaw is repeated.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from protocol.errors import ParameterError
from prover.access import split_address

SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "zkmark_job_seconds", "Seconds from when a job is taken to its end", buckets=SECONDS, registry=self.registry
        )
        self._received = Counter("zkmark_received_bytes", "Bytes of models", registry=self.registry)
        self._sent = Counter("zkmark_sent_bytes", "Bytes of claims", registry=self.registry)
        self._refused = Counter(
            "zkmark_refused", "Calls and jobs without a result, by cause", ["cause"], registry=self.registry
        )

    def job_seconds(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def received(self, count: int) -> None:
        self._received.inc(count)

    def sent(self, count: int) -> None:
        self._sent.inc(count)

    def refused(self, cause: str) -> None:
        self._refused.labels(cause).inc()

    def watch(self, name: str, text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """A gauge that is asked for when Prometheus asks."""

        class Asked(Collector):
            def collect(self) -> Iterator[GaugeMetricFamily]:
                family = GaugeMetricFamily(name, text, labels=[label])
                for key, value in values().items():
                    family.add_metric([key], value)
                yield family

        self.registry.register(Asked())


def serve_metrics(metrics: Metrics, listen: str) -> tuple[int, Callable[[], None]]:
    """Answer Prometheus on HOST:PORT: the bound port, and what stops it.  Raises ParameterError."""
    host, port = split_address(listen)
    if not host:
        raise ParameterError(f"{listen} is not HOST:PORT")
    try:
        server, thread = start_http_server(port, host, metrics.registry)
    except OSError as error:
        raise ParameterError(f"cannot listen on {listen}: {error.strerror}") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, stop


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        return json.dumps(line | getattr(record, "fields", {}))


class Text(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value!r}" for key, value in getattr(record, "fields", {}).items())
        return f"{self.formatTime(record)} {record.name} {record.getMessage()}{fields}"


def log_to_stderr(as_json: bool) -> None:
    """What `zkmark.prover` logs goes to the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
