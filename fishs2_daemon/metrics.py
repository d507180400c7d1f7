"""What the daemon counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 3)


class Metrics:
    """One registry per daemon, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter("fishs2_requests", "Texts accepted, by how they ended", ["outcome"], registry=registry)
        self.refusals = Counter("fishs2_refusals", "Texts refused, by error code", ["code"], registry=registry)
        self.waiting = Gauge("fishs2_queue_waiting", "Texts waiting for a free slot", registry=registry)
        self.running = Gauge("fishs2_running", "Texts being spoken", registry=registry)
        self.queue_wait = Histogram(
            "fishs2_queue_wait_seconds", "Wait for a free slot", buckets=_SECONDS, registry=registry
        )
        self.ttfa = Histogram(
            "fishs2_ttfa_seconds",
            "From the first phrase at hand to the first audio",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rtf = Histogram(
            "fishs2_rtf", "Seconds of waiting for the engine per second of audio", buckets=_RATIOS, registry=registry
        )
        self.audio = Counter("fishs2_audio_seconds", "Seconds of audio made", registry=registry)
        self.restarts = Counter("fishs2_worker_restarts", "Times the engine worker was restarted", registry=registry)
        self.connections = Gauge("fishs2_connections", "Open connections, by door", ["door"], registry=registry)
