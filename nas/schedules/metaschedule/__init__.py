"""Kernels tuned by TVM's MetaSchedule instead of chosen from templates; it takes minutes each."""
