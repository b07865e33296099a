import shutil

import pytest
import torch

from tests.model.kernel_cases import (
    bias_results,
    expected_losses,
    gated_results,
    head_norm_results,
    logits_case,
    poisoned,
    relative_error,
)
from workbench.model.kernel_choice import choose_kernels

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def test_compiled_kernels_agree_with_float64() -> None:
    torch.manual_seed(4)
    kernels = choose_kernels(CPU, compiled=True)
    for name, found, expected in gated_results(kernels, 7, 40, torch.float32, CPU):
        assert relative_error(found, expected) < 1e-6, name
    for name, found, expected in head_norm_results(kernels, 7, 3, 16, torch.float32, CPU):
        assert relative_error(found, expected) < 1e-6, name
    for name, found, expected in bias_results(kernels, 7, 40, torch.float32, CPU):
        assert relative_error(found, expected) < 1e-6, name


def test_a_scale_that_differs_in_each_step_is_compiled_once() -> None:
    torch.manual_seed(5)
    kernels = choose_kernels(CPU, compiled=True)
    logits, labels = logits_case(6, 50, torch.float32, CPU)
    for scale in (0.5, 0.25, 0.125):
        found, losses = logits.clone(), poisoned(6, dtype=torch.float32, device=CPU)
        with torch._dynamo.config.patch(error_on_recompile=True):
            kernels.cross_entropy(found, labels, scale, losses_C=losses)
        expected = expected_losses(logits, labels, scale)
        assert relative_error(losses, expected.losses) < 1e-6
        assert relative_error(found, expected.logits) < 1e-6
