"""Shared-prefix attention against plain attention over each row's whole sequence."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3po_dagster.method.generation.shared_prefix import SharedPrefixCache, shared_prefix_attention


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.integers(1, 9),
    st.integers(1, 40),
    st.data(),
)
def test_equals_plain_attention_with_padding_and_rows_leaving(prompts, width, heads, prefix_length, steps, data):
    import torch

    n_heads, kv_heads, dim = *heads, 8
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    padding = [data.draw(st.integers(0, prefix_length - 1)) for _ in range(prompts)]
    keys, values = normal(prompts, kv_heads, prefix_length, dim), normal(prompts, kv_heads, prefix_length, dim)
    bias = torch.zeros(prompts, 1, 1, prefix_length)
    for p, pad in enumerate(padding):
        bias[p, ..., :pad] = torch.finfo(torch.float32).min
    cache = SharedPrefixCache([(keys, values)], bias)
    # The oracle: one plain list of keys and values a row, the prompt's padding left out.
    plain = [([keys[p, :, padding[p] :]], [values[p, :, padding[p] :]]) for p in range(prompts) for _ in range(width)]
    leave_at = data.draw(st.integers(0, steps))
    for step in range(steps):
        if step == leave_at:
            kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, prompts - 1), min_size=1))))
            order = data.draw(st.permutations(range(width)))[: data.draw(st.integers(1, width))]
            rows = (kept[:, None] * width + torch.tensor(order)).flatten()
            cache.keep(kept, rows)
            plain, width = [plain[row] for row in rows.tolist()], len(order)
        query = normal(len(plain), n_heads, 1, dim)
        key, value = normal(len(plain), kv_heads, 1, dim), normal(len(plain), kv_heads, 1, dim)
        module = SimpleNamespace(layer_idx=0)
        suffix = cache.update(key, value, 0)
        assert cache.get_seq_length() == prefix_length + step + 1
        output, _ = shared_prefix_attention(module, query, *suffix, cache.bias, scaling=0.3, shared_prefix=cache)
        for row, (row_keys, row_values) in enumerate(plain):
            row_keys.append(key[row])
            row_values.append(value[row])
            # Keys of one head serve a group of query heads.
            k, v = (torch.cat(x, dim=1).repeat_interleave(n_heads // kv_heads, dim=0) for x in (row_keys, row_values))
            weights = (query[row] @ k.transpose(1, 2) * 0.3).softmax(dim=-1)
            torch.testing.assert_close(output[row, 0], (weights @ v)[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["softcap", "s_aux", "sliding_window"])
def test_attention_of_another_kind_is_refused(kind):
    """These would change the weights: left out in silence, the answers would be slightly wrong."""
    import torch

    cache = SharedPrefixCache([(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))], torch.zeros(1, 1, 1, 3))
    one = torch.zeros(1, 1, 1, 4)
    with pytest.raises(NotImplementedError, match=kind):
        shared_prefix_attention(
            SimpleNamespace(layer_idx=0), one, one, one, cache.bias, shared_prefix=cache, **{kind: 8}
        )
