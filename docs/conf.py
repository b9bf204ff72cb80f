"""
Sphinx's settings. ``make docs`` builds with warnings as errors.
"""

import sys
from pathlib import Path

import chatrelay

sys.path.append(str(Path(__file__).parent / "_ext"))

project = "chatrelay"
author = "The chatrelay authors"
project_copyright = "2026 The chatrelay authors"
version = release = chatrelay.__version__

# A reference that leads nowhere is an error, but for the types of other projects in signatures.
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc)", ".*")]

extensions = ["sphinx.ext.autodoc", "config_options"]
exclude_patterns = ["_build"]
# Two hyphens in a text are an option's name, not a dash.
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"

# What "::" introduces here is typed into a terminal.
highlight_language = "text"

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["wrap.css"]
html_title = f"chatrelay {release}"

# Addresses of the reader's own machine.
linkcheck_ignore = [r"http://(127\.0\.0\.1|localhost)\b"]
