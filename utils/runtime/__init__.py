"""The machine: Jittor, CUDA, processes, threads, files, errors and command lines."""
