"""Peak arithmetic of GPUs: dense bfloat16 with tensor cores, from NVIDIA's data sheets.

The sheets print figures with sparsity, twice these, where a footnote says so.
"""

from __future__ import annotations

PEAKS: list[tuple[str, float, str]] = [  # a part of torch's name of the device; FLOP/s; the source. The first that fits
    ("H200", 989.4e12, "NVIDIA H200 data sheet, SXM (1,979 TFLOPS with sparsity)"),
    ("H100 PCIe", 756e12, "NVIDIA H100 data sheet, PCIe (1,513 TFLOPS with sparsity)"),
    ("H100 NVL", 835e12, "NVIDIA H100 data sheet, NVL (1,671 TFLOPS with sparsity)"),
    ("H100", 989.4e12, "NVIDIA H100 data sheet, SXM (1,979 TFLOPS with sparsity)"),
    ("A100", 312e12, "NVIDIA A100 data sheet (624 TFLOPS with sparsity)"),
    ("L40S", 362e12, "NVIDIA L40S data sheet (733 TFLOPS with sparsity)"),
]


def peak_of(device: str) -> tuple[float, str] | None:
    """FLOP/s and their source; None for a GPU that is not in the table."""
    return next(((peak, source) for part, peak, source in PEAKS if part in device), None)
