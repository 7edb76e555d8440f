"""What makes BERT quick on a CPU: dropout by 16 random bits an element, attention in groups of sequences of like length.

torch's `bernoulli_` draws on one thread, at 6 ns an element or more, and its attention has no fast kernel with dropout. Here one draw of 64
bits serves four elements of bfloat16, or two of float32, and everything else is a few vectorised operations on integers.
"""
import torch
import torch.nn.functional as F

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers as wide as the elements of a tensor
MOST_SCORES = 2**16  # of a group, for each head: what stays in a core's cache; a longer sequence is alone
MOST_PADDING = 1.15  # the longest of a group has at most so many times the tokens of its shortest


def keep_words(x, rate):
    """Integers of the shape and width of `x`, each all ones with probability 1 - rate, to 2^-15, else 0."""
    words = WORDS[x.element_size()]
    bits = 8 * x.element_size()
    drawn = torch.empty(-(-x.numel() * x.element_size() // 8), dtype=torch.int64).random_(-2**63, None)
    drawn = drawn.view(words)[:x.numel()].view(x.shape)
    half = 2**(bits - 2)  # one bit is given away, so that the difference does not overflow: its sign is the answer
    return drawn.bitwise_right_shift_(1).sub_(round((1 - rate) * 2 * half) - half).bitwise_right_shift_(bits - 1)


class Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rate):
        ctx.keep, ctx.scale = keep_words(x, rate), 1 / (1 - rate)
        return Dropout.masked(x, ctx)

    @staticmethod
    def backward(ctx, grad):
        return Dropout.masked(grad, ctx), None

    @staticmethod
    def masked(x, ctx):
        return x.contiguous().view(ctx.keep.dtype).bitwise_and(ctx.keep).view(x.dtype).mul_(ctx.scale)


def dropout(x, rate):
    """torch.nn.functional.dropout in training: the same distribution, other random numbers."""
    return Dropout.apply(x, rate)


def groups_of(lengths):
    """The sequences of a packed batch in groups of like length: a list of (rows, real, mask).

    lengths: tokens of each sequence. rows: int64 [sequences, longest], the token in each place, for padding the sequence's
    first; real: int64 [tokens], the places of the tokens in `rows` flattened, None where there is no padding; mask: bool
    [sequences, 1, 1, longest], true for tokens, or None.
    """
    sizes = torch.tensor(lengths)
    starts = sizes.cumsum(0) - sizes
    groups, first = [], 0
    order = sizes.argsort(stable=True)
    ordered = sizes[order].tolist()
    for last in range(1, len(ordered) + 1):
        if last < len(ordered):
            longest = ordered[last]
            if (last + 1 - first) * longest**2 <= MOST_SCORES and longest <= MOST_PADDING * ordered[first]:
                continue
        members, longest = order[first:last], ordered[last - 1]
        places = torch.arange(longest)
        mask = places < sizes[members, None]
        rows = starts[members, None] + places * mask
        padded = ordered[first] < longest
        groups.append((rows, mask.flatten().nonzero().flatten() if padded else None, mask[:, None, None] if padded else None))
        first = last
    return groups


class GroupedAttention(torch.autograd.Function):
    """Attention with dropout. What is kept for the backward pass is the probabilities, the dropped ones with a minus sign."""

    @staticmethod
    def forward(ctx, query, key, value, groups, rate):
        ctx.groups, ctx.rate, kept = groups, rate, []
        result = torch.empty_like(query)
        for rows, real, mask in groups:
            q, k, v = (gathered(x, rows) for x in (query, key, value))
            q = q * q.shape[-1]**-0.5
            scores = q @ k.transpose(1, 2)
            if mask is not None:
                heads = query.shape[1]
                bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
                scores.view(-1, heads, *scores.shape[1:]).add_(bias)
            probabilities = scores.softmax(-1)
            signed = probabilities.view(WORDS[probabilities.element_size()])
            signed |= ~keep_words(probabilities, rate) & torch.iinfo(signed.dtype).min
            scatter(result, rows, real, (probabilities.relu() @ v).mul_(1 / (1 - rate)))
            kept += [q, k, v, probabilities]
        ctx.save_for_backward(*kept)
        return result

    @staticmethod
    def backward(ctx, grad):
        grads = [torch.empty_like(grad) for _ in range(3)]
        kept = iter(ctx.saved_tensors)
        for (rows, real, _), q, k, v, signed in zip(ctx.groups, kept, kept, kept, kept):
            of_output = gathered(grad, rows, real).mul_(1 / (1 - ctx.rate))
            of_value = signed.relu().transpose(1, 2) @ of_output
            of_probabilities = torch.ops.aten.threshold_backward(of_output @ v.transpose(1, 2), signed, 0)
            of_scores = torch._softmax_backward_data(of_probabilities, signed.abs(), -1, signed.dtype)
            scale = q.shape[-1]**-0.5
            for total, part in zip(grads, ((of_scores @ k).mul_(scale), of_scores.transpose(1, 2) @ q, of_value)):
                scatter(total, rows, real, part)
        return *grads, None, None


def gathered(x, rows, real=None):
    """[T, heads, head size] -> [sequences * heads, longest, head size], padding as it comes, or 0 where `real` is given."""
    picked = x.index_select(0, rows.flatten())
    if real is not None:
        picked = torch.zeros_like(picked).index_copy_(0, real, picked.index_select(0, real))
    return picked.view(*rows.shape, *x.shape[1:]).transpose(1, 2).flatten(0, 1)


def scatter(total, rows, real, part):
    """The reverse: writes the tokens of a group into [T, heads, head size]."""
    part = part.unflatten(0, (rows.shape[0], -1)).transpose(1, 2).flatten(0, 1)
    if real is None:
        total.index_copy_(0, rows.flatten(), part)
    else:
        total.index_copy_(0, rows.flatten()[real], part.index_select(0, real))


def attention_grouped(query, key, value, batch, rate):
    """Attention of each sequence of a packed batch. query, key, value and result: [T, heads, head size]."""
    if rate:
        return GroupedAttention.apply(query, key, value, batch.groups, rate)
    result = query.new_empty(0)
    outputs = []
    for rows, real, mask in batch.groups:
        q, k, v = (x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
        output = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(0, 1)
        outputs.append(output if real is None else output.index_select(0, real))
    places = torch.cat([rows.flatten() if real is None else rows.flatten()[real] for rows, real, _ in batch.groups])
    return torch.cat(outputs).index_select(0, places.argsort())
