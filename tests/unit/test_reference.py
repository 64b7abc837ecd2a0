import pytest

from reprobox.errors import UsageError
from reprobox.reference import is_image_id, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("debian", "docker.io/library/debian"),
        ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim"),
        ("docker.io/debian", "docker.io/library/debian"),
        ("index.docker.io/library/debian", "docker.io/library/debian"),
        ("team/torch", "docker.io/team/torch"),
        ("team/deep/torch__x-y.z", "docker.io/team/deep/torch__x-y.z"),
        ("localhost/torch", "localhost/torch"),
        ("localhost:5000/torch:1", "localhost:5000/torch:1"),
        ("127.0.0.1:5000/a/b:v1.0_x-y", "127.0.0.1:5000/a/b:v1.0_x-y"),
        ("[::1]:5000/torch", "[::1]:5000/torch"),
        ("Registry.Example.org/torch", "Registry.Example.org/torch"),
        (f"debian@{DIGEST}", f"docker.io/library/debian@{DIGEST}"),
        (f"example.org/torch:2@{DIGEST}", f"example.org/torch:2@{DIGEST}"),
    ],
)
def test_a_reference_is_read_as_the_distribution_project_reads_it(text, meaning):
    assert str(parse(text)) == meaning
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "-rm", "--privileged", "A/B", "a/B", "Debian", "../x", "a/../b", "/x", "x/", "a//b", "a b", "a:", "a:b:c",
        ":tag", "a:-x", "a:" + "t" * 129, "a@", "a@sha256:12", f"a@{DIGEST.upper()}", f"@{DIGEST}", "a___b", "a..b",
        "a-", "_a", "-host.example/x", "example.org:port/x", "https://example.org/x", "a\n", "0" * 64, "x" * 256, "é",
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused_and_quoted(text):
    with pytest.raises(UsageError) as refusal:
        parse(text)
    assert repr(text) in str(refusal.value)


def test_an_image_id_is_told_from_a_name():
    assert is_image_id(DIGEST)
    assert not is_image_id("sha256:12")
    assert not is_image_id("debian")
