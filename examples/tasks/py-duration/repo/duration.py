"""Durations as people write them: "1h30m", "45s"."""

UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds(text):
    """The number of seconds; ValueError for anything else."""
    total, digits = 0, ""
    for char in text:
        if char.isdigit():
            digits += char
        else:
            total += int(digits) * UNITS[char]
            digits = ""
    return total
