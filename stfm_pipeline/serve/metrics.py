"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        here = self.registry
        self.requests = Counter("stfm_requests", "Requests answered.", ["route", "method", "status"], registry=here)
        self.seconds = Histogram("stfm_request_seconds", "Time to answer.", ["route"], buckets=BUCKETS, registry=here)
        self.in_flight = Gauge("stfm_requests_in_flight", "Requests being answered.", registry=here)
        self.waiting = Gauge("stfm_queue_waiting", "Requests that wait for their body or a worker.", registry=here)
        self.model = Gauge(
            "stfm_model_info", "The version that answers.", ["model", "version", "run_id", "system"], registry=here
        )
        self.swaps = Counter("stfm_model_swaps", "Versions put in the place of another.", registry=here)
        self.failed_swaps = Counter(
            "stfm_model_swap_failures", "Versions that did not load or forecast.", registry=here
        )
        self.watch_errors = Counter("stfm_watch_errors", "Times that the registry gave no answer.", registry=here)
        self.age = Gauge("stfm_data_age_seconds", "Since the last observation in the lake.", registry=here)
        self.age.set(float("nan"))

    def follow(self, waiting: Callable[[], float], age: Callable[[], float]) -> None:
        """Ask for these whenever they are read."""
        self.waiting.set_function(waiting)
        self.age.set_function(age)

    def text(self) -> bytes:
        return generate_latest(self.registry)
