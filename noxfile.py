"""Every job of this repository, each in one command: ``nox -l`` lists them, ``nox -s tests`` runs one.

All sessions that need torch share one environment, which the session ``setup`` makes (about 1.5 GB, once)
and renews when a ``pyproject.toml`` or this file changes. With ``nox --no-venv`` nothing is installed:
sessions use the Python that runs nox, as on a machine with an accelerator and no network.
``tools/linked.py`` does it without nox.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox
from packaging.requirements import Requirement

sys.path.insert(0, str(Path(__file__).parent / "tools"))
import linked
from clients import BARE, PACKAGES
from engines import ENGINES, RELEASES, make_environment, source_of
from needs import EXTRAS, check_needs, with_extras
from recipes import made_once
from targets import TARGETS, Target

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests", "docs"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
TORCH = "torch==2.13.0"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

shared_python = sys.executable  # the session "setup" puts the interpreter of the shared environment here


def group(*names: str) -> tuple[str, ...]:
    """Return the requirements in these dependency groups of the root pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, *names)


def python(session: nox.Session, *args: str, **variables: str) -> None:
    """Run the shared interpreter in the repository root, with these environment variables."""
    run_python(session, (), *args, **variables)


def run_python(session: nox.Session, under: tuple[str, ...], *args: str, **variables: str) -> None:
    """Run the shared interpreter under another program."""
    # The dist-info folders matter only where nothing is installed; elsewhere the installed ones say the same.
    env = linked.environment() if shared_python == sys.executable else {}
    session.run(*under, shared_python, *args, env={**env, **variables}, external=True)


def install_torch(session: nox.Session) -> None:
    """Install the pinned torch: the CPU build, or on a machine with an NVIDIA GPU the one that PyPI has."""
    if shutil.which("nvidia-smi"):
        session.install(TORCH)
        return
    try:
        # Enough where a CPU build is at hand (a mirror, a folder of wheels); else pip says so in a second.
        session.install(f"{TORCH}+cpu")
    except nox.command.CommandFailed:
        # On Linux, PyPI's own torch brings gigabytes of CUDA; the PyTorch project's index has CPU builds.
        session.install(TORCH, "--extra-index-url", CPU_TORCH_INDEX)


@nox.session(reuse_venv=True)
def setup(session: nox.Session) -> None:
    """Make the environment that the other sessions share; with --no-venv, take this interpreter as it is."""
    global shared_python
    if session.venv_backend == "none":
        return
    shared_python = str(Path(session.bin) / "python")

    def make() -> None:
        session.log("installing torch, the packages and the tools: once, about two minutes")
        install_torch(session)
        # All members in one command: alone, one of them would fetch its siblings by name from the package index.
        members = [argument for path in linked.members() for argument in ("-e", with_extras(path))]
        beside_torch = () if shutil.which("nvidia-smi") else group("triton")
        session.install(*members, *group("types", "test", "docs"), *beside_torch, TORCH)

    files = (Path(__file__), ROOT / "pyproject.toml", *(path / "pyproject.toml" for path in linked.members()))
    if not made_once(Path(session.virtualenv.location), files, make):
        session.log("the environment is up to date")


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check style, formatting, the layers between modules, the contract of the leaves, the changelog fragments."""
    if session.venv_backend != "none":
        session.install(*group("lint"))
    session.run("ruff", "check", ".", external=True)
    session.run("ruff", "format", "--check", ".", external=True)
    session.run("lint-imports", "--no-cache", env=linked.environment(), external=True)
    session.run(sys.executable, "tools/check_api.py", external=True)
    session.run("towncrier", "build", "--draft", "--version", "next", external=True, silent=True)


@nox.session(venv_backend="none", requires=["setup"])
def types(session: nox.Session) -> None:
    """Check the types of the core and of the integrations, strictly."""
    python(session, "-m", "mypy", *(str(path / "src") for path in linked.members()))


@nox.session(venv_backend="none", requires=["setup"])
def tests(session: nox.Session) -> None:
    """Run every test of the repository; arguments after -- go to pytest."""
    # Two workers of one torch thread each: the tensors are small, and CI has two cores.
    python(session, "-m", "pytest", "-n", "2", "--dist", "worksteal", *session.posargs, OMP_NUM_THREADS="1")


@nox.session(venv_backend="none", requires=["setup"])
def conformance(session: nox.Session) -> None:
    """Run the shipped conformance suite on the reference backend and on the emulated device."""
    python(session, "-m", "pytest", "packages/mxfp4-core/tests/backend/test_conformance.py", *session.posargs)


@nox.session(venv_backend="none", requires=["setup"])
def architectures(session: nox.Session) -> None:
    """Try a tiny model of every type that transformers maps; arguments go along, ``--types gpt2`` for one."""
    python(session, "tools/sweep_architectures.py", *session.posargs, OMP_NUM_THREADS="1")


@nox.session(venv_backend="none", requires=["setup"])
def fuzz(session: nox.Session) -> None:
    """Feed every reader with hostile input, kill runs, flip bits of results: some 20 seconds; arguments go along."""
    python(session, "tools/fuzz.py", *session.posargs, OMP_NUM_THREADS="1")


@nox.session(reuse_venv=True)
def clients(session: nox.Session) -> None:
    """Load what each dialect writes in the package that it is for, on the CPU, and note it in docs/dialects.md."""
    here = "python"
    if session.venv_backend != "none":
        here = str(Path(session.bin) / "python")

        def make() -> None:
            install_torch(session)
            core = next(path for path in linked.members() if path.name == "mxfp4-core")
            session.install("-e", f"{core}[{','.join(EXTRAS)}]", *PACKAGES, TORCH)
            session.install("--no-deps", *BARE)

        made_once(Path(session.virtualenv.location), (TORCH, *PACKAGES, *BARE, *EXTRAS), make)
    session.run(here, "tools/dialects_table.py", "--clients", env=linked.environment(), external=True)


@nox.session(reuse_venv=True, requires=["setup"])
def scale(session: nox.Session) -> None:
    """Kill workers and a node of a Ray cluster, use an S3 server: some two minutes; arguments go to pytest."""
    python_here = "python"
    if session.venv_backend != "none":
        python_here = str(Path(session.bin) / "python")

        def make() -> None:
            share_packages(session, python_here)
            session.install(*group("scale"))

        made_once(Path(session.virtualenv.location), (shared_python, *group("scale")), make)
    folder = "packages/mxfp4-core/tests/scale"
    session.run(
        python_here, "-m", "pytest", folder, *session.posargs, env={"OMP_NUM_THREADS": "1"}, external=True
    )


def share_packages(session: nox.Session, python_here: str) -> None:
    """Let the environment of a session import what is in the shared one; what it has itself goes first."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    here, shared = (
        str(session.run(each, "-c", code, external=True, silent=True)).strip()
        for each in (python_here, shared_python)
    )
    # A line that runs, since editable installations are lines of files there, which a bare path would not read.
    (Path(here) / "shared.pth").write_text(f"import site; site.addsitedir({shared!r})\n")


@nox.session(venv_backend="none", requires=["setup"])
def docs(session: nox.Session) -> None:
    """Build the documentation with every warning an error, and run the code on the pages."""
    python(session, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "build/docs")
    python(session, "tools/run_pages.py")
    session.log("open build/docs/index.html")


@nox.session(venv_backend="none", requires=["setup"])
def demo(session: nox.Session) -> None:
    """Run the main job: load a BF16 language model in MXFP4, generate, compare, save; arguments go along."""
    python(session, "demo/demo.py", "--force", *session.posargs)


@nox.session(venv_backend="none", requires=["setup"])
def bench(session: nox.Session) -> None:
    """Run the benchmarks named after -- (bench/NAME.py), or all; each prints Markdown."""
    known = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))
    if unknown := set(session.posargs) - set(known):
        session.error(f"no such benchmark: {' '.join(sorted(unknown))}; there are {' '.join(known)}")
    if shared_python != sys.executable:
        session.run(shared_python, "-m", "pip", "install", *group("bench"), TORCH, external=True)
    for name in session.posargs or known:
        python(session, f"bench/{name}.py")


@nox.session(venv_backend="none")
def engines(session: nox.Session) -> None:
    """Start real engines on the CPU with our plug-ins; names after -- choose among them, the rest goes to pytest."""
    names = [each for each in session.posargs if each in ENGINES]
    rest = [each for each in session.posargs if each not in ENGINES]
    for name in names or ENGINES:
        engine = ENGINES[name]
        interpreter = make_environment(session, name, TORCH, CPU_TORCH_INDEX)
        env = {**linked.environment(), "MXFP4_REQUIRE_ENGINE": engine.module, "OMP_NUM_THREADS": "1"}
        command = (interpreter, "-m", "pytest", "-p", "no:cacheprovider", *engine.tests, *rest)
        session.run("timeout", str(engine.limit(rest)), *command, env=env, external=True)


@nox.session(venv_backend="none", requires=["setup"])
def engine_names(session: nox.Session) -> None:
    """Read the newest release of each engine for the names that its adapter uses; it fails where one has moved.

    Arguments choose: ``vllm==0.26.0`` reads that release. A wheel takes some 300 MB and is deleted again.
    """
    for requirement in session.posargs or RELEASES:
        source = source_of(session, shared_python, requirement, Path(session.create_tmp()))
        names = RELEASES[Requirement(requirement).name]
        python(session, "-m", "pytest", "-q", names, MXFP4_ENGINE_SOURCE=str(source))


def has_device(session: nox.Session, kind: str, arch: str) -> bool:
    """Say whether torch can use a device of this type and architecture here."""
    code = "import sys; from mxfp4_core.backend import probe; "
    code += "kind, archs = sys.argv[1], tuple(sys.argv[2].split(',')); "
    code += "print(any(d.type == kind and d.arch.startswith(archs) for d in probe().devices))"
    env = linked.environment() if shared_python == sys.executable else {}
    said = session.run(shared_python, "-c", code, kind, arch, env=env, external=True, silent=True)
    return str(said).strip() == "True"


def prove_elsewhere(session: nox.Session, target: Target) -> None:
    """Run what can be proven without the device: against the vendor's wheels, none of which may be missing."""
    session.warn(f"no {' '.join(target.arch)} on this machine: what can be proven without one follows")
    for wheel in target.vendor:
        python(session, "tools/vendor_wheels.py", wheel)
    python(session, "-m", "pytest", *target.elsewhere, *session.posargs, MXFP4_REQUIRE_VENDOR="1")


def add_target(name: str, target: Target) -> None:
    """Make the session that holds one kind of hardware to all that must pass there, with no test skipped."""

    def run(session: nox.Session) -> None:
        if shared_python == sys.executable:
            check_needs(session, group("test", "triton"))
        if target.elsewhere and not has_device(session, *target.arch):
            prove_elsewhere(session, target)
            return
        # Each fails with what is missing and what to do: a device, a driver, a compiler.
        python(session, "-m", "mxfp4_core", "doctor", "--backend", target.backend)
        python(session, "-m", "mxfp4_core", "warmup", "--backend", target.backend)
        tests, variables = target.tests, {}
        if target.device:
            tests += tuple(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("integration/*/tests")))
            variables["MXFP4_TEST_DEVICE"] = target.device
        spread: tuple[str, ...] = ()
        if target.workers:  # two threads each, or the judge's matmuls of all workers fight for the processors
            spread = ("-n", str(target.workers), "--dist", "worksteal")
            variables["OMP_NUM_THREADS"] = "2"
        options = ("--require-backend", target.backend, *spread, *session.posargs)
        python(session, "-m", "pytest", *tests, *options, **variables)
        for tool in ("memcheck", "synccheck") if target.sanitized else ():
            # Other API errors are torch's, which asks for what may not be there.
            watch = (
                "compute-sanitizer",
                "--report-api-errors",
                "no",
                "--error-exitcode",
                "1",
                "--tool",
                tool,
            )
            run_python(session, watch, target.sanitized)

    run.__doc__ = f"Test the backend {target.backend!r} on this machine; a skip in its suite is a failure."
    nox.session(name=name, venv_backend="none", requires=["setup"])(run)


for _name, _target in TARGETS.items():
    add_target(_name, _target)
