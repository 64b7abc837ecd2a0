"""Images pulled from a real registry through a proxy that lets each pull down in its own way."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
from support.bench import LAYER, LAYER_BYTES, QUICK
from support.proxy import BLOB, MANIFEST

from reprobox.engines.docker import DockerEngine
from reprobox.errors import RegistryError

pytestmark = pytest.mark.engine

ERRORS = {"Content-Type": "application/json"}


def refusal(code, message):
    return {"headers": ERRORS, "body": json.dumps({"errors": [{"code": code, "message": message}]}).encode()}


def test_an_image_is_pulled_by_its_tag_and_its_digest_is_told(bench):
    image, digest = bench.published()
    pulled = bench.pull()
    assert (pulled.image_id, pulled.engine_id, pulled.repo_digest) == (image, image, f"{bench.name}@{digest}")
    assert bench.has(str(bench.reference)) == image
    assert bench.tries == 0


def test_an_image_is_pulled_by_its_digest(bench):
    image, digest = bench.published()
    pulled = bench.pull(f"{bench.name}@{digest}")
    assert (pulled.image_id, pulled.repo_digest) == (image, f"{bench.name}@{digest}")


def test_progress_is_told_in_bytes_up_to_all_of_them(bench, monkeypatch):
    bench.published(layers=2)
    seen = []
    monkeypatch.setattr(bench.said, "progress", lambda label, done, total: seen.append((done, total)))
    bench.pull()
    assert seen[-1][0] == seen[-1][1] > 2 * LAYER_BYTES
    assert all(done <= total for done, total in seen)


def test_a_layer_that_is_cut_off_is_fetched_on(bench):
    image, _ = bench.published()
    fault = bench.proxy.fail(BLOB, act="cut", larger_than=LAYER, after=LAYER_BYTES // 2)
    assert bench.pull().image_id == image
    assert fault.hits == 1


def test_a_manifest_that_is_cut_off_again_and_again_ends_in_an_error(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, act="cut", after=10, times=None)
    with pytest.raises(RegistryError, match=r"EOF, also after 3 more tries; see whether"):
        bench.pull()
    assert fault.hits >= 4
    assert bench.tries == 3
    bench.proxy.heal()
    bench.pull()


@pytest.mark.parametrize(("larger_than", "what"), [(LAYER, "layer"), (0, "image config")])
def test_a_byte_that_differs_is_an_error_and_leaves_nothing_to_run(bench, larger_than, what):
    image, digest = bench.published()
    fault = bench.proxy.fail(BLOB, act="corrupt", larger_than=larger_than, after=20, times=None)
    with pytest.raises(RegistryError, match=rf"not what its digest says.*{what}.*verification failed"):
        bench.pull()
    assert fault.hits >= 1
    assert bench.tries == 0
    assert [bench.has(name) for name in (str(bench.reference), f"{bench.name}@{digest}", image)] == [None] * 3
    bench.proxy.heal()
    assert bench.pull().image_id == image


def test_a_manifest_in_which_a_byte_differs_is_an_error_by_digest(bench):
    image, digest = bench.published()
    fault = bench.proxy.fail(r"GET /v2/.+/manifests/", act="corrupt", after=20, times=None)
    with pytest.raises(RegistryError):
        bench.pull(f"{bench.name}@{digest}")
    assert fault.hits >= 1
    assert bench.has(f"{bench.name}@{digest}") is None
    bench.proxy.heal()
    assert bench.pull(f"{bench.name}@{digest}").image_id == image


REFUSED = {
    "401": {"status": 401},
    "401 with a challenge": {"status": 401, "headers": {"WWW-Authenticate": 'Basic realm="x"'}},
    "403": {"status": 403},
    "403 denied": {"status": 403, **refusal("DENIED", "requested access to the resource is denied")},
}


@pytest.mark.parametrize("answer", REFUSED.values(), ids=REFUSED)
def test_a_registry_that_refuses_is_asked_once_and_the_login_is_named(bench, answer):
    image, _ = bench.published()
    bench.proxy.fail(r"(GET|HEAD) /v2/", times=None, **answer)
    with pytest.raises(RegistryError, match=f"log in with `docker login {bench.proxy.address}`"):
        bench.pull()
    assert bench.tries == 0
    bench.proxy.heal()
    assert bench.pull().image_id == image


@pytest.mark.parametrize("answer", [{"status": 429}, {"status": 429, **refusal("TOOMANYREQUESTS", "slow down")}])
def test_too_many_requests_are_followed_by_fewer(bench, answer):
    image, _ = bench.published()
    fault = bench.proxy.fail(MANIFEST, times=2, **answer)
    assert bench.pull().image_id == image
    assert (fault.hits, bench.tries) == (2, 1)  # the engine asks by HEAD and by GET


def test_a_registry_that_says_how_long_to_wait_is_waited_for(bench):
    image, _ = bench.published()
    bench.proxy.fail(
        MANIFEST, times=2, status=429, **refusal("TOOMANYREQUESTS", "retry-after: 1.5s, allowed: 3/minute")
    )
    started = time.monotonic()
    assert bench.pull().image_id == image
    assert time.monotonic() - started > 1.5
    assert "trying again in 1.5 s (1 of 3)" in bench.said.lines[0]


def test_a_registry_that_asks_for_an_hour_is_not_waited_for(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, times=None, status=429, **refusal("TOOMANYREQUESTS", "retry-after: 1h"))
    with pytest.raises(RegistryError, match=r"takes no more requests now \(toomanyrequests: retry-after: 1h\)"):
        bench.pull()
    assert fault.hits == 2


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_registry_that_is_out_of_order_for_a_moment_is_asked_again(bench, status):
    image, _ = bench.published()
    fault = bench.proxy.fail(MANIFEST, status=status, times=2)
    assert bench.pull().image_id == image
    assert (fault.hits, bench.tries) == (2, 1)


def test_a_registry_that_stays_out_of_order_is_given_up_after_three_more_tries(bench):
    bench.published()
    fault = bench.proxy.fail(MANIFEST, status=503, times=None)
    with pytest.raises(RegistryError, match=r"503 Service Unavailable, also after 3 more tries"):
        bench.pull()
    assert (fault.hits, bench.tries) == (8, 3)


@pytest.mark.parametrize("where", [{"where": MANIFEST, "after": 10}, {"where": BLOB, "larger_than": LAYER}])
def test_a_registry_that_hangs_is_left_and_asked_again(bench, where):
    image, _ = bench.published()
    fault = bench.proxy.fail(act="hang", **where)
    assert bench.pull().image_id == image
    assert fault.hits == 1
    assert "no progress for 3 s; trying again" in bench.said.lines[0]


def test_a_registry_that_hangs_for_ever_is_given_up(bench):
    bench.published()
    bench.proxy.fail(BLOB, act="hang", larger_than=LAYER, times=None)
    patience = replace(QUICK, retries=1)
    with pytest.raises(RegistryError, match=r"no progress for 3 s, also after 1 more try; .*--stall-timeout"):
        bench.pull(patience=patience)
    assert bench.has(str(bench.reference)) is None


def test_a_slow_registry_that_goes_on_is_waited_for(bench):
    image, _ = bench.published()
    fault = bench.proxy.fail(BLOB, act="slow", larger_than=LAYER, times=None)
    started = time.monotonic()
    assert bench.pull().image_id == image
    assert time.monotonic() - started > QUICK.stall_seconds, "it took longer than a silence may"
    assert (fault.hits, bench.tries) == (1, 0)


def test_the_layers_that_are_done_are_not_fetched_again(bench):
    image, _ = bench.published(layers=2)
    bench.proxy.fail(BLOB, act="hang", larger_than=LAYER, times=1)
    assert bench.pull().image_id == image
    assert bench.tries
    bench.proxy.requests.clear()
    bench.pull()
    assert [line for line in bench.proxy.requests if "/blobs/" in line] == []


def test_an_image_that_the_registry_lacks_is_an_error_that_says_so(bench):
    bench.published()
    with pytest.raises(RegistryError, match=rf"{bench.proxy.address} has no such image .*manifest unknown"):
        bench.pull(f"{bench.name}:2")
    with pytest.raises(RegistryError, match="has no such image"):
        bench.pull(f"{bench.proxy.address}/team/other:1")
    assert bench.tries == 0


def test_where_no_registry_listens_it_is_said_at_once(bench):
    with pytest.raises(RegistryError, match="connection refused"):
        bench.pull("127.0.0.1:1/team/box:1")
    assert bench.tries == 0


BREAKS = {
    "corrupt": {"where": BLOB, "act": "corrupt", "larger_than": LAYER},
    "401": {"where": MANIFEST, "status": 401},
    "429": {"where": MANIFEST, "status": 429},
    "503": {"where": MANIFEST, "status": 503},
    "cut": {"where": MANIFEST, "act": "cut", "after": 10},
    "hang": {"where": BLOB, "act": "hang", "larger_than": LAYER},
    "gone": {"where": MANIFEST, "status": 404, **refusal("MANIFEST_UNKNOWN", "manifest unknown")},
}


@pytest.mark.parametrize("fault", BREAKS.values(), ids=BREAKS)
def test_an_older_image_under_the_tag_never_takes_the_place_of_the_one_that_fails(bench, fault):
    new, digest = bench.published()
    old = bench.make()
    engine = DockerEngine()
    assert engine.image(str(bench.reference)).image_id == old
    bench.proxy.fail(times=None, **fault)
    with pytest.raises(RegistryError):
        bench.pull(patience=replace(QUICK, retries=1))
    assert bench.has(str(bench.reference)) == old, "and the name still means what it meant"
    assert bench.has(f"{bench.name}@{digest}") is None
    bench.proxy.heal()
    assert bench.pull().image_id == new


def test_the_pull_of_a_run_ends_with_what_was_fetched_or_an_error(bench):
    new, digest = bench.published()
    bench.make()
    said = []
    fault = bench.proxy.fail(BLOB, act="corrupt", larger_than=LAYER)
    with pytest.raises(RegistryError, match="verification failed"):
        DockerEngine().pull(str(bench.reference), said.append)
    assert fault.hits == 1
    found = DockerEngine().pull(str(bench.reference), said.append)
    assert (found.image_id, found.repo_digests) == (new, (f"{bench.name}@{digest}",))
    assert any(line.startswith("Pulling from") for line in said)
