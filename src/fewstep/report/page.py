"""Templates into pages.

Everything that a template prints is escaped; undefined names are errors.
"""

from __future__ import annotations

from typing import Any


def render(template: str, /, **values: Any) -> str:
    """The page of ``templates/<template>`` with ``values``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("fewstep.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)
