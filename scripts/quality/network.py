"""A small residual network in NumPy, float32: forward, backward, and Adam. Parameters are a dict with names as in a checkpoint.

    x = stem(image);  x += fc2(relu(fc1(norm(x)))) in every block;  logits = head(norm(x))
"""

import numpy as np

EPSILON = 1e-5
MEMORY = (0.9, 0.99)  # of Adam: first and second moments
WARM_UP_STEPS = 20


def initial(rng, pixels, width, hidden, blocks, classes):
    """Random parameters, scaled so that the stream neither grows nor shrinks."""
    matrix = lambda rows, columns, gain: rng.standard_normal((rows, columns)) * np.sqrt(gain / columns)  # noqa: E731
    params = {"stem.weight": matrix(width, pixels, 1), "stem.bias": np.zeros(width)}
    for i in range(blocks):
        params |= {
            f"blocks.{i}.norm.weight": np.ones(width),
            f"blocks.{i}.mlp.fc1.weight": matrix(hidden, width, 2),
            f"blocks.{i}.mlp.fc1.bias": np.zeros(hidden),
            f"blocks.{i}.mlp.fc2.weight": matrix(width, hidden, 1 / blocks),
            f"blocks.{i}.mlp.fc2.bias": np.zeros(width),
        }
    params |= {"norm.weight": np.ones(width), "head.weight": matrix(classes, width, 1)}
    return {name: values.astype(np.float32) for name, values in params.items()}


def depth(params):
    return sum(name.endswith("fc1.weight") for name in params)


def normalise(x):
    """(x at root mean square 1, what it was multiplied by)."""
    scale = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + EPSILON)
    return x * scale, scale


def through_norm(grad, normed, scale):
    """The gradient at the input of `normalise`."""
    return scale * (grad - normed * (grad * normed).mean(axis=1, keepdims=True))


def forward(params, images, kept=None):
    """Logits; `kept`, a list, collects what `gradients` needs of every block and of the last norm."""
    x = images @ params["stem.weight"].T + params["stem.bias"]
    for i in range(depth(params)):
        part = lambda name: params[f"blocks.{i}.{name}"]  # noqa: B023, E731
        normed, scale = normalise(x)
        entering = normed * part("norm.weight")
        active = np.maximum(entering @ part("mlp.fc1.weight").T + part("mlp.fc1.bias"), 0)
        x = x + active @ part("mlp.fc2.weight").T + part("mlp.fc2.bias")
        if kept is not None:
            kept.append((normed, scale, entering, active))
    normed, scale = normalise(x)
    if kept is not None:
        kept.append((normed, scale))
    return (normed * params["norm.weight"]) @ params["head.weight"].T


def gradients(params, images, labels):
    """Of the mean cross entropy, for every parameter."""
    kept, out = [], {}
    logits = forward(params, images, kept)
    grad = np.exp(logits - logits.max(axis=1, keepdims=True))
    grad /= grad.sum(axis=1, keepdims=True)
    grad[np.arange(len(labels)), labels] -= 1
    grad /= len(labels)
    normed, scale = kept.pop()
    out["head.weight"] = grad.T @ (normed * params["norm.weight"])
    grad = grad @ params["head.weight"]
    out["norm.weight"] = (grad * normed).sum(axis=0)
    grad = through_norm(grad * params["norm.weight"], normed, scale)
    for i in reversed(range(depth(params))):
        block = f"blocks.{i}."
        normed, scale, entering, active = kept.pop()
        out[block + "mlp.fc2.weight"], out[block + "mlp.fc2.bias"] = grad.T @ active, grad.sum(axis=0)
        inner = (grad @ params[block + "mlp.fc2.weight"]) * (active > 0)
        out[block + "mlp.fc1.weight"], out[block + "mlp.fc1.bias"] = inner.T @ entering, inner.sum(axis=0)
        inner = inner @ params[block + "mlp.fc1.weight"]
        out[block + "norm.weight"] = (inner * normed).sum(axis=0)
        grad = grad + through_norm(inner * params[block + "norm.weight"], normed, scale)
    out["stem.weight"], out["stem.bias"] = grad.T @ images, grad.sum(axis=0)
    return out


def trained(params, images, labels, rng, *, steps, rate, batch, noise, frozen=()):
    """A copy after that many steps of Adam on random batches; the rate warms up and falls linearly to 0.

    `noise`: standard deviation of what is added to the images at every step.
    """
    params = {name: values.copy() for name, values in params.items()}
    first = {name: np.zeros_like(values) for name, values in params.items()}
    second = {name: np.zeros_like(values) for name, values in params.items()}
    for step in range(1, steps + 1):
        chosen = rng.integers(0, len(labels), batch)
        noisy = images[chosen] + noise * rng.standard_normal((batch, images.shape[1]), dtype=np.float32)
        now = rate * min(1, step / WARM_UP_STEPS) * (1 - (step - 1) / steps)
        for name, grad in gradients(params, noisy, labels[chosen]).items():
            if name in frozen:
                continue
            first[name] += (1 - MEMORY[0]) * (grad - first[name])
            second[name] += (1 - MEMORY[1]) * (grad * grad - second[name])
            size = np.sqrt(second[name] / (1 - MEMORY[1] ** step)) + 1e-8
            params[name] -= now * (first[name] / (1 - MEMORY[0] ** step)) / size
    return params


def accuracy(params, images, labels):
    """In per cent."""
    return 100 * float((forward(params, images).argmax(axis=1) == labels).mean())
