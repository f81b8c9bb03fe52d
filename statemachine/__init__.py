"""The rules, and what is kept of them. Which build of the rules runs is chosen before any of them is imported."""

from statemachine.compiled import choose

choose()
