"""The three evaluation protocols as losses (arXiv 2402.13007, section 3.3): plain CE, distillation, and what was released.

`ce`            plain cross-entropy: the fair baseline.
`kd`            the paper's equation 1 in Hinton's form: alpha tau^2 KL(teacher || student), both softened by tau, plus
                (1 - alpha) CE.
`authors-2023`  what the released code does, for the audit of Table 4 only: (1 - alpha) CE + alpha tau^3 KL(student || teacher)
                of unsoftened probabilities, tau x 0.9 after every epoch, alpha 0.5; and half a CE where it says "no KD".
                Probabilities are clamped, so that it cannot become NaN where the released code did.
"""

import torch
import torch.nn.functional as F

from .config import PROTOCOLS
from .errors import DDError, check_choice

TAU_DECAY = 0.9
SMALLEST_PROBABILITY = 1e-8


def kd_loss(logits, labels, teacher_logits, alpha, tau):
    """alpha tau^2 KL(teacher || student) + (1 - alpha) CE, logits [N, C] divided by tau in the KL, mean over N."""
    student = F.log_softmax(logits / tau, 1)
    teacher = F.log_softmax(teacher_logits / tau, 1)
    kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return alpha * tau**2 * kl + (1 - alpha) * F.cross_entropy(logits, labels)


def authors_loss(logits, labels, teacher_logits, alpha, tau, epoch):
    """(1 - alpha) CE + alpha tau_e^3 KL(student || teacher), tau_e = tau 0.9^epoch; without a teacher (1 - alpha) CE."""
    loss = (1 - alpha) * F.cross_entropy(logits, labels)
    if teacher_logits is None:
        return loss
    student, teacher = (
        torch.softmax(v, 1).clamp(min=SMALLEST_PROBABILITY) for v in (logits, teacher_logits)
    )
    kl = (student * (student.log() - teacher.log())).sum(1).mean()
    return loss + alpha * (tau * TAU_DECAY**epoch) ** 3 * kl


def make_loss(protocol, labels, teacher_logits, config):
    """`loss(logits, batch, epoch)` of a protocol; `batch` indexes the set that `labels` and `teacher_logits` belong to."""
    check_choice("protocol", protocol, PROTOCOLS)
    if protocol == "ce":
        return lambda logits, batch, epoch: F.cross_entropy(logits, labels[batch])
    if protocol == "kd":
        if teacher_logits is None:
            raise DDError("protocol 'kd' needs a teacher")
        return lambda logits, batch, epoch: kd_loss(
            logits, labels[batch], teacher_logits[batch], config.alpha, config.tau
        )
    return lambda logits, batch, epoch: authors_loss(
        logits,
        labels[batch],
        None if teacher_logits is None else teacher_logits[batch],
        config.alpha,
        config.tau,
        epoch,
    )
