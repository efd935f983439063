"""MTT: its loss by hand, its gradients by differences, iterations by a plain loop; its experts."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, refused
from safetensors.torch import load_file
from test_distill import assert_same_run, stopped_at
from torch import nn

import ddlib
from ddlib import DistillConfig, Member, ModelPool
from ddlib.augment import OPERATIONS
from ddlib.distill import distill
from ddlib.methods.experts import expert, expert_settings, flat_parameters, read_expert
from ddlib.methods.images import as_leaf
from ddlib.methods.realnets import cache
from ddlib.methods.trajectory import Trajectory
from ddlib.support.rng import Streams, stream
from ddlib.support.store import ROOT, load_tensors, save_tensors

sys.path.insert(0, str(ROOT / "benchmarks"))

import plain

OPTIONS = {"steps": 3, "ahead": 2, "latest": 2, "experts": 2, "expert_epochs": 4}
BOTH = 6  # a seed that draws both experts and both epochs in two iterations
SMALL = {
    "method": "mtt",
    "ipc": 2,
    "pool": "main",
    "width": 4,
    "depth": 1,
    "iterations": 3,
    "lr_images": 1.0,
    "batch_real": 6,
    "batch_bn": 4,
    "init": "noise",
    "augment": "",
}


def config(options=None, **changes):
    return DistillConfig(**(SMALL | changes), options=OPTIONS | (options or {}))


def run(data, store=None, members=None, options=None, **changes):
    return distill(config(options, **changes), data, members, store=store, progress=False)


def pool_of(data, **options):
    options = {"width": 4, "depth": 1} | options
    return ModelPool([Member(1.0, "ConvNet", options)], shape=data.shape)


def prepared(data, options=None, **changes):
    """The objective at its first step, in float64."""
    objective = Trajectory(**OPTIONS | (options or {}))
    settings = config(options, precision="float64", **changes).resolved()
    objective.prepare(settings, data, Streams(0))
    return objective


def pixels_of(data):
    shape = 2 * len(data.classes), *data.x_train.shape[1:]
    return torch.randn(shape, generator=stream(0, "pixels"), dtype=torch.float64)


def gradients(objective, net, pixels):
    """The loss as the paper has it, and its gradients in pixels and step size."""
    pixels = as_leaf(pixels)
    loss = objective(net, pixels) / len(objective.data.classes)
    return loss, pixels.grad, objective.lr_gradient


@pytest.fixture
def double():
    return make_data().to(dtype=torch.float64)


def files():
    return sorted((cache() / "experts").glob("*"))


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr_start": 0.0}])
def test_a_net_that_stays_has_loss_1(double, options):
    objective = prepared(double, options)
    net = objective.start(pool_of(double), 1)
    loss, gradient, _ = gradients(objective, net, pixels_of(double))
    assert loss == 1 and (gradient == 0).all()
    log = run(double, options=options | {"lr_lr": 0.0}).log
    assert log["loss"].tolist() == pytest.approx([1.0] * 3, abs=1e-6) and not log["diverged"].any()


def test_a_net_that_arrives_has_loss_0(double):
    objective = prepared(double, {"steps": 1})
    net = objective.start(pool_of(double), 1)
    pixels, labels = pixels_of(double), torch.tensor([0, 0, 1, 1, 2, 2])
    gradient = torch.autograd.grad(F.cross_entropy(net(pixels), labels), list(net.parameters()))
    objective.target = objective.begin - 0.01 * torch.cat([g.flatten() for g in gradient])
    loss, *learned = gradients(objective, net, pixels)
    assert loss <= 1e-24 and all(g.abs().max() <= 1e-9 for g in learned)


class Linear(nn.Module):
    """Logits that are linear in the pixels, all 0 at first."""

    def __init__(self, pixels):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, pixels, dtype=torch.float64))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def test_one_step_from_0_in_closed_form(double):
    """There the softmax is 1/3 of each class, so that theta_1 is linear in pixels and step size."""
    objective, pixels = prepared(double, {"steps": 1, "lr_start": 0.3}), pixels_of(double)
    net = Linear(pixels[0].numel())
    target = torch.randn(net.weight.shape, generator=stream(0, "target"), dtype=torch.float64)
    objective.begin, objective.target = torch.zeros(target.numel()).double(), target.flatten()
    loss, gradient, lr_gradient = gradients(objective, net, pixels)
    wrong = 1 / 3 - torch.eye(3).double().repeat_interleave(2, 0)
    step = wrong.T @ pixels.flatten(1) / 6
    left, scale = 0.3 * step + target, (target**2).sum()
    torch.testing.assert_close(loss, (left**2).sum() / scale)
    torch.testing.assert_close(lr_gradient, 2 * (left * step).sum() / scale)
    torch.testing.assert_close(gradient.flatten(1), 2 * 0.3 / 6 * wrong @ left / scale)


@pytest.mark.parametrize("augment", ["", "dsa"])
@pytest.mark.parametrize("batch_syn", [0, 4])
def test_gradients_are_those_of_finite_differences(double, augment, batch_syn):
    pixels, way = pixels_of(double), pixels_of(double).flip(0)
    pool = pool_of(double, activation="swish")

    def measured(moved, lr):
        options = {"steps": 5, "batch_syn": batch_syn, "lr_start": lr}
        objective = prepared(double, options, augment=augment)
        return gradients(objective, objective.start(pool, 1), pixels + moved * way)

    _, gradient, lr_gradient = measured(0, 0.01)
    small = 1e-5
    slope = (measured(small, 0.01)[0] - measured(-small, 0.01)[0]) / (2 * small)
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-6, atol=1e-9)
    slope = (measured(0, 0.01 + small)[0] - measured(0, 0.01 - small)[0]) / (2 * small)
    torch.testing.assert_close(lr_gradient, slope, rtol=1e-6, atol=1e-9)


# The plain loop -----------------------------------------------------------------------------------


def unrolled(net, weights, target, images, lr, rows_of_steps, augmented):
    """The loss of MTT by nets whose parameters are replaced by plain tensors with a graph."""
    slots = [(m, name) for m in net.modules() for name, p in list(m._parameters.items())]
    slots = [(m, name) for m, name in slots if m._parameters[name] is not None]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    begin = theta = [w.clone().requires_grad_() for w in weights]
    for rows in rows_of_steps():
        for (module, name), value in zip(slots, theta, strict=True):
            module._parameters.pop(name, None)
            setattr(module, name, value)
        loss = plain.cross_entropy(net(augmented(images[rows])), labels[rows])
        slopes = torch.autograd.grad(loss, theta, create_graph=True)
        theta = [value - lr * slope for value, slope in zip(theta, slopes, strict=True)]
    left = sum(((a - b) ** 2).sum() for a, b in zip(theta, target, strict=True))
    way = sum(((a.detach() - b) ** 2).sum() for a, b in zip(begin, target, strict=True))
    return left / way


def distilled_plainly(data, pool, settings):
    """MTT by hand on the experts' files: pixels, step size and the losses."""
    rng, options = Streams(settings.seed), settings.options
    names = [name for name in OPERATIONS if settings.augment]
    real = [data.x_train[data.y_train == label] for label in range(3)]
    images = torch.randn(6, *data.x_train.shape[1:], generator=stream(settings.seed, "init"))
    images, lr = images.double(), torch.tensor(options["lr_start"], dtype=torch.float64)
    velocity, lr_velocity, losses = 0, 0, []

    def rows_of_steps():
        left = []
        for _ in range(options["steps"]):
            if not left:
                left = plain.batches(6, options["batch_syn"] or 6, rng["train"])
            yield left[0]
            left = left[1:]

    def augmented(batch):
        if not names:
            return batch
        name = names[int(torch.randint(len(names), (), generator=rng["augment"]))]
        numbers = torch.rand(len(batch), 3, generator=rng["augment"]).double()
        return OPERATIONS[name](batch, numbers)

    for _ in range(settings.iterations):
        net = plain.draw_nets(pool, 1, rng, torch.float64)[0]
        number = int(torch.randint(options["experts"], (), generator=rng["expert"]))
        epoch = int(torch.randint(options["latest"], (), generator=rng["start"]))
        (file,) = (cache() / "experts").glob(f"*-s{number}-*")
        shapes = [p.shape for p in net.parameters()]
        begin, target = (
            [
                w.view(s)
                for w, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True)
            ]
            for vector in map(load_file(file).get, (str(epoch), str(epoch + options["ahead"])))
        )
        with torch.no_grad():
            for p, w in zip(net.parameters(), begin, strict=True):
                p.copy_(w)
        if plain.batchnorms(net):
            drawn = plain.draw(real, settings.batch_bn, rng["batchnorm"])
            plain.freeze_batchnorm(net, torch.cat(drawn))
        images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
        loss = unrolled(net, begin, target, images, lr, rows_of_steps, augmented)
        slope, lr_slope = torch.autograd.grad(loss, [images, lr])
        velocity = settings.momentum_images * velocity + slope
        lr_velocity = 0.5 * lr_velocity + lr_slope
        images = images - settings.lr_images * velocity
        lr = lr - options["lr_lr"] * lr_velocity
        losses.append(loss.item())
    return images.detach(), lr.detach(), losses


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("augment", "batch_syn"), [("", 0), ("dsa", 0), ("", 4), ("dsa", 4)])
def test_it_is_the_plain_loop(tmp_path, norm, augment, batch_syn):
    data = make_data(channels=3, side=32).to(dtype=torch.float64)
    pool = pool_of(data, norm=norm, depth=2)
    changes = {"options": {"steps": 5, "batch_syn": batch_syn, "lr_lr": 1e-6}, "augment": augment}
    changes |= {"seed": BOTH, "iterations": 2, "precision": "float64"}
    fast = run(data, tmp_path, pool, **changes)
    images, lr, losses = distilled_plainly(data, pool, config(**changes).resolved())
    state = load_tensors(tmp_path / "checkpoint.safetensors")[0]
    torch.testing.assert_close(state["images.pixels"], images, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(state["objective.lr"], lr, rtol=1e-9, atol=0)
    assert abs(lr - 0.01) > 1e-6
    assert fast.lr == fast.log["lr"].iat[-1] == state["objective.lr"].item()
    assert fast.log["loss"].tolist() == pytest.approx(losses, rel=1e-9)


def test_batches_are_permutations_cut_into_pieces(double):
    objective = prepared(double, {"batch_syn": 4})
    rows = [next(batches) for batches in [objective.batches()] for _ in range(6)]
    assert [len(r) for r in rows] == [4, 2] * 3
    orders = [torch.cat(rows[i : i + 2]).tolist() for i in (0, 2, 4)]
    assert all(sorted(order) == [*range(6)] for order in orders) and orders[0] != orders[1]
    whole = prepared(double, {"batch_syn": 7}).batches()
    assert next(whole).tolist() == next(whole).tolist() == [*range(6)]


def test_bfloat16_is_for_experts_alone(data):
    losses = []
    for precision in ("float32", "bfloat16"):
        objective = prepared(data)
        net = objective.start(pool_of(data), 1)
        objective.config = replace(objective.config, precision=precision)
        losses.append(gradients(objective, net, pixels_of(data).float()))
    for a, b in zip(*losses, strict=True):
        assert torch.equal(a, b)
    result = run(data, precision="bfloat16")
    assert result.images.isfinite().all() and not result.log["diverged"].any()


# The step size ------------------------------------------------------------------------------------


def test_the_step_size_is_logged_and_serves_the_evaluation(data, tmp_path):
    result = run(data, tmp_path / "run")
    path = result.save(tmp_path / "set")
    again = ddlib.SyntheticSet.load(path)
    assert again.lr == result.log["lr"].iat[-1] != 0.01
    lr = abs(again.lr)
    rows = ddlib.evaluate(again, data, ["MLP"], n_eval=1, epochs=1, lr=lr, progress=False)
    assert rows["lr"].tolist() == [lr]


def test_the_step_size_stays_where_the_pixels_stay(data):
    """Iteration 2 has a loss beside it that is not finite."""
    seen = []

    def spoilt(net, pixels, labels):
        return pixels.sum() * (torch.nan if len(seen) == 1 else 0.0)

    def keep(k, run):
        seen.append((run.images.pixels.detach().clone(), run.measures()["lr"]))

    result = distill(config(), data, extras=[spoilt], callback=keep, progress=False)
    assert result.log["diverged"].tolist() == [False, True, False]
    (one, lr_one), (two, lr_two), (three, lr_three) = seen
    assert torch.equal(one, two) and lr_one == lr_two and lr_one != 0.01
    assert not torch.equal(two, three) and lr_two != lr_three


def test_a_step_size_whose_gradient_is_not_finite_stays(double):
    objective = prepared(double)
    objective.lr_gradient = torch.tensor(torch.inf).double()
    objective.learn(torch.tensor(True))
    assert objective.lr == 0.01 and objective.velocity == 0


# Experts ------------------------------------------------------------------------------------------


def test_an_expert_is_sgd_on_real_images(double):
    for name in ("x_val", "x_test"):  # which no expert sees
        setattr(double, name, torch.full_like(getattr(double, name), torch.nan))
    settings = replace(expert_settings(3, "", "float64"), batch=20, lr=0.05)
    about = {"net": "ConvNet", "width": 4, "depth": 1}
    pool = pool_of(double)
    path = expert(pool, about, double, 2, settings)
    net = pool.build(about, stream(2, "expert", "ConvNet")).double()
    generator = stream(2, "pretrained batches", "ConvNet")
    slow = [flat_parameters(net.parameters()).detach()]
    for _ in range(3):
        for rows in torch.randperm(36, generator=generator).split(20):
            net.zero_grad()
            F.cross_entropy(net(double.x_train[rows]), double.y_train[rows]).backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= 0.05 * p.grad
        slow.append(flat_parameters(net.parameters()).detach())
    fast = read_expert(path, (0, 1, 2, 3), slow[0])
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    assert expert_settings(50, "dsa", "float32").lr == 0.01 and not settings.momentum
    assert not settings.weight_decay and expert_settings(50, "dsa", "float32").batch == 256


def test_experts_are_trained_once(data, monkeypatch):
    first = run(data, iterations=6, seed=BOTH)
    assert len(files()) == 2
    times = [file.stat().st_mtime_ns for file in files()]
    monkeypatch.setattr("ddlib.methods.realnets.train_on_real", None)
    assert_same_run(run(data, iterations=6, seed=BOTH), first)
    run(data, iterations=6, ipc=1)  # whatever needs them
    assert [file.stat().st_mtime_ns for file in files()] == times
    others = [
        {"options": {"expert_epochs": 5}},
        {"options": {"expert_images": 30}},
        {"augment": "dsa"},
        {"width": 8},
        {"precision": "bfloat16"},
        {"data": make_data(seed=1)},
    ]
    for change in others:
        with pytest.raises(TypeError):  # it would be trained, as None
            run(**{"data": data} | change)


def test_an_expert_interrupted_leaves_no_file(data, monkeypatch):
    whole = run(data, iterations=6)
    for file in files():
        file.unlink()

    def interrupted(path, tensors, info):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ddlib.methods.experts.save_tensors", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(data, iterations=6)
    assert files() == []
    assert_same_run(run(data, iterations=6), whole)


@pytest.mark.parametrize("damage", ["half", "empty", "nan", "epochs", "shape"])
def test_a_damaged_expert_is_refused(data, damage):
    run(data, iterations=6)
    for file in files():
        tensors, info = load_tensors(file)
        if damage in ("half", "empty"):
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
        elif damage == "epochs":
            save_tensors(file, {"0": tensors["0"]}, info)
        else:
            spoilt = {k: t * torch.nan if damage == "nan" else t[1:] for k, t in tensors.items()}
            save_tensors(file, spoilt, info)
    with refused("experts", "damaged"):
        run(data, iterations=6)


def test_more_images_than_there_are(data):
    with refused("images is 40", "1 to 36"):
        run(data, options={"expert_images": 40})


# Runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["guard", "finish", "start", "learn", "descend"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, data, name, after):
    settings = {"iterations": 4, "augment": "dsa", "options": {"batch_syn": 4}, "snapshots": (0, 2)}
    settings |= {"pool": "main_plus_similar", "main_prob": 0.4, "lr_images": 0.1}
    whole = run(data, **settings)
    call = 10 if name == "descend" else 3
    owner = Trajectory if name in ("start", "learn", "descend") else None
    with stopped_at(name, call, after, owner=owner):
        run(data, tmp_path, **settings)
    assert_same_run(run(data, tmp_path, **settings), whole)
    assert whole.log["lr"].nunique() == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outer": 2}, ("outer is 2", "allowed", "1")),
        ({"inner": 3}, ("inner 3", "allowed", "1")),
        ({"options": {"latest": 3}}, ("latest + ahead is 5", "at most", "4")),
        ({"options": {"steps": -1}}, ("steps is -1", "at least 0")),
        ({"options": {"steps": 2.5}}, ("steps is 2.5", "int")),
        ({"options": {"experts": 0}}, ("experts is 0", "at least 1")),
        ({"options": {"lr_start": -0.1}}, ("lr_start is -0.1", "at least 0")),
        ({"options": {"stepz": 2}}, ("'stepz'", "'steps'")),
    ],
)
def test_what_makes_no_sense_is_refused(data, changes, words):
    with refused(*words):
        run(data, **changes)


def test_defaults():
    settings = DistillConfig(method="mtt").resolved()
    assert (settings.init, settings.augment, settings.iterations) == ("real", "dsa", 5000)
    assert (settings.lr_images, settings.momentum_images) == (1000.0, 0.5)
    numbers = {"steps": 20, "ahead": 3, "latest": 25, "experts": 100, "expert_epochs": 50}
    numbers |= {"batch_syn": 0, "expert_images": 0, "lr_lr": 1e-5, "lr_start": 0.01}
    assert settings.options == numbers
