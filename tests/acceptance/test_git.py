"""git on the project's checkout: what it tells is right, and nothing that the checkout names is run."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from reprobox import git
from reprobox.git import ask_git


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch, tmp_path):
    """Nothing of this machine's git, in a home of the test's own."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def run_git(root, *words, **options):
    identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    done = subprocess.run(["git", "-C", root, *identity, *words], check=True, capture_output=True, text=True, **options)
    return done.stdout.strip()


def repository(root, *words):
    root.mkdir(parents=True)
    run_git(root, "init", "--quiet", *words)
    (root / "train.py").write_text("one\n")
    run_git(root, "add", ".")
    run_git(root, "commit", "--quiet", "-m", "one")
    return root


@pytest.fixture
def checkout(tmp_path):
    return repository(tmp_path / "project")


def told(root):
    found = ask_git(root)
    assert found.reason is None
    assert found.commit == run_git(root, "rev-parse", "HEAD")
    return found.dirty


def change(path, text="two\n"):
    """Change a file so that neither its size nor its date tells it."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def is_right_about(root, file="train.py"):
    clean = told(root)
    change(root / file)
    return clean is False and told(root) is True


# What it tells


def test_a_folder_without_git_is_no_checkout(tmp_path):
    assert ask_git(tmp_path) is None


def test_before_the_first_commit_there_is_none_and_files_are_a_difference(tmp_path):
    run_git(tmp_path, "init", "--quiet", "project")
    assert ask_git(tmp_path / "project").to_json() == {"commit": None, "dirty": False, "reason": None}
    (tmp_path / "project" / "a").touch()
    assert ask_git(tmp_path / "project").to_json() == {"commit": None, "dirty": True, "reason": None}


def test_a_checkout_is_clean_until_a_file_differs(checkout):
    assert is_right_about(checkout)


def test_a_file_that_is_staged_deleted_or_new_is_a_difference_and_an_ignored_one_is_none(checkout):
    (checkout / ".git" / "info" / "exclude").write_text("*.log\n")
    (checkout / "a.log").touch()
    assert told(checkout) is False
    (checkout / "new").touch()
    assert told(checkout) is True
    run_git(checkout, "add", "new")
    assert told(checkout) is True
    run_git(checkout, "commit", "--quiet", "-m", "new")
    assert told(checkout) is False
    (checkout / "new").unlink()
    assert told(checkout) is True


def test_the_branch_is_found_where_it_is_packed_and_where_head_is_detached(checkout):
    run_git(checkout, "pack-refs", "--all")
    assert told(checkout) is False
    run_git(checkout, "checkout", "--quiet", "--detach")
    assert told(checkout) is False


def test_a_worktree_is_told_by_its_own_index_and_branch(checkout, tmp_path):
    run_git(checkout, "worktree", "add", "--quiet", "-b", "other", tmp_path / "tree")
    (tmp_path / "tree" / "train.py").write_text("three\n")
    run_git(tmp_path / "tree", "commit", "--quiet", "--all", "-m", "three")
    assert ask_git(checkout).commit != ask_git(tmp_path / "tree").commit
    assert is_right_about(tmp_path / "tree")
    assert told(checkout) is False


def test_a_worktree_of_a_bare_repository_is_told(checkout, tmp_path):
    run_git(tmp_path, "clone", "--quiet", "--bare", checkout, "bare.git")
    run_git(tmp_path / "bare.git", "worktree", "add", "--quiet", tmp_path / "tree")
    assert is_right_about(tmp_path / "tree")


def test_a_git_directory_elsewhere_is_told(tmp_path):
    assert is_right_about(repository(tmp_path / "project", f"--separate-git-dir={tmp_path / 'elsewhere'}"))


def test_a_repository_of_sha256_is_told(tmp_path):
    assert is_right_about(repository(tmp_path / "project", "--object-format=sha256"))


def test_a_sparse_checkout_lacks_files_and_is_clean(checkout):
    for name in ("here", "there"):
        (checkout / name).mkdir()
        (checkout / name / "a").write_text("one\n")
    run_git(checkout, "add", ".")
    run_git(checkout, "commit", "--quiet", "-m", "two")
    run_git(checkout, "sparse-checkout", "set", "--cone", "--sparse-index", "here")
    assert not (checkout / "there").exists()
    assert is_right_about(checkout, "here/a")


@pytest.mark.parametrize("where", ["the repository", "the person"])
def test_line_ends_that_are_converted_are_no_difference(checkout, where):
    run_git(checkout, "config", *(["--global"] if where == "the person" else []), "core.autocrlf", "true")
    (checkout / "train.py").unlink()
    run_git(checkout, "checkout", "train.py")
    assert (checkout / "train.py").read_bytes() == b"one\r\n"
    os.utime(checkout / "train.py", (1, 1))
    assert told(checkout) is False
    run_git(checkout, "config", "--local", "core.autocrlf", "false")
    assert told(checkout) is True


def test_the_mode_of_files_counts_where_the_repository_says_so(checkout):
    (checkout / "train.py").chmod(0o755)
    assert told(checkout) is True
    run_git(checkout, "config", "core.fileMode", "false")
    assert told(checkout) is False


def test_what_the_person_s_own_configuration_ignores_is_no_difference(checkout, tmp_path):
    (tmp_path / "ignored").write_text("*.swp\n")
    (checkout / "a.swp").touch()
    assert told(checkout) is True
    run_git(checkout, "config", "--global", "core.excludesFile", tmp_path / "ignored")
    assert told(checkout) is False


def test_a_split_index_and_an_alternate_object_folder_are_read(checkout, tmp_path):
    run_git(tmp_path, "clone", "--quiet", "--shared", checkout, "borrower")
    run_git(tmp_path / "borrower", "update-index", "--split-index")
    assert is_right_about(tmp_path / "borrower")


def test_submodules_are_looked_into(checkout, tmp_path):
    inner = repository(tmp_path / "inner")
    middle = repository(tmp_path / "middle")
    run_git(middle, "submodule", "--quiet", "add", inner, "deep")
    run_git(middle, "commit", "--quiet", "-m", "sub")
    run_git(checkout, "submodule", "--quiet", "add", middle, "mid")
    run_git(checkout, "commit", "--quiet", "-m", "sub")
    run_git(checkout, "submodule", "--quiet", "update", "--init", "--recursive")
    assert told(checkout / "mid") is False
    assert is_right_about(checkout, "mid/deep/train.py")
    run_git(checkout / "mid" / "deep", "checkout", "--quiet", "train.py")
    assert told(checkout) is False
    run_git(checkout / "mid", "commit", "--quiet", "--allow-empty", "-m", "ahead")
    assert told(checkout) is True


def test_a_variable_of_git_s_in_the_environment_changes_nothing(checkout, tmp_path, monkeypatch):
    other = repository(tmp_path / "other")
    commit = ask_git(checkout).commit
    run_git(other, "commit", "--quiet", "--allow-empty", "-m", "other")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert ask_git(checkout).commit == commit


def test_asking_writes_nothing_into_the_checkout(checkout):
    def seen():
        return {path: path.lstat().st_mtime_ns for path in sorted(checkout.rglob("*"))}

    (checkout / "train.py").touch()
    before = seen()
    ask_git(checkout)
    assert seen() == before


# What it cannot tell


def test_files_that_go_through_a_filter_are_told_by_their_date_and_otherwise_not(checkout):
    (checkout / ".gitattributes").write_text("*.bin filter=lfs\n")
    (checkout / "weights.bin").write_text("the whole file\n")
    os.utime(checkout / "weights.bin", (1, 1))
    run_git(checkout, "config", "filter.lfs.clean", "tr a-z A-Z")
    run_git(checkout, "add", ".")
    run_git(checkout, "commit", "--quiet", "-m", "weights")
    before = ask_git(checkout)
    os.utime(checkout / "weights.bin", (2, 2))
    touched = ask_git(checkout)
    change(checkout / "train.py")
    assert (before.dirty, touched.dirty, ask_git(checkout).dirty) == (False, None, True)
    assert touched.commit == before.commit == run_git(checkout, "rev-parse", "HEAD")
    assert "filter" in touched.reason


def test_a_missing_git_is_a_reason(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert ask_git(checkout).to_json() == {"commit": None, "dirty": None, "reason": git.NO_GIT}


def damaged(checkout, how):  # noqa: C901  # a table, a case each
    where = checkout / ".git"
    match how:
        case "an endless HEAD":
            (where / "HEAD").unlink()
            (where / "HEAD").symlink_to("/dev/zero")
        case "a pipe for an index":
            (where / "index").unlink()
            os.mkfifo(where / "index")
        case "a pipe for a branch":
            branch = where / run_git(checkout, "symbolic-ref", "HEAD")
            branch.unlink()
            os.mkfifo(branch)
        case "a pipe for a configuration":
            (where / "config").unlink()
            os.mkfifo(where / "config")
        case "an endless list of patterns":
            (where / "info" / "attributes").symlink_to("/dev/zero")
        case "a branch that leads round":
            (where / "HEAD").write_text("ref: refs/heads/a\n")
            (where / "refs" / "heads" / "a").write_text("ref: refs/heads/a\n")
        case "a branch outside":
            (where / "HEAD").write_text("ref: refs/../../../secret\n")
        case "a configuration that is none":
            (where / "config").write_bytes(b"\0[[[")
        case "an unknown format":
            run_git(checkout, "config", "core.repositoryFormatVersion", "1")
            run_git(checkout, "config", "extensions.future", "true")
        case "another folder":
            run_git(checkout, "config", "core.worktree", "/etc")
        case "a file that names nothing":
            shutil.rmtree(where)
            where.write_text("gitdir: ../nothing\n")
        case "a file of something else":
            shutil.rmtree(where)
            where.write_bytes(b"\xff" * 1000)
        case "a link that leads nowhere":
            shutil.rmtree(where)
            where.symlink_to("nothing")
        case "no objects":
            shutil.rmtree(where / "objects")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "how",
    [
        *("an endless HEAD", "a pipe for an index", "a pipe for a branch", "a pipe for a configuration"),
        *(
            "an endless list of patterns",
            "a branch that leads round",
            "a branch outside",
            "a configuration that is none",
        ),
        *("an unknown format", "another folder", "a file that names nothing", "a file of something else"),
        *("a link that leads nowhere", "no objects"),
    ],
)
def test_a_checkout_that_cannot_be_read_is_said_to_be_so_at_once(checkout, how):
    damaged(checkout, how)
    found = ask_git(checkout, seconds=20)
    assert found.dirty is None
    assert found.reason not in (None, git.TOO_LONG)


def test_a_git_that_waits_for_ever_is_given_up(checkout):
    os.mkfifo(checkout / ".gitignore")
    assert ask_git(checkout, seconds=1).reason == git.TOO_LONG


# What it never runs


@pytest.fixture
def trap(tmp_path):
    """A program that leaves a marker."""
    program = tmp_path / "trap"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'sprung'}\ntimeout 1 cat\n")
    program.chmod(0o755)
    return program


def hostile(checkout, trap, how):  # noqa: C901  # a table, a case each
    where = checkout / ".git"

    def configure(name, value):
        run_git(checkout, "config", name, value)

    match how:
        case "fsmonitor":
            configure("core.fsmonitor", trap)
        case "clean filter" | "process filter":
            configure(f"filter.x.{how.split()[0]}", trap)
            configure("filter.x.required", "true")
            (checkout / ".gitattributes").write_text("* filter=x\n")
            os.utime(checkout / "train.py", (1, 1))
        case "filter by info/attributes":
            configure("filter.x.clean", trap)
            (where / "info" / "attributes").write_text("* filter=x\n")
            os.utime(checkout / "train.py", (1, 1))
        case "include":
            (where / "more").write_text(f'[core]\n\tfsmonitor = "{trap}"\n')
            configure("include.path", "more")
        case "conditional include":
            (where / "more").write_text(f'[core]\n\tfsmonitor = "{trap}"\n')
            configure("includeIf.gitdir:/.path", where / "more")
        case "configuration of the worktree":
            configure("extensions.worktreeConfig", "true")
            (where / "config.worktree").write_text(f'[core]\n\tfsmonitor = "{trap}"\n')
        case "hooks":
            for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction", "post-checkout"):
                (where / "hooks" / name).unlink(missing_ok=True)
                (where / "hooks" / name).symlink_to(trap)
            os.utime(checkout / "train.py", (1, 1))
        case "hooks elsewhere":
            (checkout / "hooks").mkdir()
            (checkout / "hooks" / "post-index-change").symlink_to(trap)
            configure("core.hooksPath", checkout / "hooks")
            os.utime(checkout / "train.py", (1, 1))
        case "pager and aliases":
            for name in ("core.pager", "pager.status", "pager.config", "core.editor", "diff.external", "alias.status"):
                configure(name, f"!{trap}" if name == "alias.status" else trap)
        case "a value that ends its line":
            with (where / "config").open("a") as file:
                file.write(f'[core]\n\teol = "lf\\n[core]\\nfsmonitor = {trap}"\n')
        case "a .git that points elsewhere":
            other = repository(checkout.parent / "other")
            run_git(other, "config", "core.fsmonitor", trap)
            shutil.rmtree(where)
            where.write_text(f"gitdir: {other / '.git'}\n")
        case "lazy fetch":
            configure("core.repositoryFormatVersion", "1")
            configure("extensions.partialClone", "origin")
            configure("remote.origin.promisor", "true")
            configure("remote.origin.url", f"ext::{trap}")
            configure("protocol.ext.allow", "always")
            configure("core.sshCommand", trap)
            for tree in (where / "objects").glob("??/*"):
                tree.unlink()
        case "submodule" | "submodule that ignores":
            inner = repository(checkout.parent / "inner")
            run_git(checkout, "submodule", "--quiet", "add", inner, "sub")
            run_git(checkout, "commit", "--quiet", "-m", "sub")
            run_git(checkout / "sub", "config", "core.fsmonitor", trap)
            run_git(checkout / "sub", "config", "filter.x.clean", trap)
            (checkout / "sub" / ".gitattributes").write_text("* filter=x\n")
            if how == "submodule that ignores":
                run_git(checkout, "config", "--file", ".gitmodules", "submodule.sub.update", f"!{trap}")
        case "nested repository":
            inner = repository(checkout / "inner")
            run_git(inner, "config", "core.fsmonitor", trap)
        case "a program of the project's":
            (checkout / "bin").mkdir()
            (checkout / "bin" / "git").symlink_to(trap)


HOSTILE = (
    *("fsmonitor", "clean filter", "process filter", "filter by info/attributes", "include", "conditional include"),
    *("configuration of the worktree", "hooks", "hooks elsewhere", "pager and aliases", "a value that ends its line"),
    *("a .git that points elsewhere", "lazy fetch", "submodule", "submodule that ignores", "nested repository"),
    "a program of the project's",
)


@pytest.mark.parametrize("how", HOSTILE)
def test_nothing_that_a_checkout_names_is_run(checkout, trap, tmp_path, monkeypatch, how):
    hostile(checkout, trap, how)
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", f"{checkout / 'bin'}:bin::{os.environ['PATH']}")
    (tmp_path / "sprung").unlink(missing_ok=True)
    assert ask_git(checkout) is not None
    assert not (tmp_path / "sprung").exists()


SPRUNG_BY_GIT_ITSELF = (
    *("fsmonitor", "clean filter", "process filter", "filter by info/attributes", "include", "conditional include"),
    *("configuration of the worktree", "hooks", "hooks elsewhere", "a .git that points elsewhere", "submodule"),
    *("lazy fetch", "a program of the project's"),
)


@pytest.mark.parametrize("how", SPRUNG_BY_GIT_ITSELF)
def test_a_plain_git_status_springs_these_traps(checkout, trap, tmp_path, monkeypatch, how):
    hostile(checkout, trap, how)
    monkeypatch.setenv("PATH", f"{checkout / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "sprung").unlink(missing_ok=True)
    subprocess.run(["git", "-C", checkout, "status", "--porcelain"], check=False, capture_output=True)
    assert (tmp_path / "sprung").exists()
