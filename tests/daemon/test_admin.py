"""Tenants and keys, made and changed while the daemon runs; and what is open without keys."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched.daemon.access import others_reach
from agentsched.daemon.accounts import Accounts, Declared, Saved, read_declared
from agentsched.daemon.charges import Charges
from agentsched.daemon.errors import ApiError
from agentsched.daemon.keys import hashed, key_id, new_secret
from agentsched.daemon.server import NoKeys
from tests.daemon.keyed import ACME, ADMIN_KEY, admin_only, two_tenants
from tests.daemon.serving import Served, served

TENANTS, KEYS = "/agentsched/admin/tenants", "/agentsched/admin/keys"


def own_address() -> str:
    """This machine's address in a network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine is in no network")
        return str(probe.getsockname()[0])


async def admin(served_: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    return (await served_.ask(method, path, body, x_api_key=ADMIN_KEY))[:2]


async def test_a_tenant_comes_works_changes_and_goes() -> None:
    async with served(declared=admin_only()) as served_:
        status, made = await admin(served_, "POST", TENANTS, {"name": "acme", "weight": 2.0})
        assert (status, made["account"]["terms"]["weight"], made["keys"]) == (201, 2.0, [])
        status, key = await admin(served_, "POST", f"{TENANTS}/acme/keys", {"label": "laptop"})
        assert status == 201
        assert (await served_.chat("/say a", key=key["key"]))[0] == 200
        status, shown = await admin(served_, "GET", f"{TENANTS}/acme")
        assert [each["label"] for each in shown["keys"]] == ["laptop"]
        assert shown["account"]["charges"]["calls_finished"] == 1
        assert key["key"] not in str(shown)
        change = {"requests_per_minute": 1, "deadline_s": 9.0}
        _, changed = await admin(served_, "PATCH", f"{TENANTS}/acme", change)
        terms = changed["account"]["terms"]
        assert (terms["requests_per_minute"], terms["deadline_s"], terms["weight"]) == (1.0, 9.0, 2.0)
        assert [(await served_.chat("/say b", key=key["key"]))[0] for _ in range(2)] == [200, 429]
        await admin(served_, "PATCH", f"{TENANTS}/acme", {"requests_per_minute": None})
        assert (await served_.chat("/say c", key=key["key"]))[0] == 200
        assert (await admin(served_, "DELETE", f"{TENANTS}/acme/keys/{key['id']}"))[0] == 204
        assert (await served_.chat("/say d", key=key["key"]))[0] == 401
        assert (await admin(served_, "DELETE", f"{TENANTS}/acme"))[0] == 204
        assert (await admin(served_, "GET", f"{TENANTS}/acme"))[0] == 404


async def test_what_is_declared_in_the_file_is_changed_there() -> None:
    async with served(declared=two_tenants()) as served_:
        key = key_id(hashed(ACME))
        for method, path, body in (
            ("PATCH", f"{TENANTS}/acme", {"weight": 5}),
            ("DELETE", f"{TENANTS}/acme", None),
            ("POST", f"{TENANTS}/acme/keys", {}),
            ("DELETE", f"{TENANTS}/acme/keys/{key}", None),
        ):
            status, told = await admin(served_, method, path, body)
            assert (status, told["error"]["code"]) == (409, "declared")
        assert (await served_.chat("/say a", key=ACME))[0] == 200


async def test_an_admin_cannot_lock_everybody_out() -> None:
    async with served() as served_:
        status, body, _ = await served_.post(f"{TENANTS}/default/keys", {})
        assert (status, body["error"]["code"]) == (409, "admin_key_needed")
        _, key, _ = await served_.post(KEYS, {"label": "first"})
        assert (await served_.ask("GET", KEYS))[0] == 401
        headers = {"authorization": f"Bearer {key['key']}"}
        status, body, _ = await served_.ask("DELETE", f"{KEYS}/{key['id']}", **headers)
        assert (status, body["error"]["code"]) == (409, "last_admin_key")
        _, second, _ = await served_.post(KEYS, {}, **headers)
        assert (await served_.ask("DELETE", f"{KEYS}/{second['id']}", **headers))[0] == 204
        _, listed, _ = await served_.ask("GET", KEYS, **headers)
        assert [each["label"] for each in listed["keys"]] == ["first"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", TENANTS, {"name": "Acme"}, 400),
        ("POST", TENANTS, {"name": "a/b"}, 400),
        ("POST", TENANTS, {"name": "acme\n"}, 400),
        ("POST", TENANTS, {"name": ""}, 400),
        ("POST", TENANTS, {"name": "new", "weight": 0}, 400),
        ("POST", TENANTS, {"name": "new", "priority": 10}, 400),
        ("POST", TENANTS, {"name": "new", "requests_per_minute": 0}, 400),
        ("POST", TENANTS, {"name": "new", "concurrent_calls": 0}, 400),
        ("POST", TENANTS, {"name": "new", "unknown": 1}, 400),
        ("POST", TENANTS, {"name": "default"}, 409),
        ("DELETE", f"{TENANTS}/default", None, 409),
        ("DELETE", f"{TENANTS}/default/keys/none", None, 404),
        ("PATCH", f"{TENANTS}/nobody", {}, 404),
        ("POST", f"{TENANTS}/nobody/keys", {}, 404),
        ("DELETE", f"{TENANTS}/nobody", None, 404),
        ("DELETE", f"{TENANTS}/nobody/keys/none", None, 404),
    ],
)
async def test_an_admins_mistake_changes_nothing(method: str, path: str, body: Any, status: int) -> None:
    async with served(declared=admin_only()) as served_:
        _, before = await admin(served_, "GET", TENANTS)
        assert (await admin(served_, method, path, body))[0] == status
        assert (await admin(served_, "GET", TENANTS))[1] == before


async def test_a_web_page_may_not_administrate_a_daemon_without_keys() -> None:
    async with served() as served_:
        assert (await served_.post(KEYS, {}, Origin="http://evil.example"))[0] == 403
        assert (await served_.ask("GET", TENANTS))[0] == 200


async def test_without_keys_nobody_else_can_call() -> None:
    with pytest.raises(NoKeys, match="agentsched key new"):
        async with served(host="0.0.0.0"):
            pass
    async with served(host="0.0.0.0", declared=admin_only()) as served_:
        assert (await served_.chat("/say a"))[0] == 401
    async with served(host="::1") as served_:
        assert (await served_.chat("/say a"))[0] == 200


@pytest.mark.parametrize(
    ("address", "reached"),
    [("127.0.0.1", False), ("127.9.9.9", False), ("::1", False), ("0.0.0.0", True), ("::", True)],
)
def test_which_addresses_others_reach(address: str, reached: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listening:
        assert others_reach(listening) is reached


def test_a_unix_socket_is_this_machines(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert not others_reach(listening)


async def test_when_the_last_key_goes_from_its_file_only_this_machine_is_served() -> None:
    outside = own_address()
    async with served(host="0.0.0.0", declared=admin_only()) as served_:
        served_.daemon.accounts.declare(Declared())
        assert (await served_.chat("/say a"))[0] == 200
        served_.daemon.url = served_.url.replace("0.0.0.0", outside)
        for path in ("/v1/models", TENANTS):
            assert (await served_.ask("GET", path))[0] == 401


def test_what_is_saved_comes_back_and_holds_no_key() -> None:
    changes: list[int] = []
    accounts = Accounts()
    accounts.changed = lambda: changes.append(1)
    secrets = [accounts.add_key("")[0]]
    accounts.create("acme", {"weight": 3.0})
    secrets.append(accounts.add_key("acme", "label")[0])
    assert len(changes) == 3
    written = msgspec.json.encode(accounts.save())
    assert not any(secret.encode() in written for secret in secrets)
    again = Accounts()
    again.restore(msgspec.json.decode(written, type=Saved), {"acme": Charges(calls_finished=7)})
    assert [key and key.tenant for key in map(again.known, secrets)] == ["", "acme"]
    assert again.tenant("acme") == accounts.tenant("acme")
    assert again.charges("acme").calls_finished == 7


def test_a_declared_tenant_takes_the_place_of_one_that_was_made() -> None:
    accounts = Accounts()
    accounts.add_key("")
    accounts.create("acme", {"weight": 3.0})
    secret, _ = accounts.add_key("acme")
    accounts.declare(two_tenants())
    assert (accounts.tenant("acme").weight, accounts.known(secret)) == (1.0, None)
    assert accounts.known(ACME) is not None
    accounts.declare(admin_only())
    assert accounts.tenant("acme").weight == 3.0
    with pytest.raises(ApiError, match="bolt"):
        accounts.tenant("bolt")


def test_keys_are_long_random_and_known_by_their_hash_only() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert min(map(len, made)) >= 43
    accounts = Accounts()
    accounts.declare(two_tenants())
    for wrong in ("", ACME[:-1], ACME + " ", hashed(ACME), ACME.upper(), "\udc80"):
        assert accounts.known(wrong) is None


FILE = f"""
admin_keys = ["sha256:{"a" * 64}"]

[[tenants]]
name = "acme"
weight = 2
requests_per_minute = 600
keys = ["sha256:{"b" * 64}"]

[[shared_prefixes]]
system = "You are an agent."
"""


def test_the_tenants_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(FILE)
    declared = read_declared(path)
    assert (declared.tenants[0].name, declared.tenants[0].weight) == ("acme", 2.0)
    assert declared.shared_prefixes[0].system == "You are an agent."


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("admin_keys = [", "tenants.toml: "),
        ("[[tenants]]\nweight = 2", "missing required field `name`"),
        ('[[tenants]]\nname = "a"\nwieght = 2', "unknown field `wieght`"),
        ('[[tenants]]\nname = "a"\nweight = 0', r"tenants\[0\].weight"),
        ('[[tenants]]\nname = "a"\ndeadline_s = inf', r"tenants\[0\].deadline_s"),
        ('[[tenants]]\nname = "a"\n[[tenants]]\nname = "a"', "the tenant a is there twice"),
        ('admin_keys = ["ask-a-key-itself"]', "admin_keys"),
        (f'admin_keys = ["sha256:{"a" * 64}", "sha256:{"a" * 64}"]', "is there twice"),
    ],
)
def test_a_wrong_tenants_file_names_what_is_wrong(tmp_path: Path, wrong: str, told: str) -> None:
    path = tmp_path / "tenants.toml"
    path.write_text(wrong)
    with pytest.raises(ValueError, match=told):
        read_declared(path)
