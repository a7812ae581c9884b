"""QuantizedTensor: what keeps it quantized, what dequantizes it, and what quantizes it again."""

import copy
import io
import pickle

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import qbits

OPTIONS = {
    "nf4": {},
    "nf4 double": {"format": "nf4", "double_quant": True},
    "nf4 128": {"format": "nf4", "block_size": 128},
    "fp4": {"format": "fp4"},
    "int4": {"format": "int4"},
    "int4 rows": {"format": "int4", "block_size": 0},
    "int4 bf16": {"format": "int4", "scale_dtype": torch.bfloat16},
    "int8": {"format": "int8"},
    "int8 affine": {"format": "int8_affine"},
    "dynamic": {"format": "dynamic"},
}


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS.keys())
def options(request):
    return request.param


def dense(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(a, b):
    """Bit for bit the same tensors and facts."""
    assert type(a) is type(b) is qbits.QuantizedTensor
    assert (a.format, a.block_size, a.shape, a.dtype) == (b.format, b.block_size, b.shape, b.dtype)
    assert a.tensors().keys() == b.tensors().keys()
    return all(torch.equal(t, b.tensors()[name]) for name, t in a.tensors().items())


@pytest.mark.parametrize(
    "shape", [(), (7,), (64,), (5, 33), (32, 128), (3, 5, 64), (2, 3, 4, 20), (0, 64), (4, 0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stands_for_the_dense_tensor(options, shape, dtype):
    x = dense(*shape, dtype=dtype) if shape else torch.tensor(0.5, dtype=dtype)
    q = qbits.quantize(x, **options)
    assert q.shape == x.shape and q.dtype == dtype and q.device == x.device
    y = q.dequantize()
    assert type(y) is torch.Tensor and y.shape == x.shape and y.dtype == dtype
    if x.numel() >= 64:
        assert (y.float() - x.float()).norm() < 0.2 * x.float().norm()
    assert torch.equal(q.dequantize(torch.float32).to(dtype), y)


def test_ops_see_the_dequantized_values(options):
    q = qbits.quantize(dense(32, 128), **options)
    y = q.dequantize()
    x = dense(4, 128, seed=1)
    assert torch.equal(q + 1, y + 1)
    assert torch.equal(q.t(), y.t())
    assert torch.equal(q[3], y[3])
    assert torch.equal(q.sum(), y.sum())
    assert torch.equal(torch.cat([q, y]), torch.cat([y, y]))
    assert torch.equal(x @ q.t(), x @ y.t())
    assert torch.equal(q, y)
    assert torch.equal(torch.zeros_like(q), torch.zeros_like(y))
    assert q.to(torch.float64).dtype == torch.float64 and type(q.to(torch.float64)) is torch.Tensor


def test_moves_and_copies_stay_quantized(options):
    q = qbits.quantize(dense(32, 128), **options)
    assert same(q.clone(), q) and q.clone().codes.data_ptr() != q.codes.data_ptr()
    assert same(q.detach(), q) and q.detach().codes.data_ptr() == q.codes.data_ptr()
    assert same(copy.deepcopy(q), q) and same(copy.copy(q), q)
    assert same(pickle.loads(pickle.dumps(q)), q)
    half = q.to(torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half.codes, q.codes)
    assert torch.equal(half.dequantize(), q.dequantize(torch.bfloat16))
    assert same(half.to(torch.float32), q)
    meta = q.to("meta")
    assert meta.is_meta and all(t.is_meta for t in meta.tensors().values())
    assert meta.dequantize().shape == (32, 128)
    assert same(q.view(-1).view(32, 128), q)
    assert torch.equal(q.view(8, -1).dequantize(), q.dequantize().view(8, -1))
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        q.view(7, -1)


def test_torch_save_loads_with_weights_only(options):
    q = nn.Parameter(qbits.quantize(dense(32, 128), **options), requires_grad=False)
    buffer = io.BytesIO()
    torch.save({"weight": q}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["weight"]
    assert isinstance(loaded, nn.Parameter) and not loaded.requires_grad
    assert same(loaded, q)


def test_unpickling_refuses_tensors_that_do_not_fit():
    q = qbits.quantize(dense(32, 128))
    rebuild, (tensors, *rest) = q.__reduce_ex__(2)
    with pytest.raises(ValueError, match=r"\[dequantize_4bit\]"):
        rebuild({**tensors, "absmax": tensors["absmax"][:-1]}, *rest)
    with pytest.raises(ValueError, match=r"\[dequantize_4bit\]"):
        rebuild({**tensors, "codes": tensors["codes"][:-1]}, *rest)


def test_parameter_keeps_identity_and_kind(options):
    p = nn.Parameter(qbits.quantize(dense(32, 128), **options), requires_grad=False)
    assert isinstance(p, nn.Parameter) and isinstance(p, qbits.QuantizedTensor)
    clone = copy.deepcopy(p)
    assert isinstance(clone, nn.Parameter) and not clone.requires_grad and same(clone, p)
    wrapped = qbits.QuantizedTensor(p, requires_grad=False)  # how accelerate makes a parameter anew
    assert same(wrapped, p)
    with pytest.raises(TypeError, match=r"\[QuantizedTensor\]"):
        qbits.QuantizedTensor(torch.zeros(3), requires_grad=False)


def test_in_place_ops_quantize_again(options):
    q = qbits.quantize(dense(32, 128), **options)
    pointer = q.codes.data_ptr()
    expected = qbits.quantize(q.dequantize() * 0.5, **options)
    assert q.mul_(0.5) is q
    assert same(q, expected) and q.codes.data_ptr() == pointer
    assert torch.equal(q.zero_().dequantize(), torch.zeros(32, 128))
    x = dense(32, 128, seed=1)
    q.copy_(x)
    assert same(q, qbits.quantize(x, **options))
    torch.add(x, 1, out=q)
    assert same(q, qbits.quantize(x + 1, **options))
    torch._foreach_mul_([q], 2.0)
    assert torch.allclose(q.dequantize(), 2 * x + 2, atol=2)
    target = torch.empty(32, 128)
    target.copy_(q)
    assert torch.equal(target, q.dequantize())


def test_writing_into_rows_writes_through():
    q = qbits.quantize(dense(32, 128), double_quant=False)
    before = q.dequantize()
    q[4:8].zero_()
    after = q.dequantize()
    assert torch.equal(after[4:8], torch.zeros(4, 128))
    assert torch.equal(after[:4], before[:4]) and torch.equal(after[8:], before[8:])


ROW_WRITES = {
    "mul_": lambda q: q[4:8].mul_(10),
    "augmented": lambda q: q[4:8].__imul__(10),
    "copy_": lambda q: q[4:8].copy_(q.dequantize()[4:8] * 10),
    "quantized copy_": lambda q: q[4:8].copy_(qbits.quantize(q.dequantize()[4:8] * 10, double_quant=True)),
    "slice of a slice": lambda q: q[0:16][3:10][1:5].mul_(10),
    "view of a slice": lambda q: q[4:8].view(2, 2, -1).mul_(10),
    "split": lambda q: q.split([4, 4, q.shape[0] - 8])[1].mul_(10),
    "foreach": lambda q: torch._foreach_mul_([q[4:6], q[6:8]], 10.0),
    "rows of a slice": lambda q: [row.mul_(10) for row in q[4:8]],
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("cols", [256, 64 * 256], ids=["inside a block of scales", "whole blocks of scales"])
@pytest.mark.parametrize("write", ROW_WRITES.values(), ids=ROW_WRITES.keys())
def test_writing_into_double_quantized_rows_changes_these_alone(write, cols, mode):
    q = qbits.quantize(dense(32, cols), double_quant=True)
    codes, expected = q.codes.clone(), q.dequantize()
    expected[4:8] *= 10
    with mode():
        write(q)
    after = q.dequantize()
    assert q.double_quant and torch.equal(q.codes[8:], codes[8:]) and torch.equal(q.codes[:4], codes[:4])
    for rows in (slice(0, 4), slice(4, 8), slice(8, 32)):  # scales are rounded again, to 8 bits
        assert (after[rows] - expected[rows]).norm() <= 0.1 * expected[rows].norm()


def test_double_quantized_rows_show_what_was_written_into_them():
    for cols in (256, 64 * 256):
        q = qbits.quantize(dense(32, cols), double_quant=True)
        rows = q[4:8]
        rows.fill_(5.0)
        assert torch.equal(rows.dequantize(), q.dequantize()[4:8])
        copied = rows.clone().zero_(), copy.deepcopy(rows).zero_(), rows.to(torch.bfloat16).zero_()
        assert all(part.count_nonzero() == 0 for part in copied) and q.dequantize()[4:8].all()


@pytest.mark.parametrize("cols", [256, 64 * 256], ids=["inside a block of scales", "whole blocks of scales"])
def test_double_quantized_rows_build_on_what_was_written_elsewhere(cols):
    q = qbits.quantize(torch.ones(32, cols), double_quant=True)
    first, second, third = q[0:4], q[2:6], q[2:6]
    row, part = third[0], third[1:3]
    q.mul_(4)
    four = torch.full((4, cols), 4.0)
    copied = second.clone(), copy.deepcopy(second), qbits.quantize(torch.zeros(4, cols)).copy_(second)
    assert all(torch.allclose(part.dequantize(), four, rtol=0.01) for part in copied)
    first.mul_(2)
    assert torch.equal(second.dequantize(), q.dequantize()[2:6])
    second.mul_(2)
    third[3] *= 2
    row.mul_(2)
    part.mul_(2)
    expected = torch.tensor([8.0, 8, 32, 32, 16, 16, 4, 4])
    torch.testing.assert_close(q.dequantize()[:8, 0], expected, rtol=0.1, atol=0.1)


def test_writing_into_one_double_quantized_expert():
    for shape in ((4, 64, 256), (4, 32, 256)):  # 256 scales an expert, and 128
        q = qbits.quantize(dense(*shape), double_quant=True)
        expected = q.dequantize()
        expected[1] *= 10
        q[1].mul_(10)
        for i in range(4):
            assert (q.dequantize()[i] - expected[i]).norm() <= 0.1 * expected[i].norm()


READ_ROWS = {
    "all": lambda q: q,
    "slice": lambda q: q[0:64],
    "slice of a slice": lambda q: q[0:128][0:64],
    "split": lambda q: q.split(64)[0],
}


@pytest.mark.parametrize("write", READ_ROWS.values(), ids=[f"write {name}" for name in READ_ROWS])
@pytest.mark.parametrize("read", READ_ROWS.values(), ids=[f"read {name}" for name in READ_ROWS])
def test_autograd_notices_writes_to_rows_it_has_saved(options, read, write):
    q = qbits.quantize(dense(256, 256), **options)
    x = dense(2, 256).requires_grad_()
    y = F.linear(x, read(q))
    write(q).mul_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_assigning_data(options):
    p = nn.Parameter(qbits.quantize(dense(32, 128), **options), requires_grad=False)
    alias = p
    x = dense(32, 128, seed=1)
    p.data = x
    assert alias is p and same(p.detach(), qbits.quantize(x, **options))
    p.data = p.data.to(torch.bfloat16)
    assert p.dtype == torch.bfloat16 and p.dequantize().dtype == torch.bfloat16
    p.data = dense(16, 64, seed=2)
    assert p.shape == (16, 64) and p.dtype == torch.float32 and p.dequantize().shape == (16, 64)
    with pytest.raises(TypeError, match=r"\[QuantizedTensor.data\] value: got NoneType, want a tensor"):
        p.data = None
    p.data = p.data.to("meta")
    assert p.is_meta and p.codes.is_meta and isinstance(p, nn.Parameter) and not p.requires_grad


def test_plain_and_double_quantized_copy_into_each_other():
    x = dense(64, 256)
    plain, double = qbits.quantize(x), qbits.quantize(x, double_quant=True)
    target = qbits.quantize(torch.zeros(64, 256))
    target.copy_(double)
    assert not target.double_quant and torch.equal(target.dequantize(), double.dequantize())
    target = qbits.quantize(torch.zeros(64, 256), double_quant=True)
    target.copy_(plain)
    assert same(target, double)
    target.copy_(qbits.quantize(x, "int4"))
    assert torch.equal(target.codes, qbits.quantize(qbits.quantize(x, "int4").dequantize()).codes)


def test_slices_of_rows_stay_quantized(options):
    q = qbits.quantize(dense(48, 128), **options)
    y = q.dequantize()
    for parts in (q.split(16), q.chunk(3), torch.split(q, [16, 8, 24])):
        assert all(type(part) is qbits.QuantizedTensor for part in parts)
        assert torch.equal(torch.cat([part.dequantize() for part in parts]), y)
    assert type(q[8:24]) is qbits.QuantizedTensor and torch.equal(q[8:24].dequantize(), y[8:24])
    assert torch.equal(q.narrow(0, 40, 8).dequantize(), y[40:])
    assert not isinstance(q[:, 3:5], qbits.QuantizedTensor) and torch.equal(q[:, 3:5], y[:, 3:5])
    shard = q.new_zeros(16, 128)
    assert type(shard) is qbits.QuantizedTensor and torch.equal(shard.dequantize(), torch.zeros(16, 128))
    shard.copy_(q[16:32])
    assert torch.equal(shard.dequantize(), y[16:32])
    assert type(q.new_zeros(3)) is torch.Tensor


def test_double_quantized_slices_keep_their_values_bit_for_bit():
    q = qbits.quantize(dense(512, 64), block_size=16, double_quant=True)
    aligned, unaligned = q[64:128], q[3:70]
    assert aligned.double_quant and not unaligned.double_quant
    assert torch.equal(aligned.dequantize(), q.dequantize()[64:128])
    assert torch.equal(unaligned.dequantize(), q.dequantize()[3:70])


def test_splitting_inside_a_block_is_refused():
    q = qbits.quantize(dense(8, 40))
    with pytest.raises(ValueError, match=r"\[QuantizedTensor.split\] rows"):
        q.split(4)
    assert torch.equal(q[1:3], q.dequantize()[1:3])


def test_linear_and_embedding_read_the_packed_weight(options):
    q = qbits.quantize(dense(32, 128), **options)
    x, bias = dense(2, 3, 128, seed=1), dense(32, seed=2)
    y = q.dequantize()
    if q.format == "int8":  # whose products see x in rows of 8 bits too
        x = qbits.quantize(x, "int8").dequantize()
    torch.testing.assert_close(F.linear(x, q, bias), F.linear(x, y, bias), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(F.linear(input=x, weight=q), F.linear(x, y), atol=1e-4, rtol=1e-4)
    indices = torch.tensor([[0, 31], [5, 5]])
    assert torch.equal(F.embedding(indices, q), F.embedding(indices, y))


def test_linear_follows_autocast():
    q = qbits.quantize(dense(32, 128))
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(dense(4, 128, seed=1), q, dense(32))
    assert y.dtype == torch.bfloat16


def test_trainable_weight_gets_its_gradient(options):
    weight = nn.Parameter(qbits.quantize(dense(32, 128), **options))
    assert weight.requires_grad
    x = dense(4, 128, seed=1)
    F.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(32, 128))
    before = weight.dequantize()
    torch.optim.SGD([weight], lr=0.1).step()
    assert not torch.equal(weight.dequantize(), before)


def test_flatten_and_unflatten(options):
    q = qbits.quantize(dense(32, 128), **options)
    names, meta = q.__tensor_flatten__()
    inner = {name: getattr(q, name) for name in names}
    again = qbits.QuantizedTensor.__tensor_unflatten__(inner, meta, q.shape, q.stride())
    assert same(again, q)
    row = qbits.FORMATS[q.format]
    assert set(row.tensors) <= set(names)
    assert q.nbytes == sum(t.nbytes for t in inner.values())


def _clear(q, done):
    q.codes.fill_(0x77)  # two nf4 codes of zero
    done.set()


def test_shared_memory():
    q = qbits.quantize(dense(32, 128))
    assert not q.is_shared()
    assert q.share_memory_() is q and q.is_shared()
    context = mp.get_context("fork")
    done = context.Event()
    child = context.Process(target=_clear, args=(q, done))
    child.start()
    child.join(60)
    assert done.is_set() and torch.equal(q.dequantize(), torch.zeros(32, 128))


def test_nan_is_named_when_asked_for_and_never_hidden(options):
    x = dense(32, 128)
    x[3, 70] = float("nan")
    x[5, 0] = float("inf")
    assert qbits.quantize(x, **options).dequantize()[3, 70].isnan()
    with pytest.raises(ValueError, match=r"\[quantize\] layer.weight: got nan at index \[3, 70\]"):
        qbits.quantize(x, **options, name="layer.weight")


def test_refusals():
    x = dense(8, 64)
    with pytest.raises(
        ValueError, match=r"\[quantize\] format: got 'nf5', want one of nf4, fp4, int4, int8, int8_affine"
    ):
        qbits.quantize(x, "nf5")
    with pytest.raises(ValueError, match=r"\[quantize\] block size: got 48, want 16, 32"):
        qbits.quantize(x, block_size=48)
    with pytest.raises(ValueError, match=r"\[quantize\] block size: got 0"):
        qbits.quantize(x, block_size=0)
    with pytest.raises(TypeError, match=r"\[quantize\] block size"):
        qbits.quantize(x, block_size=64.0)
    with pytest.raises(ValueError, match=r"\[quantize\] double quantization: got format int4"):
        qbits.quantize(x, "int4", double_quant=True)
    with pytest.raises(TypeError, match=r"\[quantize\] scale dtype"):
        qbits.quantize(x, scale_dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"\[quantize\] tensor: got int64, want float32, bfloat16, float16"):
        qbits.quantize(torch.zeros(3, dtype=torch.int64))


def test_assignment_to_elements_is_kept():
    x = dense(64, 128)
    weight = qbits.quantize(x)
    want = weight.dequantize()
    weight[3] = 0.0
    weight[:, 5] = weight[:, 6]
    want[3] = 0.0
    want[:, 5] = want[:, 6]
    assert torch.equal(weight.dequantize(), qbits.quantize(want).dequantize())
    assert (weight[3].dequantize() if isinstance(weight[3], qbits.QuantizedTensor) else weight[3]).eq(0).all()


def test_ops_in_place_that_change_the_shape_are_refused():
    weight = qbits.quantize(dense(64, 128))
    before = weight.dequantize()
    for change in (weight.t_, lambda: weight.unsqueeze_(0), lambda: weight.resize_(2, 2)):
        with pytest.raises(ValueError, match=r"\[QuantizedTensor\] aten.*: got shape"):
            change()
    for sizes in (0, -1, [10, 10], [70, -6]):
        with pytest.raises(RuntimeError, match="split"):
            weight.split(sizes)
    assert torch.equal(weight.dequantize(), before)


def test_dlpack_gives_the_dequantized_values():
    weight = qbits.quantize(dense(64, 128))
    assert torch.equal(torch.from_dlpack(weight), weight.dequantize())


def test_memory_it_does_not_have_is_an_error_not_a_null_pointer():
    weight = qbits.quantize(dense(64, 128))
    moved = qbits.quantize(dense(4, 8))
    moved.data = weight.to(torch.bfloat16)
    for tensor in (weight, moved, nn.Parameter(weight, requires_grad=False), weight.detach(), weight[:8]):
        with pytest.raises(RuntimeError, match="data pointer"):
            torch.utils.dlpack.to_dlpack(tensor)
        assert tensor.data_ptr() == 0


def test_what_cannot_be_quantized_is_refused():
    for wrong in (None, [1.0], torch.eye(4).to_sparse()):
        with pytest.raises(TypeError, match=r"\[quantize\] tensor: got .*, want a dense torch.Tensor"):
            qbits.quantize(wrong)
    with pytest.raises(ValueError, match=r"\[quantize\] w: .* float16 scales can hold"):
        qbits.quantize(torch.full((4, 64), 1e38), "int4", scale_dtype=torch.float16, name="w")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shape": (100, 128)}, r"\] shape: got"),
        ({"shape": (-64, -128)}, r"\] shape: got"),
        ({"format": "int4"}, r"\] tensors: got"),
        ({"format": "nf5"}, r"\] format: got"),
        ({"tensors": {"codes": torch.zeros(64, 64, dtype=torch.uint8)}}, r"\] tensors: got"),
    ],
)
def test_tampered_pickles_are_refused(change, message):
    rebuild, arguments = qbits.quantize(dense(64, 128)).__reduce_ex__(2)
    names = ("tensors", "format", "block_size", "shape", "dtype", "matrix", "is_parameter", "requires_grad")
    with pytest.raises(ValueError, match=message):
        rebuild(**{**dict(zip(names, arguments, strict=True)), **change})


def test_slices_of_a_flattened_tensor():
    q = qbits.quantize(dense(64, 64))
    for flat in (q.view(-1), q.view(128, 32), q.view(2, 32, 64)):
        assert torch.equal(flat[1:2], q.dequantize().view(flat.shape)[1:2])
    assert type(q.view(-1).new_zeros(64)) is torch.Tensor


def test_functions_that_write_through_a_pointer_see_the_values():
    q = qbits.quantize(torch.randn(4, 64))
    values = q.dequantize()
    assert q.apply_(lambda v: -2 * v) is q
    assert torch.equal(q.dequantize(), qbits.quantize(-2 * values).dequantize())
    q = qbits.quantize(values)
    dense = torch.zeros(4, 64)
    assert dense.map2_(q, q, lambda a, b, c: a + b + c) is dense
    torch.testing.assert_close(dense, 2 * values)
    assert q.map_(dense, lambda a, b: b) is q
    assert torch.equal(q.dequantize(), qbits.quantize(dense).dequantize())
    q.map2_(values, values, lambda a, b, c: b + c)
    assert torch.equal(q.dequantize(), qbits.quantize(2 * values).dequantize())


@pytest.mark.parametrize(
    "options", [{"format": "nf4"}, {"format": "int4"}, {"format": "int8"}, {"format": "int8_affine"}], ids=str
)
def test_views_and_casts_in_inference_mode(options):
    q = qbits.quantize(torch.randn(32, 64), **options)  # not a tensor of that mode
    dense = q.dequantize()
    with torch.inference_mode():
        for view in (q.detach(), q[2:4], q.view(-1, 64), q.view(8, 4, 64), q.to(torch.bfloat16)):
            assert isinstance(view, qbits.QuantizedTensor)
        assert torch.equal(q[:, 3], dense[:, 3]) and torch.equal(q.t(), dense.t())
        assert q.to(torch.bfloat16).codes.equal(q.codes)
    q.detach().mul_(2)  # nothing of that mode stays behind
    torch.testing.assert_close(q.dequantize(), 2 * dense)
