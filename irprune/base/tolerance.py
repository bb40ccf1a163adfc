"""The tolerances of all checks, in one place, each with its reason. Errors are relative to an
output's largest magnitude."""

from __future__ import annotations

__all__ = [
    "CANCELLED",
    "CAPTURE",
    "FAINT",
    "FLOAT32",
    "FLOAT64",
    "GRADIENT",
    "GRADIENT32",
    "GRADIENT_FLOOR",
    "GRADIENT_FLOOR32",
    "LEAST_RANGE",
    "LEAST_RANGE64",
    "PARITY",
    "PARITY_HALF",
]

# A cut model sums fewer terms in another order than the silenced original: float32 differs by 1e-7
# to 1e-5 on networks of
# usual depth. A wrong index differs by 1e-2 and more.
FLOAT32 = 1e-4

# The same sums in float64. What is above this was no rounding.
FLOAT64 = 1e-9

# A number in float64 that is left of larger ones, as the logarithm of a determinant near 1, has
# their rounding: below this share of the largest output it is compared with that share.
CANCELLED = 1e-5

# Two runtimes with other kernels and fusions for the same float32 model.
PARITY = 1e-4

# The same in 16-bit floats, each of whose results is rounded to 1e-3 (float16) or 8e-3 (bfloat16).
PARITY_HALF = 3e-2

# The captured graph runs the same kernels as forward, up to fused ones that forward may pick.
CAPTURE = 1e-4

# Gradients in float64: more and longer sums than in forward, still no rounding that shows.
GRADIENT = 1e-7

# Gradients in float32, where forward runs in nothing else: a ReLU that rounds to the other side of
# 0 moves a sum by one of its terms.
GRADIENT32 = 1e-2

# Gradients below this share of the largest one of all are compared with that share of it.
GRADIENT_FLOOR = 1e-5
GRADIENT_FLOOR32 = 1e-2

# Outputs below this share of what the original gives are compared with that share of it: kernels
# round a sigmoid to 1e-7 of its range, however small it is.
FAINT = 1e-2

# A channel whose values vary by less than this share of their size is compared as if it varied by
# as much: in float32 the rounding of sums is 1e-5 of their size, in float64 1e-13.
LEAST_RANGE = 0.1
LEAST_RANGE64 = 1e-3
