"""Distillation and evaluation done plainly: what every fast path of ddlib must agree with.

Shares no code with ddlib: nets of PyTorch's own layers on contiguous 32x32 images, one net at a
time, whole real batches, SGD a parameter at a time, every loss written out. All computes in the
type of the images, float64 or float32. Generators and starting weights come from the caller; ddlib
draws from them in the same order. `tests/test_witness.py` compares weights and pixels,
`equality.py` accuracies.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Generators = dict[str, torch.Generator]
Loss = Callable[[Tensor, Tensor, int], Tensor]  # of logits, rows of the set, and the epoch

# Nets -------------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leakyrelu": nn.LeakyReLU,
    "swish": nn.SiLU,
}
POOLINGS = {"none": nn.Identity, "average": nn.AvgPool2d, "max": nn.MaxPool2d}


def normalisation(norm: str, width: int, side: int) -> nn.Module:
    """The norm of that name for maps [N, width, side, side]."""
    if norm == "none":
        return nn.Identity()
    if norm == "instance":
        return nn.InstanceNorm2d(width, affine=True)
    if norm == "batch":
        return nn.BatchNorm2d(width)
    if norm == "layer":
        return nn.LayerNorm([width, side, side])
    assert norm == "group", norm
    return nn.GroupNorm(4, width)


def convnet(
    channels: int,
    classes: int,
    width: int,
    depth: int = 3,
    activation: str = "relu",
    norm: str = "instance",
    pooling: str = "average",
) -> nn.Module:
    """`depth` times 3x3 convolution, norm, activation, 2x2 pooling; then linear."""
    layers, side, inputs = [], 32, channels
    for _ in range(depth):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), normalisation(norm, width, side)]
        layers += [ACTIVATIONS[activation](), POOLINGS[pooling](2)]
        side, inputs = side if pooling == "none" else side // 2, width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * side * side, classes))


def mlp(channels: int, classes: int) -> nn.Module:
    """Pixels - 128 - 128 - classes."""
    hidden = [nn.Linear(channels * 1024, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, classes))


def lenet(channels: int, classes: int) -> nn.Module:
    """5x5 convolutions of 6 and 16 filters, each relu and max pooling; 400 - 120 - 84 - classes."""
    convolutions = [nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2)]
    convolutions += [nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    hidden = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()]
    return nn.Sequential(*convolutions, *hidden, nn.Linear(84, classes))


def alexnet(channels: int, classes: int, width_factor: float = 1.0) -> nn.Module:
    """128, 192 (5x5), 256, 192, 192 filters (3x3), max pooling after 1, 2 and 5; no norm."""
    a, b, c = (slim(width, width_factor) for width in (128, 192, 256))
    layers = [nn.Conv2d(channels, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    for inputs, width in ((b, c), (c, b), (b, b)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(b * 16, classes))


def vgg11(channels: int, classes: int, width_factor: float = 1.0) -> nn.Module:
    """Eight 3x3 convolutions with instance norm and relu, max pooling after 1, 2, 4, 6 and 8."""
    layers, inputs, side = [], channels, 32
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in (slim(width, width_factor) for width in stage):
            layers += [nn.Conv2d(inputs, width, 3, padding=1)]
            layers += [normalisation("instance", width, side), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
        side //= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, classes))


def resnet18(channels: int, classes: int, width_factor: float = 1.0) -> nn.Module:
    """A 3x3 stem, four stages of two basic blocks with instance norm, mean over 4x4, linear."""
    inputs = slim(64, width_factor)
    layers = [nn.Conv2d(channels, inputs, 3, padding=1, bias=False)]
    layers += [normalisation("instance", inputs, 32), nn.ReLU()]
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        width = slim(width, width_factor)
        layers += [Block(inputs, width, stride), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(inputs, classes))


class Block(nn.Module):
    """ResNet's basic block: two 3x3 convolutions beside a shortcut, 1x1 where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.first_norm = normalisation("instance", width, 0)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = normalisation("instance", width, 0)
        self.same = stride == 1 and inputs == width
        if not self.same:
            self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False)
            self.shortcut_norm = normalisation("instance", width, 0)

    def forward(self, x: Tensor) -> Tensor:
        residual = torch.relu(self.first_norm(self.first(x)))
        residual = self.second_norm(self.second(residual))
        return torch.relu(residual + (x if self.same else self.shortcut_norm(self.shortcut(x))))


def slim(width: int, factor: float) -> int:
    """A width scaled to the nearest multiple of 4, at least 4."""
    return max(4, round(width * factor / 4) * 4)


NETS = {
    "ConvNet": convnet,
    "MLP": mlp,
    "LeNet": lenet,
    "AlexNet": alexnet,
    "VGG11": vgg11,
    "ResNet18": resnet18,
}


def build(name: str, weights: nn.Module, channels: int, classes: int, **options) -> nn.Module:
    """The net of that name, with a copy of the weights (in order) and the type of another one."""
    net = NETS[name](channels, classes, **options).to(next(weights.parameters()).dtype)
    with torch.no_grad():
        for own, given in zip(net.parameters(), weights.parameters(), strict=True):
            assert own.shape == given.shape, (name, own.shape, given.shape)
            own.copy_(given)
    return net


# Losses -----------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of -log softmax at the labels, logits [N, C]."""
    return (torch.logsumexp(logits, 1) - logits[torch.arange(len(labels)), labels]).mean()


def distillation(
    logits: Tensor, labels: Tensor, teacher: Tensor, alpha: float, tau: float
) -> Tensor:
    """(1 - alpha) CE + alpha tau^2 KL(teacher || student), both softened by tau."""
    p = torch.softmax(teacher / tau, 1)
    ratio = torch.log(p) - torch.log_softmax(logits / tau, 1)
    kl = (p * ratio).sum() / len(logits)
    return (1 - alpha) * cross_entropy(logits, labels) + alpha * tau * tau * kl


def released(
    logits: Tensor, labels: Tensor, teacher: Tensor, alpha: float, tau: float, epoch: int
) -> Tensor:
    """(1 - alpha) CE + alpha (tau 0.9^epoch)^3 KL(student || teacher), probabilities >= 1e-8."""
    p, q = (torch.softmax(x, 1).clamp(min=1e-8) for x in (logits, teacher))
    kl = (p * torch.log(p / q)).sum() / len(logits)
    weight = alpha * (tau * 0.9**epoch) ** 3
    return (1 - alpha) * cross_entropy(logits, labels) + weight * kl


def protocol_loss(
    protocol: str,
    labels: Tensor,
    teacher: Tensor | None = None,
    alpha: float = 0.0,
    tau: float = 1.0,
) -> Loss:
    """The loss of protocol `ce`, `kd` or `authors-2023`; `teacher`: logits of the whole set."""

    def loss(logits: Tensor, rows: Tensor, epoch: int) -> Tensor:
        if protocol == "ce":
            return cross_entropy(logits, labels[rows])
        if protocol == "kd":
            return distillation(logits, labels[rows], teacher[rows], alpha, tau)
        assert protocol == "authors-2023", protocol
        return released(logits, labels[rows], teacher[rows], alpha, tau, epoch)

    return loss


# Training and testing ---------------------------------------------------------------------------


def train(
    net: nn.Module,
    images: Tensor,
    loss: Loss,
    generator: torch.Generator,
    epochs: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch: int,
    operations: Sequence[str] = (),
    augmentation: torch.Generator | None = None,
) -> None:
    """DC's schedule: after epoch (epochs - 1) // 2 + 1 of 0.., lr / 10 and no momentum."""
    velocities = [torch.zeros_like(p) for p in net.parameters()]
    net.train()
    for epoch in range(epochs):
        order = batches(len(images), batch, generator)
        shown = augmented_batches(images, order, operations, augmentation)
        for rows, own in zip(order, shown, strict=True):
            net.zero_grad()
            loss(net(own), rows, epoch).backward()
            descend(list(net.parameters()), velocities, lr, momentum, weight_decay)
        if epoch == (epochs - 1) // 2 + 1:
            lr = lr * 0.1
            velocities = [torch.zeros_like(p) for p in net.parameters()]


def batches(n: int, size: int, generator: torch.Generator) -> Sequence[Tensor]:
    """Rows of one epoch's batches: in random order, or all at once and in order if they fit."""
    return [torch.arange(n)] if n <= size else torch.randperm(n, generator=generator).split(size)


@torch.no_grad()
def descend(
    parameters: list[Tensor],
    velocities: list[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """One step of SGD against the parameters' `grad`."""
    for parameter, velocity in zip(parameters, velocities, strict=True):
        velocity.mul_(momentum).add_(parameter.grad + weight_decay * parameter)
        parameter.sub_(lr * velocity)


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    """The trained net's logits [N, classes]."""
    net.eval()
    return torch.cat([net(part) for part in images.split(250)])


def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of the images that the net puts into their class."""
    hits = [int(row.argmax() == y) for row, y in zip(logits(net, images), labels, strict=True)]
    return 100 * sum(hits) / len(hits)


# Augmentation: an image [C, S, S] at a time; u, v, w from [0, 1) ----------------------------------


def color(image: Tensor, u: float, v: float, w: float) -> Tensor:
    image = image + u - 0.5
    grey = sum(image) / len(image)
    image = torch.stack([grey + 2 * v * (channel - grey) for channel in image])
    return image.mean() + (w + 0.5) * (image - image.mean())


def crop(image: Tensor, u: float, v: float, w: float) -> Tensor:
    side = image.shape[-1]
    border = round(side / 8)
    top, left = (int(value * (2 * border + 1)) for value in (u, v))
    framed = image.new_zeros(len(image), side + 2 * border, side + 2 * border)
    framed[:, border : border + side, border : border + side] = image
    return framed[:, top : top + side, left : left + side]


def cutout(image: Tensor, u: float, v: float, w: float) -> Tensor:
    side = image.shape[-1]
    half, row, column = side // 4, int(u * (side + 1)), int(v * (side + 1))
    kept = torch.ones_like(image)
    kept[:, max(row - half, 0) : row + half, max(column - half, 0) : column + half] = 0
    return image * kept


def flip(image: Tensor, u: float, v: float, w: float) -> Tensor:
    return image[:, :, torch.arange(image.shape[-1] - 1, -1, -1)] if u < 0.5 else image


def scale(image: Tensor, u: float, v: float, w: float) -> Tensor:
    x, y = (1 / 1.2 + value * (1.2 - 1 / 1.2) for value in (u, v))
    return sampled(image, ((x, 0.0), (0.0, y)))


def rotate(image: Tensor, u: float, v: float, w: float) -> Tensor:
    angle = math.pi * (30 * u - 15) / 180
    cosine, sine = math.cos(angle), math.sin(angle)
    return sampled(image, ((cosine, -sine), (sine, cosine)))


def sampled(image: Tensor, matrix: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Each pixel from `matrix` times its place as seen from the middle: its four neighbours."""
    side = image.shape[-1]
    middle = (side - 1) / 2
    place = torch.arange(side, dtype=image.dtype) - middle
    (a, b), (c, d) = matrix
    columns = a * place[None] + b * place[:, None] + middle
    rows = c * place[None] + d * place[:, None] + middle
    total = torch.zeros_like(image)
    for row in (rows.floor(), rows.floor() + 1):
        for column in (columns.floor(), columns.floor() + 1):
            inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
            weight = (1 - (rows - row).abs()) * (1 - (columns - column).abs()) * inside
            at = row.clamp(0, side - 1).long(), column.clamp(0, side - 1).long()
            total = total + weight * image[:, at[0], at[1]]
    return total


OPERATIONS = {
    "color": color,
    "crop": crop,
    "cutout": cutout,
    "flip": flip,
    "scale": scale,
    "rotate": rotate,
}


def augmented_batches(
    images: Tensor,
    order: Sequence[Tensor],
    operations: Sequence[str],
    generator: torch.Generator | None,
) -> list[Tensor]:
    """The batches of an epoch: an operation for each, numbers of their own for all images."""
    if not operations:
        return [images[rows] for rows in order]
    drawn = torch.randint(len(operations), (len(order),), generator=generator).tolist()
    numbers = iter(torch.rand(len(images), 3, generator=generator).tolist())
    return [
        torch.stack([OPERATIONS[operations[k]](images[row], *next(numbers)) for row in rows])
        for k, rows in zip(drawn, order, strict=True)
    ]


# Matching ---------------------------------------------------------------------------------------


def distance(synthetic: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """DC's distance: 1 - cos of every output unit's row, added up, without 1-d parameters."""
    total = torch.zeros((), dtype=real[0].dtype)
    for s, r in zip(synthetic, real, strict=True):
        if s.dim() > 1:
            s, r = s.reshape(len(s), -1), r.reshape(len(r), -1)
            cosine = (s * r).sum(1) / (s.norm(dim=1) * r.norm(dim=1) + 0.000001)
            total = total + (1 - cosine).sum()
    return total


def match(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    real: Sequence[Tensor],
    method: str = "dc",
    operations: Sequence[str] = (),
    augmentation: torch.Generator | None = None,
) -> tuple[float, Tensor]:
    """The matching loss of all classes and its gradient in the pixels; `real`: a batch each."""
    images, pairs = images.clone().requires_grad_(), []
    for label, batch in enumerate(real):
        own = images[labels == label]
        if operations:
            name = operations[int(torch.randint(len(operations), (), generator=augmentation))]
            numbers = torch.rand(1, 3, generator=augmentation)[0].tolist()
            batch, own = (
                torch.stack([OPERATIONS[name](image, *numbers) for image in group])
                for group in (batch, own)
            )
        pairs.append((own, batch))
    if method == "dm":
        net.train()  # BatchNorm's statistics are those of all synthetic, and of all real images
    if method in ("dm", "dm-frozen"):
        total = embedding_loss(net, pairs)
    else:
        total = sum(gradient_loss(net, *pair, label) for label, pair in enumerate(pairs))
    total.backward()
    return total.item(), images.grad


def gradient_loss(net: nn.Module, own: Tensor, batch: Tensor, label: int) -> Tensor:
    """DC's, of one class."""
    weights, gradients = list(net.parameters()), []
    for group in (own, batch):
        loss = cross_entropy(net(group), torch.full((len(group),), label))
        gradients.append(torch.autograd.grad(loss, weights, create_graph=True))
    return distance(gradients[0], [gradient.detach() for gradient in gradients[1]])


def embedding_loss(net: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """DM's, of all classes: squared distances of the mean inputs of the last layer."""
    own, real = (net[:-1](torch.cat(group)) for group in zip(*pairs, strict=True))
    total = torch.zeros((), dtype=own.dtype)
    for s, r in zip(own.chunk(len(pairs)), real.chunk(len(pairs)), strict=True):
        total = total + ((s.mean(0) - r.detach().mean(0)) ** 2).sum()
    return total


def freeze_batchnorm(net: nn.Module, images: Tensor) -> None:
    """Give every BatchNorm the mean and variance of its inputs for these images, for good."""

    def keep(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        layer.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        layer.running_var.copy_(inputs[0].var((0, 2, 3)))

    net.train()
    hooks = [layer.register_forward_pre_hook(keep) for layer in batchnorms(net)]
    with torch.no_grad():
        net(images)
    for hook, layer in zip(hooks, batchnorms(net), strict=True):
        hook.remove()
        layer.eval()


def batchnorms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]


def draw(real: Sequence[Tensor], n: int, generator: torch.Generator) -> list[Tensor]:
    """`n` different random images of every class."""
    return [images[torch.randperm(len(images), generator=generator)[:n]] for images in real]


def draw_nets(
    pool: object, iterations: int, generators: Generators, dtype: torch.dtype
) -> list[nn.Module]:
    """The nets that a `ddlib.ModelPool` draws, built plainly."""
    nets, (channels, _, classes) = [], pool.shape
    for k in range(iterations):
        description, net = pool.sample(generators["pool"], k + 1, generators["weights"])
        options = {option: value for option, value in description.items() if option != "net"}
        nets.append(build(description["net"], net.to(dtype), channels, classes, **options))
    return nets


def distill(
    nets: Sequence[nn.Module],
    images: Tensor,
    real: Sequence[Tensor],
    generators: Generators,
    outer: int,
    inner: int,
    batch_real: int,
    batch_bn: int,
    batch_train: int,
    lr_images: float,
    momentum_images: float,
    lr_net: float,
    method: str = "dc",
    operations: Sequence[str] = (),
) -> tuple[Tensor, list[float]]:
    """An iteration on each of `nets`: the pixels after the last, and each one's mean loss.

    `images` [C * ipc, ...] are sorted by class; `real` holds the training images of each class;
    `generators` are those of "batch", "batchnorm", "train" and "augment". DSA is "dc" with
    operations.
    """
    how = {"operations": operations, "augmentation": generators["augment"]}
    labels = torch.arange(len(real)).repeat_interleave(len(images) // len(real))
    velocity, losses = torch.zeros_like(images), []
    for net in nets:
        loss = 0.0
        for step in range(outer):
            if batchnorms(net):
                freeze_batchnorm(net, torch.cat(draw(real, batch_bn, generators["batchnorm"])))
            batch = draw(real, batch_real, generators["batch"])
            value, gradient = match(net, images, labels, batch, method, **how)
            velocity = momentum_images * velocity + gradient
            images = images - lr_images * velocity
            loss += value / (outer * len(real))
            if step + 1 < outer:
                settings = inner, lr_net, batch_train
                train_inner(net, images, labels, generators["train"], *settings, **how)
        losses.append(loss)
    return images, losses


def train_inner(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    epochs: int,
    lr: float,
    batch: int,
    operations: Sequence[str] = (),
    augmentation: torch.Generator | None = None,
) -> None:
    """SGD without momentum, weight decay or drop on the synthetic set as it is."""
    net.train()
    for _ in range(epochs):
        order = batches(len(images), batch, generator)
        shown = augmented_batches(images, order, operations, augmentation)
        for rows, own in zip(order, shown, strict=True):
            net.zero_grad()
            cross_entropy(net(own), labels[rows]).backward()
            for parameter in net.parameters():
                parameter.data -= lr * parameter.grad
