"""Keeps what the daemon knows in the state file, and gives it back to the next daemon.

A watcher of the core's events: it notes what changed, and the writer fetches that some moments later. What
is kept follows memory: what is forgotten there goes from the file, so the file is bounded as memory is.

What a sudden death costs: what happened in the last ``FLUSH_S`` before it, and the models of the last
``MODELS_EVERY_S``. What is written together belongs together: a program is never known with an account
of another moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.daemon.accounts import Accounts
from agentsched.daemon.host import Host
from agentsched.daemon.identity import Identities
from agentsched.daemon.programs import Programs
from agentsched.daemon.recent import Table
from agentsched.daemon.state import records
from agentsched.daemon.state.database import Batch, Database, Key, Row
from agentsched.daemon.state.records import ProgramFacts, SavedProgram
from agentsched.daemon.state.writer import Writer
from agentsched.daemon.tenancy import Tenancies

MODELS_EVERY_S = 60.0
FORGOTTEN_AFTER_S = 24 * 3600.0
"""A program that nobody was heard of for so long is not taken up again."""
_SOON_S = 1e-3


class Keeper:
    """Ties one daemon's parts to its state. A watcher that comes after ``programs``."""

    def __init__(
        self, database: Database, core: Core, programs: Programs, tenancies: Tenancies, accounts: Accounts
    ) -> None:
        self._database = database
        self._core = core
        self._programs = programs
        self._tenancies = tenancies
        self._identities: dict[str, Identities] = {}
        """By tenant."""
        self._forgotten: list[tuple[str, Any]] = []
        """Kinds and keys of identities that are gone with their tenants."""
        self._accounts = accounts
        self._calls: dict[str, str] = {}
        self._changed: dict[str, None] = {}
        self._records: dict[tuple[str, str], object | None] = {}
        self._learned = False
        self._models_due_s = time.monotonic() + MODELS_EVERY_S
        self._writer = Writer(database, self._gather)

    @property
    def failing(self) -> bool:
        """Whether the file cannot be written at the moment."""
        return self._writer.failing

    def restore(self, host: Host) -> int:
        """Bring back what an earlier daemon knew; the number of programs. Once, before the first call."""
        self._tenancies.made, self._tenancies.forgotten = self._restore_identities, self._forget_identities
        for tenant in self._accounts.tenants():
            self._tenancies.of(tenant.name)
        self._tenancies.made = self._watch_identities
        self._accounts.changed = self._keep_accounts
        self._accounts.charged = partial(self.keep_record, records.CHARGES)
        now_s = time.time()
        count = 0
        for saved in records.programs(self._database):
            if now_s - saved.seen_unix_s < FORGOTTEN_AFTER_S and self._restore(host, saved, now_s):
                count += 1
            else:
                self._program_changed(saved.program)
        return count

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        """Note whose row is not what it was."""
        match event:
            case ev.CallStarted() | ev.FirstToken():
                pass
            case ev.CallArrived():
                self._calls[event.call] = event.program
                self._program_changed(event.program)
            case ev.CallFinished() | ev.CallAborted():
                self._learned = True
                self._program_changed(self._calls.pop(event.call))
            case (
                ev.ProgramOpened()
                | ev.ProgramAnnotated()
                | ev.ProgramRestored()
                | ev.ProgramClosed()
                | ev.ToolStarted()
                | ev.ToolFinished()
            ):
                self._program_changed(event.program)
            case _:
                pass

    async def written(self) -> None:
        """Wait until all that is known now is in the file, unless that cannot be written."""
        await self._writer.written()

    async def close(self) -> None:
        """Write all that is known, and close the file."""
        self._models_due_s = 0.0
        await self._writer.close()

    def _program_changed(self, program: str) -> None:
        self._changed[program] = None
        self._writer.changed()

    def keep_record(self, kind: str, key: str, value: object | None) -> None:
        """Keep this of operators or accounts (None: no more), as it is when it is written."""
        self._records[kind, key] = value
        self._writer.changed()

    # To the file

    def _gather(self) -> Batch:
        batch: dict[tuple[str, Key], Row | Callable[[], Row] | None] = {}
        for name in self._changed:
            batch["programs", (name,)] = self._row(name)
        for gone in self._forgotten:
            batch["identity", gone] = None
        for tenant, identities in self._identities.items():
            for kind, table in _tables(tenant, identities):
                for key, value in table.entries.changes().items():
                    batch["identity", (kind, key)] = None if value is None else (records.text(value),)
        for record, value in self._records.items():
            batch["records", record] = None if value is None else (records.text(value),)
        if self._learned and time.monotonic() >= self._models_due_s:
            self._learned, self._models_due_s = False, time.monotonic() + MODELS_EVERY_S
            batch["models", (records.MODELS,)] = partial(records.models_row, self._core.state.learned())
        self._changed, self._records, self._forgotten = {}, {}, []
        return batch

    def _row(self, name: str) -> Row | None:
        program, view = self._core.state.programs.get(name), self._programs.open.get(name)
        if program is None or view is None:
            return None
        to_unix_s = time.time() - time.monotonic()
        facts = ProgramFacts(
            weight=program.weight,
            priority=program.priority,
            expected_calls=program.expected_calls,
            host=program.host,
            deadline_unix_s=None if program.due_s is None else program.due_s + to_unix_s,
            first_prompt_tokens=program.first_prompt_tokens,
            shared_tokens=program.shared_tokens,
            gap_key=program.gap_key,
            asked=dict(program.tools),
        )
        return SavedProgram(
            program=name,
            tenant=program.tenant,
            parent=program.parent,
            opened_unix_s=program.opened_s + to_unix_s,
            seen_unix_s=view.active_s + to_unix_s,
            calls_done=program.calls_done,
            context_tokens=program.context_tokens,
            facts=facts,
        ).row()

    # From the file

    def _restore_identities(self, tenant: str, identities: Identities) -> None:
        for kind, table in _tables(tenant, identities):
            key: Any  # by the table
            for key, value in records.identity(self._database, kind, table.key, table.value):
                table.entries[key] = value
        self._watch_identities(tenant, identities)
        identities.recover()

    def _watch_identities(self, tenant: str, identities: Identities) -> None:
        for _, table in _tables(tenant, identities):
            table.entries.watch()
        self._identities[tenant] = identities

    def _forget_identities(self, tenant: str) -> None:
        identities = self._identities.pop(tenant, None)
        if identities is not None:
            for kind, table in _tables(tenant, identities):
                self._forgotten += [(kind, key) for key, _ in table.entries.items()]
            self._writer.changed()

    def _keep_accounts(self) -> None:
        self.keep_record(records.ACCOUNTS, records.EVERYBODY, self._accounts.save())

    def _restore(self, host: Host, saved: SavedProgram, now_s: float) -> bool:
        facts = saved.facts
        due_s = facts.deadline_unix_s
        opened = host.post(
            ev.ProgramOpened(
                program=saved.program,
                tenant=saved.tenant,
                weight=facts.weight,
                priority=facts.priority,
                expected_calls=facts.expected_calls,
                host=facts.host,
                deadline_s=None if due_s is None else max(_SOON_S, due_s - now_s),
                parent=saved.parent,
            )
        )
        return opened and host.post(
            ev.ProgramRestored(
                program=saved.program,
                open_s=max(0.0, now_s - saved.opened_unix_s),
                calls_done=saved.calls_done,
                first_prompt_tokens=facts.first_prompt_tokens,
                context_tokens=saved.context_tokens,
                shared_tokens=facts.shared_tokens,
                gap_key=facts.gap_key,
                asked=tuple(ev.ToolCallRef(tool_call=call, tool=key) for call, key in facts.asked.items()),
            )
        )


def _tables(tenant: str, identities: Identities) -> Iterator[tuple[str, Table]]:
    """A tenant's tables, by their kind in the file."""
    for kind, table in identities.tables().items():
        yield f"{tenant}/{kind}", table
