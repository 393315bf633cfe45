"""Titles to address-bar text."""


def slug(title):
    return title.lower().replace(" ", "-")
