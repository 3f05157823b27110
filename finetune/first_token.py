"""A BERT classifier reads the [CLS] token alone: its last layer is worked out for that token and no other."""

import functools
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, BertForSequenceClassification, PreTrainedModel


def read_only_first_token(model: PreTrainedModel) -> None:
    """Spare a BERT classifier the part of its last layer that nothing reads; results and gradients stay the same.

    The pooler takes the first token of the last layer (Devlin et al. 2019, section 4.1), so the other tokens need keys
    and values there, and no queries, output or feed-forward: a seventh of the work of six layers. `last_hidden_state`
    is (batch, 1, dim) afterwards. Other models, and attention that must show its weights (eager), are left alone.
    """
    if type(model) is BertForSequenceClassification and not model.config.is_decoder:
        last = model.bert.encoder.layer[-1]
        last.forward = functools.partial(_forward, last)


def _forward(
    layer: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, *others: Any, **settings: Any
) -> Tensor:
    attention = layer.attention.self
    if attention.config._attn_implementation == "eager":
        whole: Tensor = type(layer).forward(layer, hidden_states, attention_mask, *others, **settings)
        return whole
    first = hidden_states[:, :1]  # (batch, 1, dim)
    query, key, value = (
        _heads(part, states, attention.attention_head_size)
        for part, states in ((attention.query, first), (attention.key, hidden_states), (attention.value, hidden_states))
    )
    context, _ = AttentionInterface()[attention.config._attn_implementation](
        attention,
        query,
        key,
        value,
        None if attention_mask is None else attention_mask[..., :1, :],
        dropout=attention.dropout.p if attention.training else 0.0,
        scaling=attention.scaling,
    )
    attended = layer.attention.output(context.reshape(first.shape), first)
    result: Tensor = layer.feed_forward_chunk(attended)  # (batch, 1, dim)
    return result


def _heads(part: nn.Module, states: Tensor, size: int) -> Tensor:
    """Project states and split the heads: (batch, time, dim) -> (batch, heads, time, size)."""
    projected: Tensor = part(states)
    return projected.view(*projected.shape[:2], -1, size).transpose(1, 2)
