"""What is taken for a secret, and what only looks a little like one."""

from __future__ import annotations

import base64
import json

import pytest

from reprobox.runs.redaction import REDACTED, looks_secret, redacted, redacted_message, redacted_words

ALNUM = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3z0a"
HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
PAYLOAD = base64.urlsafe_b64encode(b'{"sub":"1234567890"}').rstrip(b"=").decode()

TOKENS = [
    *(f"gh{kind}_{ALNUM}" for kind in "pousr"),
    f"github_pat_11ABCDEFG0_{ALNUM}",
    "glpat-aB3dE5fG7hJ9kL1m-3pQ",
    f"hf_{ALNUM[:34]}",
    f"sk-{ALNUM}{ALNUM[:12]}",
    f"sk-proj-{ALNUM[:20]}-{ALNUM[:15]}_{ALNUM}",
    f"sk-ant-api03-{ALNUM[:18]}-{ALNUM}_{ALNUM}-AA",
    "sk-or-v1-" + "0123456789abcdef" * 4,
    "sk-lf-01234567-89ab-cdef-0123-456789abcdef",
    "sk-0123456789abcdef0123456789abcdef",
    "xoxb-123456789012-1234567890123-aB3dE5fG7hJ9kL1mN3pQ5rS7",
    "xoxp-123456789012-123456789012-123456789012-0123456789abcdef",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    f"{HEADER}.{PAYLOAD}.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    f"{HEADER}.{PAYLOAD}.",
    "eyJrIjoiT0tTcG1pUlY2RnVKZTFVaDFsNFZXdE9ZWmNrMkZYbk",
    f"npm_{ALNUM}",
    f"pypi-AgEIcHlwaS5vcmc{ALNUM}",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjE",
    "https://me:secret@host/x",
    "postgresql://me:secret@host:5432/runs",
]

WORDS = [
    "--task-name",
    "task-7",
    "task-classification-of-images-2",
    "--mask-ratio=0.5",
    "--disk-cache",
    "/w/disk-0",
    "s3://risk-model",
    "s3://risk-model-of-january-2026-v3",
    "hf_finetune.py",
    "hf_datasets",
    "hf_transformers_finetuning_example.py",
    "hf_hub_download_with_retries",
    "sk-learn",
    "sk-learn-pipeline-for-images",
    "npm_config_registry",
    "npm_package_name",
    "pypi-mirror-of-our-company",
    "ghp_",
    "ghs_small",
    "xoxb-",
    "AKIA",
    "ASIA-PACIFIC",
    "--region=ASIA",
    "eyJ",
    # DeepSpeed's launcher gives its world so
    base64.urlsafe_b64encode(json.dumps({"localhost": list(range(8)), "worker-1": list(range(8))}).encode()).decode(),
    "glpat-",
    "https://host:8080/x",
    "https://me@host/x",
    "user@host:/path",
    "train.py",
    "--lr=3e-4",
    "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "GPU-8f6d3f2e-8d0c-4a53-9f2c-0123456789ab",
]


@pytest.mark.parametrize(
    "around", ["{}", "--token={}", "Bearer {}", "https://h/?k={}", "https://h/?q=k%3D{}", "{};x", "my_{}"]
)
@pytest.mark.parametrize("token", TOKENS)
def test_a_token_is_known_by_its_form_wherever_it_stands(token, around):
    word = around.format(token)
    assert looks_secret("X", word)
    assert redacted_words(["train", word], []) == ["train", REDACTED]


@pytest.mark.parametrize("word", WORDS)
def test_an_ordinary_word_is_no_secret(word):
    assert not looks_secret("RUN", word)
    assert redacted_words(["train", word], []) == ["train", word]


@pytest.mark.parametrize("name", ["HF_TOKEN", "hf_token", "TOKENS", "TOKENIZER_API_KEY", "DB_PASSWORD", "GITHUB_PAT"])
def test_a_name_tells_a_secret(name):
    assert looks_secret(name, "x")


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "KEYBOARD", "PATH", "OMP_NUM_THREADS", "AUTHOR", "MONKEY"])
def test_a_name_that_only_sounds_like_one_does_not(name):
    assert not looks_secret(name, "x")


def test_a_given_secret_is_hidden_wherever_its_value_stands():
    secrets = [b"supersecretvalue\n", b"short"]
    environment = {"ENDPOINT": "https://h/?k=supersecretvalue", "SIZE": "short", "GONE": None, "EMPTY": ""}
    assert redacted(environment, secrets) == {**environment, "ENDPOINT": REDACTED}
    assert redacted_words(["a", "--k=supersecretvalue", "short"], secrets) == ["a", REDACTED, "short"]
    fields = {"message": "no label k=supersecretvalue: short", "exit_code": 1}
    assert redacted_message(fields, secrets) == {"message": f"no label k={REDACTED}: short", "exit_code": 1}
    assert redacted_message({"message": None}, secrets) == {"message": None}


def test_a_secret_that_holds_another_is_hidden_whole():
    secrets = [b"secret", b"secret-and-more"]
    assert redacted_message({"message": "x secret-and-more"}, secrets) == {"message": f"x {REDACTED}"}
