"""Counters in the text format that Prometheus reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from threading import Lock

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds


class Metrics:
    """Requests by path and status, and how long they took."""

    def __init__(self) -> None:
        self._requests = Counter[tuple[str, int]]()
        self._within = Counter[tuple[str, float]]()
        self._seconds = Counter[str]()
        self._lock = Lock()

    def record(self, path: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]  # a Counter of seconds
            for bound in _BUCKETS:
                if seconds <= bound:
                    self._within[path, bound] += 1

    def text(self, more: Mapping[str, tuple[str, str, float]]) -> str:
        """All counters, and ``more``: name -> (kind, help, value)."""
        lines = []
        for name, (kind, about, value) in more.items():
            lines += [f"# HELP iclkit_{name} {about}", f"# TYPE iclkit_{name} {kind}", f"iclkit_{name} {value:g}"]
        with self._lock:
            lines += ["# HELP iclkit_requests_total Requests answered.", "# TYPE iclkit_requests_total counter"]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'iclkit_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += ["# HELP iclkit_request_seconds Time to answer.", "# TYPE iclkit_request_seconds histogram"]
            for path, seconds in sorted(self._seconds.items()):
                total = sum(count for (p, _), count in self._requests.items() if p == path)
                lines += [
                    f'iclkit_request_seconds_bucket{{path="{path}",le="{bound:g}"}} {self._within[path, bound]}'
                    for bound in _BUCKETS
                ]
                lines.append(f'iclkit_request_seconds_bucket{{path="{path}",le="+Inf"}} {total}')
                lines.append(f'iclkit_request_seconds_sum{{path="{path}"}} {seconds:.6f}')
                lines.append(f'iclkit_request_seconds_count{{path="{path}"}} {total}')
        return "\n".join(lines) + "\n"
