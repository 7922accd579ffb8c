"""Pickles as data: what a release holds is read bit for bit, and a file that wants more than to be
read is refused by the name of what it wants.
"""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from release_kit import Watch, named, program, random_network, release, text, wrapped, written
from torch import Tensor

from fewstep.errors import UserError
from fewstep.zoo.nvidia import machine
from fewstep.zoo.nvidia.machine import LEVELS, ForeignObject
from fewstep.zoo.nvidia.modules import tensors_of
from fewstep.zoo.nvidia.pickles import read_pickle

TENSOR = torch.arange(6, dtype=torch.float32).reshape(2, 3)
PERSISTENT = named("torch_utils.persistence", "_reconstruct_persistent_obj")
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
LOAD = named("torch.storage", "_load_from_bytes")


def read(tmp_path, content: bytes) -> Any:
    """The value in a file of these bytes, of which nothing is run, imported or opened."""
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    watch = Watch(str(path))
    try:
        with watch:
            return read_pickle(path)
    finally:
        assert watch.events == []


def whole(value: int) -> bytes:
    content = value.to_bytes(16, "little", signed=True)
    return pickle.LONG1 + bytes([len(content)]) + content


def numbers(*values: int) -> bytes:
    return pickle.MARK + b"".join(map(whole, values)) + pickle.TUPLE


def raw(content: bytes) -> bytes:
    return pickle.BINBYTES + struct.pack("<I", len(content)) + content


def payload(value: Tensor) -> bytes:
    """What PyTorch writes for the storage of a tensor."""
    content = written(value)
    return content[
        content.index(b"\x80\x02\x8a\x0a") : content.rindex(value.numpy().tobytes())
        + value.numel() * value.element_size()
    ]


def view(shape: bytes, strides: bytes, offset: int = 0, storage: bytes | None = None) -> bytes:
    """A tensor of ``TENSOR``'s storage with any claims."""
    stored = LOAD + raw(payload(TENSOR) if storage is None else storage) + pickle.TUPLE1 + pickle.REDUCE
    return program(
        REBUILD,
        pickle.MARK,
        stored,
        whole(offset),
        shape,
        strides,
        pickle.NEWFALSE,
        pickle.NONE,
        pickle.TUPLE,
        pickle.REDUCE,
    )


class Calls:
    """What makes Python's own reader call ``function``."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


# What is read


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_releases_tensors_and_values_are_read_bit_for_bit(tmp_path, protocol):
    network = random_network("SongUNet", classes=2)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    content = read(
        tmp_path,
        written(
            {"ema": wrapped("EDMPrecond", "SongUNet", network), "other": [1, 2.5, None, True, {"a": (b"b", "c")}]},
            protocol,
        ),
    )
    record = content["ema"]
    assert isinstance(record, ForeignObject)
    assert (record.name, record.state["sigma_data"], record.state["sigma_max"]) == ("EDMPrecond", 0.5, float("inf"))
    assert content["other"] == [1, 2.5, None, True, {"a": (b"b", "c")}]
    inner = record.state["_modules"]["model"]
    assert (type(inner.state["_init_kwargs"]["dropout"]), inner.state["_init_kwargs"]["dropout"]) == (float, 0.13)
    parameters, buffers = tensors_of(inner)
    assert set(parameters) == {name for name, _ in network.named_parameters()}
    assert set(parameters) | set(buffers) == set(expected)
    assert all(
        torch.equal(value, expected[name]) and value.dtype == expected[name].dtype
        for name, value in {**parameters, **buffers}.items()
    )


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
)
def test_views_types_and_empty_tensors_are_read_as_they_are(tmp_path, dtype):
    base = torch.arange(24).reshape(2, 3, 4).to(dtype)
    for value in (base, base.transpose(0, 2), base[1], base[:, 1:, ::2], base[0, 0, 0], torch.zeros(0, 3, dtype=dtype)):
        found = read(tmp_path, written(value))
        assert found.dtype == dtype
        assert torch.equal(found, value)


@pytest.mark.parametrize(
    "scalar", [np.float64(0.1), np.float32(0.1), np.int64(-3), np.int32(7), np.bool_(True), np.float64(float("inf"))]
)
def test_numpy_scalars_are_python_numbers(tmp_path, scalar):
    assert read(tmp_path, pickle.dumps(scalar, 4)) == scalar.item()


def test_sources_in_a_file_are_dropped(tmp_path):
    content = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "X", "state": {"a": 1}}
    record = read(tmp_path, program(PERSISTENT, pickle.dumps(content, 4)[11:-1], pickle.TUPLE1, pickle.REDUCE))
    assert (record.name, record.arguments, record.state) == ("X", (), {"a": 1})


# What is refused: names


HOSTILE = {
    "os.system": program(named("os", "system"), text("true"), pickle.TUPLE1, pickle.REDUCE),
    "posix.system": b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.",
    "builtins.eval": program(named("builtins", "eval"), text("1"), pickle.TUPLE1, pickle.REDUCE),
    "builtins.getattr": program(named("builtins", "getattr"), pickle.EMPTY_TUPLE, pickle.REDUCE),
    "builtins.__import__": program(named("builtins", "__import__"), text("os"), pickle.TUPLE1, pickle.REDUCE),
    "subprocess.Popen": program(named("subprocess", "Popen"), pickle.EMPTY_TUPLE, pickle.NEWOBJ),
    "torch.nn.Module.__init__": program(named("torch", "nn.Module.__init__")),
    "collections.OrderedDict.fromkeys": program(named("collections", "OrderedDict.fromkeys")),
    "torch.hub.load": program(named("torch.hub", "load")),
    "torch.nn.modules.linear.Linear": program(named("torch.nn.modules.linear", "Linear")),
    "numpy.load": program(named("numpy", "load")),
    "codecs.encode": program(named("codecs", "encode")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_outside_the_table_is_refused_by_name(tmp_path, name):
    with pytest.raises(
        UserError, match=rf"network\.pkl: names '{name}', which no network needs; nothing of it was run"
    ):
        read(tmp_path, HOSTILE[name])


def test_what_python_would_run_inside_of_other_things_is_refused_by_name(tmp_path):
    system = Calls(os.system, "true")
    inside = {
        "a state": {"ema": {"state": system}},
        "a reduced one's arguments": Calls(set, [Calls(os.system, "true")]),
        "a tuple": (1, (2, [system])),
    }
    for content in inside.values():
        with pytest.raises(UserError, match=r"names '(posix|nt)\.system'"):
            read(tmp_path, pickle.dumps(content, 4))


@pytest.mark.parametrize(
    "storage",
    [
        pickle.dumps(Calls(os.system, "true"), 2),
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + pickle.dumps(Calls(os.system, "true"), 2),
    ],
)
def test_a_poisoned_storage_is_refused_by_name(tmp_path, storage):
    with pytest.raises(UserError, match=r"names '(posix|nt)\.system'"):
        read(tmp_path, view(numbers(2, 3), numbers(3, 1), storage=storage))


def test_a_name_of_the_file_may_not_be_used_inside_a_storage_nor_the_reverse(tmp_path):
    inner = pickle.PROTO + b"\x02" + b"ctorch.storage\n_load_from_bytes\n."
    with pytest.raises(UserError, match=r"names 'torch.storage._load_from_bytes'"):
        read(tmp_path, view(numbers(2, 3), numbers(3, 1), storage=inner))
    with pytest.raises(UserError, match=r"names 'torch.FloatStorage'"):
        read(tmp_path, program(named("torch", "FloatStorage")))
    with pytest.raises(UserError, match="persistent id"):
        read(tmp_path, program(text("x"), pickle.BINPERSID))


def test_a_class_gets_no_state_and_an_object_gets_one(tmp_path):
    container = named("torch.nn.modules.container", "ModuleDict")
    with pytest.raises(UserError, match=r"sets the state of the name 'torch.nn.modules.container.ModuleDict'"):
        read(tmp_path, program(container, pickle.EMPTY_DICT, pickle.BUILD))
    with pytest.raises(UserError, match="sets the state of a dict, which has none"):
        read(tmp_path, program(pickle.EMPTY_DICT, pickle.EMPTY_DICT, pickle.BUILD))
    made = container + pickle.EMPTY_TUPLE + pickle.NEWOBJ
    with pytest.raises(UserError, match="twice"):
        read(tmp_path, program(made, pickle.EMPTY_DICT, pickle.BUILD, pickle.EMPTY_DICT, pickle.BUILD))


@pytest.mark.parametrize(
    ("opcode", "content"),
    [
        ("INST", b"(ios\nsystem\n."),
        ("OBJ", b"(cos\nsystem\no."),
        ("EXT1", b"\x82\x01."),
        ("DUP", b"N2."),
        ("STRING", b"S'a'\n."),
        ("UNICODE", b"Va\n."),
        ("LONG4", b"\x8b\x01\x00\x00\x00\x01."),
        ("ff", b"\xff."),
    ],
)
def test_opcodes_that_no_release_has_are_refused_by_name(tmp_path, opcode, content):
    expected = "names 'os.system'" if opcode == "OBJ" else f"uses the opcode {opcode}, "
    with pytest.raises(UserError, match=expected):
        read(tmp_path, content)


# What is refused: claims


@pytest.mark.parametrize(
    "content",
    [
        pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", 10 * 2**30) + b"abc.",
        pickle.PROTO + b"\x04" + pickle.BINUNICODE8 + struct.pack("<Q", 10 * 2**30) + b"abc.",
        view(numbers(50_000, 50_000), numbers(50_000, 1)),
        view(numbers(50_000, 50_000), numbers(0, 0)),
        view(numbers(2**62, 2**62), numbers(2**62, 2**62)),
        view(
            numbers(2, 3), numbers(3, 1), storage=payload(TENSOR).replace(b"K\x06", b"J" + struct.pack("<i", 2**31 - 1))
        ),
    ],
    ids=["bytes", "text", "tensor", "repeated elements", "more than memory has addresses", "storage"],
)
def test_ten_gigabytes_that_a_kilobyte_claims_are_refused_before_they_are_allocated(tmp_path, content):
    path = tmp_path / "network.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"network\.pkl: (is no whole pickle|has a tensor of|has a storage that)"):
        read_pickle(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [
        (numbers(2, 3), numbers(3, 1), 1),
        (numbers(2, 3), numbers(4, 1), 0),
        (numbers(7), numbers(1), 0),
        (numbers(2, 2), numbers(0, 1), 0),
        (numbers(2, 3), numbers(1), 0),
        (numbers(-1), numbers(1), 0),
        (numbers(1), numbers(-1), 5),
        (numbers(1), numbers(1), -1),
        (numbers(*[1] * 9), numbers(*[1] * 9), 0),
        (pickle.NEWTRUE + pickle.TUPLE1, numbers(1), 0),
        (pickle.NONE, numbers(1), 0),
    ],
)
def test_a_view_that_leaves_its_storage_or_repeats_it_is_refused(tmp_path, shape, strides, offset):
    assert torch.equal(read(tmp_path, view(numbers(2, 3), numbers(3, 1))), TENSOR)
    with pytest.raises(UserError, match="has a tensor"):
        read(tmp_path, view(shape, strides, offset))


def test_tensors_together_may_not_be_larger_than_the_file(tmp_path):
    value = torch.zeros(1000)
    first = LOAD + raw(payload(value)) + pickle.TUPLE1 + pickle.REDUCE + pickle.BINPUT + b"\x00" + b"0"
    again = (
        REBUILD
        + pickle.MARK
        + pickle.BINGET
        + b"\x00"
        + whole(0)
        + numbers(1000)
        + numbers(1)
        + pickle.NEWFALSE
        + pickle.NONE
        + pickle.TUPLE
        + pickle.REDUCE
    )
    with pytest.raises(UserError, match="opcode POP"):
        read(tmp_path, program(first, again))
    kept = first.removesuffix(b"0") + pickle.BINPUT + b"\x01"
    assert torch.equal(read(tmp_path, program(pickle.EMPTY_LIST, pickle.MARK, kept, again, pickle.APPENDS))[1], value)
    with pytest.raises(UserError, match="tensors that together are larger than the file"):
        read(tmp_path, program(pickle.EMPTY_LIST, pickle.MARK, kept, again * 2, pickle.APPENDS))


def test_storages_together_may_not_be_larger_than_the_file(tmp_path):
    once = LOAD + raw(payload(TENSOR)) + pickle.BINPUT + b"\x00" + pickle.TUPLE1 + pickle.REDUCE
    again = LOAD + pickle.BINGET + b"\x00" + pickle.TUPLE1 + pickle.REDUCE
    with pytest.raises(UserError, match="storages that together are larger"):
        read(tmp_path, program(pickle.EMPTY_LIST, pickle.MARK, once, again * 50, pickle.APPENDS))


def test_deep_nesting_is_refused_and_does_not_overflow(tmp_path):
    for tower in (pickle.EMPTY_TUPLE + pickle.TUPLE1 * 60_000, pickle.EMPTY_LIST * 5_000 + pickle.APPEND * 4_999):
        with pytest.raises(UserError, match=f"nested deeper than {LEVELS} levels"):
            read(tmp_path, program(tower))
    assert read(tmp_path, program(pickle.EMPTY_TUPLE, pickle.TUPLE1 * (LEVELS - 2)))
    with pytest.raises(UserError, match="a key that is a tuple"):
        read(
            tmp_path,
            program(pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.TUPLE1 * 60_000, pickle.NONE, pickle.SETITEM),
        )
    with pytest.raises(UserError, match="a set with a tuple"):
        read(
            tmp_path,
            program(pickle.EMPTY_SET, pickle.MARK, pickle.EMPTY_TUPLE, pickle.TUPLE1 * 60_000, pickle.ADDITEMS),
        )


def test_a_bomb_of_the_memo_is_read_once_and_walked_once(tmp_path):
    # Each level holds the one below ten times: 10^30 leaves by paths, 31 values in memory.
    levels = b"".join(
        pickle.MARK + (pickle.BINGET + bytes([i])) * 10 + pickle.TUPLE + pickle.BINPUT + bytes([i + 1])
        for i in range(30)
    )
    found = read(
        tmp_path,
        program(pickle.EMPTY_LIST, pickle.MARK, pickle.EMPTY_TUPLE, pickle.BINPUT, b"\x00", levels, pickle.APPENDS),
    )
    assert len(found) == 31


def test_too_many_stored_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "MEMO", 1000)
    assert read(tmp_path, program(pickle.NONE, pickle.MEMOIZE * 1000)) is None
    with pytest.raises(UserError, match="stores more than 1000 values"):
        read(tmp_path, program(pickle.NONE, pickle.MEMOIZE * 1001))


def test_too_many_operations_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OPERATIONS", 1000)
    assert len(read(tmp_path, program(pickle.MARK, pickle.NONE * 996, pickle.TUPLE))) == 996
    with pytest.raises(UserError, match="has more than 1000 operations"):
        read(tmp_path, program(pickle.MARK, pickle.NONE * 997, pickle.TUPLE))


# What is refused: damage


def test_every_truncation_is_refused(tmp_path):
    content = written({"a": TENSOR, "b": [1, (2.5, None)], "c": np.float64(1)})
    assert torch.equal(read(tmp_path, content)["a"], TENSOR)
    for length in range(0, len(content), 3):
        with pytest.raises(UserError, match=r"network\.pkl: "):
            read(tmp_path, content[:length])
    with pytest.raises(UserError, match="1 bytes behind the pickle's end"):
        read(tmp_path, content + b".")


def test_files_that_are_not_there_or_no_pickles_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.pkl: there is no such file"):
        read_pickle(tmp_path / "none.pkl")
    for content in (b"\x00" * 50, b"PK\x03\x04" + b"\x00" * 50, b"<html>404</html>"):
        with pytest.raises(
            UserError, match=r"network\.pkl: (is no whole pickle|uses the opcode|is a malformed pickle)"
        ):
            read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        program(pickle.EMPTY_TUPLE),  # the one that is read
        program(),
        program(pickle.NONE, pickle.NONE),
        program(pickle.MARK, pickle.NONE),
        program(pickle.TUPLE),
        program(pickle.NONE, pickle.MARK, pickle.TUPLE1, pickle.TUPLE),
        program(pickle.BINGET, b"\x00"),
        program(pickle.NONE, pickle.NONE, pickle.APPEND),
        program(pickle.EMPTY_DICT, pickle.MARK, text("a"), pickle.SETITEMS),
        program(pickle.NONE, pickle.EMPTY_TUPLE, pickle.REDUCE),
        program(PERSISTENT, pickle.NONE, pickle.REDUCE),
        program(PERSISTENT, pickle.EMPTY_TUPLE, pickle.REDUCE),
        program(pickle.NONE, pickle.NONE, pickle.STACK_GLOBAL),
        program(named("numpy", "dtype"), text("O8"), pickle.TUPLE1, pickle.REDUCE),
        program(
            named("numpy._core.multiarray", "scalar"),
            named("numpy", "dtype"),
            text("f8"),
            pickle.TUPLE1,
            pickle.REDUCE,
            raw(b"12345678"),
            pickle.TUPLE2,
            pickle.REDUCE,
        ),
        program(REBUILD, pickle.EMPTY_TUPLE, pickle.REDUCE),
        program(named("torch._utils", "_rebuild_parameter"), pickle.EMPTY_TUPLE, pickle.REDUCE),
        program(LOAD, text("bytes"), pickle.TUPLE1, pickle.REDUCE),
        program(named("collections", "OrderedDict"), pickle.EMPTY_LIST, pickle.TUPLE1, pickle.REDUCE),
    ],
)
def test_malformed_programs_are_refused_in_a_sentence(tmp_path, content):
    if content == program(pickle.EMPTY_TUPLE):
        assert read(tmp_path, content) == ()
        return
    with pytest.raises(UserError, match=r"network\.pkl: (is a malformed|has a|makes a)"):
        read(tmp_path, content)


def test_a_version_of_persistence_that_is_not_known_is_refused(tmp_path):
    content = written(wrapped("EDMPrecond", "SongUNet", random_network("SongUNet")))
    with pytest.raises(UserError, match=r"version 7 of torch_utils.persistence"):
        read(tmp_path, content.replace(b"version\x94K\x06", b"version\x94K\x07"))


def test_a_module_that_contains_itself_is_refused():
    loop = ForeignObject("Loop", (), {"_parameters": {}, "_buffers": {}, "_modules": {}})
    loop.state["_modules"]["again"] = loop
    with pytest.raises(UserError, match="contain one another"):
        tensors_of(loop)
    with pytest.raises(UserError, match="a float for the tensor 'weight'"):
        tensors_of(ForeignObject("X", (), {"_parameters": {"weight": 1.0}, "_buffers": {}, "_modules": {}}))


def test_the_kit_writes_what_pytorch_reads():
    """PyTorch's own reading of the storage that the kit writes gives the tensor, and Python's own
    reading of a hostile file does run it.
    """
    assert torch.storage._load_from_bytes(payload(TENSOR))._untyped_storage.tolist() == list(TENSOR.numpy().tobytes())
    assert release()[:2] == b"\x80\x04"
    with Watch() as watch:
        pickle.loads(HOSTILE["os.system"])  # noqa: S301 (the file is the test's own)
    assert any(event.startswith("os.system") for event in watch.events)
