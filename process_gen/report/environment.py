"""The one Jinja environment of the reports: every value is escaped."""

from __future__ import annotations

import functools

import jinja2


@functools.cache
def environment() -> jinja2.Environment:
    """Templates of `report/templates`; autoescape is on for all of them, unknown names raise."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("process_gen.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
