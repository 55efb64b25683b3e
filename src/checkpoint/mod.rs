//! Checkpoints in: safetensors files, mapped into memory, their headers validated wholly before any tensor is touched.
