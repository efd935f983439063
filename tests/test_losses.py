"""The three losses: values by hand and by numpy, directions, and what they do at the edges."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refused
from torch import nn

from ddlib import losses
from ddlib.config import EvalConfig
from ddlib.losses import PROTOCOLS, Protocol, find_protocol
from ddlib.training import Training


def kd_loss(logits, labels, teacher, alpha, tau):
    return losses.kd_loss(logits, labels, teacher, EvalConfig(alpha=alpha, tau=tau), 0)


def authors_loss(logits, labels, teacher, alpha, tau, epoch):
    return losses.authors_loss(logits, labels, teacher, EvalConfig(alpha=alpha, tau=tau), epoch)


def random_case(seed=0, n=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (
        3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return logits, torch.arange(n) % classes, teacher


def softmax(logits):
    e = np.exp(logits)
    return e / e.sum(1, keepdims=True)


def numpy_ce(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def numpy_kl(p, q):
    return (p * np.log(p / q)).sum(1).mean()


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5, 8.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_kd_loss_is_equation_1(alpha, tau):
    logits, labels, teacher = random_case()
    s, t = logits.numpy(), teacher.numpy()
    kl = numpy_kl(softmax(t / tau), softmax(s / tau))
    expected = alpha * tau**2 * kl + (1 - alpha) * numpy_ce(s, labels.numpy())
    assert float(kd_loss(logits, labels, teacher, alpha, tau)) == pytest.approx(expected, rel=1e-12)


def test_alpha_0_is_plain_ce():
    logits, labels, teacher = random_case()
    assert torch.equal(kd_loss(logits, labels, teacher, 0.0, 4.0), F.cross_entropy(logits, labels))


def test_kl_goes_from_teacher_to_student():
    """The teacher is sure of class 0: KL(teacher || student) = log(1 / 0.5), the reverse is 30 -
    log(2).
    """
    student, teacher = (
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([[30.0, -30.0]], dtype=torch.float64),
    )
    assert float(kd_loss(student, torch.tensor([0]), teacher, 1.0, 1.0)) == pytest.approx(
        math.log(2)
    )
    assert float(kd_loss(teacher, torch.tensor([0]), student, 1.0, 1.0)) == pytest.approx(
        30 - math.log(2)
    )


def test_kd_gradient_is_student_minus_teacher():
    """d/dlogits of tau^2 KL(teacher || student) is tau (p_student - p_teacher) / N."""
    logits, labels, teacher = random_case()
    (gradient,) = torch.autograd.grad(
        kd_loss(logits.requires_grad_(), labels, teacher, 1.0, 2.0), logits
    )
    expected = 2.0 * (F.softmax(logits / 2, 1) - F.softmax(teacher / 2, 1)) / len(labels)
    torch.testing.assert_close(gradient, expected.detach())


def test_equal_logits_leave_ce_alone():
    logits, labels, _ = random_case()
    expected = 0.3 * float(F.cross_entropy(logits, labels))
    assert float(kd_loss(logits, labels, logits, 0.7, 2.0)) == pytest.approx(expected)


def test_authors_loss_by_hand():
    """Student (3/4, 1/4), teacher (1/2, 1/2), label 0, alpha 0.5, tau 2, epoch 1."""
    student = torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    reverse_kl = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = 0.5 * math.log(4 / 3) + 0.5 * (2 * 0.9) ** 3 * reverse_kl
    assert float(authors_loss(student, torch.tensor([0]), teacher, 0.5, 2.0, 1)) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("epoch", [0, 1, 15, 300])
def test_authors_tau_decays_by_a_tenth_every_epoch(epoch):
    logits, labels, teacher = random_case()
    ce = float(authors_loss(logits, labels, None, 0.5, 1.5, epoch))
    kl = numpy_kl(softmax(logits.numpy()), softmax(teacher.numpy()))
    whole = float(authors_loss(logits, labels, teacher, 0.5, 1.5, epoch))
    assert whole - ce == pytest.approx(0.5 * (1.5 * 0.9**epoch) ** 3 * kl, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("epoch", [0, 7])
def test_authors_without_a_teacher_is_half_a_ce(epoch):
    logits, labels, _ = random_case()
    assert (
        float(authors_loss(logits, labels, None, 0.5, 1.5, epoch))
        == float(F.cross_entropy(logits, labels)) / 2
    )


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
@pytest.mark.parametrize("loss", [kd_loss, authors_loss])
def test_losses_and_gradients_stay_finite_for_extreme_logits(loss, scale):
    student = torch.tensor([[scale, -scale, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-scale, scale, 0.0], [scale, 0.0, -scale]])
    more = (0,) if loss is authors_loss else ()
    value = loss(student, torch.tensor([1, 0]), teacher, 0.5, 1.5, *more)
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, student)[0]).all()


@pytest.mark.parametrize("protocol", ["ce", "kd", "authors-2023"])
@pytest.mark.parametrize("batch", [slice(None), torch.tensor([4, 1])])
def test_labels_and_teacher_are_those_of_the_batch(protocol, batch):
    logits, labels, teacher = random_case()
    config = EvalConfig(alpha=0.3, tau=2.0)
    expected = {
        "ce": F.cross_entropy(logits[batch], labels[batch]),
        "kd": kd_loss(logits[batch], labels[batch], teacher[batch], 0.3, 2.0),
        "authors-2023": authors_loss(logits[batch], labels[batch], teacher[batch], 0.3, 2.0, 6),
    }[protocol]
    targets = None if protocol == "ce" else teacher[batch]
    step = PROTOCOLS[protocol].loss(logits[batch], labels[batch], targets, config, 6)
    assert torch.equal(step, expected)


def test_ce_on_soft_labels_by_hand():
    """Minus the sum of target times log probability; one-hot targets are the plain loss."""
    logits, labels, other = random_case()
    soft = torch.from_numpy(softmax(other.numpy()))
    expected = -(soft.numpy() * np.log(softmax(logits.numpy()))).sum(1).mean()
    loss = PROTOCOLS["ce"].loss
    assert float(loss(logits, labels, soft, EvalConfig(), 0)) == pytest.approx(expected, rel=1e-12)
    one_hot = F.one_hot(labels, 4).double()
    assert float(loss(logits, labels, one_hot, EvalConfig(), 0)) == pytest.approx(
        float(loss(logits, labels, None, EvalConfig(), 0)), rel=1e-12
    )


def test_a_step_takes_labels_and_targets_of_its_batch():
    logits, labels, teacher = random_case()
    rows, seen = torch.tensor([4, 1]), []

    def loss(outputs, labels, targets, config, epoch):
        seen.append((outputs, labels, targets))
        return outputs.sum()

    net, protocol = nn.Linear(logits.shape[1], 3).to(logits), Protocol("own", "never", loss)
    training = Training(net, logits, labels, protocol, EvalConfig(), teacher)
    training.start(0.0)
    training.step(logits[rows], rows)
    assert torch.equal(seen[0][0], net(logits[rows]))
    assert torch.equal(seen[0][1], labels[rows]) and torch.equal(seen[0][2], teacher[rows])


def test_unknown_protocol_and_missing_teacher_are_refused():
    with refused("'KD'", "ce, kd, authors-2023"):
        find_protocol("KD", None)
    with refused("'kd'", "teacher"):
        find_protocol("kd", None)


def test_a_protocol_takes_the_teacher_it_needs():
    assert find_protocol("ce", "ConvNet")[1] is None
    assert [find_protocol("authors-2023", name)[1] for name in (None, "MLP")] == [None, "MLP"]
    own = losses.Protocol("own", "always", losses.kd_loss)
    assert find_protocol(own, "MLP") == (own, "MLP")
