import torch

# Two threads that wait for each other are many times slower where other tests run beside them.
torch.set_num_threads(1)
