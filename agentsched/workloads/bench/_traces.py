"""What a Chromium trace says of a page's main thread: script and layout, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

WORK = frozenset(
    {
        "FunctionCall",
        "v8.callFunction",
        "EvaluateScript",
        "RunMicrotasks",
        "FireAnimationFrame",
        "TimerFire",
        "EventDispatch",
    }
    | {"MinorGC", "MajorGC", "V8.GCScavenger", "V8.GC_MC_INCREMENTAL", "v8.run", "v8.parseOnBackground"}
    | {
        "Layout",
        "UpdateLayoutTree",
        "ScheduleStyleRecalculation",
        "HitTest",
        "IntersectionObserverController",
    }
)
FRAME = "Commit"
CATEGORIES = "devtools.timeline,v8,disabled-by-default-devtools.timeline,blink.user_timing"


def frames_ms(events: Iterable[dict[str, Any]], *, of_thread: bool = True) -> list[float]:
    """Milliseconds of script, style and layout up to each frame since the one before: also what was done
    between frames counts. ``of_thread``: CPU time of the main thread, else time of the clock, in which
    others may have had the CPU."""
    start, length = ("tts", "tdur") if of_thread else ("ts", "dur")
    known = list(events)
    main = _main_thread(known)
    mine = [event for event in known if (event.get("pid"), event.get("tid")) == main and start in event]
    begins = sorted(float(event[start]) for event in mine if event["name"] == FRAME)
    spans = ((float(e[start]), float(e[start]) + float(e.get(length, 0))) for e in mine if e["name"] in WORK)
    work = list(_union(spans))
    found = []
    at = 0
    for begin, end in pairwise(begins):
        spent = 0.0
        while at < len(work) and work[at][1] <= begin:
            at += 1
        for began, ended in work[at:]:
            if began >= end:
                break
            spent += max(0.0, min(ended, end) - max(began, begin))
        found.append(spent / 1000)
    return found


def _main_thread(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Of the renderer that drew most frames."""
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    if not threads:
        raise ValueError("the trace has no renderer")
    drawn = [(e["pid"], e["tid"]) for e in events if e["name"] == FRAME]
    return max(sorted(threads), key=drawn.count)


def _union(spans: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """In order, without overlap: events nest."""
    begin = end = None
    for start, stop in sorted(spans):
        if end is None or begin is None:
            begin, end = start, stop
        elif start <= end:
            end = max(end, stop)
        else:
            yield begin, end
            begin, end = start, stop
    if begin is not None and end is not None:
        yield begin, end
