"""Networks: built, loaded, saved and described."""
