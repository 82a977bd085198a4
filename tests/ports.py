"""LeNet-5 with a softmax in NumPy and in PyTorch, from a network's parameters; nothing shared with lenet_jax.

Both take the parameters of one network and normalized images [N, 32, 32], and return logits [N, 10] in float64.
"""

import numpy as np
import reference

SIGMA = {"sigmoid": lambda a: 1 / (1 + np.exp(-a)), "tanh": np.tanh}


def kernel_of(convolution, connected, inputs):
    """Kernels [outputs, inputs, 5, 5] of a convolution whose missing connections are 0."""
    whole, kernels = np.zeros((len(connected), inputs, 5, 5)), iter(np.asarray(convolution.kernel, float))
    for output, sources in enumerate(connected):
        for source in sources:
            whole[output, source] = next(kernels)
    return whole


def layers(params, connectivity="table"):
    """Weight and bias of every layer, as float64; dense weights are [inputs, units]."""
    found = {
        "c1": (kernel_of(params.c1, [[0]] * 6, 1), params.c1.bias),
        "s2": (params.s2.coefficient, params.s2.bias),
        "c3": (kernel_of(params.c3, reference.CONNECTED[connectivity], 6), params.c3.bias),
        "s4": (params.s4.coefficient, params.s4.bias),
        "c5": (np.asarray(params.c5.kernel).reshape(400, 120), params.c5.bias),
        "f6": (params.f6.kernel, params.f6.bias),
        "output": (params.output.kernel, params.output.bias),
    }
    return {name: tuple(np.array(array, float) for array in pair) for name, pair in found.items()}


def numpy_logits(params, images, activation):
    sigma, of = SIGMA[activation], layers(params)

    def convolve(maps, name):
        weight, bias = of[name]
        windows = np.lib.stride_tricks.sliding_window_view(maps, (5, 5), axis=(2, 3))
        return sigma(np.einsum("nirckl,oikl->norc", windows, weight, optimize=True) + bias[:, None, None])

    def subsample(maps, name):
        coefficient, bias = (array[:, None, None] for array in of[name])
        count, outputs, rows, columns = maps.shape
        means = maps.reshape(count, outputs, rows // 2, 2, columns // 2, 2).mean(axis=(3, 5))
        return sigma(coefficient * means + bias)

    s2 = subsample(convolve(np.asarray(images, float)[:, None], "c1"), "s2")
    states = subsample(convolve(s2, "c3"), "s4").reshape(len(images), -1)
    for name in ("c5", "f6"):
        states = sigma(states @ of[name][0] + of[name][1])
    return states @ of["output"][0] + of["output"][1]


def torch_logits(params, images, activation, dtype="float32"):
    import torch
    from torch.nn import functional

    sigma = getattr(torch, activation)
    of = {
        name: [torch.tensor(array, dtype=getattr(torch, dtype)) for array in pair]
        for name, pair in layers(params).items()
    }

    def subsample(maps, name):
        coefficient, bias = (array[:, None, None] for array in of[name])
        return sigma(coefficient * functional.avg_pool2d(maps, 2) + bias)

    with torch.no_grad():
        pixels = torch.tensor(np.asarray(images), dtype=getattr(torch, dtype))[:, None]
        s2 = subsample(sigma(functional.conv2d(pixels, *of["c1"])), "s2")
        states = subsample(sigma(functional.conv2d(s2, *of["c3"])), "s4").flatten(1)
        for name in ("c5", "f6"):
            states = sigma(functional.linear(states, of[name][0].T, of[name][1]))
        return functional.linear(states, of["output"][0].T, of["output"][1]).double().numpy()
