"""What an engine's words mean, and what is done about them."""

from __future__ import annotations

import pytest
from support.said import Said

from reprobox.engines.answers import Trouble, retry_after, trouble_of
from reprobox.engines.transfer import Patience, _TryFailed, _wait_before_next, _Watch

SAID = {
    # Docker Engine 20.10
    "filesystem layer verification failed for digest sha256:d808": Trouble.CORRUPT,
    "error pulling image configuration: image config verification failed for digest sha256:9196": Trouble.CORRUPT,
    "toomanyrequests: retry-after: 1.5s, allowed: 3/minute": Trouble.BUSY,
    'error parsing HTTP 429 response body: unexpected end of JSON input: ""': Trouble.BUSY,
    "received unexpected HTTP status: 503 Service Unavailable": Trouble.TEMPORARY,
    'Get "http://127.0.0.1:5000/v2/team/box/manifests/1": EOF': Trouble.TEMPORARY,
    "unexpected EOF": Trouble.TEMPORARY,
    "net/http: TLS handshake timeout": Trouble.TEMPORARY,
    "read tcp 10.0.0.1:4->10.0.0.2:443: read: connection reset by peer": Trouble.TEMPORARY,
    "unauthorized: authentication required": Trouble.DENIED,
    'Head "http://127.0.0.1:5000/v2/t/x/manifests/1": no basic auth credentials': Trouble.DENIED,
    'error parsing HTTP 403 response body: unexpected end of JSON input: ""': Trouble.DENIED,
    "pull access denied for x, repository does not exist or may require 'docker login': denied": Trouble.DENIED,
    "manifest for 127.0.0.1:5000/t/x:2 not found: manifest unknown: manifest unknown": Trouble.UNKNOWN,
    'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused': Trouble.OTHER,
    "no space left on device": Trouble.OTHER,
    # the containerd store of newer engines
    "failed commit on ref x: unexpected commit digest sha256:a, expected sha256:b: failed precondition": Trouble.CORRUPT,
    "unexpected status from HEAD request to https://h/v2/x: 502 Bad Gateway": Trouble.TEMPORARY,
    "unexpected status from GET request to https://h/v2/x: 429 Too Many Requests": Trouble.BUSY,
    "unexpected status from HEAD request to https://h/v2/x: 401 Unauthorized": Trouble.DENIED,
    # Podman
    "reading blob sha256:a: Digest did not match, expected sha256:a, got sha256:b": Trouble.CORRUPT,
    "reading manifest 1 in h/x: received unexpected HTTP status: 503 Service Unavailable": Trouble.TEMPORARY,
    "invalid status code from registry 503 (Service Unavailable)": Trouble.TEMPORARY,
    "too many requests to registry": Trouble.BUSY,
    "requesting bearer token: invalid status code from registry 403 (Forbidden)": Trouble.DENIED,
}


@pytest.mark.parametrize(("words", "trouble"), SAID.items())
def test_the_engines_words_say_what_kind_of_trouble_it_is(words, trouble):
    assert trouble_of(words) is trouble


def test_a_number_in_a_name_is_no_status():
    assert trouble_of("failed to register layer: exit status 1: open /layers/503: file exists") is Trouble.OTHER
    assert trouble_of("no such host registry-429.example") is Trouble.OTHER


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("toomanyrequests: retry-after: 476.5ms, allowed: 44000/minute", 0.4765),
        ("Retry-After: 30", 30.0),
        ("retry after 2m", 120.0),
        ("toomanyrequests: retry-after: ..", None),
        ("toomanyrequests: You have reached your pull rate limit.", None),
    ],
)
def test_the_registrys_wish_to_be_left_alone_is_read_from_its_message(words, seconds):
    assert retry_after(words) == (None if seconds is None else pytest.approx(seconds))


def waits(words, patience=None, *, tried_again=False):
    patience = patience or Patience()
    failed = _TryFailed(words, tried_again=tried_again)
    return [_wait_before_next(failed, tries, patience) for tries in range(patience.retries + 1)]


def test_each_wait_is_twice_the_one_before_and_the_fourth_failure_is_the_end():
    assert waits("unexpected EOF") == [2.0, 4.0, 8.0, None]
    assert waits(None) == [2.0, 4.0, 8.0, None], "silence"
    assert waits("toomanyrequests: retry-after: 7s") == [7.0, 7.0, 7.0, None]
    assert waits("toomanyrequests: retry-after: 301s")[0] is None


@pytest.mark.parametrize("words", ["unauthorized", "manifest unknown", "verification failed for digest", "disk full"])
def test_what_another_try_does_not_change_is_not_tried_again(words):
    assert waits(words) == [None] * 4


def test_what_the_engine_has_tried_often_is_left_at_that_unless_it_fell_silent():
    assert waits("unexpected EOF", tried_again=True) == [None] * 4
    assert waits(None, tried_again=True)[0] == 2.0


class Transfer:
    verb, name = "pull", "host/box:1"

    def __init__(self):
        self.report = Said()


def watch(*messages):
    watch = _Watch(Transfer())
    for message in messages:
        watch.take(message)
    return watch


def layer(status, current=None, total=None, name="l"):
    return {"id": name, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}


def test_a_layer_that_has_come_through_may_be_stored_as_long_as_its_size_takes():
    assert watch(layer("Downloading", 5, 100)).being_stored == 0
    assert watch(layer("Downloading", 5, 100), layer("Verifying Checksum")).being_stored == 100
    assert watch(layer("Extracting", 5, 100), layer("Extracting", 5, 70, "other")).being_stored == 170
    assert watch(layer("Extracting", 5, 100), layer("Pull complete")).being_stored == 0
    assert watch(layer("Pushing", 99, 100)).being_stored == 0
    assert watch(layer("Pushing", 100, 100)).being_stored == 100


def test_an_error_of_the_stream_is_raised_and_a_try_of_the_engines_own_is_noted():
    with pytest.raises(_TryFailed, match="it broke"):
        watch({"errorDetail": {"message": "it broke"}, "error": "it broke"})
    with pytest.raises(_TryFailed) as failed:
        watch(layer("Retrying in 5 seconds"), {"error": "unexpected EOF"})
    assert failed.value.tried_again
    digest = "sha256:" + "a" * 64
    assert watch({"status": f"Digest: {digest}"}).digest == digest
    assert watch({"status": f"1: digest: {digest} size: 526"}).digest == digest
    assert watch({"status": "Pulling from team/box", "id": "1"}).digest is None
