"""Measure mcpgw beside what else there is, and print tables.

    python -m benchmarks [calls] [http] [idle] [fanout] [start] [--write] [--seconds 3] [--rounds 5]

`make bench` installs what is measured and runs all of them. A first look takes
`python -m benchmarks calls http --seconds 0.5 --rounds 2`. The exit status is 1 where an answer was wrong.
"""

import argparse
import sys

from benchmarks.calls import BASES, measure_calls, measure_http
from benchmarks.fanout import measure_fanout
from benchmarks.idle import measure_idle
from benchmarks.start import measure_start
from benchmarks.targets import TARGETS

KINDS = {
    "calls": measure_calls,
    "http": measure_http,
    "idle": measure_idle,
    "fanout": measure_fanout,
    "start": measure_start,
}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [target.name for target in TARGETS]
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"what to measure: {', '.join(KINDS)}; all")
    parser.add_argument("--write", action="store_true", help="put the results into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side; they take turns")
    parser.add_argument("--seconds", type=float, default=3.0, help="calls, http: length of one round")
    parser.add_argument(
        "--in-flight", type=int, nargs="+", default=[1, 16, 64], help="calls: so many at once"
    )
    parser.add_argument("--only", nargs="+", choices=names, help="calls, http: these targets alone")
    parser.add_argument(
        "--base", dest="bases", nargs="+", choices=names, default=BASES, help="calls, http: ratios to these"
    )
    parser.add_argument(
        "--connections", type=int, nargs="+", default=[1000, 5000, 10_000], help="idle: so many to one server"
    )
    parser.add_argument("--idle-rounds", type=int, default=3, help="idle: rounds of each side")
    parser.add_argument(
        "--readers", type=int, nargs="+", default=[1000, 5000, 10_000], help="fanout: so many of each server"
    )
    parser.add_argument(
        "--deliveries", type=int, default=50_000, help="fanout: deliveries in a round, at least 3 events"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="fanout: processes that each server's readers share"
    )
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    wrong = 0
    for kind in options.kinds or KINDS:
        section = KINDS[kind](options)
        print(f"\n{section.text(with_tables=False)}", flush=True)
        if options.write:
            section.write()
        wrong += section.wrong
    if wrong:
        sys.exit(f"{wrong} answers were wrong")


if __name__ == "__main__":
    main()
