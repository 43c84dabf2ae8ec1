"""What service a server gives, by what it tells and what is said of it, and in which words it is asked for
it."""

from __future__ import annotations

from typing import Any

import pytest

from agentsched.engines.upstream.declared import Declared, apart
from agentsched.engines.upstream.dialect import Dialect, dialect_of, program_of, session_of
from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, MESSAGES, PATHS, RESPONSES
from agentsched.engines.upstream.probe import EventsAt, Told, of_sglang, of_vllm
from agentsched.engines.upstream.readings import Reading, read_sglang, read_vllm

SGLANG: dict[str, Any] = {
    "version": "0.5.23",
    "max_total_num_tokens": 4_000,
    "page_size": 16,
    "max_running_requests": 8,
    "port": 30_000,
    "radix_cache_backend": None,
    "enable_priority_scheduling": False,
    "schedule_low_priority_values_first": False,
    "disable_priority_preemption": False,
    "enable_session_radix_cache": False,
    "enable_metrics": True,
    "enable_cache_report": True,
    "kv_events": None,
}
VLLM = (
    b"# HELP vllm:cache_config_info x\n"
    b'vllm:cache_config_info{block_size="32",engine="0",enable_prefix_caching="True",'
    b'num_gpu_blocks="250"} 1.0\n'
)
EVERYTHING: dict[str, Any] = {"rank": 7.4, "salt": "acme#1"}


def sglang(*, fields: bool = True, plugin: bool = False, **info: Any) -> Dialect:
    told = of_sglang(SGLANG | info, "gpu1")
    assert told is not None
    return dialect_of(told, Declared(), plugin=plugin, fields=fields)


def vllm(said: str = "", *, fields: bool = True, info: dict[str, Any] | None = None) -> Dialect:
    told = of_vllm(VLLM, info or {}, "gpu1")
    assert told is not None
    return dialect_of(told, apart("http://gpu1:8000" + said)[1], plugin=False, fields=fields)


def test_a_stock_sglang_has_its_calls_let_in_and_placed() -> None:
    dialect = sglang()
    assert dialect.service.level == "order"
    assert {lack.what for lack in dialect.service.lacks} == {
        "pins",
        "order",
        "all of this for /v1/messages",
        "what is held for whom",
    }
    for path in PATHS:
        assert dialect.added(path, program="p", rank=1.0, salt="") == ({}, {}, "")


def test_an_sglang_with_sessions_and_priorities_is_told_both() -> None:
    dialect = sglang(enable_session_radix_cache=True, enable_priority_scheduling=True)
    assert dialect.service.level == "soft"
    assert (dialect.pins, dialect.ranks) == (True, True)
    for path in (CHAT, COMPLETIONS, RESPONSES):
        headers, fields, session = dialect.added(path, program="//acme/p q", **EVERYTHING)
        assert headers == {}
        assert fields == {"session_id": "%2F%2Facme%2Fp%20q", "priority": -7, "cache_salt": "acme#1"}
        assert session == "//acme/p q"
    assert dialect.added(MESSAGES, program="p", **EVERYTHING) == ({}, {}, "")


def test_a_session_of_the_clients_own_is_left_alone() -> None:
    """SGLang refuses a request with both."""
    dialect = sglang(enable_session_radix_cache=True)
    added = dialect.added(CHAT, program="p", rank=None, salt="", own_session=True)
    assert added == ({}, {}, "")
    plugin = sglang(plugin=True)
    assert plugin.added(CHAT, program="p", rank=None, salt="", own_session=True).headers


def test_lower_ranks_go_first_whichever_way_a_server_counts() -> None:
    of_high = sglang(enable_priority_scheduling=True)
    of_low = sglang(enable_priority_scheduling=True, schedule_low_priority_values_first=True)
    ranks = (0.0, 3.6, 1e6, 1e300)
    high = [of_high.added(CHAT, program="p", rank=rank, salt="").fields["priority"] for rank in ranks]
    low = [of_low.added(CHAT, program="p", rank=rank, salt="").fields["priority"] for rank in ranks]
    assert high == sorted(high, reverse=True)
    assert low == sorted(low)
    assert len(set(low)) == 4
    assert low[:3] == [0, 4, 1_000_000]


def test_what_preempts_is_said() -> None:
    assert "order by priority, which preempts" in sglang(enable_priority_scheduling=True).service.does
    gentle = sglang(enable_priority_scheduling=True, disable_priority_preemption=True)
    assert "order by priority" in gentle.service.does


def test_the_plugin_is_told_whose_a_call_is_and_nothing_else() -> None:
    dialect = sglang(plugin=True, enable_priority_scheduling=True, radix_cache_backend="agentsched")
    assert dialect.service.level == "retention"
    assert dialect.added(CHAT, program="p/q", rank=1.0, salt="") == ({b"x-smg-routing-key": b"p%2Fq"}, {}, "")
    assert dialect.added(RESPONSES, program="p", rank=1.0, salt="") == ({}, {"session_id": "p"}, "")
    assert dialect.read is None


def test_outputs_are_recorded_where_requests_may_bring_what_emits_them_and_our_package_is_there() -> None:
    ours: dict[str, Any] = {"plugin": True, "radix_cache_backend": "agentsched"}
    assert "outputs as requests say" in sglang(enable_custom_logit_processor=True, **ours).service.does
    assert "outputs as requests say" not in sglang(**ours).service.does
    assert "outputs as requests say" not in sglang(enable_custom_logit_processor=True).service.does


def test_without_fields_bodies_stay_as_they_are() -> None:
    for dialect in (
        sglang(fields=False, enable_session_radix_cache=True, enable_priority_scheduling=True),
        sglang(fields=False, plugin=True),
        vllm("#priority", fields=False),
    ):
        for path in PATHS:
            assert dialect.added(path, program="p", **EVERYTHING).fields == {}
        assert (dialect.pins, dialect.ranks, dialect.salts) == (False, False, False)
        assert any("fields in bodies" in lack.what for lack in dialect.service.lacks)


def test_a_vllm_says_little_and_its_operator_more() -> None:
    dialect = vllm()
    assert dialect.service.level == "order"
    assert dialect.added(CHAT, program="p", rank=1.0, salt="s").fields == {"cache_salt": "s"}
    dialect = vllm("#priority")
    assert dialect.ranks
    assert dialect.added(CHAT, program="p", rank=1.6, salt="").fields == {"priority": 2}
    assert dialect.added(MESSAGES, program="p", rank=1.6, salt="s") == (
        {b"x-vllm-priority": b"2"},
        {"cache_salt": "s"},
        "",
    )


def test_a_vllm_with_events_is_told_whose_a_call_is() -> None:
    pytest.importorskip("zmq", reason="who cannot listen tells nothing")
    dialect = vllm("#events=tcp://gpu1:5557,replay=tcp://gpu1:5558")
    assert dialect.events == EventsAt(endpoints=("tcp://gpu1:5557",), replays=("tcp://gpu1:5558",))
    for path in PATHS:
        assert dialect.added(path, program="//a/b", rank=None, salt="").headers == {
            b"x-session-id": b"%2F%2Fa%2Fb"
        }
    assert not dialect.pins


def test_what_a_vllm_in_development_mode_tells() -> None:
    config = {
        "scheduler_config": {"policy": "priority", "max_num_seqs": 4},
        "kv_events_config": {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": "tcp://*:5557",
            "replay_endpoint": "tcp://0.0.0.0:6557",
            "topic": "kv",
        },
    }
    told = of_vllm(VLLM + VLLM.replace(b'engine="0"', b'engine="1"'), {"vllm_config": config}, "::1")
    assert told == Told(
        kind="vllm",
        capacity_tokens=16_000,
        block_tokens=32,
        max_running=8,
        first="low",
        preempts=True,
        metrics=True,
        events=EventsAt(
            endpoints=("tcp://[::1]:5557", "tcp://[::1]:5558"),
            replays=("tcp://[::1]:6557", "tcp://[::1]:6558"),
            topic="kv",
        ),
    )


def test_where_sglang_publishes() -> None:
    described = {
        "publisher": "zmq",
        "endpoint_host": "*",
        "endpoint_port_base": 5557,
        "topic": "t",
        "dp_size": 2,
        "replay_endpoint_port_base": 7000,
    }
    told = of_sglang(SGLANG | {"kv_events": described}, "gpu1")
    assert told is not None
    assert told.events == EventsAt(
        endpoints=("tcp://gpu1:5557", "tcp://gpu1:5558"),
        replays=("tcp://gpu1:7000", "tcp://gpu1:7001"),
        topic="t",
    )
    told = of_sglang(SGLANG | {"kv_events": described | {"endpoint_host": "10.0.0.7", "dp_size": 1}}, "gpu1")
    assert told is not None
    assert told.events is not None
    assert told.events.endpoints == ("tcp://10.0.0.7:5557",)


@pytest.mark.parametrize("info", [{}, {"max_total_num_tokens": "many"}, {"max_total_num_tokens": -1}])
def test_what_is_no_sglang(info: dict[str, Any]) -> None:
    assert of_sglang(info, "h") is None


@pytest.mark.parametrize("text", [b"", b"python_info 1\n", VLLM.replace(b"250", b"None")])
def test_what_is_no_vllm(text: bytes) -> None:
    assert of_vllm(text, {}, "h") is None


def test_a_server_that_tells_nothing_is_told_nothing() -> None:
    dialect = dialect_of(Told(), Declared(priority=True), plugin=False, fields=True)
    assert dialect.service.level == "order"
    assert dialect.added(CHAT, program="p", **EVERYTHING) == ({}, {}, "")


def test_names_of_sessions_lead_back() -> None:
    for program in ("p", "//acme/a b", "über%2F", "a\r\nb"):
        assert program_of(session_of(program)) == program
        assert session_of(program).isascii()
        assert "\n" not in session_of(program)


@pytest.mark.parametrize(
    "said", ["priority=1", "events", "events=5557", "replay=tcp://a:1", "pins", "events=tcp://a:1,x"]
)
def test_what_means_nothing_behind_a_url_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=r"means nothing|is of use"):
        apart(f"http://h:1#{said}")


def test_metrics_of_sglang_are_summed_over_ranks() -> None:
    text = b"".join(
        b'sglang:kv_available_tokens{dp_rank="%d"} 100.0\n'
        b'sglang:kv_evictable_tokens{dp_rank="%d"} 30.0\n'
        b'sglang:num_running_reqs{dp_rank="%d"} 2.0\n'
        b'sglang:num_running_reqs_offline{dp_rank="%d"} 9.0\n'
        b"sglang:num_queue_reqs 3\n"
        b'sglang:evicted_tokens_total{dp_rank="%d"} 7.0\n' % ((rank,) * 5)
        for rank in range(2)
    )
    assert read_sglang(text, 1_000) == Reading(200, 60, 4, 6, 14)
    assert read_sglang(b"sglang:num_running_reqs 0.0\n", 1_000) is None


def test_metrics_of_vllm_tell_what_calls_have() -> None:
    text = (
        b'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.75\n'
        b"vllm:num_requests_running 2.0\nvllm:num_requests_waiting 1.0\n"
        b'vllm:num_requests_waiting_by_reason{reason="capacity"} 1.0\n'
    )
    assert read_vllm(text, 1_000) == Reading(500, 0, 2, 1)
    assert read_vllm(b"x 1\n", 1_000) is None
