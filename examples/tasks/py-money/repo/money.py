"""Splitting an amount of cents without losing any."""


def split(cents, parts):
    """Returns `parts` integers that add up to `cents`, as equal as possible, larger ones first."""
    return [cents // parts] * parts
