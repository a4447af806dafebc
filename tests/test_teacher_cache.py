"""The teacher's record against a float64 reference, and a run that trains from records against one that does not."""

import random

import pytest
import torch
from test_objective import ALPHAS, at_divergence, reference, relative
from tiny import config, lab
from tools import ROUNDS

from salad import SaladError, training
from salad.config import ObjectiveConfig, validate
from salad.objective import distillation_loss
from salad.objective.teacher_cache import TeacherCache, bytes_per_position, cache_rows, cached_distillation_loss
from salad.training import start
from salad.training.distributed import Processes


def inputs(n=37, v=101, h=16, dtype=torch.float32, noise=0.3):
    head = (torch.randn(v, h) / 2).to(dtype)
    teacher = torch.randn(n, h)
    student = (teacher + noise * torch.randn(n, h)).to(dtype).requires_grad_()
    return student, head, teacher.to(dtype), torch.randint(0, v, (n,))


@pytest.mark.parametrize("kl", [0.01, 3.0])
def test_bfloat16_gradients_are_within_one_percent(kl, monkeypatch):
    """The objective's gate; also with products whose factors are rounded to bfloat16, as a GPU's are."""
    import salad.objective.teacher_cache as module

    student, head, teacher, _, target = at_divergence(kl, one_head=True)
    products, vocab = module._times_head, head.shape[0]

    def rounded(projection, weights, spare=None):
        return products(projection, weights.bfloat16().float() if spare is None else weights, spare)

    exact = student.detach().double().requires_grad_()
    d, nll = (x.mean() for x in reference(exact, head, teacher, head, target, 1.0, vocab)[1:])
    of_d, of_nll = (torch.autograd.grad(x, exact, retain_graph=True)[0] for x in (d, nll))
    for alpha in ALPHAS:
        expected, want = (alpha * d + (1 - alpha) * nll, d, nll), alpha * of_d + (1 - alpha) * of_nll
        for used in (products, rounded):
            monkeypatch.setattr(module, "_times_head", used)
            record = cache_rows(teacher, head, chunk_rows=100)
            out = cached_distillation_loss(student, head, record, target, alpha, chunk_rows=64)
            for x, y in zip(out, expected, strict=True):
                assert abs(x.item() / y.item() - 1) < 2e-3
            got = torch.autograd.grad(out.loss, student)[0]
            assert got.dtype == torch.bfloat16 and relative(got, want) < 0.01
            assert ((got.double() - want).norm(dim=1) / want.norm(dim=1)).quantile(0.99) < 0.02


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_it_is_the_objective(alpha, reduction):
    """Padded ids, rows without loss, a weight on the loss: as `distillation_loss` has them, within float16."""
    student, head, teacher, target = inputs()
    with torch.no_grad():
        head[90:] += 50.0
    target = target.clamp_max(89)
    target[::3] = -100
    record = cache_rows(teacher, head, 90)
    out = cached_distillation_loss(student, head, record, target, alpha, 90, reduction, chunk_rows=8)
    want = distillation_loss(student, head, teacher, head, target, alpha, 90, reduction)
    for x, y in zip(out, want, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-4)
    weight = torch.rand_like(out.loss)
    got, expected = (torch.autograd.grad((x.loss * weight).sum(), student)[0] for x in (out, want))
    assert relative(got, expected) < 2e-3
    assert (got[::3] == 0).all()
    assert sum(x.nbytes for x in record) == 37 * bytes_per_position(16)


def test_the_teachers_own_states_give_no_divergence():
    for dtype in (torch.float32, torch.bfloat16):
        _, head, teacher, target = inputs(v=999, dtype=dtype)
        out = cached_distillation_loss(teacher, head, cache_rows(teacher, head), target, reduction="none")
        assert out.d.max() < 5e-6


def test_no_position_gives_a_zero_loss_that_backpropagates():
    student, head, teacher, target = inputs()
    for n, targets in ((0, target[:0]), (37, torch.full_like(target, -100))):
        out = cached_distillation_loss(student[:n], head, cache_rows(teacher[:n], head), targets)
        out.loss.backward()
        assert out.loss == 0 and (student.grad == 0).all()


def test_logits_are_never_whole():
    student, head, teacher, target = inputs(n=2560, v=20_000, h=4)
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor):
                    self.bytes = max(self.bytes, x.untyped_storage().nbytes())
            return out

    with Largest() as largest:
        cached_distillation_loss(student, head, cache_rows(teacher, head), target).loss.backward()
    assert largest.bytes <= 2 * 4 * 256 * 20_000  # two float32 buffers of a chunk's rows


def test_what_does_not_fit_is_refused_in_one_line():
    student, head, teacher, target = inputs()
    record = cache_rows(teacher, head)
    with pytest.raises(SaladError, match="head trains") as error:
        cached_distillation_loss(student, head.clone().requires_grad_(), record, target)
    assert "\n" not in str(error.value)
    for change, message in (({"alpha": 2.0}, "alpha"), ({"reduction": "x"}, "reduction")):
        with pytest.raises(SaladError, match=message):
            cached_distillation_loss(student, head, record, target, **change)
    with pytest.raises(SaladError, match="do not fit"):
        cached_distillation_loss(student[1:], head, record, target[1:])
    with pytest.raises(SaladError, match="forward_kl"):
        validate(ObjectiveConfig, {"teacher_cache": True, "divergence": "jsd"})


# --- the trainer ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return lab(tmp_path_factory.mktemp("lab"))


def trained(place, **changes):
    run = training.prepare(place, config(**changes), "tiny")
    training.train(place, run.run_id)
    return run


def losses(run) -> list[float]:
    return [row["values"]["loss"] for row in run.metrics()]


def test_a_run_from_the_cache_has_the_losses_of_one_without(place, monkeypatch, capsys):
    from salad.models.speech_lm import Teacher

    read, real = [], Teacher.hidden
    monkeypatch.setattr(Teacher, "hidden", lambda self, ids, *rest: (read.append(ids.shape), real(self, ids, *rest))[1])
    cached = ObjectiveConfig(teacher_cache=True)
    without = losses(trained(place))
    steps = len(read)
    first = trained(place, objective=cached)
    made = len(read) - steps
    assert "teacher cache: up to" in capsys.readouterr().out
    assert losses(first) == pytest.approx(without, rel=2e-3, abs=1e-5)
    again = training.prepare(place, config(objective=cached), "tiny", repetition=1)
    training.train(place, again.run_id)
    assert losses(again) == losses(first)  # and the teacher reads nothing
    assert len(read) == steps + made
    other = trained(place, objective=ObjectiveConfig(teacher_cache=True, alpha=0.5))
    assert len(read) == steps + made
    assert losses(other) == pytest.approx(losses(trained(place, objective=ObjectiveConfig(alpha=0.5))), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(("dtype", "near"), [("float32", 2e-3), ("bfloat16", 1e-2)])
def test_packed_rows_find_their_texts(place, dtype, near):
    optim = config().optim.model_copy(update={"batch_tokens": 200, "steps": 6})
    llm = config().llm.model_copy(update={"dtype": dtype})
    with_cache = [ObjectiveConfig(teacher_cache=x) for x in (False, True)]
    result = [losses(trained(place, optim=optim, llm=llm, objective=x)) for x in with_cache]
    assert result[1] == pytest.approx(result[0], rel=near, abs=1e-5)


def test_a_file_that_was_cut_short_is_made_again(place, capsys):
    made = ObjectiveConfig(teacher_cache=True, alpha=0.75)
    whole = losses(trained(place, objective=made))
    files = list((place / "caches" / "teacher").glob("*/part-*.safetensors"))
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:-40])
    run = training.prepare(place, config(objective=made), "tiny", repetition=1)
    training.train(place, run.run_id)
    assert "is damaged and is left out" in capsys.readouterr().err
    assert losses(run) == whole


def test_a_flipped_bit_is_named_with_what_to_do(place, tmp_path):
    model = training.start_model(place, config())
    loader = training.load_data(place, config(), model)
    steps = [batch for _ in range(6) for batch in loader.next().batches]
    made = TeacherCache(tmp_path, model)
    whole = [made.record(batch, model) for batch in steps]
    made.write()
    (path,) = made.folder.glob("part-*.safetensors")
    data = path.read_bytes()

    def result() -> None:
        again = TeacherCache(tmp_path, model)
        for batch, want in zip(steps, whole, strict=True):
            assert all(map(torch.equal, again.record(batch, model), want))

    result()
    rng, named = random.Random(0), 0
    body = 8 + int.from_bytes(data[:8], "little")
    for round in range(4 * ROUNDS):  # half of them in the numbers, half among what says where they are
        flipped = bytearray(data)
        flipped[rng.randrange(body, len(data)) if round % 2 else rng.randrange(body)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            result()  # in the part of a text that no batch took, or left out and made again
        except SaladError as error:
            assert str(path) in str(error) and "remove it, and its texts are made again" in str(error)
            assert "\n" not in str(error)
            named += 1
    assert named >= ROUNDS
    path.unlink()
    result()


def test_where_it_cannot_be_it_is_refused(place, monkeypatch):
    full = config().llm.model_copy(update={"finetune": "full"})
    with pytest.raises(SaladError, match="one frozen head"):
        trained(place, llm=full, objective=ObjectiveConfig(teacher_cache=True))
    small = ObjectiveConfig(teacher_cache=True, teacher_cache_gb=1e-6)
    with pytest.raises(SaladError, match=r"agree with --set objective.teacher_cache_gb=\d+") as error:
        trained(place, objective=small)
    assert "\n" not in str(error.value)
    model = training.start_model(place, config())
    loader = training.load_data(place, config(), model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SaladError, match="one process, and this run has 2"):
        start.teacher_cache(place, config(), model, loader, Processes(), None)


def test_another_teacher_has_a_cache_of_its_own(place, tmp_path):
    from tiny import teacher

    model = training.start_model(place, config())
    other = training.start_model(place, config(llm=config().llm.model_copy(update={"name": str(teacher(tmp_path, seed=9))})))
    assert TeacherCache(place, model).folder != TeacherCache(place, other).folder
