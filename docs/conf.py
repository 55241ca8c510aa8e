"""The Sphinx configuration. `python -m nox -s docs` builds the documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import attrs
from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import cortecs_async


def import_for_signatures() -> None:
    """Import the whole package, including its imports for type checkers, which signatures also name."""
    for each in pkgutil.walk_packages(cortecs_async.__path__, "cortecs_async."):
        if each.name.split(".")[1] in {"__main__", "_cli"}:
            continue
        module = importlib.import_module(each.name)
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                for statement in node.body:
                    _import(statement, vars(module))


def _import(statement: ast.stmt, names: dict[str, Any]) -> None:
    try:
        exec(compile(ast.Module([statement], type_ignores=[]), __file__, "exec"), names)  # noqa: S102  (our own)
    except ModuleNotFoundError:
        # If a package is not installed for the build, a signature shows only the name.
        if isinstance(statement, ast.ImportFrom):
            for each in statement.names:
                stand_in = type(each.name, (), {"__module__": statement.module})
                names.setdefault(each.asname or each.name, stand_in)


import_for_signatures()

project = "cortecs_async"
author = "cortecs_async contributors"
version = release = cortecs_async.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]

html_theme = "furo"
pygments_dark_style = "github-dark"  # the theme's own style underlines module names
html_title = f"cortecs_async {release}"
html_logo = html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_search_scorer = str(Path(__file__).with_name("scorer.js"))
html_show_copyright = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f4a94", "color-brand-content": "#2a5db0"},
    "dark_css_variables": {"color-brand-primary": "#7fb0ff", "color-brand-content": "#8fbaff"},
}

# Edit links need the address of the repository. GitHub Actions names it; a build on your machine has none.
if repository := os.environ.get("GITHUB_REPOSITORY"):
    html_theme_options |= {
        "source_repository": f"https://github.com/{repository}/",
        "source_branch": "main",
        "source_directory": "docs/",
    }

# The copy button leaves out the prompt and the output of a console session.
copybutton_prompt_text = "$ "

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
# Groups for the many arguments of `AsyncCortecs`.
napoleon_custom_sections = [
    (section, "params_style")
    for section in ("Other credentials", "Requests", "Network", "Crash safety and telemetry")
]

# A build does not use the network, so it does not have the inventories of other packages.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!cortecs_async\.)\w+\..*"),
    (r"py:class", r".*\.[A-Z]"),  # type variables
    (r"py:class", r".*\.URLObject"),  # any object whose text is a URL
]

# A constant, or a default as autodoc shows it for the generated `__init__` of an attrs class.
_DEFAULT = re.compile(r" = (?:attr_dict\['(\w+)'\]\.default|([A-Z_]{3,}))\b")

# The possible types of an object named in a signature or after "Raises:".
_KINDS = {"class", "exception", "function", "type"}

# Created by the client, never by the user.
_NOT_CONSTRUCTED = {
    "FanOut",
    "HardwareTypes",
    "InstanceLease",
    "InstanceWatch",
    "Instances",
    "Models",
    "Results",
    "ServedEmulator",
    "SharedLease",
    "User",
}


def only_useful_signatures(
    _app: Sphinx, what: str, name: str, made: Any, _options: object, signature: str | None, returns: object
) -> tuple[str | None, Any] | None:
    """Leave out arguments of classes that users never construct. Show defaults of attrs classes as values."""
    if signature is None:
        return None
    owner, _, short = name.rpartition(".")
    has_attributes = owner == "cortecs_async.types" and "Attributes:" in (made.__doc__ or "")
    if what == "exception" or (what == "class" and (short in _NOT_CONSTRUCTED or has_attributes)):
        return "", returns
    if short == "AsyncCortecs":
        # Its arguments are explained in groups below.
        return "(client_id, client_secret, *, ...)", returns
    if what == "class":
        return _DEFAULT.sub(lambda found: f" = {default_of(made, found)}", signature), returns
    return None


def default_of(made: Any, found: re.Match[str]) -> str:
    """Return the value of a default that is shown as a name, or `...` if it is created anew each time."""
    attribute, constant = found.groups()
    if attribute:
        return repr(attrs.fields_dict(made)[attribute].default)
    return repr(getattr(inspect.getmodule(made.__init__), constant, ...)).replace("Ellipsis", "...")


def no_types_in_sentences(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Keep napoleon from treating the words before a colon as the type of a property."""
    if what in {"attribute", "property"} and lines and ": " in lines[0]:
        lines[:0] = ["..", ""]


def examples_as_code(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Show the section `Example:` as Python code, without the `>>>` that napoleon expects."""
    if "Example:" not in lines:
        return
    begin = lines.index("Example:") + 1
    end = next((i for i in range(begin, len(lines)) if lines[i] and lines[i][0] != " "), len(lines))
    code = lines[begin:end]
    lines[begin - 1 : end] = [".. rubric:: Example", "", ".. code-block:: python", "", *code, ""]


def types_behind_names(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Move the type of an attribute next to its name. napoleon puts it into a separate field below."""
    for at in range(len(lines) - 1, -1, -1):
        if not lines[at].strip().startswith(":type:"):
            continue
        above = next((i for i in range(at, -1, -1) if lines[i].startswith(".. attribute::")), None)
        if above is not None:
            lines.insert(above + 1, lines.pop(at))


def find_by_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: Element) -> Element | None:
    """Link to the only place where an object is documented, whichever module the name refers to.

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
    """Connect the functions above. Sphinx calls this."""
    app.connect("missing-reference", find_by_name)
    app.connect("autodoc-process-signature", only_useful_signatures)
    app.connect("autodoc-process-docstring", no_types_in_sentences, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", examples_as_code, priority=400)
    app.connect("autodoc-process-docstring", types_behind_names, priority=600)
