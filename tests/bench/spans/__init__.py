"""Tests of where the time of an order and of a quote goes."""
