"""Offline software-engineering tasks: real bugs in released packages, with a recorded agent each.

A task folder holds our own words and code only: ``task.json``, the hidden tests, and ``turns.json``,
what the recorded agent says and does. The code under repair comes from the package index as a source
distribution pinned by version and sha256; it is unpacked, never installed.

The cache (``AGENTSCHED_CACHE``, else the user's cache folder) may be shared by any number of
processes: files appear in it by an atomic rename, environments are built under a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path, PurePosixPath

import msgspec
import platformdirs

from agentsched.cgroups import Sandbox, SandboxError, ToolResult, ToolSpec

GRADE_TIMEOUT_S = 300.0
GRADE_OUTPUT_BYTES = 16 << 20
PIP_TIMEOUT_S = 600.0


class TaskError(Exception):
    """A task cannot be loaded, fetched, prepared or graded; the message says what to do."""


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer of the recorded agent: what it says, and the one command that it asks for."""

    thought: str
    command: str


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task as ``task.json`` has it.

    Paths are relative to the prepared tree. ``final_context_chars`` and ``tool_cpu_s`` were measured
    once, on one run: characters of all messages at its end, and CPU seconds of all commands.
    """

    instance_id: str
    package: str
    version: str
    sdist_filename: str
    sdist_sha256: str
    licence: str
    strip_components: int
    python_path: str
    requirements: list[str]
    problem_statement: str
    tests_dir: str
    test_command: str
    fail_to_pass: list[str]
    pass_to_pass: list[str]
    final_context_chars: int
    tool_cpu_s: float


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the hidden tests: ``missing`` are the required ids that did not pass."""

    instance_id: str
    passed: bool
    missing: list[str]
    output: str = ""


@contextlib.contextmanager
def scripts_folder() -> Iterator[Path]:
    """The folder of all tasks as real files, also where the package is not unpacked on disk."""
    with resources.as_file(resources.files("agentsched.workloads") / "tasks") as folder:
        yield folder


def task_ids() -> list[str]:
    """Ids of all tasks, sorted."""
    with scripts_folder() as folder:
        return sorted(path.parent.name for path in folder.glob("*/task.json"))


def load_task(instance_id: str) -> Task:
    """The task. Raises ``TaskError`` for an unknown id or a file that breaks the schema."""
    with scripts_folder() as folder:
        path = folder / instance_id / "task.json"
        if not path.is_file():
            raise TaskError(f"unknown task {instance_id!r}; known are: {', '.join(task_ids())}")
        try:
            return msgspec.json.decode(path.read_bytes(), type=Task)
        except msgspec.DecodeError as error:
            raise TaskError(f"{path}: {error}") from error


def load_turns(instance_id: str) -> list[Turn]:
    """What the task's recorded agent says, in order. Raises ``TaskError``."""
    with scripts_folder() as folder:
        path = folder / instance_id / "turns.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[Turn])
        except (OSError, msgspec.DecodeError) as error:
            raise TaskError(f"{path}: {error}") from error


def cache_folder() -> Path:
    """Where downloads and environments are kept; made if absent."""
    override = os.environ.get("AGENTSCHED_CACHE")
    folder = Path(override) if override else platformdirs.user_cache_path("agentsched")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TaskError(
            f"cache folder {folder} cannot be made: {error}; set AGENTSCHED_CACHE to a writable one"
        ) from error
    return folder.resolve()


def fetch_sdist(task: Task, cache: Path) -> Path:
    """The pinned source distribution, downloaded by pip unless it is cached.

    Raises ``TaskError`` if it cannot be had, or is not the pinned file.
    """
    target = cache / "sdists" / task.sdist_filename
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            got = _download(task, Path(place))
            os.replace(got, target)
    _check_sha256(target, task.sdist_sha256)
    return target


def _download(task: Task, place: Path) -> Path:
    # With a hash in the requirement pip refuses a wrong file before any of its code runs.
    pinned = place / "requirements.txt"
    pinned.write_text(f"{task.package}=={task.version} --hash=sha256:{task.sdist_sha256}\n")
    _pip(
        sys.executable,
        [
            *("download", "--no-deps", "--no-binary", task.package),
            *("--require-hashes", "-r", str(pinned), "-d", str(place)),
        ],
        f"the source of {task.package} {task.version}",
    )
    return place / task.sdist_filename


def _check_sha256(path: Path, wanted: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != wanted:
        raise TaskError(
            f"{path}: sha256 is {found}, pinned is {wanted}; "
            "delete the file, and do not use it if the next download differs again"
        )


def _pip(python: str, arguments: Sequence[str], wanted: str) -> None:
    command = [python, "-m", "pip", *arguments, "-q", "--disable-pip-version-check", "--no-input"]
    done = _run(ToolSpec(argv=command, timeout_s=PIP_TIMEOUT_S))
    if done.timed_out:
        raise TaskError(f"pip did not fetch {wanted} within {PIP_TIMEOUT_S:.0f} s")
    if done.exit_status:
        raise TaskError(
            f"pip could not fetch {wanted}. It needs the package index once (later runs use the cache "
            f"{cache_folder()}): connect this machine, or set PIP_INDEX_URL to a mirror. pip said:\n"
            f"{done.text.strip()[-1500:]}"
        )


def _run(spec: ToolSpec) -> ToolResult:
    """Run one command of the set-up in a sandbox, so that nothing of it outlives this process."""
    try:
        with Sandbox.open("set-up") as sandbox:
            return sandbox.run(spec)
    except SandboxError as error:
        raise TaskError(f"{spec.command_class} cannot be run: {error}") from error


def prepare_tree(task: Task, sdist: Path, tree: Path) -> None:
    """Unpack the package into the new folder ``tree`` and commit it as the base.

    The folder above is scratch space of the agent: one tree a folder.
    """
    tree.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            parts = PurePosixPath(member.name).parts[task.strip_components :]
            if parts and (member.isfile() or member.isdir()):
                inside = member.replace(name=str(PurePosixPath(*parts)), deep=False)
                archive.extract(inside, tree, filter="data")
    _git(tree, "init", "-q")
    (tree / ".git/info/exclude").write_text("__pycache__/\n.pytest_cache/\n.hypothesis/\n")
    _git(tree, "add", "-A", "-f")
    _git(tree, "commit", "-q", "-m", "base")


def _git(tree: Path, *arguments: str) -> None:
    author = ["-c", "user.name=task", "-c", "user.email=task@example.invalid", "-c", "commit.gpgsign=false"]
    if shutil.which("git") is None:
        raise TaskError("git is needed to prepare tasks and was not found: install it")
    done = _run(ToolSpec(argv=["git", *author, "-C", str(tree), *arguments]))
    if done.exit_status:
        raise TaskError(f"git {arguments[0]} failed in {tree}: {done.text.strip()}")


def ensure_environment(tasks: Sequence[Task], cache: Path) -> Path:
    """The virtual environment in which the tasks' tests and commands run; built once, then cached.

    It holds the union of the tasks' pinned requirements. Raises ``TaskError``.
    """
    wanted = sorted({requirement for task in tasks for requirement in task.requirements})
    key = hashlib.sha256("\n".join([sys.version, sys.prefix, *wanted]).encode()).hexdigest()[:12]
    folder = cache / "environments" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    with _locked(folder.with_suffix(".lock")):
        if complete.exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        made = _run(ToolSpec(argv=[sys.executable, "-m", "venv", str(folder)]))
        if made.exit_status:
            raise TaskError(
                f"python -m venv failed (on Debian and Ubuntu install python3-venv): "
                f"{made.text.strip()[-800:]}"
            )
        _pip(str(folder / "bin/python"), ["install", *wanted], f"the test tools {', '.join(wanted)}")
        complete.touch()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def task_variables(environment: Path) -> dict[str, str]:
    """Environment variables under which the tasks' commands and tests behave as recorded."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTHONWARNINGS"}
    }
    return variables | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PAGER": "cat",
        "GIT_PAGER": "cat",
        "PIP_PROGRESS_BAR": "off",
    }


def grade(task: Task, tree: Path, environment: Path, sandbox: Sandbox) -> Grade:
    """Run the hidden tests in a copy of the tree. The tree itself stays as the agent left it.

    In a sandbox, since what an agent wrote may hang or start anything. Raises ``SandboxError``.
    """
    with scripts_folder() as folder, tempfile.TemporaryDirectory(dir=tree.parent) as place:
        copy = Path(place) / "repo"
        shutil.copytree(tree, copy, ignore=shutil.ignore_patterns(".git"))
        shutil.rmtree(copy / task.tests_dir, ignore_errors=True)
        shutil.copytree(folder / task.instance_id / "tests", copy / task.tests_dir)
        done = sandbox.run(
            ToolSpec(
                command=f"{task.test_command} -rA --color=no",
                shell="bash",
                cwd=str(copy),
                env=task_variables(environment) | {"TMPDIR": place},
                tool_call=tree.parent.name,
                timeout_s=GRADE_TIMEOUT_S,
                max_output_bytes=GRADE_OUTPUT_BYTES,
            )
        )
    output = done.text
    if done.timed_out:
        output = f"hidden tests did not end within {GRADE_TIMEOUT_S:.0f} s"
    passed = {line.removeprefix("PASSED ") for line in output.splitlines() if line.startswith("PASSED ")}
    missing = [test for test in [*task.fail_to_pass, *task.pass_to_pass] if test not in passed]
    return Grade(
        instance_id=task.instance_id,
        passed=not missing,
        missing=missing,
        output=output[-4000:] if missing else "",
    )
