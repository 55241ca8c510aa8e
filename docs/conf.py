"""How Sphinx builds the documentation: `python -m nox -s docs`."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from typing import Any

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import cortecs_async


def import_for_signatures() -> None:
    """Imports the whole package, with what it imports for type checkers only: signatures name that too."""
    for each in pkgutil.walk_packages(cortecs_async.__path__, "cortecs_async."):
        if each.name.split(".")[1] in {"__main__", "_cli"}:
            continue
        module = importlib.import_module(each.name)
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                block = ast.Module(node.body, type_ignores=[])
                exec(compile(block, module.__file__ or "", "exec"), vars(module))  # noqa: S102  (our own)


import_for_signatures()

project = "cortecs_async"
author = "cortecs_async contributors"
version = release = cortecs_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = f"cortecs_async {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

myst_heading_anchors = 3

# Docstrings write code in single backticks, as Markdown does.
default_role = "code"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
napoleon_numpy_docstring = False
napoleon_attr_annotations = True

# A build asks nothing of the network, so it has no inventory of other people's packages.
nitpick_ignore_regex = [
    (r"py:.*", r"(attr|collections|datetime|httpx|openai|os|rich|signal|starlette)\..*"),
    (r"py:class", r".*\.[A-Z]"),  # type variables
]

# What a name in a signature or after "Raises:" can be.
_KINDS = {"class", "exception"}

# Made by the client, never by its user.
_NOT_CONSTRUCTED = {
    "HardwareTypes",
    "InstanceLease",
    "InstanceWatch",
    "Instances",
    "Models",
    "Results",
    "User",
}


def no_inner_constructors(
    _app: Sphinx, what: str, name: str, _obj: object, _options: object, _signature: object, returns: object
) -> tuple[str, Any] | None:
    """Leaves out the arguments of what its reader never makes."""
    if what == "exception":
        return None if _signature is None else ("", returns)
    if what == "class" and name.rpartition(".")[2] in _NOT_CONSTRUCTED:
        return "", returns
    return None


def no_types_in_sentences(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Keeps napoleon from taking the words before a colon for the type of a property."""
    if what in {"attribute", "property"} and lines and ": " in lines[0]:
        lines[:0] = ["..", ""]


def find_by_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Leads to the one place where an object is documented, by whatever module it was named.

    Most objects live in a private module and can be imported from two public ones.
    """
    if node.get("refdomain") != "py":
        return None
    tail = node["reftarget"].rpartition(".")[2]
    domain = env.domains.python_domain
    found = [
        (name, each)
        for name, each in domain.objects.items()
        if name.rpartition(".")[2] == tail and each.objtype in _KINDS
    ]
    if len(found) != 1:
        return None
    name, each = found[0]
    return make_refnode(app.builder, node["refdoc"], each.docname, each.node_id, content, name)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("missing-reference", find_by_name)
    app.connect("autodoc-process-signature", no_inner_constructors)
    app.connect("autodoc-process-docstring", no_types_in_sentences, priority=400)  # napoleon has 500
