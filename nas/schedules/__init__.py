"""The hand-written TVM schedules of kernels, for processors (`cpu`) and NVIDIA GPUs (`cuda`)."""
