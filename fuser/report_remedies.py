"""What to change where an attention was refused: a line for each kind of reason."""

from __future__ import annotations

import re

HIDE = "fill what is hidden with -inf (`mx.where(mask, scores, -mx.inf)`), or pass the mask as a boolean array"
AXES = "check the axes: the softmax must run over the keys, and the product with the values sum over the same"
NO_MASK = "if it is a mask, pass it as a boolean and use `mx.where(mask, scores, -mx.inf)`"
EACH_KEY = "a factor for each key can multiply the keys, before the product"
IN_SCORES = "mask the scores instead, before the softmax, where that is what is meant"
NOTHING = "nothing to change"

# the first whose words are found in the reason
TABLE = (
    # after the softmax
    ("added to others whose attention is left", "see to the other attention: either all are fused, or none"),
    ("multiplied with themselves", f"{NOTHING}; the kernel never writes the weights"),
    ("dropout", f"make it inference first (`model.eval()`, or export it so); if it is a second mask, {IN_SCORES}"),
    ("weights are masked after", IN_SCORES),
    ("(added to|subtracted from) the weights after", "(weights + a) @ v is weights @ v + a @ v: add to the output"),
    ("weights are divided by an array", "divide the output, or the values; a divisor for each key divides the values"),
    (
        "weights are (sliced|gathered)|go through (Split|Concatenate)",
        "cut or join keys and values instead, before the products",
    ),
    ("weights are not multiplied with values", f"{NOTHING} where the weights themselves are the answer"),
    (
        "used with other values too",
        "in a gradient, take that of the optimised function: mx.grad(fuser.optimize(fn)); else join the values along "
        "their last axis, and cut the output",
    ),
    ("weights go through AsType", "keep the weights in a float type up to the product"),
    ("gradient is stopped between", "stop the gradient at queries and keys, or at the output"),
    ("weights are (sorted|selected)", f"{NOTHING}; the kernel never writes weights that could be chosen from"),
    ("weights are reshaped", "reshape the output instead"),
    ("weights go through", "do it to the output, or to the scores; if it must stay, this attention stays unfused"),
    ("sums over another axis|softmax runs along other axes", AXES),
    ("not divided by the sum of the weights", "divide by the sum over all keys, or use mx.softmax"),
    ("keys are made for each row", f"{NOTHING}; the scores are no product of queries and keys, but made pair by pair"),
    ("values vary along the queries", "use the same values for every query; if it must be so, it stays unfused"),
    # the product
    ("quantized", "dequantise keys and values before the product (mx.dequantize), where memory allows"),
    ("are an input of the program", "optimise the function that computes the scores, too"),
    ("scores are constant", f"{NOTHING}; these weights are the same for any input"),
    ("reduction that is no product|are not a product", "write the scores as one product, q @ k.swapaxes(-1, -2)"),
    ("convolution|are sorted", f"{NOTHING}; a fused kernel computes the scores where nothing else can see them"),
    (r"top-k|partial sort", f"{NOTHING}; which keys are best is known only when all scores are written"),
    ("made from the scores", f"{NOTHING}; a fused kernel never writes the scores from which the mask is made"),
    ("are assigned before", "assign one number (`scores[..., :2] = -mx.inf`), or make the mask first and add it"),
    ("some keys are hidden by a product", "make one mask of both first, and fill what is hidden with -inf"),
    ("scores are padded|column of infinite", "pad the keys with zeros (and the values), or leave the columns out"),
    ("holds NaN", "make the mask with `mx.where(mask, 0, -mx.inf)`: zero times infinity is NaN"),
    ("two products are added", "mask the sum of the two products, not one of them"),
    ("pieces? of the keys", "join keys and values before the products, and mask the scores of all keys at once"),
    ("are concatenated", "concatenate the keys (and the values) before the product, not the scores"),
    ("taken in part", "take the part from queries or keys, before the product"),
    ("reshaped across", "reshape queries and keys before the product instead"),
    ("-inf less -inf", "hide with a large number (-1e9), or leave it: the fused kernel would give no NaN there"),
    # the scores
    ("tanh.*after something was added", "cap the scores first, then add the mask"),
    ("tanh.*pays from", f'{NOTHING}; longer inputs are fused, and with `when="always"` this one, too'),
    ("tanh.*slow on a GPU", f'{NOTHING}: here the steps as they are may be faster; `when="always"` saves their memory'),
    ("tanh.*on this GPU", f"{NOTHING}; the steps run as they are"),
    ("tanh.*(no room|does not compute)", "use float32, float16 or bfloat16 and a smaller head size, or leave it"),
    ("tanh", f"{NOTHING}; `fuser.optimize` has a kernel of its own for it, which a file cannot hold"),
    ("not a float|softmax is of", "keep the scores in a float type"),
    ("leaves them weight", HIDE),
    ("cut off below", f"leave the bound out, or hide scores for good: {HIDE}"),
    ("varies along the keys", f"{NO_MASK}; {EACH_KEY}"),
    ("multiplied by (a mask|zero)", NO_MASK),
    ("multiplied by what is no number", f"{NOTHING} but the number: it makes the weights infinite or NaN"),
    ("logits that no product makes", "join one column, which is a sink; several can be one: their logsumexp"),
    ("sink's column is scaled", "scale and mask the scores first, then join the sink's column to them"),
    ("scaled (by an array )?after the mask", "scale before the mask is applied: the queries, say"),
    ("wholly|see nothing", "make one mask of them first (boolean: with &), filled with -inf"),
    ("exponentials are multiplied", "mask the scores with -inf before exp, or make the mask boolean"),
    ("between product and softmax", "do it to queries or keys before the product, if that is the same; else leave it"),
    ("does not compute in", "use float32, float16 or bfloat16"),
    ("over no elements", f"{NOTHING}; there are no keys"),
    ("exponentials of scores meet", "divide by the sum over all keys, or use mx.softmax"),
    ("its answer differs", "please report it; the program runs as it was there"),
    ("nothing is gained", f"{NOTHING}; float16 or bfloat16 has a fused kernel there"),
    ("fixed sizes", "leave `shapeless` out: a program of fixed sizes is fused there"),
    ("while the model is traced", f"{NOTHING}; it costs no time when the model runs"),
    ("bug to report", "please report it; the program runs as it was there"),
)
OTHERWISE = "write it as softmax(q @ k.T * scale + mask) @ v, or leave it; it runs as it was"


def remedy(reason: str) -> str:
    """What to change so that an attention that was refused for `reason` can be fused."""
    return next((change for words, change in TABLE if re.search(words, reason)), OTHERWISE)
