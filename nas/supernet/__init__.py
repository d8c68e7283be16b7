"""Weight-sharing supernets: shared weights, training, evaluation and ranking quality."""
