"""A text-to-SQL workflow: a graph of calls in place of a chain.

In the manner of HexGen-Text2SQL (Peng et al., arXiv 2505.05286, section on the agentic workflow, after
CHESS, Talaei et al., arXiv 2405.16755) on the BIRD benchmark: schema linking; SQL candidates, written in
parallel with varied prompts; self-correction of each on the errors of its execution, at most 10 times;
evaluation by generated unit tests and selection.

The papers give the stages and the bound; sizes and rates are choices: 11 databases (as in BIRD's
development set), schemas of 5,000 +- 3,000 tokens, questions of 150 tokens, 4 candidates, 30 % of
executions in error. Executions take SAGA's database times. A question's calls share the schema (as do all
questions on that database) and the question itself.
"""

from __future__ import annotations

from random import Random

from agentsched.workloads.generate.distributions import lognormal
from agentsched.workloads.generate.saga import TOOLS
from agentsched.workloads.scripts import Piece, Script, Turn

SOURCE = "text2sql"
MAX_CORRECTIONS = 10
QUESTION_TOKENS = 150


def text2sql(
    programs: int = 100,
    seed: int = 0,
    databases: int = 11,
    schema_tokens: float = 5_000.0,
    candidates: int = 4,
    error_rate: float = 0.3,
) -> list[Script]:
    """Questions, each a program whose candidates are sub-agents."""
    if databases < 1 or candidates < 1 or not 0 <= error_rate <= 1:
        raise ValueError("databases and candidates must be >= 1, error_rate between 0 and 1")
    rng = Random(f"text2sql {seed}")
    schemas = [
        Piece(f"shared:{SOURCE}:database-{number}", 500 + _tokens(rng, schema_tokens - 500, 3_000))
        for number in range(databases)
    ]
    scripts = []
    for number in range(programs):
        name = f"{SOURCE}-{number:05d}"
        prefix = (rng.choice(schemas), Piece(f"{name}/question", QUESTION_TOKENS))
        writers = [
            _candidate(rng, f"{name}.candidate-{which}", prefix, error_rate) for which in range(candidates)
        ]
        scripts += [_question(rng, name, prefix, writers), *writers]
    return scripts


def _question(rng: Random, name: str, prefix: tuple[Piece, ...], writers: list[Script]) -> Script:
    written = sum(writer.turns[-1].output_tokens for writer in writers)
    linking = Turn(
        sum(piece.tokens for piece in prefix) + 400,
        _tokens(rng, 300, 150),
        TOOLS["database"].draw(rng),
        tool="candidates",
        agents=tuple(writer.program for writer in writers),
    )
    testing = Turn(written + 500, _tokens(rng, 400, 200), TOOLS["database"].draw(rng), tool="database")
    selection = Turn(300, _tokens(rng, 100, 50), gap_s=0.0)
    return Script(name, 0.0, (linking, testing, selection), prefix, source=SOURCE)


def _candidate(rng: Random, name: str, prefix: tuple[Piece, ...], error_rate: float) -> Script:
    """Write, execute, and correct while execution fails. The last execution is the parent's to wait for."""
    attempts = 1
    while attempts <= MAX_CORRECTIONS and rng.random() < error_rate:
        attempts += 1
    turns = []
    for index in range(attempts):
        first, last = index == 0, index == attempts - 1
        new = (
            sum(piece.tokens for piece in prefix) + _tokens(rng, 800, 300)
            if first
            else _tokens(rng, 250, 100)
        )
        gap_s = 0.0 if last else TOOLS["database"].draw(rng)
        turns.append(Turn(new, _tokens(rng, 250, 120), gap_s, tool="" if last else "database"))
    return Script(name, 0.0, tuple(turns), prefix, source=SOURCE)


def _tokens(rng: Random, mean: float, deviation: float) -> int:
    return max(1, round(lognormal(rng, mean, deviation)))
