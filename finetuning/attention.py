"""Attention inside each sequence of a packed batch: a kernel for each device, and the plain one that they are held to."""
import math

import torch
import torch.nn.functional as F

from finetuning.dropout import WORDS, keep_words

MOST_SCORES = 2**16  # of a group and a head: what stays in a core's cache; a longer sequence is a group of its own
MOST_PADDING = 1.15  # a group's longest sequence has at most so many times the tokens of its shortest one


def attention_per_sequence(query, key, value, batch, dropout):
    """Attention of each sequence by itself, plain and slow. query, key, value and result: [T, heads, head size]."""
    outputs = []
    for q, k, v in zip(query.split(batch.lengths), key.split(batch.lengths), value.split(batch.lengths)):
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # [1, heads, length, head size]
        outputs.append(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def groups_of(lengths):
    """The sequences of a packed batch in groups of like length, which are padded for attention alone.

    lengths: tokens of each of them. Returns a list of (rows, real, bias), and `order`, int64 [T]: where each token is among
    the groups' tokens one after another. rows: int64 [sequences, longest], the token in each place, the sequence's first one
    for padding; real: int64, the places of `rows` flattened that are no padding, None for all; bias: float32
    [sequences, 1, longest], 0 for tokens and -inf for padding, None for none.
    """
    sizes = torch.tensor(lengths)
    starts, by_size = sizes.cumsum(0) - sizes, sizes.argsort(stable=True)
    ordered, groups, tokens, first = sizes[by_size].tolist(), [], [], 0
    for last, longest in enumerate([*ordered[1:], math.inf], 1):  # the group is first to last - 1; one more would be `longest`
        if longest <= MOST_PADDING * ordered[first] and (last + 1 - first) * longest**2 <= MOST_SCORES:
            continue
        members, places = by_size[first:last, None], torch.arange(ordered[last - 1])
        is_token = places < sizes[members]
        rows, real, bias = starts[members] + places * is_token, None, None
        if ordered[first] < ordered[last - 1]:
            real = is_token.flatten().nonzero().flatten()
            bias = torch.zeros(is_token.shape).masked_fill_(~is_token, -math.inf)[:, None]
        groups.append((rows, real, bias))
        tokens.append(rows.flatten() if real is None else rows.flatten()[real])
        first = last
    return groups, torch.cat(tokens).argsort()


def by_head(x, rows):
    """[T, heads, head size] -> [sequences, heads, longest, head size] of a group."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape).transpose(1, 2)


def by_token(x, real):
    """The reverse, without what stands in padding: [tokens of the group, heads, head size]."""
    x = x.transpose(1, 2).flatten(0, 1)
    return x if real is None else x.index_select(0, real)


def attention_grouped(query, key, value, batch, dropout):
    """The same with a kernel for each group of sequences of like length: the CPU's path."""
    groups, order = batch.groups
    if dropout:
        return GroupedAttention.apply(query, key, value, groups, order, dropout)
    outputs = [by_token(F.scaled_dot_product_attention(
        *(by_head(x, rows) for x in (query, key, value)), None if bias is None else bias[:, None].to(query.dtype)), real)
        for rows, real, bias in groups]
    return torch.cat(outputs).index_select(0, order)


class GroupedAttention(torch.autograd.Function):
    """Attention with dropout, for which torch has no fast kernel on a CPU. For the backward pass it keeps the probabilities
    after softmax, the dropped ones with a minus sign, so that they and the mask are one tensor."""

    @staticmethod
    def forward(ctx, query, key, value, groups, order, dropout):
        kept, outputs = [], []
        for rows, real, bias in groups:
            q, k, v = (by_head(x, rows).flatten(0, 1) for x in (query, key, value))
            q = q * q.shape[-1]**-0.5
            scores = q @ k.transpose(1, 2)  # [sequences * heads, longest, longest]
            if bias is not None:
                scores.unflatten(0, (len(rows), -1)).add_(bias[:, None].to(scores.dtype))
            signed = scores.softmax(-1)
            words = signed.view(WORDS[signed.element_size()])
            words |= ~keep_words(signed, dropout) & torch.iinfo(words.dtype).min
            output = (signed.relu() @ v).mul_(1 / (1 - dropout))
            outputs.append(by_token(output.unflatten(0, (len(rows), -1)), real))
            kept += [q, k, v, signed]
        ctx.save_for_backward(*kept)
        ctx.groups, ctx.order, ctx.dropout = groups, order, dropout
        return torch.cat(outputs).index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        grads, kept = ([], [], []), iter(ctx.saved_tensors)
        for (rows, real, _), q, k, v, signed in zip(ctx.groups, kept, kept, kept, kept):
            grad_output = by_head(grad, rows)
            if real is not None:  # no gradient comes from what stands in padding
                grad_output = torch.zeros_like(x := grad_output.transpose(1, 2).flatten(0, 1)).index_copy_(
                    0, real, x.index_select(0, real)).unflatten(0, rows.shape).transpose(1, 2)
            grad_output = grad_output.flatten(0, 1) * (1 / (1 - ctx.dropout))
            grad_value = signed.relu().transpose(1, 2) @ grad_output
            grad_probabilities = torch.ops.aten.threshold_backward(grad_output @ v.transpose(1, 2), signed, 0)
            grad_scores = torch._softmax_backward_data(grad_probabilities, signed.abs(), -1, signed.dtype)
            grad_query, grad_key = (grad_scores @ k).mul_(q.shape[-1]**-0.5), grad_scores.transpose(1, 2) @ q
            for parts, part in zip(grads, (grad_query, grad_key, grad_value)):
                parts.append(by_token(part.unflatten(0, (len(rows), -1)), real))
        return *(torch.cat(parts).index_select(0, ctx.order) for parts in grads), None, None, None


def attention_padded(query, key, value, batch, dropout):
    """The same with one kernel for all sequences, which are padded for it and for it alone: a GPU's path in float32."""
    num_sequences, longest = len(batch.lengths), max(batch.lengths)
    place = batch.sequence_ids * longest + batch.position_ids  # of each token among num_sequences * longest

    def pad(x):
        padded = x.new_zeros(num_sequences * longest, *x.shape[1:]).index_copy(0, place, x)
        return padded.view(num_sequences, longest, *x.shape[1:]).transpose(1, 2)

    lengths = batch.cu_seqlens.diff()  # on the device; batch.lengths is for the host
    mask = torch.arange(longest, device=query.device) < lengths[:, None]  # [sequences, longest]
    output = F.scaled_dot_product_attention(pad(query), pad(key), pad(value), mask[:, None, None], dropout)
    return output.transpose(1, 2).flatten(0, 1).index_select(0, place)


def attention_varlen(query, key, value, batch, dropout):
    """The same with one kernel and without any padding: flash attention, which sees where sequences start; a GPU's path in
    bfloat16 and float16. The operator is the one that a jagged nested tensor in scaled_dot_product_attention, which takes
    dropout, and torch.nn.attention.varlen, which does not, call: it is called here without a nested tensor's time on the
    host (docs/performance.md), and a compiled layer has it in its graph."""
    starts, longest = batch.cu_seqlens_int32, batch.longest
    return torch.ops.aten._flash_attention_forward(query, key, value, starts, starts, longest, longest, dropout,
                                                   False, False)[0]  # not causal, no debugging mask


ATTENTIONS = {"per_sequence": attention_per_sequence, "grouped": attention_grouped, "padded": attention_padded, "varlen": attention_varlen}


def has_flash(device):
    """Whether a device has the kernel of attention_varlen: an NVIDIA GPU from Ampere on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def fits_flash(query):
    """Whether that kernel takes such numbers."""
    return query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def attention(query, key, value, batch, dropout, backend=None):
    """Scaled dot-product attention inside each sequence of a packed batch.

    query, key, value and result: [T, heads, head size]. backend: a name in ATTENTIONS, or None for the fastest one here.
    """
    if not backend:
        backend = ("grouped" if query.device.type == "cpu" else
                   "varlen" if fits_flash(query) and has_flash(query.device) else "padded")
    return ATTENTIONS[backend](query, key, value, batch, dropout)
