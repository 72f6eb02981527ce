"""`nn.MultiheadAttention` in a form that calls its layers, so that steps find them and can replace them."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import replace_module
from mirabelle.model.replacement import Replacement
from mirabelle.model.state import copied
from mirabelle.model.ties import all_names
from mirabelle.records.patterns import matches

_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj")
_UNBATCHED = 2  # dimensions of a single sample


class PlainAttention(Replacement):
    """An `nn.MultiheadAttention` with four linear layers: q_proj, k_proj, v_proj (parts of in_proj) and out_proj.

    It takes and returns what the dense module does: masks of both kinds, weights for each head or their mean, samples alone or
    in batches, keys and values of other widths, added biases and zeros. It has no fast path, which torch's module takes without
    gradients; differences to that are rounding.

    Parameters: bias_k and bias_v, (1, 1, embed_dim), if the dense module has them.

    Args:
        dense: the module, whose weights are copied.

    Example:
        >>> dense, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(3, 5, 8)
        >>> bool(torch.allclose(PlainAttention(dense)(x, x, x)[0], dense(x, x, x)[0], atol=1e-6))
        True
    """

    in_proj_bias = None  # torch's encoder layer then takes no fast path

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        if not isinstance(dense, nn.MultiheadAttention):
            message = f"{type(dense).__name__} is no nn.MultiheadAttention"
            raise UserError("E140", message, "give the dense module from which the model was made")
        self.num_heads, self.dropout, self.batch_first = dense.num_heads, dense.dropout, dense.batch_first
        self.add_zero_attn, self._qkv_same_embed_dim = dense.add_zero_attn, dense._qkv_same_embed_dim
        packed = dense.in_proj_weight
        weights = (dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight) if packed is None else packed.chunk(3)
        biases = (None, None, None) if dense.in_proj_bias is None else dense.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (_linear(*pair) for pair in zip(weights, biases, strict=True))
        self.out_proj = _linear(dense.out_proj.weight, dense.out_proj.bias)
        self.bias_k, self.bias_v = (None if bias is None else _copy(bias) for bias in (dense.bias_k, dense.bias_v))
        self.train(dense.training)

    def forward(  # noqa: PLR0917 (the interface is that of torch)
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002
        is_causal: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        alone = query.dim() == _UNBATCHED
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        padding = _added(key_padding_mask, query, attn_mask)
        mask = None if is_causal and padding is None and not need_weights else _added(attn_mask, query, None)
        causal = is_causal and mask is None
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        if alone:
            q, k, v = (part.unsqueeze(0) for part in (q, k, v))
            padding = None if padding is None else padding.unsqueeze(0)
        elif not self.batch_first:
            q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        if mask is not None:
            mask = mask if mask.dim() == _UNBATCHED else mask.reshape(-1, self.num_heads, *mask.shape[1:])
        for more_keys, more_values in self._more(k):
            k, v = torch.cat([k, more_keys], 1), torch.cat([v, more_values], 1)
            mask, padding = (None if part is None else F.pad(part, (0, 1)) for part in (mask, padding))
        if padding is not None:
            padding = padding[:, None, None]
            mask = padding if mask is None else mask + padding
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            result = weights @ v
        else:
            result = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        result = self.out_proj(result.transpose(1, 2).flatten(2))
        result = result[0] if alone else result if self.batch_first else result.transpose(0, 1)
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights[0] if alone else weights
        return result, weights

    def _more(self, keys: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keys and values, (batch, 1, embed_dim), that are added at the end."""
        found = []
        if self.bias_k is not None and self.bias_v is not None:
            found.append((self.bias_k.expand(keys.shape[0], -1, -1), self.bias_v.expand(keys.shape[0], -1, -1)))
        if self.add_zero_attn:
            zeros = torch.zeros_like(keys[:, :1])
            found.append((zeros, zeros))
        return found

    def stored_tensors(self) -> dict[str, Tensor]:
        """Those that are not of its layers, which count for themselves."""
        return {name: parameter.detach() for name, parameter in self.named_parameters(recurse=False)}


def with_plain_attention(model: nn.Module, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> nn.Module:
    """The model itself, or a copy in which each `nn.MultiheadAttention` with a layer that is selected is plain.

    A module stays as it is if a tensor of it is also one of another module, or if it is of a class of its own.

    Args:
        model: is not changed.
        include: patterns of names of modules, such as "encoder.layers.0.self_attn.q_proj"; by default all.
        exclude: patterns of names of modules.
    """
    found = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.MultiheadAttention and _is_selected(name, include, exclude) and not _shares(model, name)
    ]
    if not found:
        return model
    model = copied(model)
    for name in found:
        model = replace_module(model, name, PlainAttention(model.get_submodule(name)))
    return model


def _is_selected(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    layers = [f"{name}.{layer}".lstrip(".") for layer in _LAYERS]
    return any((not include or matches(layer, include)) and not matches(layer, exclude) for layer in layers)


def _shares(model: nn.Module, name: str) -> bool:
    """Whether a tensor of a module is also one of another module."""
    module = model.get_submodule(name)
    own = tuple(f"{other}." if other else "" for other, same in model.named_modules(remove_duplicate=False) if same is module)
    within = ([one.startswith(own) for one in names] for names in all_names(model).values())
    return any(any(inside) and not all(inside) for inside in within)


def _added(mask: Tensor | None, query: Tensor, other: Tensor | None) -> Tensor | None:
    """A mask as numbers that are added to scores, checked as torch does."""
    found: Tensor | None = F._canonical_mask(
        mask=mask,
        mask_name="mask",
        other_type=F._none_or_dtype(other),
        other_name="attn_mask",
        target_type=query.dtype,
        check_other=other is not None,
    )
    return found


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device="meta")
    layer.weight = _copy(weight)
    if bias is not None:
        layer.bias = _copy(bias)
    return layer


def _copy(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
