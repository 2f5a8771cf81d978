"""The documentation as a site, by Sphinx: `make docs` builds build/docs, and fails where a link leads nowhere."""

project = "Reasonable Mistakes"
author = "the authors of Reasonable Mistakes"
extensions = ["myst_parser"]
exclude_patterns = ["**/__pycache__"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = project
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3  # [text](page.md#a-heading) works, and a heading that is not there fails the build
suppress_warnings = ["myst.header"]  # a page of the reports may begin anywhere
