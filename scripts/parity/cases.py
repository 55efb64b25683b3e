"""The recipes that both programs run, as data: {name: (recipe, families that it is run on)}."""

BOTH, FLOAT32_ONLY = ("bf16", "f32"), ("f32",)


def case(method, models, parameters=None, base="base", families=BOTH, dtype="float32"):
    data = {"merge_method": method}
    if base:
        data["base_model"] = base
    data["models"] = [{"model": name} | ({"parameters": own} if own else {}) for name, own in models.items()]
    if parameters:
        data["parameters"] = parameters
    data["dtype"] = dtype
    return data, families


ONE, TWO, THREE = "task-1", "task-2", "task-3"
WEIGHTS = {ONE: {"weight": 1.0}, TWO: {"weight": 0.6}, THREE: {"weight": -0.3}}
DENSITIES = {ONE: {"weight": 1.0, "density": 0.5}, TWO: {"weight": 0.6, "density": 0.2}, THREE: {"weight": 0.9, "density": 0.9}}
GRADIENT = {ONE: {"weight": [0.0, 0.25, 1.0]}, TWO: {"weight": [1.0, -0.5]}, THREE: {"weight": 0.4}}
FILTERS = {
    ONE: {"weight": [{"filter": "self_attn", "value": 0.2}, {"filter": "mlp", "value": [0.1, 0.8, 0.3]}, {"value": 0.6}]},
    TWO: {"weight": [{"filter": "layers.1.", "value": 2.0}]},
    THREE: {"weight": [{"filter": "norm", "value": 0.0}]},
}
EQUAL = {ONE: None, TWO: None, THREE: None}

CASES = {
    "linear": case("linear", EQUAL, {"weight": 1.0}, base=None),
    "linear-weights": case("linear", WEIGHTS, base=None),
    "linear-sum": case("linear", WEIGHTS, {"normalize": False}, base=None),
    "linear-gradients": case("linear", GRADIENT, base=None),
    "linear-filters": case("linear", FILTERS, {"weight": 0.5}, base=None),
    "linear-base-by-global-weight": case("linear", {ONE: {"weight": 2.0}, TWO: None}, {"weight": 0.5}),
    "linear-base-in-models": case("linear", {ONE: {"weight": 0.7}, "base": {"weight": 1.5}, TWO: {"weight": 0.3}}),
    "task_arithmetic": case("task_arithmetic", EQUAL, {"weight": 1.0, "lambda": 0.5}),
    "task_arithmetic-weights": case("task_arithmetic", WEIGHTS, {"normalize": True, "lambda": 1.3}),
    "task_arithmetic-gradients": case("task_arithmetic", GRADIENT, {"lambda": [0.3, 0.9]}),
    "task_arithmetic-filters": case("task_arithmetic", FILTERS, {"weight": [{"filter": "lm_head", "value": -0.5}, {"value": 1.0}]}),
    "task_arithmetic-base-in-models": case("task_arithmetic", {"base": {"weight": 3.0}, ONE: {"weight": 0.5}}),
    "ties": case("ties", EQUAL, {"weight": 1.0, "density": 0.2}),
    "ties-sum": case("ties", EQUAL, {"weight": 1.0, "density": 0.35, "normalize": False, "lambda": 0.7}),
    "ties-densities": case("ties", DENSITIES, {"int8_mask": True}),
    "ties-gradients": case("ties", GRADIENT, {"density": [{"filter": "mlp", "value": [1.0, 0.1]}, {"value": 0.5}]}),
    # With ties at the cut the two keep different norms, so everything would differ: float32 changes have none.
    "ties-rescale": case("ties", DENSITIES, {"rescale": True}, families=FLOAT32_ONLY),
    # In float32 mergekit's own arc cosine of a number near 1 is off by 10⁻⁴ of the change.
    "slerp": case("slerp", {ONE: None}, {"t": 0.3}, dtype="float64"),
    "slerp-gradients": case("slerp", {"base": None, ONE: None}, {"t": [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]}, dtype="float64"),
    # With equal magnitudes at an end of the band the two keep different elements: few in float32.
    "breadcrumbs": case("breadcrumbs", EQUAL, {"weight": 0.5, "density": 0.6, "gamma": 0.05}),
    "breadcrumbs-weights": case("breadcrumbs", DENSITIES, {"gamma": 0.01, "normalize": True, "lambda": 0.8}),
    "breadcrumbs-no-outliers": case("breadcrumbs", EQUAL, {"weight": 1.0, "density": 0.9, "gamma": 0.0}, families=FLOAT32_ONLY),
    "breadcrumbs_ties": case("breadcrumbs_ties", EQUAL, {"weight": 1.0, "density": 0.7, "gamma": 0.02}),
    "breadcrumbs_ties-rescale": case("breadcrumbs_ties", DENSITIES, {"rescale": True, "normalize": True}, families=FLOAT32_ONLY),
    "nearswap": case("nearswap", {ONE: None}, {"t": 0.001}),
    "nearswap-gradients": case("nearswap", {ONE: None}, {"t": [{"filter": "mlp", "value": [0.0, 0.01]}, {"value": 1e-7}]}),
    "ram": case("ram", EQUAL),
    "ram-epsilon": case("ram", EQUAL, {"epsilon": [{"filter": "mlp", "value": [0.0001, 0.003]}, {"value": 0.001}]}),
    "ramplus_tl": case("ramplus_tl", EQUAL),
    "ramplus_tl-alpha": case("ramplus_tl", EQUAL, {"epsilon": 0.001, "r": 0.5, "alpha": 0.9}),
    "model_stock": case("model_stock", EQUAL),
    "model_stock-two": case("model_stock", {ONE: None, "base": None, THREE: None}),
    "model_stock-filter_wise": case("model_stock", EQUAL, {"filter_wise": True}),
    # As of slerp: of whole models, which are all but parallel, mergekit's float32 angles and lengths are off by up to 10⁻⁴ of the change.
    "karcher": case("karcher", EQUAL, base=None, dtype="float64"),
    "karcher-base": case("karcher", {ONE: None, TWO: None}, {"max_iter": 4, "tol": 1e-8}, dtype="float64"),
    "multislerp": case("multislerp", EQUAL, {"weight": 1.0}),
    "multislerp-weights": case("multislerp", {ONE: {"weight": 0.7}, TWO: {"weight": 0.3}}, {"normalize_weights": False}),
    "multislerp-without-base": case("multislerp", {ONE: {"weight": [0.2, 1.0]}, TWO: {"weight": 0.4}}, base=None, dtype="float64"),
    "nuslerp": case("nuslerp", {ONE: {"weight": 0.3}, TWO: {"weight": 0.5}}),
    "nuslerp-without-base": case("nuslerp", {ONE: {"weight": [0.1, 0.9]}, THREE: {"weight": 0.5}}, base=None, dtype="float64"),
    "nuslerp-by-row": case("nuslerp", {ONE: {"weight": 0.3}, TWO: {"weight": 0.5}}, {"nuslerp_flatten": False}),
    "nuslerp-by-column": case("nuslerp", {TWO: {"weight": 0.3}, THREE: {"weight": 0.5}}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "nuslerp-by-row-without-base": case("nuslerp", {ONE: {"weight": 0.6}, THREE: {"weight": 0.5}}, {"nuslerp_flatten": False}, base=None, dtype="float64"),
    "sce": case("sce", EQUAL),
    # In float32 the divergence of near rows is noise in mergekit.
    "arcee_fusion": case("arcee_fusion", {ONE: None}, dtype="float64"),
    # With ties at the cut mergekit keeps an arbitrary choice of them.
    "sce-topk": case("sce", EQUAL, {"select_topk": 0.2}, families=FLOAT32_ONLY),
    "passthrough": case("passthrough", {ONE: None}, base=None),
    "passthrough-scale": case("passthrough", {ONE: {"scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "mlp", "value": [2, 3]}]}}, base=None),
}

# One model, so that what was dropped can be read off the result.
RANDOM = {
    "dare_linear": case("dare_linear", {ONE: {"weight": 1.0}}, {"density": 0.3}),
    "dare_ties": case("dare_ties", {ONE: {"weight": 1.0}}, {"density": 0.6}),
}
