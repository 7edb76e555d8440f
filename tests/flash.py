"""A stand-in on the CPU for the kernel of attention_varlen, which PyTorch has for GPUs alone: the operator, its
gradient's formula and its shapes in a compiled graph are PyTorch's own, so what is tested is how we call it."""
import pytest
import torch


def check(query, key, value, cum_q, cum_k, max_q, max_k):
    """What the CUDA kernel refuses, or reads wrongly."""
    for x in (query, key, value):
        assert x.dim() == 3 and x.shape[1:] == query.shape[1:] and x.dtype == query.dtype and x.stride(-1) == 1
    assert key.shape == value.shape and len(cum_q) == len(cum_k)
    for starts, most, rows in ((cum_q, max_q, query), (cum_k, max_k, key)):
        assert starts.dtype == torch.int32 and starts.is_contiguous() and starts[0] == 0 and starts[-1] == len(rows)
        assert isinstance(most, int) and most >= starts.diff().max()


def each_sequence(cum_q, cum_k, dropout, seed, key, value, *of_queries):
    """(key's and value's rows of a sequence, and those of what has a row for each query, in float32; which weights dropout
    keeps, each times 1 / (1 - dropout))."""
    generator = torch.Generator().manual_seed(seed.view(torch.int64)[0].item())
    sizes = [starts.diff().tolist() for starts in (cum_k, cum_k, *[cum_q] * len(of_queries))]
    for k, v, *rest in zip(*(x.float().split(size) for x, size in zip((key, value, *of_queries), sizes))):
        kept = torch.rand(k.shape[1], len(rest[0]), len(k), generator=generator) >= dropout
        yield k, v, *rest, kept / (1 - dropout)


def forward(query, key, value, cum_q, cum_k, max_q, max_k, dropout, is_causal, return_debug_mask, *, scale=None):
    check(query, key, value, cum_q, cum_k, max_q, max_k)
    assert not is_causal and not return_debug_mask and scale is None
    seed, outputs, divisors = torch.randint(2**31, (2,)).view(torch.uint64), [], []
    for k, v, q, kept in each_sequence(cum_q, cum_k, dropout, seed, key, value, query):
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1) * kept, v))
        divisors.append(scores.logsumexp(-1))
    unused, mask = torch.empty((), dtype=torch.uint64), query.new_empty(0)
    return torch.cat(outputs).to(query.dtype), torch.cat(divisors, 1), seed, unused, mask


def backward(grad, query, key, value, out, logsumexp, cum_q, cum_k, max_q, max_k, dropout, is_causal, seed, unused, *,
             scale=None):
    check(query, key, value, cum_q, cum_k, max_q, max_k)
    gradients = []
    for k, v, q, upstream, kept in each_sequence(cum_q, cum_k, dropout, seed, key, value, query, grad):
        weights = (torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        of_weights = torch.einsum("qhd,khd->hqk", upstream, v) * kept
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        gradients.append((torch.einsum("hqk,khd->qhd", of_scores, k), torch.einsum("hqk,qhd->khd", of_scores, q),
                          torch.einsum("hqk,qhd->khd", weights * kept, upstream)))
    return tuple(torch.cat(parts).to(query.dtype) for parts in zip(*gradients))


@pytest.fixture(scope="module")
def flash_on_cpu():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield
    library._destroy()
