//! Decoder descriptions, LoRA, and the explicit forward and backward of a decoder.
