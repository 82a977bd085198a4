"""LeNet-5 from the equations of the specification: plain Python loops in float64, nothing shared with lenet_jax."""

import math

# PAPER_1998.md, table I: output map -> input maps.
TABLE = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"

CONNECTED = {
    "table": [[int(digit) for digit in inputs] for inputs in TABLE.split()],
    "full": [list(range(6)) for _ in range(16)],
}

# PAPER_1998.md: twelve rows a digit, a row as a 7-bit number.
DIGITS = [
    [f"{int(row):07b}".replace("1", "#").replace("0", ".") for row in rows.split()]
    for rows in (
        "62 0 28 54 99 99 99 99 54 28 0 0",
        "12 28 60 12 12 12 12 12 12 63 0 0",
        "62 0 62 99 67 6 28 48 96 127 0 0",
        "127 3 6 12 30 3 3 3 99 62 0 0",
        "62 0 0 51 51 115 99 99 103 63 3 3",
        "62 0 127 96 96 60 30 3 99 62 0 0",
        "30 48 96 96 126 115 99 99 115 62 0 0",
        "127 3 3 6 12 12 24 24 24 24 0 0",
        "62 99 99 99 62 99 99 99 99 62 0 0",
        "62 103 99 99 103 63 3 3 6 60 0 0",
    )
]

SIGMA = {
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
    "tanh": math.tanh,
    "scaled_tanh": lambda a: 1.7159 * math.tanh(2 * a / 3),
    "relu": lambda a: max(a, 0.0),
}


def convolution(maps, kernels, biases, connected, sigma):
    """C1 and C3. `kernels` are listed by output map, and within it by input map."""
    size = len(maps[0]) - 4
    kernels = iter(kernels)
    result = []
    for i, inputs in enumerate(connected):
        pairs = [(maps[j], next(kernels)) for j in inputs]
        rows = [[0.0] * size for _ in range(size)]
        for m in range(size):
            for n in range(size):
                total = biases[i]
                for x, kernel in pairs:
                    for row in range(5):
                        for column in range(5):
                            total += x[m + row][n + column] * kernel[row][column]
                rows[m][n] = sigma(total)
        result.append(rows)
    return result


def subsampling(maps, layer, kind, sigma, window_kind="mean"):
    """S2 and S4."""
    size = len(maps[0]) // 2
    result = []
    for i, x in enumerate(maps):
        rows = [[0.0] * size for _ in range(size)]
        for m in range(size):
            for n in range(size):
                window = [x[2 * m + row][2 * n + column] for row in range(2) for column in range(2)]
                if kind == "max":
                    rows[m][n] = max(window)
                elif kind == "average":
                    rows[m][n] = sum(window) / 4
                else:
                    rows[m][n] = sigma(
                        float(layer.coefficient[i]) * (sum(window) / (4 if window_kind == "mean" else 1))
                        + float(layer.bias[i])
                    )
        result.append(rows)
    return result


def full_connection(inputs, kernel, biases, sigma):
    """C5, F6 and the output: `kernel` is [inputs][units]."""
    result = []
    for i, bias in enumerate(biases):
        total = bias
        for x, weights in zip(inputs, kernel, strict=True):
            total += weights[i] * x
        result.append(sigma(total))
    return result


def penalties(states):
    """RBF outputs: squared distances from figure 3's digits, drawn with # for +1 (black) and . for -1."""
    result = []
    for drawing in DIGITS:
        targets = [1.0 if pixel == "#" else -1.0 for row in drawing for pixel in row]
        result.append(sum((x - w) ** 2 for x, w in zip(states, targets, strict=True)))
    return result


def activations(params, image, activation, connectivity, subsampling_kind, window_kind="mean"):
    """Every layer's state for one image, as nested lists."""
    sigma = SIGMA[activation]
    c1 = convolution([image.tolist()], params.c1.kernel.tolist(), params.c1.bias.tolist(), [[0]] * 6, sigma)
    s2 = subsampling(c1, params.s2, subsampling_kind, sigma, window_kind)
    connected = CONNECTED[connectivity]
    c3 = convolution(s2, params.c3.kernel.tolist(), params.c3.bias.tolist(), connected, sigma)
    s4 = subsampling(c3, params.s4, subsampling_kind, sigma, window_kind)
    inputs = [s4[j][m][n] for j in range(16) for m in range(5) for n in range(5)]
    kernel = [params.c5.kernel[j, m, n].tolist() for j in range(16) for m in range(5) for n in range(5)]
    c5 = full_connection(inputs, kernel, params.c5.bias.tolist(), sigma)
    f6 = full_connection(c5, params.f6.kernel.tolist(), params.f6.bias.tolist(), sigma)
    if params.output is None:
        output = penalties(f6)
    else:
        output = full_connection(f6, params.output.kernel.tolist(), params.output.bias.tolist(), lambda a: a)
    return {"c1": c1, "s2": s2, "c3": c3, "s4": s4, "c5": c5, "f6": f6, "output": output}
