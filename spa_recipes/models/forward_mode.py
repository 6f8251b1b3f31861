"""Values and their derivatives along an update, through any Hugging Face model, in one pass.

torch's forward mode carries the derivatives; this module gives weights their direction, and the products and attention
rules of their own. Everything else is float32 at least: sums of the residual stream, norms, activations.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad
from torch.nn.functional import embedding, group_norm, layer_norm, linear, rms_norm, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from transformers import PreTrainedModel

from spa_recipes.algo.logps import LmHead, at_least_fp32, logps_dtype
from spa_recipes.algo.tangents import Dual, Move, MovingWeight, Thin, attention, moving_linear, moving_weight
from spa_recipes.errors import StageError


class NoForwardModeError(StageError):
    """An operation of the model has no derivative in forward mode."""


_CONSTANT = {
    *(torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like, torch.sign, torch.round),
    *(getattr(torch.Tensor, name) for name in ("new_zeros", "new_ones", "new_full", "new_empty", "sign", "round")),
    *(torch._make_dual, torch._unpack_dual),
}
"""What may give floating-point numbers that do not move with the input."""


def make_dual(value: torch.Tensor, tangent: torch.Tensor) -> torch.Tensor:
    """A tensor that carries its tangent."""
    dual: torch.Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def unpack(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A tensor and its tangent; None where it does not move."""
    value, tangent = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return value, tangent


def dual_of(tensor: torch.Tensor) -> Dual:
    """A tensor and its tangent; zeros where it does not move."""
    value, tangent = unpack(tensor)
    return Dual(value, torch.zeros_like(value) if tangent is None else tangent)


class MovingHead(NamedTuple):
    """An output layer on its way, as `algo.tangents` takes it.

    Attributes:
        head: its weight is that at the start of the direction, its bias that at the place.
        move: the direction of its weight.
        bias_tangent: that of its bias, (V,).
    """

    head: LmHead
    move: Move
    bias_tangent: torch.Tensor | None


class Moving:
    """The weights of a model at one place along an update.

    Args:
        model: the reference.
        moves: by the name of a parameter.
        at: how far along.
    """

    def __init__(self, model: PreTrainedModel, moves: Mapping[str, Move], at: float) -> None:
        self.at = at
        self.dtype: torch.dtype = model.get_input_embeddings().weight.dtype
        self._moves = {id(weight): moves.get(name) for name, weight in model.named_parameters()}
        self._still: dict[int, torch.Tensor] = {id(weight): weight.detach() for weight in model.parameters()}
        self._small: dict[int, torch.Tensor] = {}

    def move(self, weight: torch.Tensor) -> Move:
        """The direction of a parameter."""
        return self._moves[id(weight)]

    def still(self, weight: torch.Tensor) -> torch.Tensor:
        """A parameter as a plain tensor, which the mode leaves alone."""
        return self._still[id(weight)]

    def hidden(self, hidden_ND: torch.Tensor, head: LmHead) -> Dual:
        """The model's last hidden states with their tangent.

        Raises:
            StageError: they have none, though more than the output layer moves.
        """
        value_ND, tangent_ND = unpack(hidden_ND)
        if tangent_ND is None and any(move is not None for one, move in self._moves.items() if one != id(head.weight)):
            raise no_tangent("of the hidden states is missing")
        return Dual(value_ND, torch.zeros_like(value_ND) if tangent_ND is None else tangent_ND)

    def head(self, head: LmHead) -> MovingHead:
        """The model's output layer; `head` holds the parameters themselves."""
        still, bias_tangent_V = head._replace(weight=self.still(head.weight)), None
        if head.bias is not None:
            bias_V, bias_tangent_V = unpack(self.whole(head.bias))
            still = still._replace(bias=bias_V)
        return MovingHead(still, self.move(head.weight), bias_tangent_V)

    def knows(self, weight: object) -> bool:
        """Whether this is a parameter of the model."""
        return id(weight) in self._moves

    def whole(self, weight: torch.Tensor) -> torch.Tensor:
        """A parameter with its tangent, in float32 at least, where exact values between the ends of a move exist."""
        if id(weight) not in self._small:
            move = self.move(weight)
            if isinstance(move, Thin):
                move = move.up @ move.down
            value = at_least_fp32(weight.detach())
            if move is not None:
                move = at_least_fp32(move)
                value = make_dual(torch.add(value, move, alpha=self.at), move)
            self._small[id(weight)] = value
        return self._small[id(weight)]


class ForwardMode(TorchFunctionMode):
    """Gives every operation of a model's forward pass the weights of `moving` and their tangents."""

    def __init__(self, moving: Moving) -> None:
        super().__init__()
        self._moving = moving
        self._last: tuple[torch.Tensor, Dual] | None = None  # queries, keys and values are made of one input

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        own = self._own_rule(func)
        if own is not None and self._moving.knows(args[own[0]] if len(args) > own[0] else kwargs.get("weight")):
            return own[1](*args, **kwargs)
        if func is _DTYPE and self._moving.knows(args[0]):
            return logps_dtype(_DTYPE(args[0]))
        if func not in _ABOUT:
            args = tuple(map(self._moved, args))
            kwargs = {name: self._moved(argument) for name, argument in kwargs.items()}
        if func is scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is linear and any(map(_moves, args[:2])):
            return _linear(*args, **kwargs)
        if func in _FACTORS and not kwargs:
            return _product_of(*args)
        if func in _POWERS and not kwargs and isinstance(args[1], int | float) and args[1] == 2:
            return _product_of(args[0], args[0])
        if func in _IN_ONE_PRECISION and len({arg.dtype for arg in args if isinstance(arg, torch.Tensor)}) > 1:
            args = tuple(at_least_fp32(arg) if isinstance(arg, torch.Tensor) else arg for arg in args)
        try:
            result = func(*args, **kwargs)
        except NotImplementedError as error:
            raise refusal(error, func.__name__) from error
        if func not in _CONSTANT and func not in _ABOUT:
            _refuse_a_lost_tangent(func, (*args, *kwargs.values()), result)
        return result

    def _own_rule(self, func: Callable[..., Any]) -> tuple[int, Callable[..., torch.Tensor]] | None:
        """Where an operation takes a weight, and the rule for it."""
        if func is linear:
            return 1, self._linear
        if func is embedding:
            return 1, self._embedding
        if func is torch.addmm:
            return 2, self._addmm
        return (0, self._rows) if func is torch.Tensor.__getitem__ else None

    def _linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return self._product(x, weight.detach(), self._moving.move(weight), bias)

    def _addmm(self, bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """GPT-2 keeps its weights as (I, O)."""
        move = self._moving.move(weight)
        move = Thin(move.up.T, move.down.T) if isinstance(move, Thin) else None if move is None else move.T
        return self._product(x, weight.detach().T, move, bias)

    def _product(self, x: torch.Tensor, weight: torch.Tensor, move: Move, bias: torch.Tensor | None) -> torch.Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, Dual(*(part.to(weight.dtype).flatten(0, -2) for part in dual_of(x)))
        layer = moving_weight(weight, move, self._moving.at)
        product = make_dual(*moving_linear(self._last[1], layer)).view(*x.shape[:-1], -1)
        return product if bias is None else product + self._moved(bias)

    def _embedding(self, ids: torch.Tensor, weight: torch.Tensor, *settings: Any, **more: Any) -> torch.Tensor:
        value, move = at_least_fp32(embedding(ids, weight.detach())), self._moving.move(weight)
        if move is None:
            return value
        moved = at_least_fp32(linear(move.up[ids], move.down.T) if isinstance(move, Thin) else embedding(ids, move))
        return make_dual(torch.add(value, moved, alpha=self._moving.at), moved)

    def _rows(self, weight: torch.Tensor, index: Any) -> torch.Tensor:
        """A part of a weight, such as an expert's; it stays in the precision of products."""
        move = self._moving.move(weight)
        value: torch.Tensor = weight.detach()[index]
        if move is None:
            return value
        moved = (move.up @ move.down if isinstance(move, Thin) else move)[index]
        return make_dual(torch.add(value, moved, alpha=self._moving.at), moved)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is not None and _moves(attn_mask):
            raise refusal(None, "scaled_dot_product_attention with a mask of learned numbers")
        states = (Dual(*(part.to(self._moving.dtype) for part in dual_of(state))) for state in (query, key, value))
        return make_dual(*attention(*states, mask=attn_mask, causal=is_causal, scale=scale))

    def _moved(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple) and any(map(self._moving.knows, argument)):
            return type(argument)(map(self._moved, argument))
        return self._moving.whole(argument) if self._moving.knows(argument) else argument


_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]
_ABOUT = {
    getter.__get__
    for name in dir(torch.Tensor)
    if inspect.isgetsetdescriptor(getter := inspect.getattr_static(torch.Tensor, name))
    and name not in ("T", "H", "mT", "mH", "real", "imag", "data")
} | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point, torch.is_floating_point}
"""What tells something about a tensor, and computes nothing."""


_FACTORS = {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__}
_POWERS = {torch.pow, torch.Tensor.pow, torch.Tensor.__pow__}
_IN_ONE_PRECISION = {
    *(torch.matmul, torch.bmm, torch.baddbmm, layer_norm, group_norm, rms_norm),
    *(torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.bmm, torch.Tensor.baddbmm),
}
"""What refuses tensors of two precisions. The model itself has one."""


def _product_of(a: Any, b: Any) -> torch.Tensor:
    """`a * b`, elementwise; torch's own rule adds zeros for what does not move.

    What does not move takes the precision of what does, such as rotary embeddings' sines that of queries.
    """
    (a, da), (b, db) = (unpack(part) if _is_floating(part) else (part, None) for part in (a, b))
    if da is not None and db is not None:
        if a.dtype != b.dtype:
            a, da, b, db = map(at_least_fp32, (a, da, b, db))
        return make_dual(a * b, torch.addcmul(a * db, da, b))
    if da is None and db is None:
        product: torch.Tensor = a * b
        return product
    moving, tangent, still = (a, da, b) if db is None else (b, db, a)
    if _is_floating(still):
        still = still.to(moving.dtype)
    return make_dual(moving * still, tangent * still)


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer whose weight was computed, or is a part of one, such as an expert's."""
    (weight, move), (value, tangent) = unpack(weight), dual_of(x)
    still = MovingWeight(weight, move, 0.0)
    inputs = Dual(*(part.to(weight.dtype).flatten(0, -2) for part in (value, tangent)))
    product = make_dual(*moving_linear(inputs, still)).view(*x.shape[:-1], -1)
    return product if bias is None else product + bias


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _moves(tensor: torch.Tensor) -> bool:
    return _is_floating(tensor) and unpack(tensor)[1] is not None


def _refuse_a_lost_tangent(func: Callable[..., Any], arguments: Sequence[Any], result: Any) -> None:
    """Fused kernels compute values and no tangents, without an error."""
    if any(part.is_floating_point() and not _moves(part) for part in _tensors_of([result])) and any(
        map(_moves, _tensors_of(arguments))
    ):
        raise refusal(None, func.__name__)


def _tensors_of(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors among values, and in lists and tuples among them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_of(value)


def refusal(error: BaseException | None, operation: str) -> NoForwardModeError:
    """The error about an operation, by the name that torch gives it where it does."""
    named = re.search(r"forward AD with (\S+)", str(error))
    return NoForwardModeError(
        f"{named[1] if named else operation} has no derivative in forward mode",
        fix="set judge.method to difference and model.dtype to float32",
    )


@contextmanager
def derivatives(moving: Moving) -> Iterator[None]:
    """Surround a forward pass of the model that carries derivatives along the update.

    Raises:
        NoForwardModeError: an operation of the model has no derivative in forward mode.
    """
    try:
        with torch.inference_mode(False), torch.no_grad(), ForwardMode(moving):
            yield
    except (NotImplementedError, RuntimeError) as error:
        if "jvp" not in str(error) and "forward AD" not in str(error):
            raise
        raise refusal(error, _function_of(error)) from error


def own_rules() -> AbstractContextManager[Any]:
    """Surround operations inside `derivatives` that carry no derivative but compute it: nothing has to watch them."""
    return _pop_mode_temporarily()


@contextmanager
def one_expert_at_a_time(model: PreTrainedModel) -> Iterator[None]:
    """A mixture's grouped products have no derivative in forward mode; its experts by themselves have."""
    config = model.config.get_text_config()
    own = getattr(config, "_experts_implementation", None)
    if own is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = own


def _function_of(error: BaseException) -> str:
    """The `torch.autograd.Function` that an error comes from, whose message names none."""
    trace = error.__traceback__
    name = "a function of the model"
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("cls")
        name = owner.__name__ if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) else name
        trace = trace.tb_next
    return name


def no_tangent(what: str) -> StageError:
    """An operation that computes values alone gives no error by itself."""
    return StageError(
        f"the derivative along the update {what}: the model has an operation that carries none",
        fix="set model.dtype to float32, and judge.method to difference where it is tangent",
    )
