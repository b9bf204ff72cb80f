"""The real twistd as a process, asked by clients that share no code with it."""
