"""Results of upstream's tests, compared with the baseline and the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from classify import classify
from ledger import Ledger
from running import Result

GOOD = ("passed", "xfailed")

OWNED = ("ours", "forbidden")

GOAL = {"none": 0.95, "wdata": 0.90}
"""Share of what stock passes that has to pass, by class; the rest is in the ledger."""


@dataclass
class Comparison:
    """One file of tests."""

    file: str
    stage: Path
    results: dict[str, dict[str, Result]]
    ledger: Ledger
    classes: list[str] = field(default_factory=list)

    def class_of(self, test: str) -> str:
        if not hasattr(self, "_classes"):
            self._classes = classify(self.stage / self.file)
        return self._classes.get(test.split("::", 1)[1].split("[")[0], "none")

    def baseline(self) -> dict[str, Result]:
        """Tests that stock passes, of the classes that are looked at."""
        return {
            test: result
            for test, result in self.results.get("stock", {}).items()
            if result.outcome in GOOD and (not self.classes or self.class_of(test) in self.classes)
        }

    def failures(self, mode: str) -> dict[str, Result]:
        """What stock passes and this mode does not, in the ledger or not."""
        results = self.results.get(mode, {})
        return {
            test: results[test]
            for test in self.baseline()
            if test in results and results[test].outcome not in GOOD
        }

    def regressions(self, mode: str) -> list[str]:
        """Failures that are not in the ledger."""
        return [t for t in self.failures(mode) if self.ledger.expects(t, mode) is None]

    def stale(self, mode: str) -> list[str]:
        """Entries of the ledger that pass, though not by chance."""
        return [
            test
            for test, result in self.results.get(mode, {}).items()
            if result.outcome == "passed"
            and (entry := self.ledger.expects(test, mode)) is not None
            and entry.expected != "either"
        ]

    def owned(self, mode: str) -> int:
        return sum(r.owned for r in self.results.get(mode, {}).values())

    def central(self, mode: str) -> int:
        return sum(r.central for r in self.results.get(mode, {}).values())

    def fell_back(self, mode: str) -> bool:
        """Whether tests ran and none of their tasks was owned."""
        ran = [r for r in self.results.get(mode, {}).values() if r.outcome in GOOD]
        return len(ran) > 0 and self.owned(mode) == 0


def show(comparisons: list[Comparison], total: bool = False, complete: bool = False) -> int:
    """Print the comparison; the exit status when it is the total."""
    if not total:
        for comparison in comparisons:
            _line(comparison)
        return 0
    print(f"\n{'file':42} {'stock':>6} {'ours':>6} {'forb.':>6} {'ledger':>6} {'owned':>8} central")
    for comparison in comparisons:
        _line(comparison)
    bad = 0
    for mode in OWNED:
        for comparison in comparisons:
            for test in comparison.regressions(mode):
                bad += 1
                why = comparison.results[mode][test].why
                print(f"FAILS ({mode}, not in the ledger) {test}: {why}")
            for test in comparison.stale(mode):
                bad += 1
                print(f"PASSES ({mode}, though in the ledger) {test}")
            if comparison.fell_back(mode):
                bad += 1
                print(f"NOTHING OWNED ({mode}) {comparison.file}: its tests ran no owned task")
            missing = set(comparison.baseline()) - set(comparison.results.get(mode, {}))
            if complete and missing:
                bad += 1
                number, first = len(missing), min(missing)
                print(f"NOT RUN ({mode}) {comparison.file}: {number} tests, {first} first")
    if not _goals(comparisons) and complete:
        bad += 1
    print("conformance: " + (f"{bad} problems" if bad else "as the ledger says"))
    return 1 if bad else 0


def _line(comparison: Comparison) -> None:
    baseline = comparison.baseline()
    passed = {
        mode: sum(comparison.results.get(mode, {}).get(t, Result(t, "")).outcome in GOOD
                  for t in baseline)
        for mode in OWNED
    }  # fmt: skip
    listed = sum(comparison.ledger.expects(test, "ours") is not None for test in baseline)
    print(
        f"{comparison.file.removeprefix('distributed/'):42} {len(baseline):6} {passed['ours']:6} "
        f"{passed['forbidden']:6} {listed:6} {comparison.owned('ours'):8} "
        f"{comparison.central('ours'):7}",
        flush=True,
    )


def _goals(comparisons: list[Comparison]) -> bool:
    """Print how much of each class passes; whether that is what is asked for."""
    reached = True
    for kind, share in GOAL.items():
        counts: Counter[str] = Counter()
        for comparison in comparisons:
            for test in comparison.baseline():
                if comparison.class_of(test) != kind:
                    continue
                counts["stock"] += 1
                for mode in OWNED:
                    result = comparison.results.get(mode, {}).get(test)
                    counts[mode] += result is not None and result.outcome in GOOD
        if not counts["stock"]:
            continue
        worst = min(counts[mode] / counts["stock"] for mode in OWNED)
        reached &= worst >= share
        print(
            f"class {kind}: stock {counts['stock']}, ours {counts['ours']} "
            f"({counts['ours'] / counts['stock']:.1%}), central fall-back forbidden "
            f"{counts['forbidden']} ({counts['forbidden'] / counts['stock']:.1%}); "
            f"asked for {share:.0%}"
        )
    return reached


def show_present(file: str, stock: dict[str, Result], present: dict[str, Result]) -> int:
    """Print how many tests end alike without the plugins and with them; how many do not."""
    loaded = sum(result.owned for result in present.values())
    alike = sum(t in present and present[t].outcome == r.outcome for t, r in stock.items())
    counts = Counter(result.outcome for result in present.values())
    print(f"{file}: {len(stock)} tests, {alike} alike, {loaded} plugins started; {dict(counts)}")
    different = sorted(t for t in {*stock, *present} if outcome(stock, t) != outcome(present, t))
    for test in different:
        why = present[test].why if test in present else ""
        print(
            f"DIFFERENT {test}: {outcome(stock, test)}, with them {outcome(present, test)}: {why}"
        )
    if not loaded:
        print(f"NO PLUGIN STARTED in {file}")
    return len(different) + (not loaded)


def outcome(results: dict[str, Result], test: str) -> str:
    return results[test].outcome if test in results else "not run"
