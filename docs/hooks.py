"""What the site does beyond Markdown: formulas as MathML, which browsers read without a script; public names of a module."""

import ast
import html
import re
from pathlib import Path

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)
MEMBERS = re.compile(r"^!!! members of ([\w.]+)(?: that are not in ([\w.]+))?$", re.M)
ROOT = Path(__file__).parent.parent


def on_page_content(content, **_):
    content = INLINE.sub(lambda found: convert(html.unescape(found[1])), content)
    return BLOCK.sub(lambda found: convert(html.unescape(found[1]), display="block"), content)


def on_page_markdown(markdown, **_):
    return MEMBERS.sub(lambda found: "\n".join(f"::: {name}" for name in listed(*found.groups())), markdown)


def listed(module, other):
    """The public names of a module, without those that `other` exports too."""
    known = {name.rsplit(".", 1)[1] for name in public(other)} if other else set()
    return [name for name in public(module) if name.rsplit(".", 1)[1] not in known]


def public(module):
    """The classes and functions that a module's `__init__` exports, by their full names; folders are left out."""
    path = ROOT / module.replace(".", "/")
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    names = {
        alias.name: f"{node.module}.{alias.name}"
        for node in imports
        for alias in node.names
        if alias.asname == alias.name
    }
    return [
        f"{module}.{name}"
        for name, full in names.items()
        if not (ROOT / full.replace(".", "/")).is_dir()
        and not (ROOT / full.replace(".", "/")).with_suffix(".py").exists()
    ]
