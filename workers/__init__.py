"""The data plane: everything that touches an accelerator."""
