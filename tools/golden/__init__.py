"""Golden files: what transformers, PEFT, bitsandbytes, TRL and torch answer on tiny random models."""
