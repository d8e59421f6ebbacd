"""The spectrum of training on MNIST, beside the study that counted 92.5 ± 11.6 singular values."""
