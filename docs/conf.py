"""How Sphinx makes the pages: `make docs` puts them into build/docs/, and every warning is an error there."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE / "_ext")]

with open(HERE.parent / "pyproject.toml", "rb") as file:
    _about = tomllib.load(file)["project"]

project = _about["name"]
release = version = _about["version"]
author = "the layerstore authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "columns", "elsewhere"]
exclude_patterns = ["_ext"]
source_suffix = {".md": "markdown"}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_title = f"{project} {version}"
html_copy_source = html_show_sourcelink = False
html_show_copyright = False

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
# Names in annotations without a page of their own (StrPath, BinaryIO) are no error: nitpicky stays off.
