"""Downloads as they really go: cut off, resumed, corrupt, refused, and by several processes at once."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.index import Index, make_wheel
from support.said import Said

from reprobox.errors import ArtefactError
from reprobox.images.artefacts import ArtefactCache, Downloader

SIZE = 3_000_000


@pytest.fixture
def wheel(tmp_path):
    (tmp_path / "files").mkdir()
    return make_wheel(tmp_path / "files", size=SIZE)


@pytest.fixture
def index(wheel):
    with Index(wheel.parent) as index:
        yield index


@pytest.fixture
def cache(tmp_path):
    return ArtefactCache(root=tmp_path / "artefacts", say=Said().say)


class Fetching:
    def __init__(self, cache, index, wheel):
        self.cache, self.index, self.wheel = cache, index, wheel
        self.sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        self.came = 0

    def __call__(self, *, pause=0.01):
        self.came = 0
        downloader = Downloader(cache=self.cache, environment={}, pause=pause)
        return downloader.fetch(self.index.file_url(self.wheel.name), self.sha256, self.wheel.name, self.count)

    def count(self, number):
        self.came += number

    @property
    def visible(self):
        return [path for path in self.cache.root.glob("sha256/**/*") if path.is_file()]


@pytest.fixture
def fetching(cache, index, wheel):
    return Fetching(cache, index, wheel)


def test_a_file_comes_whole_and_every_byte_is_counted(fetching):
    assert fetching().read_bytes() == fetching.wheel.read_bytes()
    assert fetching.came == fetching.wheel.stat().st_size


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(fetching):
    fetching.index.faults = ["cut", "503", "cut"]
    assert fetching().read_bytes() == fetching.wheel.read_bytes()
    spans = [span for _, span, _ in fetching.index.asked]
    assert spans[0] is None
    assert len(spans) == 4
    starts = [int(span.removeprefix("bytes=").rstrip("-")) for span in spans[1:]]
    assert 0 < starts[0] == starts[1] < starts[2]
    assert fetching.came == fetching.wheel.stat().st_size


def test_what_came_is_kept_for_the_next_time_and_is_not_visible(fetching):
    fetching.index.faults = ["cut", "404"]
    with pytest.raises(ArtefactError, match="the server answers 404") as caught:
        fetching()
    assert "what came is kept" in caught.value.remedy
    assert fetching.visible == []
    fetching.index.asked.clear()
    fetching()
    ((_, span, _),) = fetching.index.asked
    assert int(span.removeprefix("bytes=").rstrip("-")) > 0


def test_a_server_without_ranges_sends_everything_again(fetching):
    fetching.index.faults = ["cut", "no ranges"]
    assert fetching().read_bytes() == fetching.wheel.read_bytes()


def test_a_corrupt_answer_is_refused_and_leaves_nothing(fetching):
    fetching.index.faults = ["corrupt"]
    with pytest.raises(ArtefactError, match="another content than the lock says"):
        fetching()
    assert fetching.visible == []
    assert list(fetching.cache.root.glob("partial/*")) == []
    assert fetching().read_bytes() == fetching.wheel.read_bytes()


@pytest.mark.parametrize("fault", ["401", "404"])
def test_a_refusal_is_final(fault, fetching):
    fetching.index.faults = [fault]
    with pytest.raises(ArtefactError, match=f"the server answers {fault}"):
        fetching()
    assert len(fetching.index.asked) == 1


def test_a_server_that_is_busy_for_good_is_given_up_with_no_address_in_the_sentence(fetching):
    fetching.index.faults = ["503"] * 9
    with pytest.raises(ArtefactError, match="the server answers 503") as caught:
        fetching()
    assert len(fetching.index.asked) == 5
    assert fetching.index.host not in str(caught.value)


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk: the kernel writes no file beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_said_at_once_and_what_came_is_kept(fetching):
    with files_of_at_most(1_000_000), pytest.raises(ArtefactError, match="File too large") as caught:
        fetching(pause=60)
    assert len(fetching.index.asked) == 1
    assert "make room" in caught.value.remedy
    assert str(fetching.cache.root) in caught.value.remedy
    assert fetching.came == 0
    assert fetching.visible == []
    assert fetching().read_bytes() == fetching.wheel.read_bytes()
    assert fetching.index.asked[-1][1] == "bytes=1000000-"


def test_a_copy_that_the_disk_does_not_take_is_said_too(fetching):
    downloader = Downloader(cache=fetching.cache, environment={})
    with files_of_at_most(1_000_000), pytest.raises(ArtefactError, match="cannot be kept"):
        downloader.fetch(fetching.wheel.as_uri(), fetching.sha256, fetching.wheel.name, fetching.count)
    assert fetching.visible == []


def test_a_cache_that_cannot_be_made_is_said_with_the_folder(fetching):
    fetching.cache.root.write_text("no folder")
    with pytest.raises(ArtefactError, match="cannot be kept") as caught:
        fetching(pause=60)
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_a_file_of_certificates_that_is_not_there_is_named_at_once(fetching, tmp_path, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    url = f"https://{fetching.index.host}/files/{fetching.wheel.name}"
    environment = {"SSL_CERT_FILE": str(tmp_path / "absent.pem")}
    with pytest.raises(ArtefactError, match=r"absent\.pem"):
        Downloader(cache=fetching.cache, environment=environment, pause=60).fetch(
            url, fetching.sha256, fetching.wheel.name, fetching.count
        )


def test_several_at_once_share_one_download(fetching):
    with ThreadPoolExecutor(4) as pool:
        paths = {future.result() for future in [pool.submit(fetching) for _ in range(4)]}
    assert len(paths) == len(fetching.visible) == 1
    assert len(fetching.index.asked) == 1


PROGRAM = """
import sys
from pathlib import Path
from reprobox.images.artefacts import ArtefactCache, Downloader
root, url, sha256, name = sys.argv[1:]
cache = ArtefactCache(root=Path(root), say=print)
Downloader(cache=cache, environment={}).fetch(url, sha256, name, lambda _: None)
"""


def test_a_killed_process_leaves_nothing_visible_and_the_next_one_ends_well(fetching):
    arguments = [
        fetching.cache.root,
        fetching.index.file_url(fetching.wheel.name),
        fetching.sha256,
        fetching.wheel.name,
    ]
    for delay in (0.2, 0.4, 0.6):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, arguments)])
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for path in fetching.visible:
            assert path.name.startswith(".") or hashlib.sha256(path.read_bytes()).hexdigest() == fetching.sha256
    assert fetching().read_bytes() == fetching.wheel.read_bytes()
