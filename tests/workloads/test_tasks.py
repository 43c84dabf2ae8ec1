"""Tasks load, refuse what is wrong, and the light one is repaired by its recorded commands."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from agentsched.cgroups import Sandbox
from agentsched.workloads import tasks
from agentsched.workloads.tasks import Task, TaskError

LIGHT = "python-dotenv-1.2.2-byte-order-mark"


def test_all_eight_tasks_load_and_their_scripts_end_with_a_submission() -> None:
    ids = tasks.task_ids()
    assert len(ids) == 8
    for instance_id in ids:
        task = tasks.load_task(instance_id)
        turns = tasks.load_turns(instance_id)
        assert task.instance_id == instance_id
        assert task.fail_to_pass
        assert task.pass_to_pass
        assert not set(task.fail_to_pass) & set(task.pass_to_pass)
        assert len(task.sdist_sha256) == 64
        assert turns[-1].command.startswith("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")
        assert all(turn.thought and turn.command for turn in turns)


def test_each_task_has_the_test_files_that_it_names() -> None:
    with tasks.scripts_folder() as folder:
        for instance_id in tasks.task_ids():
            task = tasks.load_task(instance_id)
            named = {Path(test.split("::")[0]).name for test in task.fail_to_pass + task.pass_to_pass}
            assert named <= {path.name for path in (folder / instance_id / "tests").iterdir()}


def test_an_unknown_task_names_the_known_ones() -> None:
    with pytest.raises(TaskError, match=LIGHT):
        tasks.load_task("no-such-task")


def test_a_cached_file_with_another_sha256_is_refused(tmp_path: Path) -> None:
    task = tasks.load_task(LIGHT)
    (tmp_path / "sdists").mkdir()
    (tmp_path / "sdists" / task.sdist_filename).write_bytes(b"something else")
    with pytest.raises(TaskError, match="sha256"):
        tasks.fetch_sdist(task, tmp_path)


def test_without_a_package_index_the_error_names_the_package_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    task = tasks.load_task(LIGHT)
    with pytest.raises(TaskError, match=r"python-dotenv 1\.2\.2(.|\n)*PIP_INDEX_URL"):
        tasks.fetch_sdist(task, tmp_path)
    assert not list(tmp_path.rglob("*.tar.gz"))


def test_an_unusable_cache_folder_names_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AGENTSCHED_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(TaskError, match="AGENTSCHED_CACHE"):
        tasks.cache_folder()


def test_preparing_a_tree_refuses_paths_that_leave_it(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("pkg/../../../outside.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    task = tasks.load_task(LIGHT)
    with pytest.raises(tarfile.OutsideDestinationError):
        tasks.prepare_tree(task, archive, tmp_path / "deep" / "er" / "tree")
    assert not (tmp_path / "outside.txt").exists()


@pytest.fixture(scope="module")
def light_task() -> tuple[Task, Path, Path]:
    """The light task, its source and its environment, or a skip that says why."""
    task = tasks.load_task(LIGHT)
    cache = tasks.cache_folder()
    try:
        return task, tasks.fetch_sdist(task, cache), tasks.ensure_environment([task], cache)
    except TaskError as error:
        pytest.skip(f"neither cached nor to be fetched: {error}")


def test_the_recorded_commands_repair_the_package(
    light_task: tuple[Task, Path, Path], tmp_path: Path
) -> None:
    task, sdist, environment = light_task
    tree = tmp_path / "repo"
    tasks.prepare_tree(task, sdist, tree)

    with Sandbox.open() as sandbox:
        before = tasks.grade(task, tree, environment, sandbox)
    assert not before.passed
    assert set(before.missing) == set(task.fail_to_pass)

    for turn in tasks.load_turns(task.instance_id):
        subprocess.run(
            ["sh", "-c", turn.command],
            cwd=tree,
            env=tasks.task_variables(environment),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    with Sandbox.open() as sandbox:
        after = tasks.grade(task, tree, environment, sandbox)
    assert after.missing == []
    assert after.passed
    assert not (tree / task.tests_dir).exists()
