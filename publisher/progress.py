"""How far a large publish has come, and how long it takes: a shop's first one, or one after an outage. Pure."""

from __future__ import annotations

from dataclasses import dataclass

SKUS_MIN = 200
"""Less is done before anybody has read a line about it."""
EVERY_S = 10.0
WINDOW_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A line of progress. ``left_s``: None while nobody can say. ``done``: nothing waits any more but what is held."""

    text: str
    done: bool
    left_s: float | None = None


class Progress:
    """One shop's. Give it what waits, now and then; it says a line when it is time."""

    def __init__(self) -> None:
        self._most = 0
        self._points: list[tuple[float, int]] = []
        self._told_at = 0.0

    def look(self, waiting: int, held: int, now: float) -> Told | None:
        """Return what there is to tell, if anything. ``waiting``: skus to be shown, ``held``: those of an operator."""
        left = max(0, waiting - held)
        if not self._most:
            if left < SKUS_MIN:
                return None
            self._most, self._points, self._told_at = left, [(now, left)], now
            return Told(text=f"{left:,} skus to publish", done=False)
        self._most = max(self._most, left)
        if left == 0:
            took = now - self._points[0][0]
            said = f"all {self._most:,} published" + (f", {held:,} wait for an operator" if held else "")
            self._most, self._points = 0, []
            return Told(text=f"{said}; the last of them took {_lasting(took)}", done=True, left_s=0.0)
        if now - self._told_at < EVERY_S:
            return None
        self._told_at = now
        self._points.append((now, left))
        while len(self._points) > 2 and now - self._points[0][0] > WINDOW_S:
            del self._points[0]
        began, before = self._points[0]
        rate = (before - left) / (now - began)
        done = f"{self._most - left:,} of {self._most:,} published"
        if rate <= 0:
            return Told(text=f"{done}; more changes come than go", done=False)
        left_s = left / rate
        return Told(
            text=f"{done}, {rate:,.0f} a second, about {_lasting(left_s)} left", done=False, left_s=left_s
        )


def _lasting(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02} s"
        if whole < 3_600
        else f"{whole // 3600} h {whole % 3600 // 60:02} min"
    )
