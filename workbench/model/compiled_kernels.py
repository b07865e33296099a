"""``Kernels`` that torch.compile makes out of the eager ones, for ``model.compile: true``.

Compilation happens at the first call with each kind of shape. Sums over rows of equal id are not
compiled: their shapes change with every step.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from workbench.errors import ConfigError
from workbench.model.kernels import EagerKernels

_COMPILERS = ("g++", "c++", "clang++", "gcc", "cc", "clang")


class CompiledKernels:
    """``Kernels`` compiled by torch.compile; see ``Kernels`` for what each does.

    Args:
        device: where the tensors will be.

    Raises:
        ConfigError: torch.compile has no compiler here; later also when compiling failed.
    """

    def __init__(self, device: torch.device) -> None:
        if not any(map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))):
            raise ConfigError(
                f"torch.compile finds no C++ compiler for {device.type} here",
                where="model.compile",
                remedy="install g++ or clang++, or set model.compile: false",
            )
        eager = EagerKernels()
        self._add_rows = eager.add_rows
        self._norm = _compiled(eager.norm)
        self._norm_backward = _compiled(eager.norm_backward)
        self._rotate = _compiled(eager.rotate)
        self._pack_rotated_back = _compiled(eager.pack_rotated_back)
        self._norm_heads = _compiled(eager.norm_heads)
        self._norm_heads_backward = _compiled(eager.norm_heads_backward)
        self._add_bias = _compiled(eager.add_bias)
        self._add_columns = _compiled(eager.add_columns)
        self._gated_product = _compiled(eager.gated_product)
        self._gated_product_backward = _compiled(eager.gated_product_backward)
        self._losses = _compiled(eager.cross_entropy)
        self._losses_and_gradient = _compiled(_cross_entropy)

    def norm(self, x_TD: Tensor, weight_D: Tensor, epsilon: float, *, out_TD: Tensor) -> None:
        """See ``Kernels.norm``."""
        self._norm(x_TD, weight_D, epsilon, out_TD=out_TD)

    def norm_backward(
        self,
        gradient_TD: Tensor,
        x_TD: Tensor,
        weight_D: Tensor,
        epsilon: float,
        *,
        onto_TD: Tensor,
        weight_sum_D: Tensor,
    ) -> None:
        """See ``Kernels.norm_backward``."""
        self._norm_backward(
            gradient_TD, x_TD, weight_D, epsilon, onto_TD=onto_TD, weight_sum_D=weight_sum_D
        )

    def rotate(
        self, qkv_TE: Tensor, cosine_TR: Tensor, sine_TR: Tensor, *, num_heads: int, head_dim: int
    ) -> None:
        """See ``Kernels.rotate``."""
        self._rotate(qkv_TE, cosine_TR, sine_TR, num_heads=num_heads, head_dim=head_dim)

    def pack_rotated_back(
        self,
        dq_THR: Tensor,
        dk_TKR: Tensor,
        dv_TKR: Tensor,
        cosine_TR: Tensor,
        sine_TR: Tensor,
        *,
        out_TE: Tensor,
    ) -> None:
        """See ``Kernels.pack_rotated_back``."""
        self._pack_rotated_back(dq_THR, dk_TKR, dv_TKR, cosine_TR, sine_TR, out_TE=out_TE)

    def norm_heads(self, x_TN: Tensor, weight_R: Tensor, epsilon: float, *, out_TN: Tensor) -> None:
        """See ``Kernels.norm_heads``."""
        self._norm_heads(x_TN, weight_R, epsilon, out_TN=out_TN)

    def norm_heads_backward(
        self,
        gradient_TN: Tensor,
        x_TN: Tensor,
        weight_R: Tensor,
        epsilon: float,
        *,
        weight_sum_R: Tensor,
    ) -> None:
        """See ``Kernels.norm_heads_backward``."""
        self._norm_heads_backward(gradient_TN, x_TN, weight_R, epsilon, weight_sum_R=weight_sum_R)

    def add_bias(self, x_TN: Tensor, bias_N: Tensor) -> None:
        """See ``Kernels.add_bias``."""
        self._add_bias(x_TN, bias_N)

    def add_columns(self, gradient_TN: Tensor, *, onto_N: Tensor) -> None:
        """See ``Kernels.add_columns``."""
        self._add_columns(gradient_TN, onto_N=onto_N)

    def gated_product(self, gate_up_T2F: Tensor, *, out_TF: Tensor) -> None:
        """See ``Kernels.gated_product``."""
        self._gated_product(gate_up_T2F, out_TF=out_TF)

    def gated_product_backward(self, gate_up_T2F: Tensor, product_TF: Tensor) -> None:
        """See ``Kernels.gated_product_backward``."""
        self._gated_product_backward(gate_up_T2F, product_TF)

    def cross_entropy(
        self,
        logits_CV: Tensor,
        labels_C: Tensor,
        scale: float | None,
        *,
        losses_C: Tensor,
        correct_C: Tensor | None = None,
    ) -> None:
        """See ``Kernels.cross_entropy``."""
        if scale is None:
            self._losses(logits_CV, labels_C, None, losses_C=losses_C, correct_C=correct_C)
            return
        # As a tensor: a number that differs in every step would be compiled into the kernel.
        scale_1 = torch.full((1,), scale, dtype=torch.float32, device=logits_CV.device)
        self._losses_and_gradient(logits_CV, labels_C, scale_1, losses_C, correct_C)

    def add_rows(
        self,
        gradient_SD: Tensor,
        order_S: Tensor,
        begins_K1: Tensor,
        ids_K: Tensor,
        *,
        onto_VD: Tensor,
    ) -> None:
        """See ``Kernels.add_rows``."""
        self._add_rows(gradient_SD, order_S, begins_K1, ids_K, onto_VD=onto_VD)


def _cross_entropy(
    logits_CV: Tensor,
    labels_C: Tensor,
    scale_1: Tensor,
    losses_C: Tensor,
    correct_C: Tensor | None,
) -> None:
    EagerKernels().cross_entropy(
        logits_CV,
        labels_C,
        scale_1,  # type: ignore[arg-type]
        losses_C=losses_C,
        correct_C=correct_C,
    )


def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function at its first call, and say what to do when that fails."""
    made = torch.compile(function)

    def call(*arguments: Any, **named: Any) -> None:  # noqa: ANN401
        try:
            made(*arguments, **named)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ConfigError(
                f"torch.compile failed: {str(error).strip().splitlines()[0]}",
                where="model.compile",
                remedy="set model.compile: false",
            ) from error

    return call
