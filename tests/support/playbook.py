"""Examples of the state machine, written as plays: events go in by `>>`, actions come out by `<<`.

    assert Playbook(state) >> LeaseWanted("a") << Grant("a", 1, Extent(0, MiB), True)

An assertion plays what no earlier one has played. So a test can look at the state in between, and write the play on.
After every event exactly the expected actions must come, in order, and the state's invariants must hold. The play ends
at the first event where that fails. Then the error shows the expected story beside the actual one.
`unittest.mock.ANY` stands for a field that does not matter.
"""

from __future__ import annotations

import difflib
import itertools

from msgspec import Struct

from mpconv.core.events import Action, Event
from mpconv.core.state import CoordinatorState


class At(Struct, frozen=True):
    """The clock shows so many seconds when the next events come."""

    seconds: float


class Playbook:
    """What goes into `state` and what must come out of it. The clock begins at 0."""

    def __init__(self, state: CoordinatorState) -> None:
        self.state = state
        self.now = 0.0
        self.asserted = False
        self._scenes: list[tuple[Event | At, list[Action]]] = []
        self._expected: list[str] = []
        self._actual: list[str] = []
        _made.append(self)

    def __rshift__(self, cue: Event | At) -> Playbook:
        """Write on: this event comes next, or the clock moves."""
        self._scenes.append((cue, []))
        self.asserted = False
        return self

    def __lshift__(self, action: Action) -> Playbook:
        """Write on: the event before brings this action, after those that stand there already."""
        if not self._scenes:
            raise ValueError(f"no event stands before {action}: what was asserted brings nothing more")
        self._scenes[-1][1].append(action)
        return self

    def __bool__(self) -> bool:
        """Play what is new. Raise AssertionError where the state does not keep to it."""
        __tracebackhide__ = True
        scenes, self._scenes = self._scenes, []
        self.asserted = True
        for cue, actions in scenes:
            self._play(cue, actions)
        return True

    def pending(self) -> list[str]:
        """The part that no assertion has played, one event or action a line."""
        return [
            line for cue, actions in self._scenes for line in (f">> {cue}", *(f"<< {action}" for action in actions))
        ]

    def _play(self, cue: Event | At, expected: list[Action]) -> None:
        __tracebackhide__ = True
        for story in (self._expected, self._actual):
            story.append(f">> {cue}")
        actual = self._feed(cue)
        self._actual += [f"<< {action}" for action in actual]
        for wanted, got in itertools.zip_longest(expected, actual):
            if wanted is not None:
                self._expected.append(f"<< {got if wanted == got else wanted}")
        broken = self._broken()
        if broken is not None:
            raise AssertionError(self._told(f"an invariant is broken: {broken}")) from broken
        if self._expected != self._actual:
            raise AssertionError(self._told("the state does not keep to the playbook"))

    def _feed(self, cue: Event | At) -> list[Action]:
        if isinstance(cue, At):
            self.now = cue.seconds
            return []
        try:
            return self.state.handle(cue, self.now)
        except Exception as error:
            error.add_note(self._told("the playbook so far"))
            raise

    def _broken(self) -> AssertionError | None:
        try:
            self.state.check_invariants()
        except AssertionError as error:
            return error
        return None

    def _told(self, headline: str) -> str:
        """Both stories as one text: `-` before what was expected, `+` before what came."""
        lines = difflib.ndiff(self._expected, self._actual)
        return "\n".join([f"{headline} (- expected, + actual):", *(line.rstrip() for line in lines)])


_made: list[Playbook] = []


def all_asserted() -> None:
    """Raise AssertionError if a playbook was made, or written on, and not asserted since. Forget all of them."""
    made = _made.copy()
    _made.clear()
    for playbook in made:
        if not playbook.asserted:
            raise AssertionError("\n".join(["nobody asserted this playbook to its end:", *playbook.pending()]))
