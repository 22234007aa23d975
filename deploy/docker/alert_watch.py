"""What alert-drill.sh asks of Prometheus and tells at its end; with the standard library alone.

alert_watch.py rules IN OUT FACTOR     the rules with `for` and every window shortened
alert_watch.py targets URL             prints the active targets; exit code 1 unless all are up
alert_watch.py watch URL FOLDER        until SIGTERM; FOLDER/fired: when an alert began to fire and when it was over
alert_watch.py firing FOLDER           prints what fires now
alert_watch.py missing FOLDER ALERT…   prints those that have not fired since they were provoked
alert_watch.py summary FOLDER FACTOR   the table on stderr and a JSON document; exit code 1 unless each provoked alert fired

FOLDER/provoked has a line for each provocation: alert, seconds since 1970, how; between tabs.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

UNITS = {"s": 1, "m": 60, "h": 3600}
JOBS = {"replicas": 2, "exporter": 1, "ray": 2, "prometheus": 1}
TICK_S = 0.5


class Row(NamedTuple):
    """`seconds`: from the provocation until it fired, None if it did not. `before`: it fired already."""

    alert: str
    provoked_by: str
    seconds: float | None
    before: bool


def shortened(rules: str, factor: float) -> str:
    """The text of a rules file, its durations and windows divided; everything else stays, thresholds above all."""

    def divide(match: re.Match[str]) -> str:
        seconds = int(match[2]) * UNITS[match[3]] / factor
        if seconds != int(seconds) or seconds < 1:
            raise SystemExit(f"{match[0]}: not whole seconds when divided by {factor:g}")
        return f"{match[1]}{int(seconds)}s{match[4]}"

    return re.sub(r"(for: |\[)(\d+)([smh])(\]|$)", divide, rules, flags=re.MULTILINE)


def ask(url: str) -> Any:
    """The data of Prometheus' answer."""
    with urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]


def targets(url: str) -> bool:
    """Whether every target is up and none is missing; tells each."""
    try:
        found = ask(f"{url}/api/v1/targets?state=active")["activeTargets"]
    except (URLError, OSError):
        return False
    for target in sorted(found, key=lambda t: (t["labels"]["job"], t["labels"]["instance"])):
        print(
            f"  {target['labels']['job']:<12}{target['labels']['instance']:<24}{target['health']} {target['lastError']}"
        )
    return Counter(t["labels"]["job"] for t in found if t["health"] == "up") == JOBS


def watch(url: str, folder: Path) -> None:
    """Write down every change of what fires."""
    before: set[str] = set()
    with (folder / "fired").open("a", buffering=1) as out:
        while True:
            try:
                alerts = ask(f"{url}/api/v1/alerts")["alerts"]
                now = {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}
            except (URLError, OSError, ValueError):
                now = before
            at = time.time()
            for name, state in [*((n, "firing") for n in now - before), *((n, "over") for n in before - now)]:
                out.write(f"{at:.1f}\t{name}\t{state}\n")
            before = now
            time.sleep(TICK_S)


def changes(folder: Path) -> list[tuple[float, str, str]]:
    """What `watch` wrote: when, alert, `firing` or `over`."""
    lines = [line.split("\t") for line in (folder / "fired").read_text().splitlines()]
    return [(float(at), name, state) for at, name, state in lines]


def firing(folder: Path, until: float = float("inf")) -> set[str]:
    """What fires at a moment."""
    last = {name: state for at, name, state in changes(folder) if at <= until}
    return {name for name, state in last.items() if state == "firing"}


def rows(folder: Path) -> list[Row]:
    """Each provoked alert and when it fired."""
    found = []
    for line in (folder / "provoked").read_text().splitlines():
        alert, moment, how = line.split("\t")
        began = float(moment)
        before = alert in firing(folder, began)
        later = [at for at, name, state in changes(folder) if name == alert and state == "firing" and at >= began]
        seconds = 0.0 if before else round(min(later) - began, 1) if later else None
        found.append(Row(alert, how, seconds, before))
    return found


def summary(folder: Path, factor: float) -> bool:
    """Whether each provoked alert fired; tells the table and the document."""
    told = rows(folder)
    well = (folder / "well").read_text().split()
    for row in told:
        seconds = "did not fire" if row.seconds is None else "fired already" if row.before else f"{row.seconds:.0f} s"
        print(f"  {row.alert:<26}{seconds:>13}  {row.provoked_by}", file=sys.stderr)
    silent = [row.alert for row in told if row.seconds is None]
    document = {
        "durations_divided_by": factor,
        "targets": sum(JOBS.values()),
        "firing_when_well": well,
        "alerts": [row._asdict() for row in told],
        "did_not_fire": silent,
    }
    print(json.dumps(document))
    return not silent and not well


def main(what: str, *given: str) -> bool:
    """One of the commands above; whether all is well."""
    match what, given:
        case "rules", (source, out, factor):
            Path(out).write_text(shortened(Path(source).read_text(), float(factor)))
        case "targets", (url,):
            return targets(url)
        case "watch", (url, folder):
            watch(url, Path(folder))
        case "firing", (folder,):
            print("\n".join(sorted(firing(Path(folder)))))
        case "missing", (folder, *alerts):
            print(" ".join(row.alert for row in rows(Path(folder)) if row.alert in alerts and row.seconds is None))
        case "summary", (folder, factor):
            return summary(Path(folder), float(factor))
        case _:
            raise SystemExit(__doc__)
    return True


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
