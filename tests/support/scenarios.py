"""Tests of one engine, called for another: each is a test function and the values it is parametrised with."""

from __future__ import annotations


def named(scenario, values):
    """Return what the case is called: the function's words, and the values that are words."""
    words = scenario.__name__.removeprefix("test_").split("_")
    return " ".join([*words, *(str(value) for value in values.values())])


def call(scenario, **given):
    """Call a test function with those of the ``given`` values that it asks for."""
    wanted = scenario.__code__.co_varnames[: scenario.__code__.co_argcount]
    return scenario(**{name: given[name] for name in wanted})
