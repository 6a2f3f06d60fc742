from __future__ import annotations

import pytest
import torch

from train.muon import Muon, orthogonalize

# where five rounds of Jordan's quintic leave the singular values of a random rectangular matrix
LOWEST, HIGHEST = 0.6, 1.2
# float32 through five rounds of matrix products
FLOAT_TOLERANCE = 1e-4
# PyTorch's own Muon iterates in bfloat16 (8 bits of mantissa)
BFLOAT16_TOLERANCE = 0.03


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (32, 288), (8, 27)])
def test_orthogonalizing_brings_all_singular_values_near_one(shape):
    matrices = torch.randn(3, *shape) * torch.tensor([1e-4, 1, 1e4]).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.min() > LOWEST
    assert values.max() < HIGHEST


def test_orthogonalizing_keeps_the_singular_vectors():
    matrix = torch.randn(12, 40)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left.mT @ orthogonalize(matrix) @ right.mT
    off_diagonal = turned - torch.diag(turned.diag())
    assert off_diagonal.abs().max() < FLOAT_TOLERANCE
    assert turned.diag().min() > LOWEST  # the same way up, too


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalize(torch.zeros(4, 9)), torch.zeros(4, 9))


def test_the_first_step_is_the_gradient_made_orthogonal():
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    before, kernel.grad = kernel.detach().clone(), torch.randn(8, 4, 3, 3)
    Muon([kernel], lr=0.5).step()
    step = orthogonalize(kernel.grad.flatten(1)).view(8, 4, 3, 3)
    expected = before - 0.5 * 0.2 * 36**0.5 * step  # the larger side is 4 * 3 * 3
    torch.testing.assert_close(kernel.detach(), expected, rtol=0, atol=FLOAT_TOLERANCE)


def test_it_agrees_with_the_muon_of_pytorch():
    start = torch.randn(16, 72)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        ours.grad = torch.randn(16, 72)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < BFLOAT16_TOLERANCE


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (24, 16)])
def test_it_descends_a_quadratic(shape):
    target = torch.randn(shape)
    kernel = torch.nn.Parameter(torch.zeros(shape))
    optimizer = Muon([kernel], lr=0.1)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        error = (kernel - target).square().mean()
        error.backward()
        errors.append(error.item())
        optimizer.step()
    assert errors[-1] < errors[0] / 100


def test_kernels_of_one_shape_move_as_if_each_were_alone():
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (16, 8, 3, 3), (8, 36)]
    starts = [torch.randn(shape) for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]

    def stepped(indices):
        kernels = [torch.nn.Parameter(starts[i].clone()) for i in indices]
        for kernel, i in zip(kernels, indices, strict=True):
            kernel.grad = gradients[i].clone()
        Muon(kernels, lr=0.1).step()
        return [kernel.detach() for kernel in kernels]

    alone = [stepped([i])[0] for i in range(len(shapes))]
    for one, other in zip(stepped(range(len(shapes))), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=FLOAT_TOLERANCE)


def test_a_kernel_without_a_gradient_stays_put():
    kernel, other = (torch.nn.Parameter(torch.ones(4, 9)) for _ in range(2))
    other.grad = torch.randn(4, 9)
    Muon([kernel, other]).step()
    assert torch.equal(kernel, torch.ones(4, 9))
    assert not torch.equal(other, torch.ones(4, 9))


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match=r"takes matrices and kernels, got shape \(8,\)"):
        Muon([torch.nn.Parameter(torch.zeros(8))])


def test_a_closure_is_refused():
    with pytest.raises(ValueError, match="takes no closure"):
        Muon([torch.nn.Parameter(torch.zeros(4, 9))]).step(lambda: 0.0)
