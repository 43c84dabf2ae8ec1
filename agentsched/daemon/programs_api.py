"""``/agentsched/v1``: programs as their owner sees and describes them, what their tools do, and the account.

A tenant sees its own programs by its own names. Those of others are not there: what cannot be found and what
belongs to somebody else are answered alike.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from agentsched.core import events as ev
from agentsched.daemon import intake
from agentsched.daemon.accounts import Accounts, Seconds, Terms
from agentsched.daemon.apis.reading import check_program
from agentsched.daemon.calls import Calls
from agentsched.daemon.charges import Charges, ChargesMeter
from agentsched.daemon.errors import ApiError
from agentsched.daemon.host import Host
from agentsched.daemon.intake import StatedName
from agentsched.daemon.operations import Answer, Asked, Operation
from agentsched.daemon.programs import Programs, ProgramView
from agentsched.daemon.tenancy import Tenancy

PROGRAMS_PATH = "/agentsched/v1/programs"
EVENTS_PATH = "/agentsched/v1/events"
TOOL_CALLS_PATH = "/agentsched/v1/tool-calls"

ExpectedCalls = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
State = Literal["waiting", "running", "tool", "idle"]


class NewProgram(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A program that will call. ``program`` is its name, made up if it has none: the value of the header
    ``x-agentsched-program``. ``host``: where its tools run."""

    program: StatedName | None = None
    expected_calls: ExpectedCalls | None = None
    deadline_s: Seconds | None = None
    parent: StatedName | None = None
    host: StatedName | None = None


class Annotation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is known of a program now: how many calls it makes in all, and in how many seconds from now it
    should end."""

    expected_calls: ExpectedCalls | None = None
    deadline_s: Seconds | None = None


class ProgramInfo(msgspec.Struct, kw_only=True):
    """One open program. ``calls``: its live ones, by phase. ``tools``: tool calls that are known to run.
    ``why`` says what was last decided of its place; null where there are keys, since it tells how much
    others use. Seconds count back from now, ``due_in_s`` forward."""

    program: str
    tenant: str
    parent: str | None
    state: State
    engine: str | None
    why: str | None
    calls: dict[str, str]
    tools: list[str]
    calls_done: int
    expected_calls: int | None
    context_tokens: int
    held_device_tokens: int
    held_host_tokens: int
    age_s: float
    silent_s: float
    due_in_s: float | None


class ProgramPage(msgspec.Struct, kw_only=True):
    """Programs in order of opening. ``next``: where the next page begins, for ``after``; None: this is
    the last."""

    programs: list[ProgramInfo]
    next: int | None


class ProgramQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which programs: at most ``limit``, those in one state, or those of one parent."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100
    after: Annotated[int, msgspec.Meta(ge=0, le=2**53)] = 0
    state: State | UnsetType = UNSET
    parent: StatedName | UnsetType = UNSET


class ToolQuery(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of which run (the name in its base URL) or program; of all without."""

    run: StatedName | UnsetType = UNSET


class ToolInfo(msgspec.Struct, kw_only=True):
    """A tool call that the model asked for: ``arguments`` as it wrote them, JSON. ``age_s``: since then;
    ``result_age_s``: since its result came, if it did."""

    tool_call: str
    tool: str
    arguments: str
    program: str
    run: str | None
    age_s: float
    result_age_s: float | None


class ToolList(msgspec.Struct, kw_only=True):
    """In order of asking: those without a result, and those whose result came a little while ago."""

    tool_calls: list[ToolInfo]


class Account(msgspec.Struct, kw_only=True):
    """A tenant, its terms, and what it used."""

    tenant: str
    terms: Terms
    charges: Charges
    open_programs: int
    live_calls: int


class ProgramsApi:
    """The operations."""

    def __init__(
        self, calls: Calls, host: Host, programs: Programs, accounts: Accounts, meter: ChargesMeter
    ) -> None:
        self._calls = calls
        self._host = host
        self._programs = programs
        self._accounts = accounts
        self._meter = meter

    def operations(self) -> list[Operation]:
        return [*self._of_all(), *self._of_one(), *self._of_tenant()]

    def _of_all(self) -> list[Operation]:
        of_tenant = partial(Operation, realm="tenant")
        return [
            of_tenant(
                method="POST",
                path=PROGRAMS_PATH,
                summary="Announce a program before its first call",
                run=self.create,
                body=NewProgram,
                answers={201: ProgramInfo},
                refusals=(409, 429),
            ),
            of_tenant(
                method="GET",
                path=PROGRAMS_PATH,
                summary="List open programs",
                run=self.list,
                query=ProgramQuery,
                answers={200: ProgramPage},
            ),
        ]

    def _of_one(self) -> list[Operation]:
        of_one = partial(Operation, realm="tenant", path=PROGRAMS_PATH + "/{program}")
        return [
            of_one(
                method="GET",
                summary="Look at a program",
                run=self.show,
                answers={200: ProgramInfo},
                refusals=(404,),
            ),
            of_one(
                method="PATCH",
                summary="Say what is known of a program",
                run=self.annotate,
                body=Annotation,
                answers={200: ProgramInfo},
                refusals=(404,),
            ),
            of_one(
                method="DELETE",
                summary="End a program and what it has running",
                run=self.close,
                answers={204: None},
                refusals=(404,),
            ),
        ]

    def _of_tenant(self) -> list[Operation]:
        of_tenant = partial(Operation, realm="tenant")
        return [
            of_tenant(
                method="POST",
                path=EVENTS_PATH,
                summary="Tell what tools do, in order and in batches",
                run=self.take,
                body=intake.Events,
                parse=bytes,
                answers={200: intake.Taken},
            ),
            of_tenant(
                method="GET",
                path=TOOL_CALLS_PATH,
                summary="List tool calls that the model asked for lately",
                run=self.list_tools,
                query=ToolQuery,
                answers={200: ToolList},
            ),
            of_tenant(
                method="GET",
                path="/agentsched/v1/account",
                summary="Look at one's own terms and use",
                run=self.show_account,
                answers={200: Account},
            ),
        ]

    def create(self, asked: Asked) -> Answer:
        new: NewProgram = asked.body
        tenancy = asked.tenancy
        for field in ("program", "parent", "host"):
            if (name := getattr(new, field)) is not None:
                check_program(name, field)
        tenancy.charge(time.monotonic())
        program = tenancy.identities.new_name() if new.program is None else tenancy.inside(new.program)
        opened = self._calls.open_program(
            tenancy,
            program,
            deadline_s=new.deadline_s,
            parent=None if new.parent is None else tenancy.inside(new.parent),
            expected_calls=new.expected_calls or 0,
            host="" if new.host is None else tenancy.inside(new.host),
        )
        if not opened:
            raise ApiError(
                409, f"program {new.program!r} is open already", param="program", code="program_exists"
            )
        return Answer(self._info(self._programs.open[program], tenancy), status=201)

    def list(self, asked: Asked) -> Answer:
        query: ProgramQuery = asked.query
        tenancy = asked.tenancy
        parent: str | UnsetType = UNSET
        if query.parent is not UNSET:
            check_program(query.parent, "parent")
            parent = tenancy.inside(query.parent)
        found = [
            view
            for view in self._programs.of(tenancy.tenant.name)
            if view.number > query.after
            and query.state in (UNSET, view.state)
            and parent in (UNSET, view.parent)
        ]
        page = found[: query.limit]
        more = page[-1].number if len(found) > len(page) else None
        return Answer(ProgramPage(programs=[self._info(view, tenancy) for view in page], next=more))

    def show(self, asked: Asked) -> Answer:
        return Answer(self._info(self._view(asked), asked.tenancy))

    def annotate(self, asked: Asked) -> Answer:
        said: Annotation = asked.body
        view = self._view(asked)
        self._host.post(
            ev.ProgramAnnotated(
                program=view.program, expected_calls=said.expected_calls, deadline_s=said.deadline_s
            )
        )
        return Answer(self._info(view, asked.tenancy))

    def close(self, asked: Asked) -> Answer:
        self._calls.close_program(self._view(asked).program)
        return Answer(status=204)

    def take(self, asked: Asked) -> Answer:
        events = intake.parse_events(asked.body, asked.tenancy)
        return Answer(intake.take(events, asked.tenancy, self._calls, self._host))

    def list_tools(self, asked: Asked) -> Answer:
        query: ToolQuery = asked.query
        if query.run is not UNSET:
            check_program(query.run, "run")
        now = time.monotonic()
        found = [
            ToolInfo(
                tool_call=each.tool_call,
                tool=each.tool,
                arguments=each.arguments,
                program=each.program,
                run=each.run or None,
                age_s=now - each.asked_s,
                result_age_s=None if each.result_s is None else now - each.result_s,
            )
            for each in asked.tenancy.asked.listed("" if query.run is UNSET else query.run, now)
        ]
        return Answer(ToolList(tool_calls=found))

    def show_account(self, asked: Asked) -> Answer:
        return Answer(self.account(asked.tenancy))

    def account(self, tenancy: Tenancy) -> Account:
        """As of now."""
        tenant = tenancy.tenant
        self._meter.settle(time.monotonic())
        return Account(
            tenant=tenant.name,
            terms=Terms(**tenant.stated()),
            charges=self._accounts.charges(tenant.name),
            open_programs=len(self._programs.of(tenant.name)),
            live_calls=tenancy.live,
        )

    def _view(self, asked: Asked) -> ProgramView:
        name = asked.path["program"]
        view = self._programs.open.get(asked.tenancy.inside(name))
        if view is None or view.tenant != asked.tenancy.tenant.name:
            raise ApiError(404, f"no program {name!r} is open", param="program", code="program_not_found")
        return view

    def _info(self, view: ProgramView, tenancy: Tenancy) -> ProgramInfo:
        now = time.monotonic()
        return ProgramInfo(
            program=tenancy.outside(view.program),
            tenant=view.tenant,
            parent=tenancy.outside(view.parent) or None,
            state=view.state,
            engine=view.engine,
            why=None if self._accounts.locked else view.why,
            calls=dict(view.calls),
            tools=sorted(view.tools),
            calls_done=view.calls_done,
            expected_calls=view.expected_calls or None,
            context_tokens=view.context_tokens,
            held_device_tokens=view.held_device_tokens,
            held_host_tokens=view.held_host_tokens,
            age_s=now - view.opened_s,
            silent_s=now - view.active_s,
            due_in_s=None if view.due_s is None else view.due_s - now,
        )
