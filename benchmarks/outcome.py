"""What comes of one round of calls, whoever makes them."""

from array import array
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What came of one round.

    `latencies` are those of right answers, in nanoseconds; `wrong` counts answers that were not, `lost` calls
    without an answer; `sample` is the first wrong answer. `processor_seconds` are the generator's own.
    """

    seconds: float
    latencies: "array[int]"
    wrong: int
    lost: int
    sample: str | None
    processor_seconds: float

    @property
    def rate(self) -> float:
        """Right answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """The latency that so many percent of the calls do not pass, in milliseconds."""
        if not self.latencies:
            return 0.0
        place = min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))
        return sorted(self.latencies)[place] / 1e6
