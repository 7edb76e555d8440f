"""Dropout on a CPU by 16 random bits an element (32 in float32), and everything after the draw in vectorised integers.

torch's `bernoulli_` draws there on one thread, 6 ns an element and more. One draw of 64 bits serves four elements here.
"""
import torch

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers as wide as an element


def keep_words(x, rate):
    """Integers of the shape and width of `x`, each all ones with probability 1 - rate (in bfloat16 to 2^-16), else 0."""
    width = x.element_size()
    bits, words = 8 * width, WORDS[width]
    drawn = torch.empty(-(-x.numel() * width // 8), dtype=torch.int64).random_(-2**63, None)  # from .. None: all 64 bits
    drawn = drawn.view(words)[:x.numel()].view(x.shape)
    # Uniform over 2^(bits - 1) values, one bit being given away so that the difference cannot overflow: its sign decides.
    lowest = -2**(bits - 2)
    return drawn.bitwise_right_shift_(1).sub_(lowest + round((1 - rate) * 2**(bits - 1))).bitwise_right_shift_(bits - 1)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate):
        ctx.keep, ctx.scale = keep_words(x, rate), 1 / (1 - rate)
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
