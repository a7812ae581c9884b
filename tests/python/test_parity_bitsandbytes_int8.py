"""LLM.int8() side by side with the installed bitsandbytes, in the same process.

Where results differ, those of qbits are the ones nearer to the algorithm in float64.
"""

import pytest
import torch

import cases
import qbits
import qbits.functional as F
import reference

pytestmark = pytest.mark.filterwarnings("ignore")
bnb = pytest.importorskip("bitsandbytes")
B = bnb.functional


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def int8_layer(k, n, threshold, bias=True, dtype=torch.float32):
    """bitsandbytes' layer on the CPU, quantized; its bias in `dtype`."""
    layer = bnb.nn.Linear8bitLt(k, n, bias=bias, has_fp16_weights=False, threshold=threshold).to("cpu")
    layer.bias = torch.nn.Parameter(layer.bias.to(dtype))
    return layer.eval()


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_codes(threshold):
    A = torch.randn(64, 256, dtype=torch.float16)
    A[::7, 5] = 20.0
    codes, scales, columns, count = F.quantize_int8_rowwise(A, threshold)
    theirs, their_scales, their_columns = B.int8_vectorwise_quant(A.clone(), threshold=threshold)
    assert torch.equal(scales, their_scales)
    if threshold:
        assert torch.equal(columns[: count.item()].long(), their_columns)
    wrong = codes != theirs
    # Where codes differ, ours is the nearest in float64: bitsandbytes multiplies by a rounded 127 / absmax.
    quotient = (127 * A.double() / scales[:, None].double())[wrong]
    assert ((codes[wrong] - quotient).abs() <= (theirs[wrong] - quotient).abs()).all()
    assert ((codes[wrong] - quotient).abs() <= 0.5 + 1e-5).all()


def test_their_int8_weights_dequantize_bit_for_bit():
    layer = int8_layer(256, 96, 6.0)
    codes, scales = layer.weight.CB, layer.weight.SCB
    assert torch.equal(F.dequantize_int8_rowwise(codes, scales), B.int8_vectorwise_dequant(codes, scales))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_states_load_both_ways(bias, threshold):
    theirs = bnb.nn.Linear8bitLt(256, 96, bias=bias, has_fp16_weights=False, threshold=threshold).to("cpu")
    ours = qbits.nn.Linear8bit(256, 96, bias=bias, threshold=threshold)
    codes, scales = theirs.weight.CB.clone(), theirs.weight.SCB.clone()
    want = B.int8_vectorwise_dequant(codes, scales)
    state = theirs.state_dict()
    assert ours.load_state_dict(state) == ([], []) and torch.equal(ours.dequantize(), want)
    saved = ours.state_dict()
    assert list(saved) == list(state)
    for key, value in state.items():
        assert torch.equal(saved[key], value) and saved[key].dtype == value.dtype
    # Their layer takes a quantized state once it has been quantized itself, by a move.
    other = bnb.nn.Linear8bitLt(256, 96, bias=bias, has_fp16_weights=False, threshold=threshold).to("cpu")
    assert other.load_state_dict(dict(saved)) == ([], [])
    assert torch.equal(other.weight.data, codes) and torch.equal(other.weight.SCB, scales)
    x = torch.randn(4, 256)
    x[:, 5] *= 12
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.eval()(x.clone()), atol=2e-2, rtol=1e-2)


def test_int8_states_of_a_model_load_both_ways():
    def make(kind):
        return torch.nn.Sequential(kind(64, 96), torch.nn.ReLU(), kind(96, 32, bias=False))

    def their_layer(*args, **kwargs):
        return bnb.nn.Linear8bitLt(*args, has_fp16_weights=False, threshold=6.0, **kwargs)

    theirs = make(their_layer).to("cpu")
    ours = qbits.quantize_(make(torch.nn.Linear), "int8", skip=[])
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    for i in (0, 2):
        want = B.int8_vectorwise_dequant(theirs[i].weight.CB, theirs[i].weight.SCB)
        assert torch.equal(ours[i].dequantize(), want)
    before = ours.state_dict()
    again = make(their_layer).to("cpu")
    assert again.load_state_dict(dict(before)) == ([], [])
    assert all(torch.equal(again[i].weight.data, before[f"{i}.weight"]) for i in (0, 2))


def test_int8_products_of_codes_and_what_they_stand_for():
    a, b = (torch.randint(-127, 128, (rows, 300), dtype=torch.int8) for rows in (17, 33))
    dots = F.igemm(a, b, transpose_b=True)
    assert torch.equal(dots, B.int8_linear_matmul(a, b))
    row_scales, column_scales, bias = torch.rand(17), torch.rand(33), torch.randn(33, dtype=torch.float16)
    ours = F.dequantize_int8_product(dots, row_scales, column_scales, bias, torch.float16)
    theirs = B.int8_mm_dequant(dots, row_scales, column_scales, bias=bias)
    exact = dots.double() * row_scales[:, None].double() * column_scales.double() / 127**2 + bias.double()
    assert ours.dtype == theirs.dtype
    assert ((ours - exact).abs() <= 2**-11 * 1.01 * exact.abs() + 2**-20).all()
    # Their factor for 1 / 127^2 is 1.8e-5 too large.
    torch.testing.assert_close(ours, theirs, rtol=2**-10 + 2e-5, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_rows_and_columns(threshold, gpu):
    A = torch.randn(64, 256, dtype=torch.float16, device=gpu)
    A[::7, 5] = 20.0
    A[3, 9] = -6.0
    ours = F.quantize_int8_double(A, threshold)
    theirs = B.int8_double_quant(A.clone(), threshold=threshold)
    assert torch.equal(ours.row_scales, theirs[2]) and torch.equal(ours.column_scales, theirs[3])
    # Theirs are rounded in float16 on the way.
    assert ((ours.row_codes.int() - theirs[0].int()).abs() <= 1).all()
    assert ((ours.column_codes.int() - theirs[1].int()).abs() <= 1).all()
    if threshold:
        assert torch.equal(ours.outlier_columns[: ours.outlier_count.item()].long(), theirs[4].long())


def int8_operands(x, codes, scales, threshold):
    """In float64: x [M, K] as LLM.int8() rounds it, and the weight."""
    x_codes, x_scales, columns = reference.quantize_int8_rowwise(x, threshold)
    rounded = x_codes.double() * x_scales.double()[:, None] / 127
    rounded[:, columns] = x[:, columns].double()
    return rounded, codes.double() * scales.double()[:, None] / 127


def int8_product(x, codes, scales, bias, threshold):
    """bitsandbytes' for inference, by the function beneath its layer. x is [M, K]: it takes no more of it."""
    state = bnb.MatmulLtState()
    state.CB, state.SCB, state.threshold = codes.contiguous(), scales.contiguous(), threshold
    state.has_fp16_weights = False
    state.is_training = False  # else x is not rounded on the CPU
    with torch.no_grad():
        return bnb.matmul(x.contiguous(), state.CB, bias=bias, state=state)


def int8_errors(dtype, threshold, m, seed):
    """|out - exact|, ours and theirs; exact in float64 is LLM.int8(), then the dense product."""
    torch.manual_seed(seed)
    layer = int8_layer(512, 384, threshold, dtype=dtype)
    x = torch.randn(m, 512)
    x[:, [7, 300]] *= 12  # outliers, as large models have them
    x = x.to(dtype)
    codes, scales = layer.weight.CB.clone(), layer.weight.SCB.clone()
    bias = layer.bias.detach()
    rounded, weight = int8_operands(x, codes, scales, threshold)
    with torch.no_grad():
        results = F.linear_int8(x, codes, scales, bias, threshold), layer(x.clone())
    exact = [a @ weight.T + bias.double() for a in (rounded, x.double())]
    return [[(out.double() - want).abs() for out in results] for want in exact]


# Where both round once to 16 bits, they differ by what float32 and tensor cores round before.
SAME = 1 + 2**-8

INT8_CASES = [
    pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16]),
    pytest.mark.parametrize("threshold", [0.0, 6.0]),
]


@INT8_CASES[0]
@INT8_CASES[1]
@pytest.mark.parametrize("m", [1, 64])
def test_int8_product_is_closer_to_the_algorithm_in_float64(dtype, threshold, m):
    for seed in range(4):
        (ours, theirs), _ = int8_errors(dtype, threshold, m, seed)
        # Where bitsandbytes, too, rounds to x's dtype only once, float32 alone makes a difference.
        assert ours.mean() <= theirs.mean() * (1 + 1e-5) and ours.max() <= theirs.max() * (1 + 1e-5)


@INT8_CASES[0]
@INT8_CASES[1]
def test_int8_products_of_the_case_list_are_closer_to_the_algorithm_in_float64(dtype, threshold):
    means, largest = [], []
    for case in cases.cases("linear_int8"):
        x, codes, scales, bias, _ = case.arguments("cpu")
        if (case.dtype, case.threshold) != (dtype, threshold) or 0 in (x.numel(), codes.numel()):
            continue
        x = x.reshape(-1, x.shape[-1])
        rounded, weight = int8_operands(x, codes, scales, threshold)
        exact = rounded @ weight.T + (0.0 if bias is None else bias.double())
        arguments = x, codes, scales, bias, threshold
        errors = [(f(*arguments).double() - exact).abs() for f in (F.linear_int8, int8_product)]
        means.append([error.mean() for error in errors])
        largest.append([error.max() for error in errors])
        for ours, theirs in (means[-1], largest[-1]):
            assert ours <= theirs * (1 + 1e-5), case
    assert len(means) >= 12
    ours, theirs = torch.tensor(means).mean(0)
    # Of 16 bits without outliers, both round to x's dtype once, and to float16 bitsandbytes some sums before.
    assert ours < theirs * (1e-3 if dtype == torch.float32 else 0.85 if threshold else 1.0)
    ours, theirs = torch.tensor(largest).amax(0)
    assert ours <= theirs


def gpu_errors(case, gpu):
    """|out - exact|, ours and theirs, by what is multiplied exactly; whether their codes of x are ours."""
    x, codes, scales, bias, threshold = case.arguments(gpu)
    x = x.reshape(-1, x.shape[-1]).contiguous()
    own = F.quantize_int8_rowwise(x, threshold)
    columns = own.outlier_columns[: own.outlier_count.item()] if threshold else None
    rows = (own.codes, own.scales, columns), B.int8_vectorwise_quant(x.half(), threshold=threshold)
    same_codes = torch.equal(rows[0][0], rows[1][0])
    results = [f(x, codes, scales, bias, threshold) for f in (F.linear_int8, int8_product)]

    x, codes, scales, bias, _ = case.arguments("cpu")
    x = x.reshape(-1, x.shape[-1])
    algorithm, weight = int8_operands(x, codes, scales, threshold)
    errors = {"LLM.int8()": [], "the library's operands": [], "x": []}
    for out, (x_codes, x_scales, columns) in zip(results, rows, strict=True):
        rounded = (x_codes.double() * x_scales.double()[:, None] / 127).cpu()
        if columns is not None:
            rounded[:, columns.cpu()] = x[:, columns.cpu()].double()
        for name, operand in zip(errors, (algorithm, rounded, x.double()), strict=True):
            exact = operand @ weight.T + (0.0 if bias is None else bias.double())
            errors[name].append((out.cpu().double() - exact).abs())
    return errors, same_codes


@pytest.mark.gpu
@INT8_CASES[0]
@INT8_CASES[1]
def test_int8_products_on_the_gpu_are_closer_to_the_algorithm_in_float64(
    dtype, threshold, gpu, record_property
):
    figures = {}
    for case in cases.cases("linear_int8"):
        if (case.dtype, case.threshold) != (dtype, threshold) or 0 in (*case.lead, *case.shape):
            continue
        errors, same_codes = gpu_errors(case, gpu)
        for name, pair in errors.items():
            figures.setdefault(name, []).append([[error.mean(), error.max()] for error in pair])
            # Where other codes have another product, and both only round it to 16 bits, chance says how well.
            # Most of the error to the product of x is that of rounding x.
            comparable = dtype == torch.float32 or same_codes
            if name == "LLM.int8()" or (name != "x" and comparable):
                for ours, theirs in zip(*figures[name][-1], strict=True):
                    assert ours <= theirs * SAME, (case, name)
    for name, of_cases in figures.items():
        assert len(of_cases) >= 12
        means, largest = torch.tensor(of_cases, dtype=torch.float64).unbind(-1)
        for what, (ours, theirs) in (("mean", means.mean(0)), ("largest", largest.amax(0))):
            record_property(f"{what} error to {name}", f"ours {ours:.3g}, theirs {theirs:.3g}")
            assert name != "LLM.int8()" or ours <= theirs * SAME


@INT8_CASES[0]
@INT8_CASES[1]
def test_int8_product_is_as_close_to_the_dense_one(dtype, threshold):
    # Nearly all of this error is that of rounding x to 8 bits: the same for both but for chance.
    errors = [int8_errors(dtype, threshold, 64, seed)[1] for seed in range(16)]
    ours, theirs = (torch.stack(e) for e in zip(*errors, strict=True))
    assert ours.mean() <= theirs.mean() * 1.001
    assert ours.amax((1, 2)).mean() <= theirs.amax((1, 2)).mean() * 1.03


def test_int8_gradient_is_as_close_to_float64():
    layer = int8_layer(512, 384, 6.0)
    codes, scales = layer.weight.CB.clone(), layer.weight.SCB.clone()
    x, grad = torch.randn(8, 512, requires_grad=True), torch.randn(8, 384)
    exact = grad.double() @ (codes.double() * scales.double()[:, None] / 127)
    (ours,) = torch.autograd.grad(F.linear_int8(x, codes, scales, layer.bias, 6.0), x, grad)
    (theirs,) = torch.autograd.grad(layer(x), x, grad)
    assert (ours - exact).abs().max() <= (theirs - exact).abs().max() * 1.01
