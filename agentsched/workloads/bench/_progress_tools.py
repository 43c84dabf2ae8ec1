"""Real tools to run for ``scripts/bench progress``: each makes its material in a folder, of a given size."""

from __future__ import annotations

import os
import random
import shutil
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PYTEST = f"{sys.executable} -m pytest -p no:cacheprovider"


@dataclass(frozen=True, slots=True)
class Tool:
    """One kind of call. ``prepare`` writes what it needs into a folder and gives the command;
    ``size`` is about how many seconds it takes. ``needs`` are programs without which it is left out;
    ``again``: run twice, since it tells more when it has run before."""

    name: str
    prepare: Callable[[Path, float, random.Random], str]
    needs: tuple[str, ...] = ()
    again: bool = False

    @property
    def missing(self) -> list[str]:
        return [program for program in self.needs if shutil.which(program) is None]


def _sleeps(size: float, chance: random.Random, count: int, *, skew: str) -> list[float]:
    """``count`` test times that sum up to ``size`` seconds: alike, of long tail, or with slow ones last."""
    weights = [1.0 if skew == "even" else chance.lognormvariate(0.0, 1.5) for _ in range(count)]
    if skew == "slow last":
        weights.sort()
    return [size * weight / sum(weights) for weight in weights]


def _pytest(options: str, skew: str, import_s: float = 0.0) -> Callable[[Path, float, random.Random], str]:
    def prepare(folder: Path, size: float, chance: random.Random) -> str:
        (folder / "pytest.ini").write_text("[pytest]\n")
        times = _sleeps(size, chance, round(40 * size), skew=skew)
        for part in range(4):
            own = times[part * len(times) // 4 : (part + 1) * len(times) // 4]
            (folder / f"test_{part}.py").write_text(
                textwrap.dedent(
                    f"""
                    import time, pytest
                    time.sleep({import_s / 4})
                    @pytest.mark.parametrize("seconds", {own!r})
                    def test_it(seconds): time.sleep(seconds)
                    """
                )
            )
        return f"{PYTEST} {options}".strip()

    return prepare


def _unittest(folder: Path, size: float, chance: random.Random) -> str:
    times = _sleeps(size, chance, round(30 * size), skew="long tail")
    code = ["import time, unittest", "class Test(unittest.TestCase): pass", f"TIMES = {times!r}"]
    code += ["for n, s in enumerate(TIMES): setattr(Test, f'test_{n:04}', lambda self, s=s: time.sleep(s))"]
    (folder / "test_all.py").write_text("\n".join(code))
    return f"{sys.executable} -m unittest test_all"


def _sources(folder: Path, size: float, chance: random.Random) -> list[str]:
    """C files that take a compiler about ``size`` seconds, some of them ten times as long as others."""
    weights = [chance.lognormvariate(0.0, 1.0) for _ in range(round(5 * size))]
    lines = [max(2, round(300 * size * weight / sum(weights))) for weight in weights]
    for number, count in enumerate(lines):
        body = [
            f"double f{number}_{n}(double *x, int k) {{ double s = {n}; for (int i = 0; i < k; i++) "
            f"s += x[i] * s - x[(i * {n + 3}) % k]; return s; }}"
            for n in range(count)
        ]
        (folder / f"part{number}.c").write_text("\n".join(body))
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    return [f"part{number}.c" for number in range(len(lines))]


def _ninja(folder: Path, size: float, chance: random.Random) -> str:
    names = _sources(folder, size, chance)
    rules = ["rule cc", "  command = gcc -O2 -c $in -o $out"]
    rules += [f"build {name[:-2]}.o: cc {name}" for name in names]
    (folder / "build.ninja").write_text("\n".join(rules) + "\n")
    return "ninja"


def _cmake(folder: Path, size: float, chance: random.Random) -> str:
    _sources(folder, size, chance)
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.10)\nproject(p C)\nset(CMAKE_C_FLAGS -O2)\n"
        "file(GLOB PARTS *.c)\nadd_executable(p ${PARTS})\n"
    )
    return "cmake -S . -B build && make -C build"


def _make(folder: Path, size: float, chance: random.Random) -> str:
    _sources(folder, size, chance)
    (folder / "Makefile").write_text(
        "OBJECTS = $(patsubst %.c,%.o,$(wildcard part*.c))\n"
        "all: $(OBJECTS)\n%.o: %.c\n\tgcc -O2 -c $< -o $@\n"
    )
    return "make"


def _pip(folder: Path, size: float, chance: random.Random) -> str:
    """Wheels of many files, made here: installing compiles them."""
    import zipfile

    wheels = folder / "wheels"
    wheels.mkdir()
    names = [f"madepackage{number}" for number in range(6)]
    for name in names:
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for part in range(round(chance.uniform(10, 50) * size)):
                lines = "\n".join(
                    f"def f{n}(x):\n    return [x * {n} for _ in range({n})]" for n in range(60)
                )
                wheel.writestr(f"{name}/m{part}.py", lines)
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(
                f"{info}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{info}/RECORD", "")
    return f"pip install --no-index --find-links wheels --target to {' '.join(names)}"


def _cargo(folder: Path, size: float, chance: random.Random) -> str:
    times = _sleeps(size, chance, round(10 * size), skew="long tail")
    (folder / "Cargo.toml").write_text('[package]\nname = "made"\nversion = "0.1.0"\nedition = "2021"\n')
    (folder / "src").mkdir()
    tests = [
        f"#[test] fn t{n}() {{ std::thread::sleep(std::time::Duration::from_micros({round(s * 1e6)})); }}"
        for n, s in enumerate(times)
    ]
    (folder / "src/lib.rs").write_text("#[cfg(test)] mod tests {\n" + "\n".join(tests) + "\n}\n")
    return "cargo test --offline --lib -- --test-threads=1"


def _node(folder: Path, size: float, chance: random.Random) -> str:
    times = _sleeps(1000 * size, chance, round(20 * size), skew="long tail")
    body = "const test = require('node:test');\n"
    body += f"for (const ms of {times!r}) test('t' + ms, () => new Promise(done => setTimeout(done, ms)));\n"
    (folder / "all.test.js").write_text(body)
    return "node --test all.test.js"


def _script(folder: Path, size: float, chance: random.Random) -> str:
    times = _sleeps(size, chance, 50, skew="long tail")
    (folder / "work.py").write_text(
        "import sys, time\n"
        f"for n, s in enumerate({times!r}):\n"
        "    time.sleep(s); print(f'\\rwork: {2 * n + 2}%', end='', file=sys.stderr, flush=True)\n"
    )
    return f"{sys.executable} work.py"


TOOLS = (
    Tool("pytest", _pytest("", "even")),
    Tool("pytest, long tail", _pytest("", "long tail")),
    Tool("pytest, slow tests last", _pytest("", "slow last")),
    Tool("pytest -q, long tail", _pytest("-q", "long tail"), again=True),
    Tool("pytest -v, slow imports", _pytest("-v", "even", import_s=2.0)),
    Tool("unittest, long tail", _unittest, again=True),
    Tool("ninja", _ninja, ("ninja", "gcc")),
    Tool("cmake && make", _cmake, ("cmake", "make", "gcc")),
    Tool("make", _make, ("make", "gcc")),
    Tool("pip install", _pip, ("pip",)),
    Tool("cargo test", _cargo, ("cargo",)),
    Tool("node --test", _node, ("node",), again=True),
    Tool("script with a percentage", _script),
)


def environment() -> dict[str, str]:
    """For the tools: nothing of this checkout's, and plugins of pytest left out, which take seconds."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
