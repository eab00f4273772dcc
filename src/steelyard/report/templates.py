"""The pages' templates: one environment, one frame (base.html), one set of macros (macros.html).

A page's template extends base.html, which has the head, the style and the foot; its own parts are
blocks. What is put in is escaped, but for drawings, which come as `markup`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.report.numerals import above, cell, listed, plain, prose

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent


def rendered(template: str, **values: Any) -> str:
    """The page that a template of this folder makes of `values`: one file, style included.

    Guarantees: a name that the template uses and `values` lacks is an error, not a blank.
    Raises: jinja2.UndefinedError for such a name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(cell=cell, above=above, prose=prose, plain=plain, listed=listed)
    style = markup((HERE / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def markup(text: str) -> Markup:
    """Text that is HTML already, such as a drawing: not escaped again."""
    from markupsafe import Markup

    return Markup(text)
