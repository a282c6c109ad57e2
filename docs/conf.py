"""The documentation site: `make docs`. The pages are Markdown that reads well on its own, too."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxTranslator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

project = "gebm"
author = "the authors of gebm"
release = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns: list[str] = []
nitpicky = False

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
default_role = "py:obj"
napoleon_use_rtype = False
napoleon_custom_sections = [("Shapes", "notes_style"), ("Raises (when called)", "notes_style")]

html_theme = "furo"
html_title = "gebm"
html_static_path = ["site/style.css"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def _inline(translator: SphinxTranslator, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _block(translator: SphinxTranslator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, block: bool) -> str:
    """The formula as MathML, which browsers draw themselves: pages need no script and no other host."""
    # \tfrac12 and \frac1N with braces, which the converter needs in places
    formula = re.sub(r"\\([td]?frac)\s*(\w)\s*(\w)(?=\W|$)", r"\\\1{\2}{\3}", node.astext())
    try:
        return tex2mathml(formula, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula: %s", error, location=node)
        return node.astext()


def _pages_there(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave out of the index's lists the pages that are optional, marked by a question mark, and not there."""
    if page == "index":
        there = re.sub(
            r"^(\w+)\?\n", lambda m: m[1] + "\n" if (ROOT / f"docs/{m[1]}.md").exists() else "", source[0], flags=re.M
        )
        source[0] = there


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _pages_there)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
