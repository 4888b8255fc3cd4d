"""Measures paintings: suites of prompts, rates with intervals, format validity."""
