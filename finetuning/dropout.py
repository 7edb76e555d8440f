"""Dropout on a CPU by 16 random bits an element (32 in float32), and everything after the draw in vectorised integers."""
import torch

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers as wide as an element


def choose_words(x, rate, kept, dropped):
    """Integers of the shape and width of `x`, each `dropped` with probability `rate` (in bfloat16 to 2^-16), else `kept`."""
    from finetuning.random_words import choose, draw_words  # not before there is dropout: Numba takes half a second to load
    width = x.element_size()
    words = torch.empty(-(-x.numel() * width // 8), dtype=torch.int64)
    drawn = words.numpy().view("uint64")
    seed = torch.empty((), dtype=torch.int64).random_(-2**63, None)  # by torch, whose state checkpoints keep; all 64 bits
    draw_words(drawn, drawn.dtype.type(seed.numpy().view("uint64")))
    numbers = drawn.view(f"uint{8 * width}")
    most, low, high = (number % 2**(8 * width) for number in (max(0, round((1 - rate) * 2**(8 * width)) - 1), kept, dropped))
    choose(numbers, *map(numbers.dtype.type, (most, low, high)))
    return words.view(WORDS[width])[:x.numel()].view(x.shape)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate):
        ctx.keep, ctx.scale = choose_words(x, rate, kept=-1, dropped=0), 1 / (1 - rate)
        return Dropout.kept(ctx, x)

    @staticmethod
    def backward(ctx, grad):
        return Dropout.kept(ctx, grad), None

    @staticmethod
    def kept(ctx, x):
        return x.contiguous().view(ctx.keep.dtype).bitwise_and(ctx.keep).view(x.dtype).mul_(ctx.scale)


def dropout(x, rate):
    """torch.nn.functional.dropout of a tensor on the CPU: the same distribution, other random numbers. rate: below 1."""
    return Dropout.apply(x, rate)
