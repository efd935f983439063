"""Files are whole or absent."""

import errno
import json
import os

import pytest
import torch
from conftest import refused
from safetensors.torch import save_file

from ddlib.store import dumps, load_tensors, save_tensors, write_atomic


def fails(code):
    def raises(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return raises


@pytest.mark.parametrize("content", ["text\nä", b"\x00\xff"])
def test_write_atomic_writes_text_and_bytes_into_new_folders(tmp_path, content):
    path = write_atomic(tmp_path / "a" / "b" / "file", content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "why"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "")],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, step, code, why
):
    path = write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, step, fails(code))
    with refused("file", why, "untouched"):
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "file", "old")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("old")
    with refused("cannot write", "inside"):
        write_atomic(tmp_path / "file" / "inside", "new")


def test_tensors_and_info_round_trip(tmp_path):
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.arange(3),
        "c": torch.tensor([1.5], dtype=torch.float64, requires_grad=True),
    }
    info = {"text": "ä", "list": [1, 2.5, None], "dict": {"x": True}}
    save_tensors(tmp_path / "x.safetensors", tensors, info)
    loaded, about = load_tensors(tmp_path / "x.safetensors")
    assert about == info and set(loaded) == set(tensors)
    assert all(
        torch.equal(loaded[k], tensors[k]) and loaded[k].dtype == tensors[k].dtype for k in tensors
    )


@pytest.mark.parametrize("content", [b"", b"x", b"some text that is no safetensors file", "half"])
def test_damaged_file_is_refused(tmp_path, content):
    path = save_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:200] if content == "half" else content)
    with refused("x.safetensors", "damaged"):
        load_tensors(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors", metadata)
    with refused("x.safetensors", "not one of ddlib's"):
        load_tensors(tmp_path / "x.safetensors")


def test_header_that_is_no_json_is_refused(tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors", {"ddlib": "{half"})
    with refused("x.safetensors", "damaged"):
        load_tensors(tmp_path / "x.safetensors")


def test_missing_file_is_refused(tmp_path):
    with refused("no file", "x.safetensors"):
        load_tensors(tmp_path / "x.safetensors")


def test_dumps_is_json_without_nan():
    info = {
        "a": float("nan"),
        "b": [1.5, float("inf"), (2, "x")],
        3: {"c": -float("inf")},
        "d": True,
    }
    assert json.loads(dumps(info)) == {
        "a": None,
        "b": [1.5, None, [2, "x"]],
        "3": {"c": None},
        "d": True,
    }
