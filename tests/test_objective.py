"""The objective against a plain float64 reference on fresh random inputs."""

import pytest
import torch
from tools import compiler
from torch.nn.functional import kl_div, log_softmax, nll_loss

from salad import SaladError
from salad.objective import distillation_loss, position_divergences

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def reference(student_hidden, student_head, teacher_hidden, teacher_head, targets, alpha, vocab_size):
    """What the objective is, in float64 and with whole logits: (loss, d, nll) per row."""
    student = (student_hidden.double() @ student_head.double().t())[:, :vocab_size]
    teacher = (teacher_hidden.double() @ teacher_head.double().t())[:, :vocab_size]
    log_p, log_q = log_softmax(student, 1), log_softmax(teacher, 1)
    d = kl_div(log_p, log_q, log_target=True, reduction="none").sum(1)
    nll = nll_loss(log_p, targets, reduction="none")
    return alpha * d + (1 - alpha) * nll, d, nll


def inputs(n=37, v_s=101, v_t=101, h=16, g=24, vocab=None, dtype=torch.float32, scale=1.0):
    hidden_s = (torch.randn(n, h) * scale).to(dtype).requires_grad_()
    head_s = (torch.randn(v_s, h) / 2).to(dtype).requires_grad_()
    hidden_t = (torch.randn(n, g) * scale).to(dtype)
    head_t = (torch.randn(v_t, g) / 2).to(dtype)
    return hidden_s, head_s, hidden_t, head_t, torch.randint(0, vocab or min(v_s, v_t), (n,))


def relative(x, y):
    return ((x.double() - y.double()).norm() / y.double().norm()).item()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_values_and_gradients_equal_the_reference(alpha, reduction):
    args = inputs()
    out = distillation_loss(*args, alpha=alpha, reduction=reduction, chunk_rows=8)
    expected = reference(*args, alpha, 101)
    if reduction != "none":
        expected = [getattr(x, reduction)() for x in expected]
    for got, want in zip(out, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    weight = torch.rand(37) if reduction == "none" else torch.tensor(1.7)
    got = torch.autograd.grad((out.loss * weight).sum(), args[:2])
    want = torch.autograd.grad((expected[0] * weight).sum(), args[:2])
    for x, y in zip(got, want, strict=True):
        assert relative(x, y) < 5e-6


def test_position_divergences_equal_the_reference():
    n, vocab = 23, 90
    head_p, head_q = torch.randn(96, 16), torch.randn(101, 24)
    text, spoken, teacher = torch.randn(n, 16), torch.randn(n, 16), torch.randn(n, 24)
    got = position_divergences((text, head_p), (spoken, head_p), (teacher, head_q), vocab, top_k=4, chunk_rows=7)
    zeros = torch.zeros(n, dtype=torch.long)
    _, m, _ = reference(spoken, head_p, text, head_p, zeros, 1, vocab)
    _, f, _ = reference(text, head_p, teacher, head_q, zeros, 1, vocab)
    _, d, _ = reference(spoken, head_p, teacher, head_q, zeros, 1, vocab)
    for x, y in zip(got[:3], (m, f, d), strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, rtol=1e-5, atol=1e-5)
    top = torch.softmax((teacher.double() @ head_q.double().t())[:, :vocab], 1).topk(4)
    assert torch.equal(got.teacher_ids, top.indices)
    torch.testing.assert_close(got.teacher_probabilities.double(), top.values, rtol=1e-5, atol=1e-6)
    top = torch.softmax((spoken.double() @ head_p.double().t())[:, :vocab], 1).topk(4)
    assert torch.equal(got.student_ids, top.indices)
    torch.testing.assert_close(got.student_probabilities.double(), top.values, rtol=1e-5, atol=1e-6)


def test_equal_inputs_give_exactly_zero():
    hidden, head = torch.randn(70, 48) * 3, torch.randn(999, 48)
    for dtype in (torch.float32, torch.bfloat16):
        pair = (hidden.to(dtype), head.to(dtype))
        copy = (pair[0].clone(), pair[1].clone())
        got = position_divergences(pair, copy, pair, top_k=0, chunk_rows=32)
        assert (got.m == 0).all() and (got.f == 0).all() and (got.d == 0).all()
        for way in ({}, {"vocab_tile": 100}):
            out = distillation_loss(*pair, *copy, torch.zeros(70, dtype=torch.long), reduction="none", **way)
            assert (out.d == 0).all()


def test_an_alpha_outside_its_range_is_refused():
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(SaladError, match="alpha"):
            distillation_loss(*inputs(), alpha=alpha)


@pytest.mark.parametrize("way", [{"chunk_rows": 8}, {"vocab_tile": 13}, {}])
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_padded_vocabularies_and_unequal_widths(alpha, trainable, way):
    """Ids that only a padded head has change nothing and get no gradient, whatever stands in them."""
    vocab = 90
    args = inputs(v_s=96, v_t=104, h=12, g=20, vocab=vocab)
    args[1].requires_grad_(trainable)
    with torch.no_grad():
        args[1][vocab:] += 50.0
        args[3][vocab:] -= 50.0
    out = distillation_loss(*args, alpha=alpha, vocab_size=vocab, **way)
    expected = [x.mean() for x in reference(*args, alpha, vocab)]
    for got, want in zip(out, expected, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=2e-6)
    out.loss.backward()
    grads, (args[0].grad, args[1].grad) = (args[0].grad, args[1].grad), (None, None)
    expected[0].backward()
    assert relative(grads[0], args[0].grad) < 5e-6
    if trainable:
        assert relative(grads[1], args[1].grad) < 5e-6
        assert (grads[1][vocab:] == 0).all()
    else:
        assert grads[1] is None


@pytest.mark.parametrize("way", [{"chunk_rows": 4}, {"vocab_tile": 5}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck(reduction, way):
    """All three outputs, both arguments, in float64 (the float64 path has float64 sums)."""
    args = inputs(n=7, v_s=19, v_t=21, h=5, g=6, vocab=17, dtype=torch.float64)

    def function(hidden, head):
        return distillation_loss(hidden, head, *args[2:], 0.3, 17, reduction, **way)

    # a second backward computes the gradients again, the weights multiplied in at another place
    assert torch.autograd.gradcheck(function, args[:2], nondet_tol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: function(*x).loss, args[:2], nondet_tol=1e-12)
    frozen = args[1].detach()
    assert torch.autograd.gradcheck(lambda hidden: function(hidden, frozen).loss, args[:1], nondet_tol=1e-12)


@pytest.mark.parametrize("way", [{"chunk_rows": 8}, {"vocab_tile": 32}])
def test_rows_without_a_target_carry_no_loss(way):
    args = inputs()
    targets = args[4].clone()
    targets[::3] = -100
    kept = targets >= 0
    out = distillation_loss(*args[:4], targets, 0.5, reduction="none", **way)
    assert (out.loss[~kept] == 0).all()
    mean = distillation_loss(*args[:4], targets, 0.5, **way).loss
    some = [args[0][kept], args[1], args[2][kept], args[3], targets[kept]]
    torch.testing.assert_close(mean, distillation_loss(*some, 0.5, **way).loss)
    got = torch.autograd.grad(mean, args[:2])
    want = torch.autograd.grad(reference(*some, 0.5, 101)[0].mean(), args[:2])
    assert relative(got[0], want[0]) < 5e-6 and relative(got[1], want[1]) < 5e-6
    # never projected: what stands in such a row cannot matter, not even NaN
    with torch.no_grad():
        args[0][~kept], args[2][~kept] = float("nan"), float("nan")
    again = distillation_loss(*args[:4], targets, 0.5, **way).loss
    assert torch.equal(again, mean)


@pytest.mark.parametrize("way", [{}, {"vocab_tile": 32}])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("empty", ["no rows", "no row with loss"])
def test_no_position_gives_a_zero_loss_that_backpropagates(empty, reduction, way):
    args = list(inputs(n=0 if empty == "no rows" else 3))
    args[4] = torch.full_like(args[4], -100)
    out = distillation_loss(*args, reduction=reduction, **way)
    for value in out:
        assert value.sum().item() == 0.0
    out.loss.sum().backward()
    assert (args[0].grad == 0).all() and (args[1].grad == 0).all()
    if empty == "no rows":
        pair = (args[0], args[1])
        assert position_divergences(pair, pair, (args[2], args[3]), top_k=2).teacher_ids.shape == (0, 2)


def at_divergence(kl, n=256, v=4096, h=128, one_head=False):
    """bf16 inputs like a language model's (logits that spread over several nats) whose mean KL is near `kl`. With
    `one_head` student and teacher share a frozen one."""
    head_t = (torch.randn(v, h) / h**0.5).bfloat16()
    hidden_t = (torch.randn(n, h) * 3.0).bfloat16()
    head_s = head_t if one_head else (head_t.float() + torch.randn(v, h) * 0.02 * kl / h**0.5).bfloat16()
    low, high = 0.0, 8.0
    noise, target = torch.randn(n, h), torch.randint(0, v, (n,))
    for _ in range(25):
        middle = (low + high) / 2
        hidden_s = (hidden_t.float() + noise * middle).bfloat16()
        d = reference(hidden_s, head_s, hidden_t, head_t, target, 1.0, v)[1].mean().item()
        low, high = (middle, high) if d < kl else (low, middle)
    assert abs(d / kl - 1) < 0.1, f"KL {d}"
    return hidden_s.requires_grad_(), head_s.requires_grad_(not one_head), hidden_t, head_t, target


@pytest.mark.parametrize("way", [{"chunk_rows": 64}, {}, {"vocab_tile": 512}])
@pytest.mark.parametrize("kl", [0.01, 3.0])
def test_bfloat16_gradients_are_within_one_percent(kl, way):
    """The gate of the benchmark, small: Frobenius, and every row's 99th percentile beside it."""
    args = at_divergence(kl)
    # the true gradients in float64: bfloat16 leaves would round them
    exact = [x.detach().double().requires_grad_() for x in args[:2]]
    _, d, nll = reference(*exact, *args[2:], 1.0, args[1].shape[0])
    of_d, of_nll = (torch.autograd.grad(x.mean(), exact, retain_graph=True) for x in (d, nll))
    for alpha in ALPHAS:
        out = distillation_loss(*args, alpha, **way)
        assert abs(out.d.item() / d.mean().item() - 1) < 2e-3
        got = torch.autograd.grad(out.loss, args[:2])
        want = [alpha * x + (1 - alpha) * y for x, y in zip(of_d, of_nll, strict=True)]
        for x, y in zip(got, want, strict=True):
            assert x.dtype == torch.bfloat16
            assert relative(x, y) < 0.01
        rows = (got[0].double() - want[0]).norm(dim=1) / want[0].norm(dim=1)
        assert rows.quantile(0.99) < 0.02


def test_each_output_can_be_backpropagated_and_a_retained_graph_twice():
    args = inputs()
    out = distillation_loss(*args, alpha=0.25)
    expected = [x.mean() for x in reference(*args, 0.25, 101)]
    for got, want in zip((*out, out.loss, out.loss), (*expected, expected[0], expected[0]), strict=True):
        x = torch.autograd.grad(got, args[:2], retain_graph=True)
        y = torch.autograd.grad(want, args[:2], retain_graph=True)
        assert relative(x[0], y[0]) < 5e-6 and relative(x[1], y[1]) < 5e-6


def test_a_double_backward_is_refused():
    args = inputs()
    loss = distillation_loss(*args).loss
    with pytest.raises(SaladError, match="no double backward"):
        torch.autograd.grad(loss, args[:1], create_graph=True)


def test_only_what_requires_a_gradient_gets_one():
    hidden_s, head_s, hidden_t, head_t, target = inputs()
    hidden_t.requires_grad_()
    head_t.requires_grad_()
    head_s.requires_grad_(False)
    distillation_loss(hidden_s, head_s, hidden_t, head_t, target).loss.backward()
    assert hidden_s.grad is not None and head_s.grad is None and hidden_t.grad is None and head_t.grad is None
    with torch.no_grad():
        assert not distillation_loss(hidden_s, head_s, hidden_t, head_t, target).loss.requires_grad
    leaf = head_s.requires_grad_()
    hidden = hidden_s.detach()
    distillation_loss(hidden, leaf, hidden_t, head_t, target).loss.backward()
    assert leaf.grad is not None and hidden.grad is None


def test_autocast_and_the_callers_precision_are_left_alone():
    args = inputs(n=64, h=64, g=64)
    before = torch.backends.mkldnn.matmul.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(*args).loss
    narrow = [x.detach().bfloat16() for x in args[:4]]
    assert torch.equal(loss, distillation_loss(*narrow, args[4]).loss)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    loss.backward()
    assert args[0].grad.dtype == torch.float32
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    assert relative(a @ b, a.double() @ b.double()) < 1e-6


@pytest.mark.parametrize("way", [{}, {"vocab_tile": 2000}])
def test_logits_are_never_whole(way):
    """The largest tensor made in a pass is a chunk of rows (or a tile of ids), many times smaller than [N, V]."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    self.bytes = max(self.bytes, x.untyped_storage().nbytes())
            return out

    args = inputs(n=2560, v_s=20_000, v_t=20_000, h=4, g=4, dtype=torch.bfloat16)
    with Largest() as largest:
        distillation_loss(*args, **way).loss.backward()
        pair = (args[0], args[1])
        position_divergences(pair, pair, (args[2], args[3]))
    assert largest.bytes <= 4 * 256 * 20_000  # float32


def wrong(**change):
    named = dict(
        zip(("student_hidden_NH", "student_head_VH", "teacher_hidden_NG", "teacher_head_VG", "targets_N"), inputs(), strict=True)
    )
    return named | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_head_VH": torch.zeros(120, 16)}, "give vocab_size"),
        ({"vocab_size": 102}, "vocab_size is 102"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"teacher_hidden_NG": torch.zeros(36, 24)}, "same N"),
        ({"teacher_hidden_NG": torch.zeros(37, 23)}, "do not fit"),
        ({"targets_N": torch.full((37,), 101)}, "target 101"),
        ({"targets_N": torch.zeros(37)}, "integer"),
        ({"reduction": "batchmean"}, "reduction"),
        ({"chunk_rows": 0}, "chunk_rows"),
        ({"vocab_tile": 0}, "vocab_tile"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    with pytest.raises(SaladError, match=message) as error:
        distillation_loss(**wrong(**change))
    assert "\n" not in str(error.value)


def test_a_nan_is_not_hidden():
    args = inputs()
    with torch.no_grad():
        args[0][5] = float("nan")
    for way in ({}, {"vocab_tile": 16}):
        assert distillation_loss(*args, **way).loss.isnan()


# ------------------------------------------------------------------------------------------------ compiled


@pytest.mark.compiler
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("trainable", [True, False])
def test_compiled_equals_the_reference(trainable, alpha):
    """Values and gradients, chunks of several sizes, padded vocabularies, rows without a target, any reduction."""
    compiler()
    args = inputs(n=37, v_s=96, v_t=104, vocab=90)
    args[1].requires_grad_(trainable)
    args[4][::5] = -100
    kept = args[4] >= 0
    wanted = args[:2] if trainable else args[:1]
    for reduction in ("mean", "none"):
        out = distillation_loss(*args, alpha, 90, reduction, chunk_rows=8, compile=True)
        some = [args[0][kept], args[1], args[2][kept], args[3], args[4][kept]]
        loss, d, nll = reference(*some, alpha, 90)
        if reduction == "mean":
            loss, d, nll, got = loss.mean(), d.mean(), nll.mean(), out
        else:
            assert (out.loss[~kept] == 0).all()
            got = [value[kept] for value in out]
        for x, y in zip(got, (loss, d, nll), strict=True):
            torch.testing.assert_close(x.double(), y, rtol=2e-6, atol=2e-6)
        weight = torch.rand(int(kept.sum())) if reduction == "none" else 1.0
        first = torch.autograd.grad((got[0] * weight).sum(), wanted)
        for x, y in zip(first, torch.autograd.grad((loss * weight).sum(), wanted), strict=True):
            assert relative(x, y) < 5e-6


@pytest.mark.compiler
@pytest.mark.parametrize("kl", [0.01, 3.0])
def test_compiled_passes_the_gate_and_equal_inputs_give_exactly_zero(kl):
    compiler()
    args = at_divergence(kl)
    out = distillation_loss(*args, chunk_rows=64, compile=True)
    out.loss.backward()
    want = torch.autograd.grad(reference(*args, 1.0, args[1].shape[0])[0].mean(), args[:2])
    assert relative(args[0].grad, want[0]) < 0.01 and relative(args[1].grad, want[1]) < 0.01
    same = distillation_loss(*args[:2], args[0].detach(), args[1].detach(), args[4], chunk_rows=64, compile=True)
    assert same.d.item() == 0.0


def test_compiled_is_for_forward_kl_in_rows_and_says_so():
    for way in ({"vocab_tile": 8}, {"divergence": "jsd"}):
        with pytest.raises(SaladError, match="compile is for forward_kl"):
            distillation_loss(*inputs(), compile=True, **way)


def test_without_a_compiler_the_error_says_what_is_missing():
    from torch._inductor import config

    torch._dynamo.reset()
    with (
        config.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}),
        pytest.raises(SaladError, match=r"objective\.compile: .* C\+\+ compiler on CPU.*Without it"),
    ):
        distillation_loss(*inputs(), compile=True)
    torch._dynamo.reset()
