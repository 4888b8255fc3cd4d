"""Interval attention: one interface, several implementations."""
