"""Hand-written TVM schedules of kernels, for CPUs (`cpu`) and NVIDIA GPUs (`cuda`).

`docs/schedules.md` describes how a schedule is made and measured.
"""
