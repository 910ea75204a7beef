"""The numbers of several processes as those of one gateway, for one scrape.

Counters, histograms and the gateway's own gauges are added up. What says nothing as a sum (whether a server
is up, and all that is of the process itself) has the label ``worker``. A process that does not answer in time
counts with what it said last, and the counters of one that has ended stay in the sums: Prometheus takes a
counter that falls for one that begins anew.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from mcpgw.metrics import BACKEND_UP, CERTIFICATE_ENDS, written

_OWN: Final = "mcpgw_"
_OF_EACH: Final = frozenset({BACKEND_UP.name})
_SAME: Final = frozenset({CERTIFICATE_ENDS.name})
_LASTING: Final = ("counter", "histogram")

_Labels = tuple[tuple[str, str], ...]


class Sample(msgspec.Struct, array_like=True, frozen=True):
    """One number with its labels."""

    name: str
    labels: dict[str, str]
    value: float


class Family(msgspec.Struct, array_like=True, frozen=True):
    """One metric of one process with all its samples, as it goes over the link."""

    name: str
    help: str
    kind: str
    unit: str
    samples: list[Sample]


def to_families(metrics: Iterable[Metric]) -> list[Family]:
    """What `Metrics.families` answers, ready to be sent."""
    return [
        Family(
            metric.name,
            metric.documentation,
            metric.type,
            metric.unit,
            [Sample(one.name, dict(one.labels), float(one.value)) for one in metric.samples],
        )
        for metric in metrics
    ]


class MergedMetrics:
    """What is known of the numbers of the other processes, by their numbers."""

    def __init__(self) -> None:
        self._last: dict[int, list[Family]] = {}
        self._ended: list[Family] = []

    def learn(self, told: Mapping[int, Any]) -> None:
        """These have answered: each a list of `Family` as JSON."""
        for number, families in told.items():
            self._last[number] = msgspec.convert(families, list[Family])

    def worker_gone(self, number: int) -> None:
        """One has ended; what it had counted stays counted."""
        lasting = [family for family in self._last.pop(number, ()) if family.kind in _LASTING]
        summed = _Sums()
        for family in (*self._ended, *lasting):
            if family.name.startswith(_OWN):
                summed.add(family, 0)
        self._ended = to_families(summed.metrics())

    def render(self, own: list[Family], number: int, accept: str) -> tuple[bytes, str]:
        """All of it, with this process's `own`, and the content type; see `Metrics.render`."""
        sums = _Sums()
        for worker, families in sorted({**self._last, number: own}.items()):
            for family in families:
                sums.add(family, worker)
        for family in self._ended:
            sums.add(family, 0)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Merged(sums.metrics()))
        return written(registry, accept)


class _Merged(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        return self._metrics


class _Sums:
    """Families of several processes, added up sample by sample."""

    def __init__(self) -> None:
        self._families: dict[str, Family] = {}
        self._values: dict[str, dict[tuple[str, _Labels], float]] = {}

    def add(self, family: Family, worker: int) -> None:
        """Count one family of one process in."""
        self._families.setdefault(family.name, family)
        values = self._values.setdefault(family.name, {})
        is_of_each = family.name in _OF_EACH or not family.name.startswith(_OWN)
        for sample in family.samples:
            labels = tuple(sample.labels.items())
            if is_of_each:
                labels += (("worker", str(worker)),)
            key = sample.name, labels
            values[key] = sample.value if family.name in _SAME else values.get(key, 0.0) + sample.value

    def metrics(self) -> list[Metric]:
        """The sums, in the order in which the families came."""
        made: list[Metric] = []
        for name, family in self._families.items():
            metric = Metric(name, family.help, family.kind, family.unit)
            for (sample, labels), value in self._values[name].items():
                metric.add_sample(sample, dict(labels), value)
            made.append(metric)
        return made
