"""Sphinx: `make docs` builds these pages into .build/docs, and takes a warning for an error."""

import argparse
import os
from importlib import import_module
from importlib.metadata import version as version_of

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from mpickpt.cli.main import VERBS

project = "mpickpt"
version = release = version_of("mpickpt")
html_title = f"mpickpt {release}"
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = False

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
myst_heading_anchors = 3
default_role = "py:obj"  # `name` in a docstring is a link if there is something of that name
autodoc_typehints = "none"  # the docstrings tell the types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False


class Verbs(SphinxDirective):
    """``{verbs}``: a section for each verb of the command line, with what its --help prints."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        sections: list[nodes.Node] = []
        for verb in VERBS:
            module = import_module(f"mpickpt.cli.{verb}")
            form = argparse.RawDescriptionHelpFormatter
            parser = argparse.ArgumentParser(f"mpickpt {verb}", description=module.__doc__, formatter_class=form)
            module.add_arguments(parser)
            text = parser.format_help()
            title = nodes.title(text=f"mpickpt {verb}")
            sections.append(nodes.section("", title, nodes.literal_block(text, text, language="text"), ids=[verb]))
        return sections


def setup(app: Sphinx) -> None:
    """Make the directive known."""
    os.environ["COLUMNS"] = "90"  # of the help texts, wherever they are built
    app.add_directive("verbs", Verbs)
