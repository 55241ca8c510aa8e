"""The checks. `nox` runs tests, lint, typing, and docs. `nox -s NAME` runs one check. `nox -l` lists all.

The package is installed as a user installs it, never editable, so a file missing from the wheel fails here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import nox

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
# Reusing environments saves most of the time. CI starts from scratch.
nox.options.reuse_venv = "no" if "CI" in os.environ else "yes"
nox.options.sessions = ["tests", "lint", "typing", "docs"]


def working_interpreters() -> dict[str, Path]:
    """Return the supported versions on this machine, each with a working interpreter.

    A name on PATH is not enough: pyenv puts a `python3.12` there that fails unless 3.12 is activated. The
    interpreter itself is in pyenv's folder, which nox does not search.
    """
    found: dict[str, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for version in nox.project.python_versions(PYPROJECT):
        name = f"python{version}"
        # Newest first: 3.12.10 before 3.12.9, whatever follows the numbers.
        installs = sorted(pyenv.glob(f"{version}.*"), key=lambda path: numbers(path.name), reverse=True)
        for candidate in [*(path / name for path in folders), *(path / "bin" / name for path in installs)]:
            if candidate.is_file() and (interpreter := started(candidate, version)):
                found[version] = interpreter
                break
    return found


def numbers(text: str) -> list[int]:
    """Return the numbers in `text`, for sorting."""
    return [int(digits) for digits in re.findall(r"\d+", text)]


def started(candidate: Path, version: str) -> Path | None:
    """Return the interpreter behind `candidate` if it starts, has this version, and can make environments."""
    program = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2]); print(sys.executable)"
    try:
        answer = subprocess.run(  # noqa: S603  (a python on this machine)
            [candidate, "-I", "-c", program],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(answer[1]) if len(answer) == 2 and answer[0] == version else None


# The interpreter that runs nox is always tested.
MAIN = f"{sys.version_info.major}.{sys.version_info.minor}"
INTERPRETERS = {**working_interpreters(), MAIN: Path(sys.executable)}
PYTHONS = sorted(INTERPRETERS, key=numbers)
OTHERS = [version for version in PYTHONS if version != MAIN]
# nox looks up interpreters by name. At the end of PATH, they do not hide anything.
os.environ["PATH"] = os.pathsep.join(
    [os.environ.get("PATH", ""), *(str(INTERPRETERS[v].parent) for v in PYTHONS)]
)


def install(session: nox.Session, *groups: str, package: str = ".[demo]", also: str = "") -> None:
    """Install the package, the named dependency groups, and an additional requirement, in one resolution."""
    # Otherwise, uv would use a cached wheel of this package even if the source has changed.
    again = ["--reinstall-package=cortecs-async"] if session.venv_backend == "uv" else []
    wanted = [package, *([also] if also else []), *nox.project.dependency_groups(PYPROJECT, *groups)]
    session.install(*again, *wanted)


def show_versions(session: nox.Session, *packages: str) -> None:
    """Print the versions of the packages tested by the session."""
    program = "import sys, importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    session.run("python", "-c", program, *packages)


# Without cached bytecode, every process started by the tests would compile its imports again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests must import the installed package, not the working directory.
ENV = {"PYTHONSAFEPATH": "1"}


# Runs every test in the files that follow, whatever its tier.
PYTEST = ("python", "-m", "pytest", "-m", "")

CORES = os.cpu_count() or 2
# More processes than cores, because tests on real sockets mostly wait.
WAITING = 3 * CORES


@nox.session
def tests(session: nox.Session) -> None:
    """Run the default tier: tests on virtual time and smoke tests. Uses the Python that runs nox."""
    install(session, "test-core")
    run_pytest(session)


@nox.session
def sockets(session: nox.Session) -> None:
    """Run the tests on real sockets, processes, and signals."""
    install(session, "test-core")
    run_pytest(session, "-m", "sockets and not (proofs or oracle or nightly)", processes=WAITING)


@nox.session
def proofs(session: nox.Session) -> None:
    """Kill programs at every step, cancel them at every await, and simulate 280 random worlds."""
    install(session, "test-core")
    # Killed programs wait, but simulated worlds do not.
    run_pytest(session, "-m", "proofs and not nightly", processes=CORES + 1)


@nox.session
def oracle(session: nox.Session) -> None:
    """Test the emulator with the vendor's client and schemathesis."""
    install(session, "test")
    # Fail if a package is missing. pytest would skip these tests without an error.
    show_versions(session, "cortecs-py", "langchain-text-splitters", "schemathesis")
    run_pytest(session, "-m", "oracle and not nightly")


# Tests of features that differ between Python versions: event loops, cancellation, signals, and imports.
VERSION_DEPENDENT = ("tests/aio", "tests/lease", "tests/test_imports.py", "tests/test_smoke.py")
# Tests of texts, and slow tests of features that hardly differ.
TEXTS = tuple(f"test_{name}.py" for name in ("docstring_examples", "error_page", "mutants", "pages", "words"))
FEATURES = ("batch", "cli", "emulator", "sharing", "recovery/test_evidence.py", "test_team_day.py")
CHOICES = tuple(f"lease/test_{name}.py" for name in ("capacity", "hardware", "readiness"))
SKIPPED = tuple(f"--ignore=tests/{each}" for each in (*FEATURES, *CHOICES, *TEXTS))


@nox.session(python=OTHERS or False)
def matrix(session: nox.Session) -> None:
    """Run most of the default tier on the oldest and newest other Python, and part of it on the rest.

    `nightly` runs the whole tier on all of them.
    """
    if not OTHERS:
        session.skip("this machine has no other supported Python version")
    install(session, "test-core")
    is_between = session.python not in (PYTHONS[0], PYTHONS[-1])
    some = (*VERSION_DEPENDENT, *SKIPPED) if is_between else SKIPPED
    run_pytest(session, *(() if session.posargs else some))


@nox.session
def coverage(session: nox.Session) -> None:
    """Measure the coverage of all tiers and fail below the threshold."""
    install(session, "test")
    env = {**ENV, "COVERAGE_FILE": str(session.cache_dir.resolve() / "coverage")}
    session.run("coverage", "erase", env=env)
    # From Python 3.14 on, where sys.monitoring can measure branches, coverage uses it by default.
    pytest = ("coverage", "run", "-m", "pytest", f"--numprocesses={WAITING}", "-m", "not nightly")
    session.run(*pytest, *session.posargs, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    session.run("coverage", "report", env=env)


@nox.session
def nightly(session: nox.Session) -> None:
    """Run the rest of the grids, check the tiers, and run sessions that are too slow for every change."""
    install(session, "test")
    run_pytest(session, "-m", "nightly", processes=WAITING)
    # One process, so that tests do not slow each other down, because the check measures processor time.
    run_pytest(session, "--check-tiers", processes=0)
    slow = ("coverage", "lowest", "mutants", "simulate", "bare", "notebook", "package", "platforms", "web")
    for name in slow:
        session.notify(name)
    for version in OTHERS:
        session.notify(f"matrix-{version}", ["tests"])
    grids: dict[str, Iterable[str]] = {
        "fleets": CLUSTERS,
        "frameworks": FRAMEWORKS,
        "orchestrators": ORCHESTRATORS,
        "plugins": ("newest", "lowest"),
    }
    for name, values in grids.items():
        for value in values:
            session.notify(f"{name}({value})")


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions of the runtime and optional dependencies."""
    extras = {**PYPROJECT["project"]["optional-dependencies"]}
    # This extra needs a newer openai than our own. `frameworks` tests the lowest versions of both.
    del extras["pydantic-ai"]
    bounds = [*PYPROJECT["project"]["dependencies"], *chain(*extras.values())]
    # The suite needs a newer pytest than the plugin. The session `plugins` tests the plugin's lowest version.
    bounds = [bound for bound in bounds if not bound.startswith("pytest>=")]
    install(session, "test-core")
    # pytest 9.2 rejects such an old anyio's plugin, and OpenTelemetry's SDK needs the API of its own version.
    session.install("pytest<9.2", "opentelemetry-sdk", *at_lowest(bounds))
    run_pytest(session, "-m", "not (oracle or nightly)", processes=WAITING)


# Third-party clusters, and the package with their version.
CLUSTERS = {"ray": "ray", "dask": "distributed"}


@nox.session
@nox.parametrize("cluster", list(CLUSTERS), ids=list(CLUSTERS))
def fleets(session: nox.Session, cluster: str) -> None:
    """Run the programs in docs/fleets.md and test its claims on a local Ray or Dask cluster."""
    install(session, cluster, package=".[emulator,openai]")
    show_versions(session, CLUSTERS[cluster], "openai")
    session.run(
        *(*PYTEST, f"tests/ecosystem/test_{cluster}.py", *session.posargs),
        # Without these, Ray leaves a token in HOME and reports usage statistics.
        env={**ENV, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    )


def at_lowest(bounds: Iterable[str]) -> list[str]:
    """Return the requirements with a lower bound, pinned to that bound."""
    return [bound.replace(">=", "==") for bound in bounds if ">=" in bound]


# Mutually exclusive sets of packages, and the tests in tests/ecosystem for each.
FRAMEWORKS = {
    "openai3": ["openai3", "helpers"],
    "openai2": ["openai2", "migrating"],
    "instructor": ["instructor"],
    "lowest": ["helpers"],  # the lower bounds of our own extras
}


@nox.session
@nox.parametrize("packages", [*FRAMEWORKS], ids=[*FRAMEWORKS])
def frameworks(session: nox.Session, packages: str) -> None:
    """Run the framework programs in the docs with one of the sets of packages they need."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    lowest = at_lowest([*extras["langchain"], *extras["pydantic-ai"]])
    chosen = lowest if packages == "lowest" else PYPROJECT["dependency-groups"][f"frameworks-{packages}"]
    install(session, "test-core")
    session.install(*chosen)
    names = {"openai", *(re.split(r"[^\w.-]", each)[0] for each in chosen)}
    show_versions(session, *sorted(names))
    files = [f"tests/ecosystem/test_frameworks_{name}.py" for name in FRAMEWORKS[packages]]
    # These tests have their own, longer timeout.
    session.run(*PYTEST, "-o", "faulthandler_timeout=0", *files, *session.posargs, env=ENV)


PLUGIN_TESTS = ["tests/integrations/test_pytest_plugin.py", "tests/ecosystem/test_pytest_plugins.py"]


@nox.session
@nox.parametrize("pytest", ["newest", "lowest"], ids=["newest", "lowest"])
def plugins(session: nox.Session, pytest: str) -> None:
    """Test the pytest plugin together with other async plugins, with the newest and lowest pytest."""
    extra: list[str] = PYPROJECT["project"]["optional-dependencies"]["testing"]
    (bound,) = (each for each in extra if each.startswith("pytest>="))
    lowest = bound.replace(">=", "==") if pytest == "lowest" else ""
    install(session, "plugins", package=".[testing,openai]", also=lowest)
    show_versions(session, "pytest", "pytest-asyncio", "pytest-trio", "pytest-xdist", "anyio", "trio")
    session.run(
        *(*PYTEST, "-p", "no:asyncio", "-p", "no:trio", "--import-mode=importlib"),
        *(session.posargs or PLUGIN_TESTS),
        # pytest 8 does not read the settings in pyproject.toml and must find the helpers without them.
        env={**ENV, "PYTHONPATH": str(ROOT / "tests")},
    )


@nox.session
def simulate(session: nox.Session) -> None:
    """Simulate a hundred thousand random worlds, or the given number."""
    install(session, "test-core")
    worlds = session.posargs[0] if session.posargs else "100000"
    session.run(
        *("python", "-m", "pytest", "--numprocesses=auto", "-m", "proofs", "tests/test_simulation.py"),
        # The simulation is meant to take long.
        *("-o", "faulthandler_timeout=0"),
        env={**ENV, "CORTECS_SIMULATIONS": worlds},
    )


@nox.session
def mutants(session: nox.Session) -> None:
    """Apply each mutant in tests/mutants.py to the package and check that its test fails."""
    install(session, "test-core")
    session.run("python", "tests/mutants.py", *session.posargs)


def run_pytest(session: nox.Session, *arguments: str, processes: int | str = "auto") -> None:
    """Run pytest with these arguments and the ones from the command line.

    Args:
        session: The nox session.
        *arguments: Passed to pytest.
        processes: The number of test processes. Default: one per core. If you pass arguments on the command
            line, pytest runs in one process, so that a debugger works.
    """
    # Test durations vary widely. With `worksteal`, an idle process takes tests from a busy one.
    parallel = [] if session.posargs else [f"--numprocesses={processes}", "--dist=worksteal"]
    session.run("python", "-m", "pytest", *parallel, *arguments, *session.posargs, env=ENV)


@nox.session
def web(session: nox.Session) -> None:
    """Run the programs in docs/web.md under each real server."""
    install(session, "web")
    show_versions(
        session,
        *("fastapi", "flask", "starlette", "litestar", "uvicorn", "gunicorn", "uvicorn-worker", "hypercorn"),
    )
    session.run(*PYTEST, "tests/ecosystem/test_web.py", *session.posargs, env=ENV)


@nox.session
def notebook(session: nox.Session) -> None:
    """Run the cells in docs/deployment.md, an interrupt, and a restart in a real Jupyter kernel."""
    install(session, "test-core", "notebook")
    show_versions(session, "ipykernel", "IPython", "nbclient")
    session.run(*PYTEST, "tests/ecosystem/test_notebook.py", *session.posargs, env=ENV)


ORCHESTRATORS = ["airflow", "celery", "dagster", "prefect", "taskiq", "temporal"]


@nox.session
@nox.parametrize("name", ORCHESTRATORS, ids=ORCHESTRATORS)
def orchestrators(session: nox.Session, name: str) -> None:
    """Run the programs in docs/orchestrators/, each with the orchestrator itself."""
    install(session, "test-core", name)
    packages = [re.split("[>=]", each)[0] for each in nox.project.dependency_groups(PYPROJECT, name)]
    show_versions(session, *packages)
    # One at a time, because each test starts several processes.
    session.run(*PYTEST, f"tests/ecosystem/test_{name}.py", *session.posargs, env=ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the rules and the format with ruff."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types with mypy and pyright, and that the whole public API is typed."""
    install(session, "typing")
    session.run("mypy", "--num-workers=auto")
    # Tests check an attribute repeatedly while it changes, but mypy assumes that it keeps its first value.
    options = ("--no-warn-unreachable", "--disable-error-code=comparison-overlap")
    session.run("mypy", "--num-workers=auto", *options, "tests")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "cortecs_async", "--ignoreexternal")


@nox.session
def platforms(session: nox.Session) -> None:
    """Check the code that must work on every system, and the types for macOS and Windows."""
    install(session, "typing")
    session.run("python", "tests/platforms.py", env=ENV)
    for platform in ("darwin", "win32"):
        # Each has its own cache and no reports about code that only other systems reach.
        cache = session.cache_dir.resolve() / f"mypy-{platform}"
        session.run(
            *("mypy", "--num-workers=auto", f"--platform={platform}", f"--cache-dir={cache}"),
            *("--no-warn-unreachable", "cortecs_async"),
        )


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel and the sdist, check them as an index would, and run each in a new environment."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "package"))
    dist = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--installer=uv", f"--outdir={dist}")
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    session.run("python", "tests/ecosystem/package.py", str(dist), env=ENV)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in build/docs without warnings and check that nothing public is missing."""
    install(session, "docs", "test-core")
    site = ROOT / "build" / "docs"
    shutil.rmtree(site, ignore_errors=True)  # otherwise, a deleted page would stay
    session.run(
        *("python", "-m", "sphinx", "--fail-on-warning", "--nitpicky", "--keep-going", "--fresh-env"),
        *("--builder", "html", "docs", str(site)),
        env=ENV,
    )
    session.run(
        *(*PYTEST, "tests/ecosystem/test_site.py"),
        env={**ENV, "CORTECS_DOCS_SITE": str(site)},
    )
    session.log(f"the documentation is at {(site / 'index.html').as_uri()}")


@nox.session
def screens(session: nox.Session) -> None:
    """Draw the pictures of the command line."""
    install(session, "screens")
    session.run("python", "docs/screens.py", env=ENV)


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks with the given arguments."""
    install(session, "bench")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session
def bare(session: nox.Session) -> None:
    """Test the package without extras: the features that work, and the message for each missing extra."""
    install(session, package=".")
    session.run("python", "tests/ecosystem/bare.py", env=ENV)
