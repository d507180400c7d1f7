"""What a dashboard finds: names, labels and units that stay, one set for each daemon."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fishs2_daemon.metrics import Metrics

#: Dashboards and alerts are written against these; a renamed one is an empty graph.
FAMILIES = {
    "fishs2_requests": "counter",
    "fishs2_refusals": "counter",
    "fishs2_queue_waiting": "gauge",
    "fishs2_running": "gauge",
    "fishs2_queue_wait_seconds": "histogram",
    "fishs2_ttfa_seconds": "histogram",
    "fishs2_rtf": "histogram",
    "fishs2_audio_seconds": "counter",
    "fishs2_worker_restarts": "counter",
    "fishs2_connections": "gauge",
}


def exposed(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """What a scrape reads: values by name and label values."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_the_families_and_their_kinds_stay() -> None:
    families = text_string_to_metric_families(generate_latest(Metrics().registry).decode())
    kinds = {family.name: family.type for family in families if not family.name.endswith("_created")}
    assert FAMILIES.items() <= kinds.items()
    assert all(name.startswith("fishs2_") for name in kinds)


def test_outcomes_refusals_and_doors_are_told_apart() -> None:
    metrics = Metrics()
    metrics.requests.labels("spoken").inc()
    metrics.requests.labels("failed").inc(2)
    metrics.refusals.labels("busy").inc(3)
    metrics.connections.labels("http").set(4)
    values = exposed(metrics)
    assert values["fishs2_requests_total", ("spoken",)] == 1
    assert values["fishs2_requests_total", ("failed",)] == 2
    assert values["fishs2_refusals_total", ("busy",)] == 3
    assert values["fishs2_connections", ("http",)] == 4


def test_the_time_to_first_audio_is_resolved_where_it_is_promised() -> None:
    """25 ms at the median and 80 ms at the worst are different buckets, and a minute is the last."""
    metrics = Metrics()
    for seconds in (0.015, 0.025, 0.08, 60.0):
        metrics.ttfa.observe(seconds)
    counts = [value for (name, _), value in exposed(metrics).items() if name == "fishs2_ttfa_seconds_bucket"]
    assert sorted(set(counts)) == [0, 1, 2, 3, 4]


def test_two_daemons_in_one_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.restarts.inc()
    assert exposed(one)["fishs2_worker_restarts_total", ()] == 1
    assert exposed(other)["fishs2_worker_restarts_total", ()] == 0
