"""A large publish tells how far it is and how long it takes; a small one tells nothing."""

from __future__ import annotations

from publisher.progress import EVERY_S, Progress


def test_a_large_publish_is_told_with_its_rate_and_its_end() -> None:
    """From the first line to the last; not more often than every ten seconds."""
    progress = Progress()
    first = progress.look(20_000, 0, 100.0)
    assert first is not None
    assert first.text == "20,000 skus to publish"
    assert progress.look(19_900, 0, 101.0) is None
    line = progress.look(19_000, 0, 100.0 + EVERY_S)
    assert line is not None
    assert line.text == "1,000 of 20,000 published, 100 a second, about 3 min 10 s left"
    assert line.left_s == 190.0
    end = progress.look(30, 30, 300.0)
    assert end is not None
    assert end.done
    assert end.text.startswith("all 20,000 published, 30 wait for an operator")
    assert progress.look(40, 30, 400.0) is None


def test_the_rate_is_of_the_last_minute() -> None:
    """A slow beginning is forgotten."""
    progress = Progress()
    progress.look(10_000, 0, 0.0)
    for step in range(1, 30):
        line = progress.look(10_000 - (10 if step < 10 else 100) * step, 0, step * EVERY_S)
    assert line is not None
    assert "10 a second" in line.text


def test_a_backlog_that_grows_has_no_end() -> None:
    """Nobody is promised what cannot be known."""
    progress = Progress()
    progress.look(1_000, 0, 0.0)
    line = progress.look(1_500, 0, EVERY_S)
    assert line is not None
    assert line.left_s is None
    assert "more changes come than go" in line.text


def test_small_publishes_are_not_told() -> None:
    """A few skus are done before anybody has read of them."""
    assert Progress().look(199, 0, 0.0) is None
