"""Latents: what they get is the pixels' gradient pulled back, by any decoder, in any chunks."""

import pytest
import torch
from conftest import make_data, refused
from test_distill import assert_same_run, stopped_at
from torch import nn

from ddlib.config import DistillConfig
from ddlib.data import random_real
from ddlib.distill import distill
from ddlib.methods import Latents
from ddlib.methods.autoencoder import autoencoder
from ddlib.methods.latents import first_codes
from ddlib.methods.realnets import cache
from ddlib.support.rng import Streams, stream, torch_seeded_by
from ddlib.support.store import load_tensors

SMALL = {
    "ipc": 2,
    "width": 4,
    "depth": 1,
    "iterations": 3,
    "batch_real": 6,
    "batch_bn": 4,
    "main_prob": 0.5,
    "outer": 2,
    "inner": 1,
}
FINITE = torch.ones((), dtype=torch.bool)


def run(data, parts=None, **changes):
    return distill(DistillConfig(**(SMALL | changes)), data, progress=False, **(parts or {}))


def noise(*shape, name="images"):
    return torch.randn(shape, generator=stream(0, name))


class Linear(nn.Module):
    """Images = latents [N, F] times a matrix [F, 784]."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, latents):
        return (latents @ self.matrix).view(-1, 1, 28, 28)


def deep():
    """A decoder of layers with a BatchNorm, whose statistics are its own."""
    with torch_seeded_by(stream(0, "decoder")):
        layers = nn.Linear(5, 49), nn.Tanh(), nn.Unflatten(1, (1, 7, 7)), nn.BatchNorm2d(1)
        decoder = nn.Sequential(*layers, nn.Upsample(scale_factor=4), nn.Conv2d(1, 1, 3, padding=1))
    decoder[3].running_mean += 0.5
    return decoder


def prepared(images, data, **changes):
    images.prepare(DistillConfig(**SMALL | changes).resolved(), data, Streams(0))
    return images


# The pull-back ------------------------------------------------------------------------------------


def test_latents_get_the_transposed_gradient(data):
    data = data.to(dtype=torch.float64)
    matrix, start, gradient = noise(5, 784), noise(6, 5), noise(6, 1, 28, 28, name="g").double()
    images = prepared(Latents(Linear(matrix), start, lr=0.5, momentum=0.9), data)
    torch.testing.assert_close(images.decode().flatten(1), start.double() @ matrix.double())
    expected, velocity = start.double(), 0
    for _ in range(2):
        images.step(gradient, FINITE)
        velocity = 0.9 * velocity + gradient.flatten(1) @ matrix.double().T
        expected = expected - 0.5 * velocity
    torch.testing.assert_close(images.latents, expected)
    images.step(gradient * torch.nan, ~FINITE)
    torch.testing.assert_close(images.latents, expected)


@pytest.mark.parametrize("method", ["dc", "dm"])
def test_an_identity_as_decoder_is_the_run_on_pixels(data, method):
    settings = {"method": method, "augment": "", "init": "noise", "snapshots": (0, 2)}
    images = Latents(nn.Identity(), noise(6, 1, 28, 28, name="init"))
    assert_same_run(run(data, {"images": images}, **settings), run(data, **settings))


@pytest.mark.parametrize("chunk", [1, 4])
def test_chunks_are_the_whole(data, chunk):
    data, gradient = data.to(dtype=torch.float64), noise(6, 1, 28, 28, name="g").double()
    whole, parts = (prepared(Latents(deep(), noise(6, 5), chunk=n), data) for n in (50, chunk))
    torch.testing.assert_close(parts.decode(), whole.decode())
    for images in (whole, parts):
        images.step(gradient, FINITE)
    assert not torch.allclose(whole.latents, noise(6, 5).double())
    torch.testing.assert_close(parts.latents, whole.latents)


def test_only_a_chunk_has_a_graph_at_a_time(data):
    sizes = []

    class Watched(Linear):
        def forward(self, latents):
            sizes.append((len(latents), latents.requires_grad))
            return super().forward(latents)

    images = prepared(Latents(Watched(noise(5, 784)), noise(6, 5), chunk=4), data)
    sizes.clear()
    images.step(images.decode().detach(), FINITE)
    assert sizes == [(4, False), (2, False), (4, True), (2, True)]


@pytest.mark.parametrize("layer", [0, 1, 4, 6])
def test_a_layer_is_where_the_latents_live(data, layer):
    """The layers before it are applied once; what is decoded does not depend on it."""
    decoder = deep().eval()
    images = prepared(Latents(decoder, noise(6, 5), layer=layer), data)
    before = decoder[:layer](noise(6, 5)).detach()
    torch.testing.assert_close(images.latents, before)
    torch.testing.assert_close(images.decode(), decoder(noise(6, 5)).detach())
    assert images.state().keys() == {"latents", "velocity"}


def test_the_decoder_stays_as_it_was(data):
    decoder, start = deep(), noise(6, 5)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    run(data, {"images": Latents(decoder, start)})
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())
    assert decoder.training and all(p.requires_grad for p in decoder.parameters())
    assert torch.equal(start, noise(6, 5))


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("own", [False, True])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, data, call, own):
    options = {"options": {"decoder_epochs": 1, "layer": 2}, "images": "latents"}
    settings = {"snapshots": (0, 2)} | ({} if own else options)

    def parts(**more):
        return more | ({"images": Latents(deep(), noise(6, 5), layer=1)} if own else {})

    whole = run(data, parts(), **settings)
    with stopped_at("finish", call):
        run(data, parts(store=tmp_path), **settings)
    assert_same_run(run(data, parts(store=tmp_path), **settings), whole)
    assert whole.history[0].id != whole.history[-1].id


# From the config alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["real", "noise"])
def test_a_config_is_enough(init):
    data = make_data(channels=3, side=32)
    settings = {"images": "latents", "options": {"decoder_epochs": 2}, "init": init}
    result = run(data, snapshots=(0,), **settings)
    assert result.images.shape == (6, 3, 32, 32) and torch.isfinite(result.images).all()
    encoder, decoder = autoencoder(data, 0, 2)
    codes = encoder(random_real(data, 2, 0).images)
    assert codes.shape == (6, 16, 8, 8)
    if init == "real":
        torch.testing.assert_close(result.history[0].images, decoder(codes))
    assert not torch.equal(result.images, result.history[0].images)
    assert result.config["images"] == "latents"


def test_codes_of_noise_have_the_scale_of_real_ones(data):
    encoder, _ = autoencoder(data, 0, 1)
    config = DistillConfig(**SMALL | {"init": "noise"}).resolved()
    noisy, other = (first_codes(encoder, config, data) for _ in range(2))
    real = encoder(random_real(data, 2, 0).images)
    unit = noise(*real.shape, name="init")
    for channel in range(16):
        of = real[:, channel]
        expected = of.mean() + of.std() * unit[:, channel]
        torch.testing.assert_close(noisy[:, channel], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(noisy, other)


def test_the_autoencoder_is_trained_once_on_training_images(data, monkeypatch):
    for name in ("x_val", "x_test"):
        setattr(data, name, torch.full_like(getattr(data, name), torch.nan))
    before = torch.random.get_rng_state()
    first = autoencoder(data, 0, 2)
    (path,) = cache().iterdir()
    assert load_tensors(path)[1]["digest"] == data.digest
    with monkeypatch.context() as patch:
        patch.setattr("torch.optim.Adam", None)
        again = autoencoder(data, 0, 2)
        for other in ({"seed": 1}, {"epochs": 1}, {"images": 30}, {"data": make_data(seed=1)}):
            with pytest.raises(TypeError):  # it would be trained
                autoencoder(**{"data": data, "seed": 0, "epochs": 2} | other)
    assert torch.equal(torch.random.get_rng_state(), before)
    x = data.x_train
    for (encoder, decoder), (e, d) in zip([first], [again], strict=True):
        assert torch.equal(decoder(encoder(x)), d(e(x)))
        assert not any(p.requires_grad for p in [*encoder.parameters(), *decoder.parameters()])
    with refused("images is 40", "1 to 36"):
        autoencoder(data, images=40)


def test_the_autoencoder_learns():
    data = make_data(per_class=100)
    errors = [
        float((decoder(encoder(data.x_test)) - data.x_test).square().mean())
        for encoder, decoder in (autoencoder(data, 0, epochs) for epochs in (1, 8))
    ]
    assert errors[1] < 0.9 * errors[0]


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoder", "latents", "layer", "words"),
    [
        (Linear(noise(5, 784)), noise(4, 5), 0, ("[4, 1, 28, 28]", "[4, 5]", "[6, 1, 28, 28]")),
        (nn.Identity(), noise(6, 784), 0, ("[6, 784]", "[6, 1, 28, 28]")),
        (Linear(noise(5, 784)), noise(6, 7), 0, ("[6, 7]", "cannot be multiplied")),
        (Linear(noise(5, 784)), noise(6, 5), 2, ("layer is 2", "0 to 1")),
        (deep(), noise(6, 5), 7, ("layer is 7", "0 to 6")),
    ],
)
def test_a_decoder_that_does_not_fit_is_refused(data, decoder, latents, layer, words):
    with refused(*words):
        run(data, {"images": Latents(decoder, latents, layer)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder": "mine"}, ("'mine'", "Module")),
        ({"decoder": nn.Identity()}, ("go together",)),
        ({"latents": noise(6, 5)}, ("go together",)),
        ({"lr": -1.0}, ("lr is -1.0",)),
        ({"momentum": 2}, ("momentum is 2", "0 to 1")),
        ({"chunk": 0}, ("chunk is 0",)),
        ({"chunk": 1.5}, ("chunk is 1.5", "int")),
        ({"decoder_epochs": 0}, ("decoder_epochs is 0",)),
    ],
)
def test_wrong_options_are_refused(options, words):
    with refused(*words):
        Latents(**options)
    with refused("'width'", "decoder_epochs"):
        DistillConfig(images="latents", options={"width": 3})
