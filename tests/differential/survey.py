"""Many cases in a row: counts by kind, and every distinct failure, shrunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.differential.cases import Case, make_case
from tests.differential.run import Difference, Lab, Program, compare_case, recipe
from tests.differential.shrink import Signature, shrink, signature


@dataclass
class Failure:
    """A shrunk case, what differs, and the numbers of the cases that came down to it."""

    case: Case
    found: list[Difference]
    numbers: list[int]

    def text(self, program: Program) -> str:
        """The recipe, the two commands, what differs."""
        lines = [recipe(self.case, program), *(str(one) for one in self.found)]
        return "\n".join(lines)

    @property
    def key(self) -> tuple[object, ...]:
        """Failures with the same one are told once."""
        case = self.case
        options = tuple(sorted({option[0] for option in case.options}))
        return signature(self.found), options, frozenset(image.place for image in case.images if not image.local)


@dataclass
class Survey:
    """The result of a run."""

    cases: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def summary(self) -> str:
        """A line for each kind of case."""
        lines = [f"{'kind':<18}{'cases':>7}{'failed':>8}"]
        lines += [f"{kind:<18}{count:>7}{self.failed[kind]:>8}" for kind, count in sorted(self.cases.items())]
        return "\n".join([*lines, f"{'all':<18}{self.cases.total():>7}{self.failed.total():>8}"])

    def told(self, program: Program, seed: int) -> str:
        """The failures, those that most cases came down to first."""
        return "\n\n".join(
            f"--- {len(failure.numbers)} case(s), seed {seed}: {', '.join(map(str, failure.numbers[:5]))}\n"
            f"{failure.text(program)}"
            for failure in sorted(self.failures, key=lambda failure: -len(failure.numbers))
        )


def survey(
    numbers: range,
    seed: int,
    program: Program,
    lab: Lab,
    *,
    jobs: int = 2,
    shrink_each: int = 3,
    budget: int = 80,
    tell: Callable[[int], None] = lambda done: None,
) -> Survey:
    """Run these cases. Of failures that look alike, `shrink_each` (at least 1) are shrunk, with `budget` runs each."""
    made = Survey()
    cases = [make_case(seed, number, lab.remote) for number in numbers]
    alike: dict[Signature, list[tuple[int, Case, list[Difference]]]] = {}

    def compare(case: Case) -> list[Difference]:
        return compare_case(case, program, lab)

    def smallest(failure: tuple[int, Case, list[Difference]]) -> Failure:
        number, case, found = failure
        return Failure(*shrink(case, found, compare, budget), [number])

    with ThreadPoolExecutor(jobs) as pool:
        for number, case, found in zip(numbers, cases, pool.map(compare, cases), strict=True):
            made.cases[case.kind] += 1
            if found:
                made.failed[case.kind] += 1
                alike.setdefault(signature(found), []).append((number, case, found))
            tell(number - numbers.start + 1)
        for failures in alike.values():
            failures.sort(key=lambda failure: len(failure[1].options) + 2 * len(failure[1].sources))
        chosen = [failure for failures in alike.values() for failure in failures[:shrink_each]]
        shrunk = {failure.numbers[0]: failure for failure in pool.map(smallest, chosen)}
    distinct: dict[tuple[object, ...], Failure] = {}
    for failures in alike.values():
        for number, *_ in failures[:shrink_each]:
            first = distinct.setdefault(shrunk[number].key, shrunk[number])
            first.numbers.append(number)
        # Those that were not shrunk are counted with one that was.
        first.numbers += [number for number, *_ in failures[shrink_each:]]
    for failure in distinct.values():
        failure.numbers = sorted(set(failure.numbers))
    made.failures = list(distinct.values())
    return made
