"""Attention inside each sequence of a packed batch: a kernel for each device, and the plain one that they are held to.

key and value are [T, heads, head size]; query and the result too, or [sequences, heads, head size] where only the first token
of each sequence asks ([CLS], in a layer whose other states nobody reads).
"""
import math

import torch
import torch.nn.functional as F

from finetuning.dropout import WORDS, choose_words

MOST_SCORES = 12 * 2**16  # of a group and all heads: what stays in a core's cache; a longer sequence is a group of its own
MOST_PADDING = 1.3  # a group's longest sequence is at most so many times its shortest one, or fits in the WIDTH of that
WIDTH = 16  # a group's sequences are padded to a multiple of this: torch's softmax is slow at the ends of other rows


def attention_per_sequence(query, key, value, batch, dropout):
    """Attention of each sequence by itself, plain and slow."""
    outputs = []
    queries = batch.lengths if len(query) == len(key) else 1
    for q, k, v in zip(query.split(queries), key.split(batch.lengths), value.split(batch.lengths)):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, length, head size]
        outputs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def groups_of(lengths, num_heads):
    """The sequences of a packed batch in groups of like length, which are padded for attention alone.

    lengths: tokens of each of them; num_heads: of the model. Returns a list of (members, rows, real, bias) and where each
    token, int64 [T], and each sequence, int64 [sequences], is among the groups' ones. members: int64 [sequences of the group,
    1], which they are; rows: int64 [sequences of the group, longest], the token in each place, the sequence's first one for
    padding; real: int64, the places of `rows` flattened that are no padding, None for all; bias: float32 [sequences of the
    group, 1, 1, longest], 0 for tokens and -inf for padding, None for none.

    Of lengths [3, 20, 4] the groups have the members [[0], [2]] and [[1]]; the first one's rows are [[0, 1, 2, 0, 0, ...],
    [23, 24, 25, 26, 23, ...]], 16 wide, its real [0, 1, 2, 16, 17, 18, 19]. Among the groups' tokens, 0 1 2 23 24 25 26 3 ...
    22, token 3 is at place 7; among their sequences, 0 2 1, sequence 1 is at place 2.
    """
    sizes = torch.tensor(lengths)
    starts, by_size = sizes.cumsum(0) - sizes, sizes.argsort(stable=True)
    ordered, groups, tokens, first = sizes[by_size].tolist(), [], [], 0
    padded = (-(-sizes[by_size] // WIDTH) * WIDTH).tolist()
    for last in range(1, len(ordered) + 1):  # the group is first to last - 1, if no more fit
        if (last < len(ordered) and ordered[last] <= max(MOST_PADDING * ordered[first], padded[first])
                and (last + 1 - first) * num_heads * padded[last]**2 <= MOST_SCORES):
            continue
        longest = padded[last - 1]
        members, places = by_size[first:last, None], torch.arange(longest)
        is_token = places < sizes[members]
        rows, real, bias = starts[members] + places * is_token, None, None
        if ordered[first] < longest:
            real = is_token.flatten().nonzero().flatten()
            bias = torch.zeros(is_token.shape).masked_fill_(~is_token, -math.inf)[:, None, None]
        groups.append((members, rows, real, bias))
        tokens.append(rows.flatten() if real is None else rows.flatten()[real])
        first = last
    return groups, torch.cat(tokens).argsort(), by_size.argsort()


def by_head(x, rows, real=None):
    """[T, heads, head size] -> [sequences, heads, longest, head size] of a group; 0 in padding where `real` says what is none,
    else a token's."""
    picked = x.index_select(0, rows.flatten())
    if real is not None:
        picked = torch.zeros_like(picked).index_copy_(0, real, picked.index_select(0, real))
    return picked.unflatten(0, rows.shape).transpose(1, 2)


def by_token(x, real):
    """The reverse, without what stands in padding: [tokens of the group, heads, head size]."""
    x = x.transpose(1, 2).flatten(0, 1)
    return x if real is None else x.index_select(0, real)


def attention_grouped(query, key, value, batch, dropout):
    """The same with a kernel for each group of sequences of like length: the CPU's path."""
    groups, token_order, sequence_order = batch.groups(query.shape[1])
    tokens = len(token_order)
    token_order = F.pad(token_order, (0, len(key) - tokens), value=tokens)  # rows of no token take the zeros behind all others
    if len(query) == len(key):
        groups, order = [(rows, real, rows, real, bias) for _, rows, real, bias in groups], token_order
    else:
        groups, order = [(members, None, rows, real, bias) for members, rows, real, bias in groups], sequence_order
    return GroupedAttention.apply(query, key, value, groups, order, token_order, dropout)


class GroupedAttention(torch.autograd.Function):
    """Attention by plain products, a group at a time so that its scores stay in the cache: with dropout many times as fast as
    torch's own on a CPU, which has no kernel for that, and faster without. For the backward pass it keeps the probabilities
    after softmax, the dropped ones with a minus sign, so that they and the mask are one tensor."""

    @staticmethod
    def forward(ctx, query, key, value, groups, order, token_order, dropout):
        kept, outputs = [], []
        for own, own_real, rows, _, bias in groups:
            q, k, v = (by_head(x, at).flatten(0, 1) for x, at in ((query, own), (key, rows), (value, rows)))
            q = q * q.shape[-1]**-0.5
            scores = q @ k.transpose(1, 2)  # [sequences * heads, queries, longest]
            if bias is not None:
                scores.unflatten(0, (len(rows), -1)).add_(bias.to(scores.dtype))
            signed = probabilities = scores.softmax(-1)
            if dropout:
                words = signed.view(WORDS[signed.element_size()])
                words |= choose_words(signed, dropout, kept=0, dropped=torch.iinfo(words.dtype).min)  # the sign
                probabilities = signed.relu()
            output = (probabilities @ v).mul_(1 / (1 - dropout))
            outputs.append(by_token(output.unflatten(0, (len(rows), -1)), own_real))
            kept += [q, k, v, signed]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.order, ctx.token_order, ctx.dropout = groups, order, token_order, dropout
        return torch.cat([*outputs, query.new_zeros(1, *query.shape[1:])]).index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        grads, kept = ([], [], []), iter(ctx.saved_tensors)
        for (own, own_real, rows, real, _), q, k, v, signed in zip(ctx.groups, kept, kept, kept, kept):
            grad_output = by_head(grad, own, own_real).flatten(0, 1) * (1 / (1 - ctx.dropout))
            grad_value = signed.relu().transpose(1, 2) @ grad_output
            grad_probabilities = torch.ops.aten.threshold_backward(grad_output @ v.transpose(1, 2), signed, 0)
            grad_scores = torch._softmax_backward_data(grad_probabilities, signed.abs(), -1, signed.dtype)
            grad_query, grad_key = (grad_scores @ k).mul_(q.shape[-1]**-0.5), grad_scores.transpose(1, 2) @ q
            for parts, part, of in zip(grads, (grad_query, grad_key, grad_value), (own_real, real, real)):
                parts.append(by_token(part.unflatten(0, (len(rows), -1)), of))
        nothing = grad.new_zeros(1, *grad.shape[1:])
        of_query, of_key, of_value = (torch.cat([*parts, nothing]) for parts in grads)
        return (of_query.index_select(0, ctx.order), of_key.index_select(0, ctx.token_order),
                of_value.index_select(0, ctx.token_order), None, None, None, None)


def attention_padded(query, key, value, batch, dropout):
    """The same with one kernel for all sequences, which are padded for it and for it alone: a GPU's path in float32."""
    num_sequences, longest = len(batch.lengths), max(batch.lengths)
    place = batch.sequence_ids * longest + batch.position_ids  # of each token among num_sequences * longest
    all_ask = len(query) == len(key)

    def pad(x):
        padded = x.new_zeros(num_sequences * longest, *x.shape[1:]).index_copy(0, place, x)
        return padded.view(num_sequences, longest, *x.shape[1:]).transpose(1, 2)

    lengths = batch.cu_seqlens.diff()  # on the device; batch.lengths is for the host
    mask = torch.arange(longest, device=query.device) < lengths[:, None]  # [sequences, longest]
    padded = pad(query) if all_ask else query.unsqueeze(2)  # [sequences, heads, queries, head size]
    output = F.scaled_dot_product_attention(padded, pad(key), pad(value), mask[:, None, None], dropout)
    output = output.transpose(1, 2).flatten(0, 1)
    return output.index_select(0, place) if all_ask else output


def attention_varlen(query, key, value, batch, dropout):
    """The same without any padding: flash attention, a GPU's path in bfloat16 and float16. The operator is that of a jagged
    nested tensor in scaled_dot_product_attention, without the time that one costs the host (docs/performance.md)."""
    starts, longest = batch.cu_seqlens_int32, batch.longest
    query_starts, most_queries = starts, longest
    if len(query) < len(key):
        query_starts, most_queries = torch.arange(len(starts), dtype=torch.int32, device=query.device), 1
    return torch.ops.aten._flash_attention_forward(query, key, value, query_starts, starts, most_queries, longest, dropout,
                                                   False, False)[0]  # not causal, no debugging mask


ATTENTIONS = {"per_sequence": attention_per_sequence, "grouped": attention_grouped, "padded": attention_padded,
              "varlen": attention_varlen}


def has_flash(device):
    """Whether a device has the kernel of attention_varlen: an NVIDIA GPU from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fits_flash(query):
    """Whether that kernel takes such numbers."""
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def attention(query, key, value, batch, dropout, backend=None):
    """Scaled dot-product attention inside each sequence of a packed batch. backend: a name in ATTENTIONS, or None for the
    fastest one here."""
    if not backend:
        backend = ("grouped" if query.device.type == "cpu" else
                   "varlen" if fits_flash(query) and has_flash(query.device) else "padded")
    return ATTENTIONS[backend](query, key, value, batch, dropout)
