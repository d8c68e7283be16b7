"""TVM schedules for NVIDIA GPUs."""
